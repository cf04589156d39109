"""LLaVA and its line: a CLIP or SigLIP tower, a two-layer projector, and a text model of any kind."""

import torch
import transformers as hf

from .base import Model, Tensors, Tiny, family, seeded
from .parts import CLIP, IMAGE, LEAD, SIGLIP, TAIL, VIDEO, pixels, text


def tiles(seed: int) -> Tensors:
    """An image of 8 x 16 pixels: a thumbnail and two tiles."""
    return {"pixel_values": seeded(seed, 1, 3, 3, 8, 8), "image_sizes": torch.tensor([[8, 16]])}


PINPOINTS = [[8, 16], [16, 8], [16, 16]]
SMALL = {"image_size": 8}


def llava(**changes: object) -> Model:
    return hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(vision_config=dict(CLIP), text_config=text("llama", **changes), image_token_index=IMAGE)
    )


def llava_next() -> Model:
    return hf.LlavaNextForConditionalGeneration(
        hf.LlavaNextConfig(
            vision_config=CLIP | SMALL,
            text_config=text("mistral", num_key_value_heads=2),
            image_token_index=IMAGE,
            image_grid_pinpoints=PINPOINTS,
        )
    )


def llava_onevision() -> Model:
    return hf.LlavaOnevisionForConditionalGeneration(
        hf.LlavaOnevisionConfig(
            vision_config=SIGLIP | SMALL,
            text_config=text("qwen2", num_key_value_heads=2),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            image_grid_pinpoints=PINPOINTS,
        )
    )


ROWS: list[Tiny] = [
    family(
        "llava", llava, (*LEAD, ("image", 16), *TAIL), {"image": IMAGE}, pixels,
        traits="rmsnorm gated", decoder="model.language_model",
    ),
    family(
        "llava_gqa", lambda: llava(num_key_value_heads=2, head_dim=12, attention_bias=True, mlp_bias=True),
        (*LEAD, ("image", 16), *TAIL), {"image": IMAGE}, pixels,
        traits="rmsnorm gated gqa bias", decoder="model.language_model",
        notes="Llama text with head_dim 12 != hidden / heads = 8, biases on every projection.",
    ),
    family(
        "llava_next", llava_next, (*LEAD, ("image", 14), *TAIL), {"image": IMAGE}, tiles,
        traits="rmsnorm gated gqa", decoder="model.language_model", constant=(11, 16),
        notes="4 thumbnail positions, then 2 rows of 4 and a newline embedding, which holds no media.",
    ),
    family(
        "llava_onevision", llava_onevision, (*LEAD, ("image", 14), *TAIL), {"image": IMAGE}, tiles,
        traits="rmsnorm gated gqa bias", decoder="model.language_model", constant=(11, 16),
        notes="Laid out as LLaVA-NeXT. Qwen2 text: bias on q, k and v only.",
    ),
]  # fmt: skip
