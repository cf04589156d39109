"""Recent families: added rather than scattered features, features that enter deeper layers only, gated heads."""

from collections.abc import Sequence
from typing import Any

import torch
import transformers as hf

from .base import Model, Tensors, Tiny, family, seeded, stack
from .gemma import QUIET
from .gemma4 import COMMON, GLOBAL, LOCAL
from .gemma4 import PROMPT as GEMMA_PROMPT
from .gemma4 import TOKENS as GEMMA_TOKENS
from .parts import AUDIO, CLIP, IMAGE, LEAD, TAIL, VIDEO, patches, text
from .qwen import image
from .qwen3 import HYBRID

TOKENS = {"image": IMAGE}
VISION = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4
)
AXES = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 1, 1]}
MULTIPLIERS = dict(embedding_multiplier=2.0, residual_multiplier=0.6, attention_multiplier=0.3, logits_scaling=1.25)


def minicpmv4_6() -> Model:
    vision = VISION | {"insert_layer_id": 0, "window_kernel_size": (2, 2)}
    words: dict[str, Any] = text("qwen3_5_text", **HYBRID)
    words["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    return hf.MiniCPMV4_6ForConditionalGeneration(
        hf.MiniCPMV4_6Config(
            vision_config=vision, text_config=words, insert_layer_id=0, image_size=16, image_token_id=IMAGE,
            video_token_id=VIDEO,
        )
    )  # fmt: skip


def step3p7() -> Model:
    words = text(
        "step3p7_text", num_key_value_heads=2, head_dim=8, num_sliding_attention_heads=6, layer_types=[LOCAL, GLOBAL],
        sliding_window=8, mlp_layer_types=["dense", "sparse"], n_routed_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=16, share_expert_dim=16,
    )  # fmt: skip
    return hf.Step3p7ForConditionalGeneration(
        hf.Step3p7Config(
            vision_config=VISION | {"mlp_ratio": 2.0, "image_size": 32}, text_config=words, image_token_id=IMAGE
        )
    )


def molmo2() -> Model:
    vision = dict(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        head_dim=8, image_size=[16, 16], patch_size=4, num_position_embeddings=16,
    )  # fmt: skip
    adapter = dict(
        vision_feature_layer=[-1, -2], hidden_size=16, num_attention_heads=2, num_key_value_heads=2, head_dim=8,
        intermediate_size=24, text_hidden_size=32,
    )  # fmt: skip
    words = text("molmo2_text", num_key_value_heads=2, head_dim=8, additional_vocab_size=16)
    return hf.Molmo2ForConditionalGeneration(
        hf.Molmo2Config(
            vision_config=vision, adapter_config=adapter, text_config=words, image_patch_id=IMAGE,
            image_start_token_id=3, image_end_token_id=4, low_res_image_start_token_id=6, frame_start_token_id=8,
            frame_end_token_id=9, tie_word_embeddings=False,
        )
    )  # fmt: skip


def minimax_m3_vl() -> Model:
    vision = VISION | {"temporal_patch_size": 2, "spatial_merge_size": 2}
    words = text(
        "minimax_m3_vl_text", num_key_value_heads=2, head_dim=8, rotary_dim=4, num_local_experts=4,
        num_experts_per_tok=2, dense_intermediate_size=32, shared_intermediate_size=16,
        mlp_layer_types=["dense", "sparse"], layer_types=["full_attention"] * 2,
    )  # fmt: skip
    return hf.MiniMaxM3SparseForConditionalGeneration(
        hf.MiniMaxM3VLConfig(
            vision_config=vision, text_config=words, image_token_index=IMAGE, video_token_index=VIDEO,
            projector_hidden_size=32,
        )
    )  # fmt: skip


def hunyuan_vl() -> Model:
    vision = dict(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, patch_size=4,
        out_hidden_size=32, text_hidden_size=32, max_image_size=16, min_image_size=8,
    )  # fmt: skip
    return hf.HunYuanVLForConditionalGeneration(
        hf.HunYuanVLConfig(
            vision_config=vision, text_config=text("hunyuan_vl_text", num_key_value_heads=2, head_dim=8,
            rope_parameters=AXES),
            image_token_id=IMAGE, im_start_id=3, im_end_id=4, im_newline_id=8,
        )
    )  # fmt: skip


