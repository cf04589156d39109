"""Video, and LLaVA's cousins that take several layers of a tower or several kinds of picture."""

import torch
import transformers as hf

from . import qwen
from .base import Model, Tensors, Tiny, family, seeded
from .llava import PINPOINTS, SMALL, llava_onevision
from .parts import CLIP, IMAGE, LEAD, TAIL, VIDEO, VISION_END, VISION_START, pixels, text

BOTH = {"image": IMAGE, "video": VIDEO}


def vipllava() -> Model:
    return hf.VipLlavaForConditionalGeneration(
        hf.VipLlavaConfig(
            vision_config=dict(CLIP), text_config=text("llama"), image_token_index=IMAGE, vision_feature_layer=[-1, -2]
        )
    )


def video_llava() -> Model:
    return hf.VideoLlavaForConditionalGeneration(
        hf.VideoLlavaConfig(
            vision_config=CLIP | SMALL, text_config=text("llama"), image_token_index=IMAGE, video_token_index=VIDEO
        )
    )


def llava_next_video() -> Model:
    return hf.LlavaNextVideoForConditionalGeneration(
        hf.LlavaNextVideoConfig(
            vision_config=dict(CLIP), text_config=text("llama"), image_token_index=IMAGE, video_token_index=VIDEO,
            image_grid_pinpoints=PINPOINTS,
        )
    )  # fmt: skip


def frames(seed: int, n: int = 2, size: int = 16) -> Tensors:
    return {"pixel_values_videos": seeded(seed, 1, n, 3, size, size)}


def picture_and_frames(seed: int) -> Tensors:
    return {"pixel_values_images": seeded(seed + 10, 1, 3, 8, 8)} | frames(seed, 8, 8)


def qwen_frames(seed: int) -> Tensors:
    """Four frames of 16 x 16 pixels: two steps in time of 2 x 2 merged patches."""
    return {
        "pixel_values_videos": seeded(seed, 2 * 4 * 4, 3 * 2 * 4 * 4),
        "video_grid_thw": torch.tensor([[2, 4, 4]]),
        "second_per_grid_ts": torch.tensor([0.5]),
    }


ROWS: list[Tiny] = [
    family(
        "vipllava", vipllava, (*LEAD, ("image", 16), *TAIL), {"image": IMAGE}, pixels,
        traits="rmsnorm gated", decoder="model.language_model", notes="Features of two layers of the tower.",
    ),
    family(
        "video_llava", video_llava, (*LEAD, ("image", 4), 33, ("video", 40), *TAIL), BOTH, picture_and_frames,
        traits="rmsnorm gated", decoder="model.language_model", notes="Frames keep their class token.",
    ),
    family(
        "llava_next_video", llava_next_video, (*LEAD, ("video", 8), *TAIL), BOTH, frames,
        traits="rmsnorm gated", decoder="model.language_model", notes="Two frames, 2 x 2 pooled positions each.",
    ),
    family(
        "llava_onevision_video", llava_onevision, (*LEAD, ("video", 3), *TAIL), BOTH, lambda seed: frames(seed, 2, 8),
        traits="rmsnorm gated gqa bias", decoder="model.language_model", constant=(5,),
        notes="One pooled position a frame and a newline embedding at the end.",
    ),
    family(
        "qwen2_5_vl_video", qwen.qwen2_5_vl, (*LEAD, VISION_START, ("video", 8), VISION_END, *TAIL), BOTH, qwen_frames,
        types="mm_token_type_ids", traits="rmsnorm gated gqa bias mrope", decoder="model.language_model",
    ),
]  # fmt: skip
