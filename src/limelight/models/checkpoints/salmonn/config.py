"""Configs of SALMONN and BEATs."""

from __future__ import annotations

from typing import Any

from transformers import Blip2QFormerConfig, LlamaConfig, PreTrainedConfig, WhisperConfig


class BeatsConfig(PreTrainedConfig):  # type: ignore[misc]
    """Config of BEATs, with the names of the published ``cfg``. Pre-norm and gated linear units are not supported, since no
    published checkpoint uses them."""

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
    """Config of SALMONN.

    ``window`` is the number of Whisper frames per query (17 frames, 0.34 s, without overlap). ``audio_token_id`` is Llama's
    ``<unk>``, which its tokenizer never produces for text.
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
        """Number of positions per audio input, which does not depend on its length (88 for Whisper's 30 s window)."""
        frames: int = self.audio_config.max_source_positions  # type: ignore[union-attr]
        return frames // self.window * self.queries
