"""The miniature: transformers' LLaVA-OneVision (SigLIP tower, two-layer projector, Qwen2) at 1.7 M parameters."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)

from limelight.demo.films import SIZE
from recipes.demo_video.data import PATCH


def build(
    vocabulary: int, tokens: dict[str, int], special: dict[str, int], *, tiny: bool = False
) -> LlavaOnevisionForConditionalGeneration:
    """An untrained miniature; `tokens` holds image and video, `special` bos_token_id, eos_token_id and pad_token_id."""
    wide, deep = (32, 1) if tiny else (128, 4)
    vision = SiglipVisionConfig(
        image_size=SIZE, patch_size=PATCH, hidden_size=wide, intermediate_size=4 * wide, num_hidden_layers=deep,
        num_attention_heads=wide // 32, vision_use_head=False,
    )  # fmt: skip
    wide, deep = (32, 3) if tiny else (128, 4)
    text = Qwen2Config(
        vocab_size=vocabulary, hidden_size=wide, intermediate_size=3 * wide, num_hidden_layers=deep,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=1024, tie_word_embeddings=False,
        rms_norm_eps=1e-5, **special,
    )  # fmt: skip
    config = LlavaOnevisionConfig(
        vision_config=vision, text_config=text, image_token_index=tokens["image"], video_token_index=tokens["video"],
        image_grid_pinpoints=[[SIZE, SIZE]], vision_feature_select_strategy="full", vision_feature_layer=-1,
        tie_word_embeddings=False,
    )  # fmt: skip
    return LlavaOnevisionForConditionalGeneration(config).float()


def frame_features(model: LlavaOnevisionForConditionalGeneration, pixels: Tensor) -> Tensor:
    """uint8 frames [n, 48, 48, 3] -> the tower's patch features [n, 36, d] (before projector and pooling)."""
    values = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1.0  # [n, 3, 48, 48]
    hidden: Tensor = model.model.vision_tower(values, output_hidden_states=True).hidden_states[-1]
    return hidden


@torch.no_grad()
def film_features(model: LlavaOnevisionForConditionalGeneration, pixels: Tensor) -> Tensor:
    """uint8 films [n, 8, 48, 48, 3] -> [n, 8, 36, d]."""
    return frame_features(model, pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
