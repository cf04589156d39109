"""Qwen 3 and after: deepstack, mixtures of experts, linear attention."""

import transformers as hf

from .base import Model, Tiny, family
from .parts import MROPE, text
from .qwen import IDS, PROMPT, TOKENS, image

VISION = dict(
    depth=2, hidden_size=16, intermediate_size=24, num_heads=2, patch_size=4, spatial_merge_size=2,
    temporal_patch_size=2, out_hidden_size=32, num_position_embeddings=16,
)  # fmt: skip
DEEPSTACK = VISION | {"deepstack_visual_indexes": [0, 1]}
INTERLEAVED = MROPE | {"mrope_interleaved": True}
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
HYBRID = dict(
    num_key_value_heads=2, head_dim=16, layer_types=["linear_attention", "full_attention"],
    rope_parameters=INTERLEAVED | {"partial_rotary_factor": 0.5}, linear_key_head_dim=8, linear_value_head_dim=8,
    linear_num_key_heads=2, linear_num_value_heads=4,
)  # fmt: skip


def qwen3_vl() -> Model:
    layers = dict(num_hidden_layers=3, num_key_value_heads=2, head_dim=8, rope_parameters=INTERLEAVED)
    return hf.Qwen3VLForConditionalGeneration(
        hf.Qwen3VLConfig(vision_config=dict(DEEPSTACK), text_config=text("qwen3_vl_text", **layers), **IDS)
    )


def qwen3_vl_moe() -> Model:
    layers = dict(num_hidden_layers=3, num_key_value_heads=2, head_dim=8, rope_parameters=INTERLEAVED)
    return hf.Qwen3VLMoeForConditionalGeneration(
        hf.Qwen3VLMoeConfig(
            vision_config=dict(DEEPSTACK), text_config=text("qwen3_vl_moe_text", **layers, **EXPERTS), **IDS
        )
    )


def qwen3_5() -> Model:
    return hf.Qwen3_5ForConditionalGeneration(
        hf.Qwen3_5Config(vision_config=dict(VISION), text_config=text("qwen3_5_text", **HYBRID), **IDS)
    )


def qwen3_5_moe() -> Model:
    experts = EXPERTS | {"shared_expert_intermediate_size": 16}
    return hf.Qwen3_5MoeForConditionalGeneration(
        hf.Qwen3_5MoeConfig(
            vision_config=dict(VISION), text_config=text("qwen3_5_moe_text", **HYBRID, **experts), **IDS
        )
    )


ROWS: list[Tiny] = [
    family(
        "qwen3_vl", qwen3_vl, PROMPT, TOKENS, image, types="mm_token_type_ids",
        traits="rmsnorm gated gqa qk_norm mrope deepstack", decoder="model.language_model",
        marks="decoder_extras",
    ),
    family(
        "qwen3_vl_moe", qwen3_vl_moe, PROMPT, TOKENS, image, types="mm_token_type_ids",
        traits="rmsnorm gated gqa qk_norm mrope deepstack moe", decoder="model.language_model",
        marks="decoder_extras",
    ),
    family(
        "qwen3_5", qwen3_5, PROMPT, TOKENS, image, types="mm_token_type_ids",
        traits="rmsnorm_1p gated gqa qk_norm mrope linear_attention", decoder="model.language_model",
    ),
    family(
        "qwen3_5_moe", qwen3_5_moe, PROMPT, TOKENS, image, types="mm_token_type_ids",
        traits="rmsnorm_1p gated gqa qk_norm mrope linear_attention moe", decoder="model.language_model",
    ),
]  # fmt: skip
