"""Families whose checkpoints have a layout of their own: limelight's small models of transformers' parts."""

import torch
import transformers as hf

from .base import Model, Tensors, family, seeded
from .parts import AUDIO, IMAGE, LEAD, TAIL, TEXT, mel, text


def qwen_vl_chat() -> Model:
    from limelight.models.checkpoints.qwen_vl_chat.config import QwenVLChatConfig
    from limelight.models.checkpoints.qwen_vl_chat.model import QwenVLChatForConditionalGeneration

    vision = dict(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4,
        hidden_act="gelu", layer_norm_eps=1e-6,
    )  # fmt: skip
    return QwenVLChatForConditionalGeneration(
        QwenVLChatConfig(
            text_config=hf.Qwen2Config(**TEXT), vision_config=hf.CLIPVisionConfig(**vision), output_dim=32,
            resampler_heads=2, image_seq_length=4, image_token_id=IMAGE,
        )
    )  # fmt: skip


def salmonn() -> Model:
    from limelight.models.checkpoints.salmonn.config import BeatsConfig, SalmonnConfig
    from limelight.models.checkpoints.salmonn.model import SalmonnForConditionalGeneration

    whisper = hf.WhisperConfig(
        num_mel_bins=16, d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=24,
        max_source_positions=32,
    )  # fmt: skip
    beats = BeatsConfig(
        embed_dim=8, encoder_embed_dim=16, encoder_ffn_embed_dim=24, encoder_attention_heads=2, encoder_layers=2,
        conv_pos=4, conv_pos_groups=2, num_buckets=16, max_distance=40,
    )  # fmt: skip
    qformer = hf.Blip2QFormerConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, encoder_hidden_size=32,
        cross_attention_frequency=1,
    )  # fmt: skip
    return SalmonnForConditionalGeneration(
        SalmonnConfig(
            text_config=hf.LlamaConfig(**{k: v for k, v in text("llama").items() if k != "model_type"}),
            audio_config=whisper, beats_config=beats, qformer_config=qformer, window=8, audio_token_id=AUDIO,
        )
    )  # fmt: skip


def picture(seed: int) -> Tensors:
    return {"pixel_values": seeded(seed, 1, 3, 16, 16)}


def sounds(seed: int) -> Tensors:
    return {**mel(seed), "fbank": seeded(seed, 1, 64, 128), "fbank_mask": torch.ones(1, 64, dtype=torch.long)}


ROWS = (
    family(
        "qwen_vl_chat", qwen_vl_chat, [*LEAD, ("image", 4), *TAIL], {"image": IMAGE}, picture,
        traits="rmsnorm gated bias", decoder="language_model",
    ),
    family(
        "salmonn", salmonn, [*LEAD, ("audio", 4), *TAIL], {"audio": AUDIO}, sounds,
        traits="rmsnorm gated qformer", decoder="language_model",
    ),
)  # fmt: skip