def exaone4_5() -> Model:
    vision = dict(
        depth=2, hidden_size=16, out_hidden_size=32, num_heads=2, num_key_value_heads=1, intermediate_size=24,
        patch_size=4, spatial_merge_size=2, temporal_patch_size=2, window_size=16, fullatt_block_indexes=[1],
    )  # fmt: skip
    words = text("exaone4", num_key_value_heads=2, layer_types=[LOCAL, GLOBAL], sliding_window=8)
    return hf.Exaone4_5_ForConditionalGeneration(
        hf.Exaone4_5_Config(vision_config=vision, text_config=words, image_token_id=IMAGE, video_token_id=VIDEO)
    )


def qianfan_ocr() -> Model:
    vision = VISION | {"image_size": [24, 24], "patch_size": [4, 4], "drop_path_rate": 0.0}
    return hf.QianfanOCRForConditionalGeneration(
        hf.QianfanOCRConfig(
            vision_config=vision, text_config=text("qwen3", num_key_value_heads=2, head_dim=8), image_token_id=IMAGE,
            tie_word_embeddings=False,
        )
    )  # fmt: skip


def gemma4_unified() -> Model:
    vision = dict(patch_size=4, pooling_kernel_size=2, mm_embed_dim=16, mm_posemb_size=16, output_proj_dims=16)
    return hf.Gemma4UnifiedForConditionalGeneration(
        hf.Gemma4UnifiedConfig(
            vision_config=vision, audio_config=None,
            text_config=text("gemma4_unified_text", layer_types=[LOCAL, GLOBAL], **COMMON), boi_token_id=3,
            eoi_token_id=4, image_token_id=IMAGE, video_token_id=VIDEO, audio_token_id=AUDIO, boa_token_id=8,
            eoa_token_index=9,
        )
    )  # fmt: skip


def granite4_vision() -> Model:
    qformer = dict(
        model_type="blip_2_qformer", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        encoder_hidden_size=16, cross_attention_frequency=1, use_qformer_text_input=False,
    )  # fmt: skip
    return hf.Granite4VisionForConditionalGeneration(
        hf.Granite4VisionConfig(
            vision_config=CLIP | {"hidden_size": 64, "num_hidden_layers": 1}, qformer_config=qformer,
            image_token_index=IMAGE, image_grid_pinpoints=[[16, 16]],
            text_config=text("granite4_vision_text", num_hidden_layers=3, num_key_value_heads=2, **MULTIPLIERS),
            downsample_rate="1/2", deepstack_layer_map=[[-1, 0], [-2, 1]], spatial_vision_layer=-1,
            spatial_target_layers=[2], tie_word_embeddings=False,
        )
    )  # fmt: skip


def granite_docling() -> Model:
    vision = VISION | {"out_hidden_size": 32, "scale_factor": 2, "deepstack_visual_indexes": [0, 1]}
    words = text("granite_docling_text", num_hidden_layers=3, num_key_value_heads=2, **MULTIPLIERS)
    return hf.GraniteDoclingForConditionalGeneration(
        hf.GraniteDoclingConfig(
            vision_config=vision, text_config=words, image_token_id=IMAGE, pad_token_id=0, tie_word_embeddings=False
        )
    )


def navit(seed: int) -> Tensors:
    """64 patches of 4 x 4 pixels side by side, a grid of 8 x 8."""
    return {"pixel_values": seeded(seed, 1, 3, 4, 4 * 64), "target_sizes": torch.tensor([[8, 8]], dtype=torch.int32)}


def side_by_side(rows: Sequence[Tensors]) -> Tensors:
    return {
        "pixel_values": torch.cat([row["pixel_values"] for row in rows], -1),
        "target_sizes": torch.cat([row["target_sizes"] for row in rows]),
    }


