"""Mixtures of experts beyond Qwen and GLM: chunked attention, compressed K/V."""

import torch
import transformers as hf
from torch import Tensor

from .base import Model, Tensors, Tiny, family, seeded
from .parts import IMAGE, LEAD, MROPE, TAIL, VIDEO, VISION_END, VISION_START, patches, pixels, text
from .tower import IDEFICS3_VISION

TOKENS = {"image": IMAGE}


def aria() -> Model:
    words = text("aria_text", num_key_value_heads=2, moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1)
    return hf.AriaForConditionalGeneration(
        hf.AriaConfig(
            vision_config=IDEFICS3_VISION | {"model_type": "idefics3_vision"}, text_config=words,
            projector_patch_to_query_dict={16: 4}, image_token_index=IMAGE,
        )
    )  # fmt: skip


def llama4() -> Model:
    vision = dict(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=16, patch_size=4,
        vision_output_dim=24, projector_input_dim=24, projector_output_dim=24,
    )  # fmt: skip
    words = text(
        "llama4_text", num_key_value_heads=2, head_dim=8, intermediate_size_mlp=48, num_local_experts=4,
        num_experts_per_tok=1, interleave_moe_layer_step=2, no_rope_layers=[1, 0], attention_chunk_size=8,
        floor_scale=8, attn_scale=0.5,
    )  # fmt: skip
    return hf.Llama4ForConditionalGeneration(
        hf.Llama4Config(
            vision_config=vision, text_config=words, boi_token_index=3, eoi_token_index=4, image_token_index=5
        )
    )


def kimi_k25() -> Model:
    vision = dict(
        patch_size=4, pos_emb_height=4, pos_emb_width=4, pos_emb_time=2, num_attention_heads=2, num_hidden_layers=2,
        hidden_size=16, intermediate_size=24,
    )  # fmt: skip
    words = text(
        "deepseek_v3", q_lora_rank=16, kv_lora_rank=12, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=8,
        n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1, n_shared_experts=1,
        moe_intermediate_size=16, first_k_dense_replace=1,
    )  # fmt: skip
    return hf.Kimi_K25ForConditionalGeneration(
        hf.Kimi_K25Config(
            vision_config=vision, text_config=words, projection_hidden_size=16, image_token_id=IMAGE,
            video_token_id=VIDEO, tie_word_embeddings=False,
        )
    )  # fmt: skip


def kimi_image(seed: int) -> Tensors:
    return {"pixel_values": seeded(seed, 32, 3, 4, 4), "image_grid_thw": torch.tensor([[1, 4, 8]])}


def ernie4_5_vl_moe() -> Model:
    vision = dict(depth=2, hidden_size=16, num_heads=2, patch_size=4, intermediate_size=24)
    words = text(
        "ernie4_5_vl_moe_text", num_key_value_heads=2, moe_intermediate_size=[16, 12], moe_k=2, moe_num_experts=4,
        moe_num_shared_experts=1, mlp_layer_types=["dense", "sparse"],
        rope_parameters=MROPE | {"mrope_section": [1, 1, 2]},
    )  # fmt: skip
    return hf.Ernie4_5_VLMoeForConditionalGeneration(
        hf.Ernie4_5_VLMoeConfig(
            vision_config=vision, text_config=words, image_token_id=IMAGE, video_token_id=VIDEO,
            image_start_token_id=VISION_START, image_end_token_id=VISION_END, tie_word_embeddings=False,
        )
    )  # fmt: skip


def by_modality(ids: Tensor, mask: Tensor) -> Tensors:
    """Ernie routes image positions to experts of their own."""
    kinds = (ids == IMAGE).long()
    return {"mm_token_type_ids": kinds, "moe_mm_token_type_ids": kinds}


ROWS: list[Tiny] = [
    family(
        "aria", aria, (*LEAD, ("image", 4), *TAIL), TOKENS, pixels,
        traits="rmsnorm gated gqa moe", decoder="model.language_model",
    ),
    family(
        "llama4", llama4, (*LEAD, ("image", 4), *TAIL), TOKENS, pixels,
        traits="rmsnorm gated gqa qk_norm moe chunked", decoder="language_model.model",
        notes="Query and key are L2-normalised on the rotary (chunked) layer; the layer without rotary positions "
        "scales its queries by their slot, padding included, so left padding moves the steps of that scale.",
    ),
    family(
        "kimi_k25", kimi_k25, (*LEAD, ("image", 8), *TAIL), TOKENS, kimi_image,
        traits="rmsnorm gated moe mla", decoder="model.language_model", notes="DeepSeek-V3 text.",
    ),
    family(
        "ernie4_5_vl_moe", ernie4_5_vl_moe, (*LEAD, VISION_START, ("image", 8), VISION_END, *TAIL), TOKENS,
        lambda seed: patches(seed, 1, 4, 8, dim=48), extra=by_modality,
        traits="rmsnorm gated gqa moe mrope", decoder="model.language_model",
        notes="The decoder needs moe_mm_token_type_ids besides inputs_embeds: text and image have experts of their "
        "own.",
        marks="decoder_extras",
    ),
]  # fmt: skip
