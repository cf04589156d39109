"""Encoder-decoder models: the encoder processes the media, and every decoder layer attends to its states.

The prompt consists of the decoder's ids (task, language, previous text). Media have no positions in it: the encoder's
states precede the prompt (:mod:`limelight.models.inputs.cross_attention`), and relevance is computed at these states.
Self-attention and cross-attention of one layer share their ``layer_idx``; in hooks and caches, cross-attention of layer
``l`` has the number ``L + l`` in a decoder of ``L`` layers.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limelight.errors import PromptError, UnsupportedError
from limelight.models.runtime.machine import machine_failed
from limelight.types import MODALITIES, Modality

STATES = "encoder_hidden_states"
_SOUND = ("input_features", "input_values")


@dataclass(frozen=True)
class PromptNames:
    """Names of the arguments with which a model takes its prompt."""

    ids: str = "input_ids"
    mask: str = "attention_mask"
    positions: str = "position_ids"
    embeds: str = "inputs_embeds"


DECODER_ONLY = PromptNames()
ENCODER_DECODER = PromptNames(
    "decoder_input_ids", "decoder_attention_mask", "decoder_position_ids", "decoder_inputs_embeds"
)


@dataclass(frozen=True)
class EncoderDecoder:
    """Properties of an encoder-decoder model.

    Attributes:
        kind: modality of the encoder's input.
        media: name of the media argument.
        seconds: duration of audio per encoder state, if known.
        start: ids at the start of every prompt.
        scale: factor applied to embeddings of ids, but not to ``inputs_embeds``; None: the decoder only accepts ids.
        counts: the decoder accepts position ids, so prompts of different lengths can be padded.
        most: maximum number of decoder positions.
    """

    kind: Modality
    media: str
    seconds: float | None
    start: tuple[int, ...]
    scale: float | None = 1.0
    counts: bool = True
    most: int | None = None

    @property
    def index(self) -> int:
        """Index of the kind into MODALITIES."""
        return MODALITIES.index(self.kind)

    def complete(self, inputs: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
        """Return the inputs, adding the start ids if there are no decoder ids.

        Raises:
            PromptError: neither media nor encoder outputs.
        """
        out = dict(inputs)
        names = ENCODER_DECODER
        if out.get(self.media) is None and out.get("encoder_outputs") is None:
            raise PromptError(
                f"expected {self.media} or encoder_outputs, got {', '.join(sorted(map(str, out))) or 'nothing'}",
                hint="pass what the processor returned; the decoder's ids are decoder_input_ids",
            )
        if out.get(names.ids) is None and out.get(names.embeds) is None:
            media = out.get(self.media)
            rows = media if isinstance(media, Tensor) else out["encoder_outputs"][0]
            out[names.ids] = torch.tensor([self.start], device=device).repeat(len(rows), 1)
        ids = out.get(names.ids)
        if out.get(names.mask) is None and isinstance(ids, Tensor) and ids.ndim == 2:
            out[names.mask] = torch.ones_like(ids)
        mask = out.get(names.mask)
        if self.counts and out.get(names.positions) is None and isinstance(mask, Tensor) and not bool(mask.all()):
            out[names.positions] = (mask.long().cumsum(-1) - 1).clamp_min(0)  # generate() would count padding too
        return out

    @torch.no_grad()
    def encoded(self, model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs with the encoder's outputs in place of the media; the encoder is called as by the model."""
        if inputs.get("encoder_outputs") is not None:
            return dict(inputs)
        encoder = model.get_encoder()
        taken = inspect.signature(encoder.forward).parameters
        given = {k: inputs[k] for k in (self.media, "attention_mask") if k in taken and inputs.get(k) is not None}
        rest = {k: v for k, v in inputs.items() if k != self.media}
        return {**rest, "encoder_outputs": encoder(**given, return_dict=True)}

    def unpadded(self, inputs: Mapping[str, Any], seen: Tensor) -> Tensor:
        """Return the mask of encoder states ``seen`` [B, N] without those of padding, according to the mask of the encoder's
        input frames ``[B, frames]``."""
        mask = inputs.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.ndim != 2 or len(mask) != len(seen) or mask.shape[1] < seen.shape[1]:
            return seen
        count = (mask.sum(-1) * seen.shape[1] / mask.shape[1]).ceil()
        return seen & (torch.arange(seen.shape[1], device=seen.device) < count.to(seen.device)[:, None])


def find_encoder_decoder(model: Any, decoder: nn.Module, seconds: Any = None) -> EncoderDecoder | None:
    """Return the properties of an encoder-decoder model, or None for other models.

    Raises:
        UnsupportedError: the encoder also processes text.
    """
    config = model.config
    if not getattr(config, "is_encoder_decoder", False) or STATES not in inspect.signature(decoder.forward).parameters:
        return None
    media = str(model.main_input_name)
    if media == "input_ids":
        raise UnsupportedError(
            f"the encoder of {type(model).__name__} processes text and media together, so relevance at its states would not "
            "distinguish them",
            hint="the model's own generate() works; limelight has no rules for this encoder",
        )
    kind: Modality = "audio" if media in _SOUND else "image"
    return EncoderDecoder(
        kind, media, None if seconds is None else float(seconds(config)), _start(model), _scale(decoder),
        "position_ids" in inspect.signature(decoder.forward).parameters, _positions(config, decoder.config),
    )  # fmt: skip


def _positions(*configs: Any) -> int | None:
    found = (getattr(c, n, None) for c in configs for n in ("max_target_positions", "max_position_embeddings"))
    return next((n for n in found if isinstance(n, int)), None)


def _start(model: Any) -> tuple[int, ...]:
    for config in (model.generation_config, model.config, getattr(model.config, "decoder", None)):
        for name in ("decoder_start_token_id", "bos_token_id"):
            value = getattr(config, name, None)
            if isinstance(value, int):
                return (value,)
    raise PromptError(
        f"{type(model).__name__} has no decoder_start_token_id", hint="set model.config.decoder_start_token_id"
    )


@torch.no_grad()
def _scale(decoder: Any) -> float | None:
    """Measure the factor that the decoder applies to embeddings of ids, but not to ``inputs_embeds``."""
    scale = float(getattr(decoder, "embed_scale", 1.0) or 1.0)
    if math.isclose(scale, 1.0):
        return 1.0
    table = decoder.get_input_embeddings()
    if table.weight.device.type == "meta":
        return 1.0
    ids = torch.tensor([[0, 1]], device=table.weight.device)
    expected = decoder(input_ids=ids, use_cache=False)[0]
    try:
        results = {f: decoder(inputs_embeds=table(ids) * f, use_cache=False)[0] for f in (1.0, scale)}
    except (AttributeError, TypeError, ValueError) as error:
        if machine_failed(error):
            raise
        return None
    return min(results, key=lambda f: float((results[f] - expected).abs().max()))
