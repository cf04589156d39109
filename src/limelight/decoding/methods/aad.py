"""AAD: contrast with the logits for the same prompt with silence as its audio.

Source: Hsu et al., "Reducing Object Hallucination in Large Audio-Language Models via Audio-Aware Decoding", 2025
(arXiv 2506.07233), section III.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limelight.decoding.contrast_inputs import disturbed, media_mask, without
from limelight.decoding.contrastive import ContrastSession, amplified, check_choice, check_range
from limelight.decoding.strategy import Capabilities, GenerationContext, Method
from limelight.errors import SettingError, UnsupportedError
from limelight.models.runtime.cached_decoder import Stream
from limelight.types import MODALITIES

_AUDIO = MODALITIES.index("audio")


@dataclass(frozen=True)
class Aad(Method):
    """``(1 + alpha) l - alpha l'``, ``l'`` computed without the audio.

    Args:
        alpha: strength of the contrast; 0 is the unchanged model.
        variant: ``silent``: ``l'`` from silence of the same length (the paper); ``absent``: from no audio features (the
            released code): the positions of each audio input are reduced to one with the placeholder's own embedding.
        beta: plausibility cut, in [0, 1]; not part of the method; 0 drops none.
        silence: the value of silent features; None: computed with the processor's feature extractor.

    Differs from the paper: nothing known in ``variant="silent"``.
    Differs from the released code (Qwen2-Audio, greedy only): its default is ``absent``, and ``silent`` is not included;
    its second run is not cached; its contrast is a logits processor after generate()'s own, which see only the first
    run's logits (Qwen2-Audio's generation_config sets a repetition penalty of 1.1), whereas here they act on the
    contrasted logits; there both prompts start with "Focus on the given audio and answer the following question.", which
    is left to the caller here. Sampling and any audio model are supported.
    """

    name = "aad"
    capabilities = Capabilities(batches=True, beams=True, second_prompt=True, continues_cache=True)

    alpha: float = 0.5
    variant: str = "silent"
    beta: float = 0.0
    silence: float | None = None

    def __post_init__(self) -> None:
        check_range("aad", "alpha", self.alpha, 0.0, hint="the paper: 0.5")
        check_range("aad", "beta", self.beta, 0.0, 1.0, hint="the paper has no cut: 0")
        check_choice("aad", "variant", self.variant, ("silent", "absent"))

    def session(self, context: GenerationContext) -> ContrastSession:
        """Raises UnsupportedError on a prompt without audio, SettingError if silent features cannot be computed."""
        audio = media_mask(context) & (context.modality_ids == _AUDIO)
        if context.beside != _AUDIO and not bool(audio.any(-1).all()):
            raise UnsupportedError(
                "aad contrasts audio with silence; this prompt has a row without audio",
                hint="for images and video use vcd() or m3id()",
            )
        contrast = self._silent(context) if self.variant == "silent" else self._absent(context, audio)
        return ContrastSession(context, contrast, lambda real, other, _: amplified(real, other, self.alpha, self.beta))

    def _silent(self, context: GenerationContext) -> Stream:
        value = silent_value(context) if self.silence is None else self.silence
        alone = bool((context.modality_ids[media_mask(context)] == _AUDIO).all())

        def silenced(name: str, features: Tensor, inputs: Mapping[str, Any]) -> Tensor:
            return torch.full_like(features, value)

        def is_audio(name: str) -> bool:
            return alone or any(part in name for part in ("audio", "input_features", "input_values"))

        return disturbed(context, silenced, only=is_audio, method="aad")

    def _absent(self, context: GenerationContext, audio: Tensor) -> Stream:
        if bool((media_mask(context) & ~audio).any()):
            raise UnsupportedError(
                "aad's variant 'absent' removes all media from the prompt; this one also contains images or video",
                hint='use variant="silent"',
            )
        again = torch.zeros_like(audio)
        again[:, 1:] = audio[:, 1:] & audio[:, :-1]
        return without(context, again)


def silent_value(context: GenerationContext) -> float:
    """Return the constant value of the feature extractor's output for one second of zeros.

    Raises:
        SettingError: there is no extractor, or the features of silence are not constant.
    """
    processor = context.adapter.processor
    extractor = getattr(processor, "feature_extractor", None) or getattr(processor, "audio_processor", None)
    if extractor is None:
        raise SettingError(
            "aad needs the processor's feature extractor to compute the features of silence",
            hint='custom_generate(aad(), processor=processor), aad(silence=value), or aad(variant="absent")',
        )
    rate = int(getattr(extractor, "sampling_rate", 16000))
    made = extractor(np.zeros(rate, dtype=np.float32), sampling_rate=rate, return_tensors="np")
    name = extractor.model_input_names[0]
    features = np.asarray(made[name], dtype=np.float64)
    if features.size == 0 or not np.isfinite(features).all() or np.ptp(features) > 1e-4:
        raise SettingError(
            f"the features of silence are not constant for this model ({features.min():.3g} to {features.max():.3g})",
            hint='use aad(variant="absent")',
        )
    return float(features.flat[0])


aad = Aad
STRATEGIES = {"aad": Aad}