def pooled(seed: int) -> Tensors:
    """One crop of 4 x 4 patches, pooled 2 x 2; low resolution only."""
    index = torch.arange(16).reshape(2, 2, 2, 2).transpose(1, 2).reshape(4, 4)
    return {
        "pixel_values": seeded(seed, 1, 16, 48),
        "image_token_pooling": index,
        "image_grids": torch.tensor([[2, 2, 0, 0]]),
    }


def crops(rows: Sequence[Tensors]) -> Tensors:
    """The pooling index counts patches through the batch."""
    moved = [row | {"image_token_pooling": row["image_token_pooling"] + 16 * i} for i, row in enumerate(rows)]
    return stack(moved)


def tile(seed: int) -> Tensors:
    return {"pixel_values": seeded(seed, 1, 1, 3, 16, 16), "pixel_attention_mask": torch.ones(1, 1, dtype=torch.bool)}


def thumb(seed: int) -> Tensors:
    """A thumbnail and one tile."""
    return {"pixel_values": seeded(seed, 1, 2, 3, 16, 16), "image_sizes": torch.tensor([[16, 16]])}


def unified(seed: int) -> Tensors:
    grid = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="xy"), -1).reshape(1, 4, 2)
    return {"pixel_values": seeded(seed, 1, 4, 3 * 8 * 8), "image_position_ids": grid}


FOUR = (*LEAD, ("image", 4), *TAIL)
TEXT = "model.language_model"
NUMBERED = "images are numbered through the batch in one axis of the positions, so the second row is not itself alone"
ROWS: list[Tiny] = [
    family(
        "minicpmv4_6", minicpmv4_6, FOUR, TOKENS, navit, combine=side_by_side,
        traits="rmsnorm_1p gated gqa qk_norm linear_attention", decoder=TEXT,
    ),
    family(
        "step3p7", step3p7, FOUR, TOKENS, lambda s: {"pixel_values": seeded(s, 1, 3, 32, 32)},
        traits="rmsnorm_1p gated gqa qk_norm sliding moe", decoder=TEXT,
    ),
    family(
        "molmo2", molmo2, FOUR, TOKENS, pooled, combine=crops, types="mm_token_type_ids",
        traits="rmsnorm gated gqa qk_norm prefix_lm", decoder=TEXT,
    ),
    family(
        "minimax_m3_vl", minimax_m3_vl, (*LEAD, ("image", 8), *TAIL), TOKENS, image,
        traits="rmsnorm_1p gated gqa qk_norm moe fused_gate_up", decoder=TEXT,
    ),
    family(
        "hunyuan_vl", hunyuan_vl, (*LEAD, ("image", 8), *TAIL), TOKENS, lambda s: patches(s, 1, 4, 4, dim=48),
        types="mm_token_type_ids", constant=[3, 6, 9, 10], no_batch=NUMBERED, traits="rmsnorm gated gqa qk_norm mrope",
        decoder=TEXT,
    ),
    family(
        "exaone4_5", exaone4_5, (*LEAD, ("image", 8), *TAIL), TOKENS, image,
        traits="rmsnorm gated gqa qk_norm sliding", decoder=TEXT,
    ),
    family(
        "qianfan_ocr", qianfan_ocr, (*LEAD, ("image", 9), *TAIL), TOKENS,
        lambda s: {"pixel_values": seeded(s, 1, 3, 24, 24)}, traits="rmsnorm gated gqa qk_norm", decoder=TEXT,
    ),
    family(
        "gemma4_unified", gemma4_unified, GEMMA_PROMPT, GEMMA_TOKENS, unified, types="mm_token_type_ids", gains=QUIET,
        traits="rmsnorm gated gqa qk_norm sliding sandwich prefix_lm", decoder=TEXT,
    ),
    family(
        "granite4_vision", granite4_vision, (*LEAD, ("image", 10), *TAIL), TOKENS, thumb, constant=[9, 12],
        traits="rmsnorm gated gqa multipliers deepstack qformer", decoder=TEXT,
        marks="decoder_extras logits_after_head",
    ),
    family(
        "granite_docling", granite_docling, FOUR, TOKENS, tile, traits="rmsnorm gated gqa multipliers deepstack",
        decoder="model.text_model",
        marks="decoder_extras logits_after_head",
    ),
]  # fmt: skip
