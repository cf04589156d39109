"""Shared parts of the cached methods: the dual stream on a prompt, and the details of each chosen token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from limelight.calibration import Calibration, flag_rule
from limelight.decoding.generation_options import refuse
from limelight.decoding.strategy import Detail, GenerationContext, Runs, Strategy, capabilities_of
from limelight.errors import SettingError
from limelight.grounding import score
from limelight.grounding.token_measures import token_measures
from limelight.models.runtime.capture import DecoderCall
from limelight.relevance.composites import COMPOSITES
from limelight.relevance.forward.stream import Channel, DualStream, modality_channel
from limelight.types import EARLIER_ANSWERS, MODALITIES


def captured(context: GenerationContext) -> tuple[DecoderCall, Tensor]:
    """Capture the prompt's decoder inputs and its media positions ``[B, T]`` (a row may have none), outside inference_mode."""
    with torch.inference_mode(False), torch.no_grad():
        call = context.adapter.capture(context.inputs).cloned()
        modality = (call.modality(context.modality_ids.clone()) > 0) & call.mask
    return call, modality


def open_stream(
    context: GenerationContext, call: DecoderCall, channels: Sequence[Channel], composite: str
) -> DualStream:
    refuse(context, "a method with tangents in its cache", "use_cache", "prefill_chunk_size", "cache_implementation")
    reserve = int(getattr(context.config, "max_length", 0) or 0) - call.length
    return DualStream(context.adapter, call, channels, COMPOSITES[composite], reserve=max(16, min(reserve, 4096)))


def check_composite(name: str) -> None:
    known = [c.name for c in COMPOSITES.values() if c.forward]
    if name not in known:
        raise SettingError(f"composite {name!r} has no forward mode", hint=f"one of {', '.join(known)}")


def kinds(context: GenerationContext, row: int) -> list[int]:
    """Return the indices into MODALITIES of the row's media."""
    found = set(context.modality_ids[row].tolist()) | {context.beside}
    return [k for k in sorted(found) if k > 0]


def split_channels(context: GenerationContext, mask: Tensor, front: int = 0) -> list[Channel]:
    """Return the channels beside Phi_M's: one per modality if a row has several (a video with its audio), and one for the
    answers of earlier turns if a row has any.

    ``mask`` [B, T'] of all positions: ``front`` of states, those of the prompt, and those generated since.
    """
    grown = torch.zeros_like(mask, dtype=torch.long)
    grown[:, front : front + context.modality_ids.shape[1]] = context.modality_ids
    channels = []
    if any(len(kinds(context, row)) > 1 for row in range(mask.shape[0])):
        present = sorted({k for row in range(mask.shape[0]) for k in kinds(context, row)})
        channels = [Channel(MODALITIES[k], modality_channel(grown == k, mask).prompt, 0.0) for k in present]
    if any(context.earlier or ()):
        runs = [tuple((front + a, front + b) for a, b in row) for row in context.earlier or ()]
        channels.append(earlier_channel(runs, (grown == 0) & mask))
    return channels


def earlier_channel(runs: Sequence[Runs], text: Tensor) -> Channel:
    """Return the channel of earlier answers: ``runs`` of positions per row, as far as they are ``text`` [B, T]."""
    places = torch.zeros_like(text)
    for row, found in enumerate(runs):
        for first, last in found:
            places[row, first:last] = True
    return Channel(EARLIER_ANSWERS, (places & text).float(), 0.0)


def explainer(
    context: GenerationContext,
    plain: Tensor,
    phi: Tensor,
    *,
    split: Mapping[str, Tensor] | None = None,
    opened: Tensor | None = None,
    losses: Mapping[str, Sequence[Tensor]] | None = None,
    composite: str = "attnlrp",
) -> Callable[[int, int], Detail]:
    """Return a function (row, token) -> Detail with the :func:`limelight.grounding.token_measures.token_measures` of logits and
    Phi_M ``[B, V]``.

    ``split``: Phi of each channel of :func:`split_channels`. ``losses`` are lists of ``[B]``.
    """

    def explain(row: int, token: int) -> Detail:
        groups = {k: v[row : row + 1] for k, v in (split or {}).items()}
        if not (context.earlier and context.earlier[row]):
            groups.pop(EARLIER_ANSWERS, None)
        (measured,) = token_measures(
            torch.tensor([token], device=phi.device),
            plain[row : row + 1],
            phi[row : row + 1],
            [MODALITIES[k] for k in kinds(context, row)],
            groups,
            known=context.known_tokens,
            calibration=calibration_of(context.adapter, composite),
        )
        intervened = opened is not None and bool(opened[row])
        own = {n: tuple(float(v[row]) for v in c) for n, c in (losses or {}).items()} if intervened else {}
        return Detail(intervened=intervened, losses=own, **measured)

    return explain


def vocabulary(context: GenerationContext, phi: Tensor, logits: Tensor) -> Tensor:
    """Return a mask ``[..., V]`` of the tokens over which scores are standardised."""
    return score.counted(phi, logits, context.known_tokens)


def calibration_of(adapter: Any, composite: str) -> Calibration | None:
    """Return the model's calibration if it was fitted on scores of this composite, else None."""
    found: Calibration | None = getattr(adapter, "calibration", None)
    return found if found is not None and found.composite == composite else None


def flag_of(adapter: Any, strategy: Strategy) -> dict[str, Any]:
    """Return the flag's rule for a strategy's metered steps (:func:`limelight.calibration.flag_rule`)."""
    return flag_rule(calibration_of(adapter, capabilities_of(strategy).meter or "attnlrp"))
