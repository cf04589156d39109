"""What the model is made of."""

from __future__ import annotations

from typing import Any

from transformers import Blip2QFormerConfig, LlamaConfig, PreTrainedConfig, WhisperConfig


class BeatsConfig(PreTrainedConfig):  # type: ignore[misc]
    """BEATs as published: the names of its ``cfg``. Pre-norm and gated linear units exist in its code, not in its checkpoints."""

    model_type = "beats"

    embed_dim: int = 512
    encoder_embed_dim: int = 768
    encoder_ffn_embed_dim: int = 3072
    encoder_attention_heads: int = 12
    encoder_layers: int = 12
    input_patch_size: int = 16
    conv_bias: bool = False
    conv_pos: int = 128
    conv_pos_groups: int = 16
    num_buckets: int = 320
    max_distance: int = 800
    deep_norm: bool = True
    gru_rel_pos: bool = True


class SalmonnConfig(PreTrainedConfig):  # type: ignore[misc]
    """``window``: Whisper frames that one query reads (17 frames, 0.34 s; the windows do not overlap).

    ``audio_token_id`` is Llama's ``<unk>``: its tokenizer spells every text without it.
    """

    model_type = "salmonn"
    sub_configs_defaults = {  # noqa: RUF012 - transformers' way
        "text_config": LlamaConfig,
        "audio_config": WhisperConfig,
        "beats_config": BeatsConfig,
        "qformer_config": Blip2QFormerConfig,
    }

    text_config: dict[str, Any] | PreTrainedConfig | None = None
    audio_config: dict[str, Any] | PreTrainedConfig | None = None
    beats_config: dict[str, Any] | PreTrainedConfig | None = None
    qformer_config: dict[str, Any] | PreTrainedConfig | None = None
    queries: int = 1
    window: int = 17
    audio_token_id: int = 0
    initializer_range: float = 0.02

    @property
    def audio_seq_length(self) -> int:
        """Positions of one sound, however short it is: Whisper always reads its whole window (88 in 30 s)."""
        frames: int = self.audio_config.max_source_positions  # type: ignore[union-attr]
        return frames // self.window * self.queries
