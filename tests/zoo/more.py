"""Further vision families of the LLaVA pattern, with towers and vocabularies of their own."""

import torch
import transformers as hf

from .base import Model, Tensors, Tiny, family, seeded
from .parts import IMAGE, LEAD, SIGLIP, TAIL, VIDEO, pixels, text
from .tower import BREAK, END, IDEFICS3_VISION, PIXTRAL

TOKENS = {"image": IMAGE}
PROMPT = (*LEAD, ("image", 4), *TAIL)
VISION = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4
)


def pixtral() -> Model:
    return hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(
            vision_config=dict(PIXTRAL), text_config=text("mistral", num_key_value_heads=2), image_token_index=IMAGE,
            vision_feature_layer=-1, vision_feature_select_strategy="full",
        )
    )  # fmt: skip


def idefics2() -> Model:
    perceiver = dict(
        hidden_size=32, resampler_n_latents=4, resampler_depth=1, resampler_n_heads=4, resampler_head_dim=8,
        num_key_value_heads=2,
    )  # fmt: skip
    return hf.Idefics2ForConditionalGeneration(
        hf.Idefics2Config(
            vision_config=dict(IDEFICS3_VISION), perceiver_config=perceiver,
            text_config=text("mistral", num_key_value_heads=2), image_token_id=IMAGE,
        )
    )  # fmt: skip


def ovis2() -> Model:
    return hf.Ovis2ForConditionalGeneration(
        hf.Ovis2Config(
            vision_config=VISION | {"vocab_size": 24, "hidden_stride": 2},
            text_config=text("qwen2", num_key_value_heads=2), image_token_id=IMAGE,
            visual_indicator_token_ids=[11, 12, 13, 14, 15], vocab_size=128, hidden_size=32, tie_word_embeddings=False,
        )
    )  # fmt: skip


def deepseek_vl() -> Model:
    return hf.DeepseekVLForConditionalGeneration(
        hf.DeepseekVLConfig(
            vision_config=dict(SIGLIP), text_config=text("llama"), image_token_id=IMAGE, tie_word_embeddings=False
        )
    )


def deepseek_vl_hybrid() -> Model:
    sam = dict(
        hidden_size=16, output_channels=8, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=4,
        window_size=4, global_attn_indexes=[1], mlp_dim=24,
    )  # fmt: skip
    return hf.DeepseekVLHybridForConditionalGeneration(
        hf.DeepseekVLHybridConfig(
            vision_config=dict(SIGLIP), high_res_vision_config=sam, text_config=text("llama"), image_token_id=IMAGE,
            tie_word_embeddings=False,
        )
    )  # fmt: skip


def lfm2_vl() -> Model:
    vision = dict(
        model_type="siglip2_vision_model", hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, patch_size=4, num_patches=16, vision_use_head=False,
    )  # fmt: skip
    words = text(
        "lfm2", num_key_value_heads=2, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False,
        conv_L_cache=3,
    )  # fmt: skip
    return hf.Lfm2VlForConditionalGeneration(
        hf.Lfm2VlConfig(
            vision_config=vision, text_config=words, image_token_id=IMAGE, projector_hidden_size=32,
            tie_word_embeddings=False,
        )
    )  # fmt: skip


def video_llama_3() -> Model:
    vision = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, patch_size=4)
    return hf.VideoLlama3ForConditionalGeneration(
        hf.VideoLlama3Config(
            vision_config=vision, text_config=text("qwen2", num_key_value_heads=2), image_token_id=IMAGE,
            video_token_id=VIDEO,
        )
    )  # fmt: skip


def low_and_high(seed: int) -> Tensors:
    return pixels(seed) | {"high_res_pixel_values": seeded(seed + 10, 1, 3, 32, 32)}


def naflex(seed: int) -> Tensors:
    """A grid of 4 x 4 flattened patches."""
    return {
        "pixel_values": seeded(seed, 1, 16, 48),
        "spatial_shapes": torch.tensor([[4, 4]]),
        "pixel_attention_mask": torch.ones(1, 16, dtype=torch.long),
    }


def merged(seed: int) -> Tensors:
    return {
        "pixel_values": seeded(seed, 16, 48),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
        "image_merge_sizes": torch.tensor([2]),
    }


def small(seed: int) -> Tensors:
    return {"pixel_values": seeded(seed, 1, 3, 8, 12), "image_sizes": torch.tensor([[8, 12]])}


ROWS: list[Tiny] = [
    family(
        "pixtral", pixtral, (*LEAD, ("image", 3), BREAK, ("image", 3), END, *TAIL), TOKENS, small,
        traits="rmsnorm gated gqa", decoder="model.language_model", notes="Pixtral as a tower of LLaVA.",
    ),
    family(
        "idefics2", idefics2, PROMPT, TOKENS, lambda s: {"pixel_values": seeded(s, 1, 1, 3, 16, 16)},
        traits="rmsnorm gated gqa", decoder="model.text_model", notes="A perceiver resampler between tower and text.",
    ),
    family(
        "ovis2", ovis2, (*LEAD, 11, ("image", 4), 12, *TAIL), TOKENS, pixels,
        traits="rmsnorm gated gqa bias", decoder="model.language_model",
        notes="Image positions are softmax mixtures of a visual vocabulary; indicator tokens take rows of it.",
    ),
    family(
        "deepseek_vl", deepseek_vl, (*LEAD, ("image", 16), *TAIL), TOKENS, pixels,
        traits="rmsnorm gated", decoder="model.language_model",
    ),
    family(
        "deepseek_vl_hybrid", deepseek_vl_hybrid, (*LEAD, ("image", 16), *TAIL), TOKENS, low_and_high,
        traits="rmsnorm gated", decoder="model.language_model", notes="Two towers, of two resolutions.",
    ),
    family(
        "lfm2_vl", lfm2_vl, PROMPT, TOKENS, naflex,
        traits="rmsnorm gated gqa qk_norm linear_attention", decoder="model.language_model",
        notes="Short convolutions in place of attention in the first layer.",
    ),
    family(
        "video_llama_3", video_llama_3, PROMPT, TOKENS, merged,
        traits="rmsnorm gated gqa bias", decoder="model.language_model",
    ),
]  # fmt: skip
