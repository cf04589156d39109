"""Qwen's vision-language line: towers of flattened patches, multimodal rotary positions (M-RoPE)."""

import transformers as hf

from .base import Model, Tiny, family
from .parts import IMAGE, LEAD, MROPE, TAIL, VIDEO, VISION_END, VISION_START, patches, text

TOKENS = {"image": IMAGE, "video": VIDEO}
IDS = dict(
    image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=VISION_START, vision_end_token_id=VISION_END
)
QWEN2 = dict(num_key_value_heads=2, rope_parameters=MROPE)
PROMPT = (*LEAD, VISION_START, ("image", 8), VISION_END, *TAIL)


def qwen2_vl() -> Model:
    vision = dict(
        depth=2, embed_dim=16, hidden_size=32, num_heads=2, mlp_ratio=2, patch_size=4, spatial_merge_size=2,
        temporal_patch_size=2,
    )  # fmt: skip
    return hf.Qwen2VLForConditionalGeneration(
        hf.Qwen2VLConfig(vision_config=vision, text_config=text("qwen2_vl_text", **QWEN2), **IDS)
    )


def qwen2_5_vl() -> Model:
    vision = dict(
        depth=2, hidden_size=16, out_hidden_size=32, num_heads=2, intermediate_size=24, patch_size=4,
        spatial_merge_size=2, temporal_patch_size=2, window_size=16, fullatt_block_indexes=[1],
    )  # fmt: skip
    return hf.Qwen2_5_VLForConditionalGeneration(
        hf.Qwen2_5_VLConfig(vision_config=vision, text_config=text("qwen2_5_vl_text", **QWEN2), **IDS)
    )


def image(seed: int) -> dict:
    return patches(seed, 1, 4, 8, dim=3 * 2 * 4 * 4)


ROWS: list[Tiny] = [
    family(
        "qwen2_vl", qwen2_vl, PROMPT, TOKENS, image, types="mm_token_type_ids",
        traits="rmsnorm gated gqa bias mrope", decoder="model.language_model",
    ),
    family(
        "qwen2_5_vl", qwen2_5_vl, PROMPT, TOKENS, image, types="mm_token_type_ids",
        traits="rmsnorm gated gqa bias mrope", decoder="model.language_model",
    ),
]  # fmt: skip
