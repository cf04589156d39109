"""Readers of documents: SAM-like, Pixtral and native-resolution towers before small text models."""

import torch
import transformers as hf
from torch import Tensor

from .base import VOCAB, Model, Tensors, Tiny, family, seeded
from .parts import IMAGE, LEAD, MROPE, TAIL, VIDEO, VISION_END, VISION_START, pixels, text
from .tower import BREAK, END, PIXTRAL, wide

TOKENS = {"image": IMAGE}
SAM = dict(
    hidden_size=16, output_channels=8, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=4,
    window_size=4, global_attn_indexes=[1], mlp_dim=24,
)  # fmt: skip
KOSMOS = dict(
    vocab_size=VOCAB, max_position_embeddings=128, embed_dim=32, layers=2, ffn_dim=48, attention_heads=4, dropout=0.0,
    attention_dropout=0.0, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip


def got_ocr2() -> Model:
    return hf.GotOcr2ForConditionalGeneration(
        hf.GotOcr2Config(
            vision_config=dict(SAM), text_config=text("qwen2"), image_token_index=IMAGE, tie_word_embeddings=False
        )
    )


def lighton_ocr() -> Model:
    return hf.LightOnOcrForConditionalGeneration(
        hf.LightOnOcrConfig(
            vision_config=dict(PIXTRAL), text_config=text("qwen3", num_key_value_heads=2, head_dim=8),
            image_token_id=IMAGE, tie_word_embeddings=False,
        )
    )  # fmt: skip


def paddleocr_vl() -> Model:
    vision = dict(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4
    )
    return hf.PaddleOCRVLForConditionalGeneration(
        hf.PaddleOCRVLConfig(
            vision_config=vision,
            text_config=text("paddleocr_vl_text", num_key_value_heads=2, head_dim=8, rope_parameters=MROPE),
            image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=VISION_START,
            vision_end_token_id=VISION_END, tie_word_embeddings=False,
        )
    )  # fmt: skip


def kosmos2() -> Model:
    vision = dict(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4
    )
    return hf.Kosmos2ForConditionalGeneration(
        hf.Kosmos2Config(vision_config=vision, text_config=dict(KOSMOS), latent_query_num=4)
    )


def kosmos2_5() -> Model:
    vision = dict(
        hidden_size=16, patch_embed_hidden_size=48, intermediate_size=24, head_dim=8, num_hidden_layers=2,
        num_attention_heads=2, max_num_patches=16,
    )  # fmt: skip
    return hf.Kosmos2_5ForConditionalGeneration(
        hf.Kosmos2_5Config(vision_config=vision, text_config=dict(KOSMOS), latent_query_num=4)
    )


def marked(ids: Tensor, mask: Tensor) -> Tensors:
    """Kosmos knows its placeholders by a mask of positions, not by a token id."""
    return {"image_embeds_position_mask": (ids == IMAGE).long()}


def flattened(seed: int) -> Tensors:
    """16 patches of 4 x 4 pixels, each led by its row and column, counted from 1."""
    rows, columns = torch.arange(16) // 4 + 1, torch.arange(16) % 4 + 1
    patches = torch.cat([torch.stack([rows, columns], -1)[None].float(), seeded(seed, 1, 16, 48)], -1)
    return {"flattened_patches": patches}


def grid(seed: int) -> Tensors:
    return {"pixel_values": seeded(seed, 32, 3, 4, 4), "image_grid_thw": torch.tensor([[1, 4, 8]])}


PROMPT = (*LEAD, ("image", 4), *TAIL)
BEHIND = "transformers counts a generated word's position from the padding on, so a padded row does not go on as alone"
OWN = (
    "Adds its own float mask, whatever the attention implementation. The projection of the image shares its attention."
)
ROWS: list[Tiny] = [
    family(
        "got_ocr2", got_ocr2, PROMPT, TOKENS, lambda s: {"pixel_values": seeded(s, 1, 3, 32, 32)},
        traits="rmsnorm gated bias", decoder="model.language_model",
    ),
    family(
        "lighton_ocr", lighton_ocr, (*LEAD, ("image", 3), BREAK, ("image", 3), END, *TAIL), TOKENS, wide,
        traits="rmsnorm gated gqa qk_norm", decoder="model.language_model",
    ),
    family(
        "paddleocr_vl", paddleocr_vl, (*LEAD, VISION_START, ("image", 8), VISION_END, *TAIL), TOKENS, grid,
        types="mm_token_type_ids", traits="rmsnorm gated gqa mrope", decoder="model.language_model",
    ),
    family(
        "kosmos2", kosmos2, PROMPT, TOKENS, pixels, extra=marked, no_batch=BEHIND, traits="layernorm fc12 bias",
        decoder="text_model.model", marks="no_float64 ids_at_decoder own_generate",
        notes=OWN + " Its mask overflows in float64 unless that is torch's default.",
    ),
    family(
        "kosmos2_5", kosmos2_5, PROMPT, TOKENS, flattened, extra=marked, no_batch=BEHIND,
        traits="layernorm fc12 bias", decoder="text_model.model", notes=OWN,
        marks="ids_at_decoder",
    ),
]  # fmt: skip
