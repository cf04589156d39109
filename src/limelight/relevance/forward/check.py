"""Does forward mode compute what the decoder computes, and is all that no rule covers linear on tangents? Once per model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from limelight.errors import UnknownKindError
from limelight.models.adapter import Adapter
from limelight.models.inputs.cross_attention import reading_layers
from limelight.models.runtime.attention import attention_hooks
from limelight.models.runtime.capture import DecoderCall
from limelight.relevance.attachment import Structure, gates_checked, structure
from limelight.relevance.composites import Composite
from limelight.relevance.forward.cache import DualCache
from limelight.relevance.forward.inputs import repeated, tail
from limelight.relevance.forward.rules import JvpRules
from limelight.relevance.mode import FALLBACK, Mode
from limelight.relevance.probing import relative_error, tolerance

_CHECKED: WeakKeyDictionary[nn.Module, tuple[Structure, set[tuple[object, ...]]]] = WeakKeyDictionary()


def reading(adapter: Adapter, call: DecoderCall) -> set[int]:
    """Layers that attend to states beside the prompt."""
    return set() if call.beside is None else reading_layers(adapter.decoder, call.beside.name)


def _last(out: Any) -> Tensor:
    """Hidden states of the last position, ``[rows, D]``."""
    hidden: Tensor = out.last_hidden_state if hasattr(out, "last_hidden_state") else out[0]
    return hidden[:, -1].detach().float()


def _ending(call: DecoderCall, count: int) -> DecoderCall:
    """The last positions of a prompt, behind what stands beside it."""
    kwargs = {k: tail(v, count) for k, v in call.kwargs.items()}
    if call.beside is not None:
        kwargs |= {k: call.kwargs[k][:, :, -count:] for k in call.beside.masks}
    if call.doors is not None:
        kwargs[call.doors.where] = call.kwargs[call.doors.where][:, -count:]
    embeds, mask = (torch.cat([x[:, : call.front], x[:, -count:]], dim=1) for x in (call.embeds, call.mask))
    return replace(call, embeds=embeds, mask=mask, kwargs=kwargs)


def require_forward_mode(adapter: Adapter, call: DecoderCall, composite: Composite) -> None:
    """Run tangents t, 2 t, -t and 0 through the decoder: all that no rule covers must be linear on them.

    Biases, learned positions, gates and activations written as functions are not, and would be silently wrong. The
    values beside the tangents must be the decoder's own. Asked once per model, composite and way by which something
    enters: a prompt that only sounds opens no door for pictures.

    Raises:
        UnknownKindError: they are not.
    """
    now = structure(adapter)
    before, checked = _CHECKED.get(adapter.decoder, ((), set()))
    checked = checked if before == now else set()
    key = (composite.name, call.doors, None if call.beside is None else (call.beside.name, call.beside.masks))
    if key in checked:
        return
    piece = _ending(call.row(0), min(2, call.length - call.front))
    embeds, one = piece.embeds, dict(piece.kwargs)
    mode, cache = Mode(channels=5), DualCache(piece.length - piece.front, reading(adapter, call))
    rules = JvpRules(adapter, mode, cache, composite)
    kwargs = {k: repeated(k, v, 5) for k, v in piece.kwargs.items()}
    if piece.doors is not None:  # let something enter by every door
        embeds, one[piece.doors.where] = piece.doors.probe(piece.embeds, piece.kwargs[piece.doors.where], 1)
        kwargs[piece.doors.where] = piece.doors.probe(piece.embeds, piece.kwargs[piece.doors.where], 5)[1]
    with torch.no_grad(), gates_checked(adapter) as hooks, adapter.routed(), attention_hooks(*hooks):
        own = _last(adapter.decoder(use_cache=False, **replace(piece, kwargs=one).arguments(embeds)))[0]
    with torch.no_grad(), rules.attached():
        rows = torch.cat([embeds, embeds / 2, embeds, embeds / -2, torch.zeros_like(embeds)])
        given = replace(piece, kwargs=kwargs).arguments(rows)
        value, half, whole, minus, none = _last(adapter.decoder(past_key_values=cache, use_cache=True, **given))
    error = float(torch.maximum((whole - 2 * half).abs(), (half + minus).abs()).max())
    limit, off = tolerance(embeds.dtype, 1e-3, 5e-2), relative_error(value, own)
    if not off <= tolerance(embeds.dtype, 2e-2, 0.25):  # TF32 adds up over layers; in 16 bits a router may turn
        raise UnknownKindError(
            f"the forward mode of {type(adapter.decoder).__name__} computes something else than it does: hidden "
            f"states are {off:.2g} of their size apart",
            hint=f"{FALLBACK}; was a module changed after its first use? Wrap the model again",
        )
    size = float(whole.abs().max())
    if not (error <= limit * size and float(none.abs().max()) <= 1e-6 * size):
        raise UnknownKindError(
            f"{type(adapter.decoder).__name__} does something to its rows that no rule covers: tangents of size "
            f"{size:.2g} come out {error:.2g} away from linear, no tangent as {float(none.abs().max()):.2g}",
            hint=f"{FALLBACK}; where activations are quantised too, load weight-only quantisation",
        )
    _CHECKED[adapter.decoder] = (now, checked | {key})
