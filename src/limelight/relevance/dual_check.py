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
from limelight.relevance.composites import Composite, gates_checked
from limelight.relevance.dual_attention import FALLBACK, Mode
from limelight.relevance.dual_cache import DualCache
from limelight.relevance.dual_inputs import repeated, tail
from limelight.relevance.dual_rules import DualRules

_CHECKED: WeakKeyDictionary[nn.Module, set[tuple[object, ...]]] = WeakKeyDictionary()


def reading(adapter: Adapter, call: DecoderCall) -> set[int]:
    """Layers that attend to states beside the prompt."""
    return set() if call.beside is None else reading_layers(adapter.decoder, call.beside.name)


def require_twins(adapter: Adapter, call: DecoderCall, composite: Composite) -> None:
    """Run tangents t, 2 t, -t and 0 through the decoder, once a model: all that no twin covers must be linear on them.

    Biases, learned positions, gates and activations written as functions are not, and would be silently wrong.

    Raises:
        UnknownKindError: it is not.
    """
    key = (composite.name, *map(id, adapter.decoder.modules()))
    if key in _CHECKED.setdefault(adapter.decoder, set()):
        return
    count = min(2, call.length)
    piece = call.row(0)
    count = min(count, call.length - call.front)
    embeds = torch.cat([piece.embeds[:, : piece.front], piece.embeds[:, -count:]], dim=1)
    mode, cache = Mode(channels=5), DualCache(count, reading(adapter, call))
    twins = DualRules(adapter, mode, cache, composite)
    kwargs = {k: repeated(k, tail(v, count), 5) for k, v in piece.kwargs.items()}
    if piece.beside is not None:
        kwargs |= {k: repeated(k, piece.kwargs[k][:, :, -count:], 5) for k in piece.beside.masks}
    if piece.doors is not None:  # let something enter by every door
        where = piece.kwargs[piece.doors.where][:, -count:]
        embeds, kwargs[piece.doors.where] = piece.doors.probe(embeds, where, 5)
    with torch.no_grad(), gates_checked(adapter) as hooks, adapter.routed(), attention_hooks(*hooks):
        if hooks:
            given = {k: tail(v, count) for k, v in piece.kwargs.items()}
            if piece.doors is not None:
                given[piece.doors.where] = piece.kwargs[piece.doors.where][:, -count:]
            adapter.decoder(use_cache=False, **replace(piece, kwargs=given).arguments(piece.embeds[:, -count:]))
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
    _CHECKED[adapter.decoder].add(key)
