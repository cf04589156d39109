"""The miniature: transformers' Qwen2-Audio (Whisper-like encoder, linear projector, Qwen2) at 1.4 M parameters."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from transformers import (
    Qwen2AudioConfig,
    Qwen2AudioEncoderConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2Config,
)

from recipes.demo_audio.data import BINS, FRAMES


def build(
    vocabulary: int, audio_token: int, special: dict[str, int], *, tiny: bool = False
) -> Qwen2AudioForConditionalGeneration:
    """An untrained miniature; `special` holds bos_token_id, eos_token_id, pad_token_id."""
    wide, deep = (32, 1) if tiny else (96, 3)
    audio = Qwen2AudioEncoderConfig(
        num_mel_bins=BINS, encoder_layers=deep, encoder_attention_heads=wide // 32, encoder_ffn_dim=4 * wide,
        d_model=wide, max_source_positions=FRAMES // 2,
    )  # fmt: skip
    wide, deep = (32, 3) if tiny else (128, 4)
    text = Qwen2Config(
        vocab_size=vocabulary, hidden_size=wide, intermediate_size=3 * wide, num_hidden_layers=deep,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=1024, tie_word_embeddings=False,
        rms_norm_eps=1e-5, **special,
    )  # fmt: skip
    config = Qwen2AudioConfig(
        audio_config=audio, text_config=text, audio_token_index=audio_token, tie_word_embeddings=False
    )
    model = Qwen2AudioForConditionalGeneration(config).float()
    positions = model.model.audio_tower.embed_positions.weight  # frozen by transformers: sinusoids, as in Whisper
    with torch.no_grad():
        positions.copy_(_sinusoids(*positions.shape))
    return model


def _sinusoids(length: int, wide: int) -> Tensor:
    turn = np.exp(-np.log(10_000) * np.arange(wide // 2) / (wide // 2 - 1))
    angle = np.arange(length)[:, None] * turn[None]  # [length, wide / 2]
    return torch.tensor(np.concatenate([np.sin(angle), np.cos(angle)], 1), dtype=torch.float32)


def audio_features(model: Qwen2AudioForConditionalGeneration, mel: Tensor) -> Tensor:
    """Spectrograms [n, 64, 200] -> the encoder's features [n, 50, d]."""
    hidden: Tensor = model.model.audio_tower(mel.float()).last_hidden_state
    return hidden
