"""Check once per model that forward mode matches the decoder, and that operations without a rule are linear on tangents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from limelight.errors import UnknownKindError
from limelight.models.adapter import Adapter
from limelight.models.inputs.cross_attention import reading_layers
from limelight.models.runtime.attention import attention_hooks
from limelight.models.runtime.capture import DecoderCall, last_hidden
from limelight.relevance.attachment import facts, gates_checked
from limelight.relevance.composites import Composite
from limelight.relevance.forward.cache import DualCache
from limelight.relevance.forward.rules import JvpRules
from limelight.relevance.mode import FALLBACK, Mode
from limelight.relevance.positions import rotations_of
from limelight.relevance.probing import relative_error, tolerance


def reading(adapter: Adapter, call: DecoderCall) -> set[int]:
    """Return the layers that attend to cross-attention states."""
    return set() if call.cross_attention is None else reading_layers(adapter.decoder, call.cross_attention.name)


def rotated(adapter: Adapter, call: DecoderCall, composite: Composite) -> Mapping[int, tuple[Tensor, Tensor]]:
    """Return the rotating dimensions of each layer, for a composite that attributes to positions; none for others.

    Raises:
        UnsupportedError: the decoder's positions are not rotary.
    """
    return rotations_of(adapter, call) if composite.positional else {}


def require_forward_mode(adapter: Adapter, call: DecoderCall, composite: Composite) -> None:
    """Run tangents t, 2 t, -t and 0 through the decoder: operations without a rule must be linear on them.

    Biases, learned positions, gates and functional activations are not, and would give silently wrong results. The values
    beside the tangents must equal the decoder's own. Run once per model, composite and type of side features: a prompt
    with only audio does not test how images enter.

    Raises:
        UnknownKindError: a check fails.
    """
    checked: set[object] = facts(adapter).setdefault("forward mode", set())
    key = (composite.name, None if call.features is None else call.features.entrance)
    if key in checked:
        return
    piece = call.row(0).tail(min(2, call.length - call.front))
    embeds, one, kwargs = piece.embeds, dict(piece.kwargs), piece.repeated(5)
    mode = Mode(channels=5)
    cache = DualCache(piece.length - piece.front, reading(adapter, call), paired=adapter.encoder is not None)
    rules = JvpRules(adapter, mode, cache, composite, rotations=rotated(adapter, call, composite))
    if piece.features is not None:  # exercise every type of side features
        kept = {k: piece.kwargs[k] for k in piece.features.kept}
        embeds, entering = piece.features.probe(piece.embeds, kept, 1)
        one |= entering
        kwargs |= piece.features.probe(piece.embeds, kept, 5)[1]
    with torch.no_grad(), gates_checked(adapter) as hooks, adapter.routed(), attention_hooks(*hooks):
        own = last_hidden(adapter.decoder(use_cache=False, **replace(piece, kwargs=one).arguments(embeds)))[0, -1]
    with torch.no_grad(), rules.attached():
        rows = torch.cat([embeds, embeds / 2, embeds, embeds / -2, torch.zeros_like(embeds)])
        given = replace(piece, kwargs=kwargs).arguments(rows)
        out = adapter.decoder(past_key_values=cache.handed, use_cache=True, **given)
    value, half, whole, minus, none = last_hidden(out)[:, -1].float()
    error = float(torch.maximum((whole - 2 * half).abs(), (half + minus).abs()).max())
    limit, off = tolerance(embeds.dtype, 1e-3, 5e-2), relative_error(value, own)
    if not off <= tolerance(
        embeds.dtype, 2e-2, 0.25
    ):  # TF32 errors add up over layers; in 16 bits a router's choice may change
        raise UnknownKindError(
            f"the forward mode of {type(adapter.decoder).__name__} does not match its own forward: hidden states have a "
            f"relative error of {off:.2g}",
            hint=f"{FALLBACK}; was a module changed after its first use? Wrap the model again",
        )
    size = float(whole.abs().max())
    if not (error <= limit * size and float(none.abs().max()) <= 1e-6 * size):
        raise UnknownKindError(
            f"{type(adapter.decoder).__name__} contains an operation that no rule covers: tangents of size {size:.2g} "
            f"deviate from linearity by {error:.2g}, a zero tangent becomes {float(none.abs().max()):.2g}",
            hint=f"{FALLBACK}; where activations are quantised too, load weight-only quantisation",
        )
    checked.add(key)
