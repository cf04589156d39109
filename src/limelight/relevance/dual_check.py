"""Is every operation of a decoder that no forward twin covers linear on tangents? Asked once a model."""

from __future__ import annotations

from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import nn

from limelight.errors import UnknownKindError
from limelight.models.adapter import Adapter
from limelight.models.attention import attention_hooks
from limelight.models.beside import reading_layers
from limelight.models.capture import DecoderCall
from limelight.relevance.composites import Composite, Structure, gates_checked, structure
from limelight.relevance.dual_attention import FALLBACK, Mode
from limelight.relevance.dual_cache import DualCache
from limelight.relevance.dual_inputs import repeated, tail
from limelight.relevance.dual_rules import DualRules

_CHECKED: WeakKeyDictionary[nn.Module, tuple[Structure, set[tuple[object, ...]]]] = WeakKeyDictionary()


def reading(adapter: Adapter, call: DecoderCall) -> set[int]:
    """Layers that attend to states beside the prompt."""
    return set() if call.beside is None else reading_layers(adapter.decoder, call.beside.name)


def _ending(call: DecoderCall, count: int) -> DecoderCall:
    """The last positions of a prompt, behind what stands beside it."""
    kwargs = {k: tail(v, count) for k, v in call.kwargs.items()}
    if call.beside is not None:
        kwargs |= {k: call.kwargs[k][:, :, -count:] for k in call.beside.masks}
    if call.doors is not None:
        kwargs[call.doors.where] = call.kwargs[call.doors.where][:, -count:]
    embeds, mask = (torch.cat([x[:, : call.front], x[:, -count:]], dim=1) for x in (call.embeds, call.mask))
    return replace(call, embeds=embeds, mask=mask, kwargs=kwargs)


def require_twins(adapter: Adapter, call: DecoderCall, composite: Composite) -> None:
    """Run tangents t, 2 t, -t and 0 through the decoder: all that no twin covers must be linear on them.

    Once a model, composite and way by which something enters: a prompt that only sounds opens no door for pictures.

    Biases, learned positions, gates and activations written as functions are not, and would be silently wrong.

    Raises:
        UnknownKindError: it is not.
    """
    now = structure(adapter)
    before, checked = _CHECKED.get(adapter.decoder, ((), set()))
    checked = checked if before == now else set()
    key = (composite.name, call.doors, None if call.beside is None else (call.beside.name, call.beside.masks))
    if key in checked:
        return
    piece = _ending(call.row(0), min(2, call.length - call.front))
    embeds = piece.embeds
    mode, cache = Mode(channels=5), DualCache(piece.length - piece.front, reading(adapter, call))
    twins = DualRules(adapter, mode, cache, composite)
    kwargs = {k: repeated(k, v, 5) for k, v in piece.kwargs.items()}
    if piece.doors is not None:  # let something enter by every door
        embeds, kwargs[piece.doors.where] = piece.doors.probe(embeds, piece.kwargs[piece.doors.where], 5)
    with torch.no_grad(), gates_checked(adapter, now) as hooks, adapter.routed(), attention_hooks(*hooks):
        if hooks:
            adapter.decoder(use_cache=False, **piece.arguments())
    with torch.no_grad(), twins.attached():
        rows = torch.cat([embeds, embeds / 2, embeds, embeds / -2, torch.zeros_like(embeds)])
        given = replace(piece, kwargs=kwargs).arguments(rows)
        out = adapter.decoder(past_key_values=cache, use_cache=True, **given)
    hidden = (out.last_hidden_state if hasattr(out, "last_hidden_state") else out[0])[:, -1].detach().float()
    _, half, whole, minus, none = hidden
    error = float(torch.maximum((whole - 2 * half).abs(), (half + minus).abs()).max())
    limit = 1e-3 if embeds.dtype in (torch.float32, torch.float64) else 5e-2
    size = float(whole.abs().max())
    if not (error <= limit * size and float(none.abs().max()) <= 1e-6 * size):
        raise UnknownKindError(
            f"{type(adapter.decoder).__name__} does something to its rows that no forward twin covers: tangents of size "
            f"{size:.2g} come out {error:.2g} away from linear, no tangent as {float(none.abs().max()):.2g}",
            hint=f"{FALLBACK}; where activations are quantised too, load weight-only quantisation",
        )
    _CHECKED[adapter.decoder] = (now, checked | {key})
