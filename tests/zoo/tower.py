"""Vision families of the LLaVA pattern with a tower, a merger or a mask of their own."""

import torch
import transformers as hf

from .base import Model, Tensors, Tiny, family, seeded
from .parts import IMAGE, LEAD, TAIL, text

FAKE, BREAK, END = 8, 9, 10  # Idefics' token around an image; Pixtral's tokens at the end of a row and of an image
TOKENS = {"image": IMAGE}
IDEFICS3_VISION = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4
)
PIXTRAL = dict(
    model_type="pixtral", hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
    image_size=32, patch_size=4,
)  # fmt: skip


def internvl() -> Model:
    vision = dict(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=[24, 24],
        patch_size=[4, 4],
    )  # fmt: skip
    return hf.InternVLForConditionalGeneration(
        hf.InternVLConfig(
            vision_config=vision, text_config=text("qwen2", num_key_value_heads=2), image_token_id=IMAGE,
            tie_word_embeddings=False,
        )
    )  # fmt: skip


def idefics3() -> Model:
    return hf.Idefics3ForConditionalGeneration(
        hf.Idefics3Config(
            vision_config=dict(IDEFICS3_VISION), text_config=text("llama", num_key_value_heads=2),
            image_token_id=IMAGE, scale_factor=2,
        )
    )  # fmt: skip


def smolvlm() -> Model:
    return hf.SmolVLMForConditionalGeneration(
        hf.SmolVLMConfig(
            vision_config=dict(IDEFICS3_VISION),
            text_config=text("llama", hidden_size=48, num_attention_heads=6, num_key_value_heads=2),
            image_token_id=IMAGE, scale_factor=2,
        )
    )  # fmt: skip


def mistral3() -> Model:
    return hf.Mistral3ForConditionalGeneration(
        hf.Mistral3Config(
            vision_config=dict(PIXTRAL), text_config=text("mistral", num_key_value_heads=2, head_dim=12),
            image_token_index=IMAGE, spatial_merge_size=2, tie_word_embeddings=False,
        )
    )  # fmt: skip


def two_tiles(seed: int) -> Tensors:
    return {
        "pixel_values": seeded(seed, 1, 2, 3, 16, 16),
        "pixel_attention_mask": torch.ones(1, 2, 16, 16, dtype=torch.long),
    }


def wide(seed: int) -> Tensors:
    """16 x 24 pixels: two rows of three merged patches."""
    return {"pixel_values": seeded(seed, 1, 3, 16, 24), "image_sizes": torch.tensor([[16, 24]])}


TILED = (*LEAD, FAKE, ("image", 4), FAKE, ("image", 4), FAKE, *TAIL)

ROWS: list[Tiny] = [
    family(
        "internvl", internvl, (*LEAD, ("image", 9), *TAIL), TOKENS, lambda s: {"pixel_values": seeded(s, 1, 3, 24, 24)},
        traits="rmsnorm gated gqa bias", decoder="model.language_model",
    ),
    family(
        "idefics3", idefics3, TILED, TOKENS, two_tiles,
        traits="rmsnorm gated gqa", decoder="model.text_model", notes="Two tiles, so two runs.",
    ),
    family(
        "smolvlm", smolvlm, TILED, TOKENS, two_tiles,
        traits="rmsnorm gated gqa", decoder="model.text_model", notes="Six query heads on two K/V heads.",
    ),
    family(
        "mistral3", mistral3, (*LEAD, ("image", 3), BREAK, ("image", 3), END, *TAIL), TOKENS, wide,
        traits="rmsnorm gated gqa", decoder="model.language_model",
        notes="A run for each row of the image: the break tokens between them are text.",
    ),
]  # fmt: skip
