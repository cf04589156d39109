"""The model: two audio encoders, a window-level Q-Former with one query per 0.34 s, and a Llama decoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Blip2QFormerModel, LlamaModel

from limelight.compat import WhisperEncoder
from limelight.models.checkpoints.base_vlm import MergedModel
from limelight.models.checkpoints.salmonn.beats import Beats
from limelight.models.checkpoints.salmonn.config import SalmonnConfig


class Bridge(nn.Module):
    """Q-Former on each window of ``config.window`` frames: features of both encoders -> decoder embeddings."""

    def __init__(self, config: SalmonnConfig) -> None:
        super().__init__()
        audio: Any = config.audio_config
        beats: Any = config.beats_config
        qformer: Any = config.qformer_config
        text: Any = config.text_config
        self.window = config.window
        self.ln_speech, self.ln_audio = nn.LayerNorm(audio.d_model), nn.LayerNorm(beats.encoder_embed_dim)
        self.speech_query_tokens = nn.Parameter(torch.zeros(1, config.queries, qformer.hidden_size))
        self.qformer = Blip2QFormerModel(qformer)
        self.speech_llama_proj = nn.Linear(qformer.hidden_size, text.hidden_size)

    def forward(self, speech: Tensor, audio: Tensor, real: Tensor) -> Tensor:
        """Compute ``[n, windows * queries, H]`` from ``speech`` [n, T, D] and ``audio`` [n, T', D'], whose real positions
        are ``real`` [n, T']."""
        speech, audio = self.ln_speech(speech), self.ln_audio(audio) * real[..., None].to(audio.dtype)
        length = max(speech.shape[1], audio.shape[1])
        both = torch.cat([functional.pad(x, (0, 0, 0, length - x.shape[1])) for x in (speech, audio)], dim=-1)
        windows = both.unfold(1, self.window, self.window).transpose(2, 3)  # [n, windows, frames, D + D']
        n, count = windows.shape[:2]
        queries = self.speech_query_tokens.expand(n * count, -1, -1)
        out = self.qformer(query_embeds=queries, encoder_hidden_states=windows.flatten(0, 1)).last_hidden_state
        return self.speech_llama_proj(out).reshape(n, -1, self.speech_llama_proj.out_features)  # type: ignore[no-any-return]


class SalmonnForConditionalGeneration(MergedModel):
    """SALMONN.

    Differs from the published code: LoRA is merged into the decoder's weights; the unused ``[PAD]`` row is not added.
    """

    config_class = SalmonnConfig
    input_modalities = ("audio", "text")
    media = ("input_features", "fbank", "fbank_mask")
    placeholder = "audio_token_id"

    def __init__(self, config: SalmonnConfig) -> None:
        super().__init__(config)
        text: Any = config.text_config
        self.speech_encoder = WhisperEncoder(config.audio_config)
        self.beats = Beats(config.beats_config)
        self.bridge = Bridge(config)
        self.language_model = LlamaModel(text)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    def features(self, **media: Any) -> Tensor:
        mask = media["fbank_mask"].bool()
        dtype = self.beats.layer_norm.weight.dtype
        speech = self.speech_encoder(media["input_features"].to(dtype)).last_hidden_state
        audio = self.beats(media["fbank"].to(dtype), mask)
        config: Any = self.config.beats_config
        eighths = audio.shape[1] // max(1, int((mask.sum(-1) // config.input_patch_size).max()))
        count = mask.sum(-1) // config.input_patch_size * eighths
        real = torch.arange(audio.shape[1], device=audio.device) < count[:, None]
        return self.bridge(speech, audio, real)  # type: ignore[no-any-return]

    def forward(
        self,
        input_ids: Tensor | None = None,
        input_features: Tensor | None = None,
        fbank: Tensor | None = None,
        fbank_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        """As transformers' multimodal models.

        ``input_features`` [n, bins, frames] are Whisper's, ``fbank`` [n, frames, 128] with ``fbank_mask`` BEATs'.
        """
        media = {"input_features": input_features, "fbank": fbank, "fbank_mask": fbank_mask}
        return self.run(
            input_ids, media, inputs_embeds=inputs_embeds, logits_to_keep=logits_to_keep, attention_mask=attention_mask,
            position_ids=position_ids, past_key_values=past_key_values, use_cache=use_cache, **kwargs,
        )  # fmt: skip
