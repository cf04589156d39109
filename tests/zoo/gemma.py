"""Google's line: 1 + w norms, prefix or blockwise masks, soft-caps, sandwich norms, sliding windows."""

import torch
import transformers as hf
from torch import Tensor

from .base import Model, Tensors, Tiny, family
from .parts import IMAGE, LEAD, SIGLIP, TAIL, pixels, text

TOKENS = {"image": IMAGE}
QUIET = {"embed_tokens": 0.7}  # the tied embedding is scaled by sqrt(hidden), so the last token votes for itself
PREFIX = (("image", 16), *LEAD, *TAIL)


def paligemma(**changes: object) -> Model:
    return hf.PaliGemmaForConditionalGeneration(
        hf.PaliGemmaConfig(
            vision_config=dict(SIGLIP), text_config=text(**changes), image_token_index=IMAGE, projection_dim=32,
            hidden_size=32,
        )
    )  # fmt: skip


def gemma() -> Model:
    return paligemma(model_type="gemma", num_key_value_heads=1, head_dim=8)


def gemma2() -> Model:
    return paligemma(
        model_type="gemma2", num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8, sliding_window=8,
        layer_types=["sliding_attention", "full_attention"], attn_logit_softcapping=4.0, final_logit_softcapping=6.0,
    )  # fmt: skip


def gemma3() -> Model:
    return hf.Gemma3ForConditionalGeneration(
        hf.Gemma3Config(
            vision_config=dict(SIGLIP),
            text_config=text(
                "gemma3_text", num_key_value_heads=2, head_dim=12, query_pre_attn_scalar=12, sliding_window=8,
                layer_types=["sliding_attention", "full_attention"],
            ),
            mm_tokens_per_image=4, boi_token_index=3, eoi_token_index=4, image_token_index=IMAGE,
        )
    )  # fmt: skip


def prefix_types(ids: Tensor, mask: Tensor) -> Tensors:
    """PaliGemma's token types tell prefix (0) from suffix (1), not text from image; a prompt is all prefix."""
    return {"token_type_ids": torch.zeros_like(ids)}


ROWS: list[Tiny] = [
    family(
        "paligemma", gemma, PREFIX, TOKENS, pixels, short=PREFIX[:-1], extra=prefix_types,
        traits="rmsnorm_1p gated gqa mqa prefix_lm", decoder="model.language_model", gains=QUIET,
    ),
    family(
        "paligemma2", gemma2, PREFIX, TOKENS, pixels, short=PREFIX[:-1], extra=prefix_types,
        traits="rmsnorm_1p gated gqa prefix_lm softcap sliding sandwich", decoder="model.language_model",
        gains=QUIET,
        marks="logits_after_head",
    ),
    family(
        "gemma3", gemma3, (*LEAD, 3, ("image", 4), 4, *TAIL), TOKENS, pixels, types="token_type_ids",
        traits="rmsnorm_1p gated gqa qk_norm sliding sandwich prefix_lm", decoder="model.language_model",
        gains=QUIET,
        notes="Image positions see one another (blockwise mask); head_dim 12.",
    ),
]  # fmt: skip
