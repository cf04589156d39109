"""Context managers that observe or modify a forward pass through hooks on module instances, removed on exit.

The hooks act only in the thread that registered them; other threads' forwards on the same model are unaffected.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from limelight.errors import HookError, SettingError, UnsupportedError
from limelight.models.adapter import Adapter
from limelight.models.detect import CROSS_ATTENTION
from limelight.models.inputs.decoder_inputs import DECODER, holds_tensors
from limelight.models.runtime.attention import AttentionCall, AttentionHook, attention_hooks, check_bound
from limelight.models.runtime.wrappers import unwrapped
from limelight.relevance.layers.norm import final_norm


@contextmanager
def pre_hook(module: nn.Module, fn: Callable[[tuple[Any, ...], dict[str, Any]], Any]) -> Iterator[None]:
    """Call ``fn(args, kwargs)`` before ``module`` runs; a result other than None replaces them."""
    owner = threading.get_ident()

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return fn(args, kwargs) if threading.get_ident() == owner else None

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def post_hook(module: nn.Module, fn: Callable[[tuple[Any, ...], dict[str, Any], Any], Any]) -> Iterator[None]:
    """Call ``fn(args, kwargs, output)`` after ``module`` has run; a result other than None replaces the output."""
    owner = threading.get_ident()

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        return fn(args, kwargs, output) if threading.get_ident() == owner else None

    handle = module.register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def decoder_layers(adapter: Adapter) -> list[nn.Module]:
    """Return the decoder's layers in order."""
    return [unwrapped(layer) for layer in adapter.decoder.layers]


def check_layers(
    adapter: Adapter, layers: Sequence[int], method: str, *, last: int | None = None, setting: str = ""
) -> None:
    """Raise SettingError if ``layers`` is empty or not within ``[0, last]`` (default: the last layer's index).

    ``setting`` names what the caller set, where that is not the layers themselves.
    """
    depth = len(decoder_layers(adapter))
    last = depth - 1 if last is None else last
    beyond = [i for i in layers if not 0 <= i <= last]
    if not beyond and layers:
        return
    have = f"this model has {depth} layers, 0 to {depth - 1}"
    if last < 0:
        raise SettingError(
            f"{method} needs a model of at least {depth - last} layers; {have}", hint="use another method"
        )
    got = f"layers {beyond}" if beyond else "no layers"
    raise SettingError(
        f"{method}: expected one or more layers within 0..{last}, got {got}{f' ({setting})' if setting else ''}",
        hint=f"{have}; choose layers in that range, or leave the setting out for the published layers scaled in proportion",
    )


def chosen_layers(
    adapter: Adapter, published: tuple[int, int], start: int | None, stop: int | None, method: str
) -> set[int]:
    """Return the attention layers ``start <= layer < stop``; None: those ``published`` for 32 layers, in proportion.

    Raises:
        SettingError: the model does not have them, or none of them has attention.
    """
    first, last = in_proportion(published, len(decoder_layers(adapter)))
    chosen = range(first if start is None else start, last + 1 if stop is None else stop)
    setting = f"start={start}, stop={stop}"
    check_layers(adapter, chosen, method, setting=setting)
    found = set(chosen) & set(adapter.attention_layers)
    check_layers(adapter, sorted(found), method, setting=f"{setting}, attention in {sorted(adapter.attention_layers)}")
    return found


def refuse_cross_attention(
    adapter: Adapter, method: str, works_on: str = "the attention to the media's positions"
) -> None:
    """Raise UnsupportedError if the media enter through cross-attention, without positions in the prompt."""
    names = [n for n, _ in adapter.decoder.named_modules() if n.endswith(CROSS_ATTENTION)]
    if names:
        raise UnsupportedError(
            f"{method} works on {works_on}; {type(adapter.model).__name__} reads the media "
            f"through cross-attention ({names[0]})",
            hint="use vcd(), icd() or m3id(), which need no attention maps"
            if adapter.encoder is None
            else 'use vcd(), aad() or m3id(without="zero"), which need no attention maps',
        )


def tensor_of(output: Any) -> Tensor:
    """Return the hidden states ``[B, T, D]`` in a layer's output.

    Raises:
        UnsupportedError: anything else (several residual streams).
    """
    hidden = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(hidden, Tensor) or hidden.ndim != 3:
        shape = tuple(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__
        raise UnsupportedError(
            f"expected hidden states [batch, positions, width] from each layer, got {shape}",
            hint="this family has several residual streams; use a method that contrasts two prompts (vcd, m3id)",
        )
    return hidden


@contextmanager
def first_input(adapter: Adapter, fn: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Call ``fn(merged embeddings [B, T, D])`` when they enter the first layer; a returned tensor replaces them.

    Raises:
        HookError: the block ran without calling the first layer.
        UnsupportedError: the layers do not take ``[B, T, D]``.
    """
    seen: list[int] = []

    def enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden = tensor_of(args[0] if args else kwargs["hidden_states"])
        seen.append(1)
        changed = fn(hidden)
        if changed is None:
            return None
        return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed})

    with pre_hook(decoder_layers(adapter)[0], enter):
        yield
    if not seen:
        raise HookError(
            f"{type(adapter.model).__name__} ran without calling its decoder's first layer",
            hint="run `limelight models --check`",
        )


@contextmanager
def masked_media(adapter: Adapter, keep: Tensor) -> Iterator[None]:
    """Zero the merged embeddings at positions where ``keep`` [B, T] is False, inside the block (one prefill).

    Features of those positions that enter deeper layers are zeroed too, and so are all cross-attention states.

    Raises:
        UnsupportedError: the media enter through an argument that cannot be masked by position.
    """

    def mask_features(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = {k: v for k, v in kwargs.items() if holds_tensors(v) and DECODER.is_features(k)}
        masked = {k: _masked(k, v, kwargs, keep) for k, v in given.items()}
        return (args, {**kwargs, **masked}) if masked else None

    with (
        pre_hook(adapter.decoder, mask_features),
        first_input(adapter, lambda embeds: embeds * keep[..., None].to(embeds.dtype)),
    ):
        yield


def _masked(name: str, value: Any, kwargs: Mapping[str, Any], keep: Tensor) -> Any:
    """Zero the features where ``keep`` is False; cross-attention states are zeroed entirely."""
    if isinstance(value, Tensor):
        axes = DECODER.axes(name, value)
        if "state" in axes.names:
            return value * 0
        if axes.positions == 1:  # per-layer inputs computed from ids alone contain no media
            return value * keep.reshape(*keep.shape, *[1] * (value.ndim - 2)).to(value.dtype) if axes.media else value
    pieces = list(value.values()) if isinstance(value, Mapping) else list(value)
    places = [v[..., 0] if v.ndim == 3 else v for k, v in kwargs.items() if DECODER.marks_media(k, v)]
    places = [p for p in places if all(f.shape[0] == int(p.sum()) for f in pieces)]
    if len(places) != 1:
        raise UnsupportedError(
            f"the media also enter through {name!r}, whose positions are unknown", hint='use without="drop"'
        )
    out = [f * keep[places[0]][:, None].to(f.dtype) for f in pieces]
    return dict(zip(value, out, strict=True)) if isinstance(value, Mapping) else out


class DecoderHook(AttentionHook):
    """An attention hook that tracks whether a call comes from the text decoder's own attention of that layer.

    Some decoders contain their encoders, whose layers are also numbered from 0.
    """

    def __init__(self, adapter: Adapter) -> None:
        self.modules = adapter.attention_layers
        self.inside = False

    def attend(self, call: AttentionCall) -> None:
        self.inside = self.modules.get(call.layer) is call.module


@contextmanager
def hooked_attention(adapter: Adapter, hook: AttentionHook, layers: Iterable[int]) -> Iterator[None]:
    """Run the block with ``hook`` on the attention.

    Raises:
        HookError: one of ``layers`` did not call the attention function.
    """
    with adapter.routed(), attention_hooks(hook) as seen:
        yield
    check_bound(seen, set(layers))


def key_places(places: Tensor, keys: int, length: int) -> Tensor:
    """Return a mask ``[B, keys]`` of the prompt positions ``places`` [B, T] among the keys of a sequence of ``length``.

    A sliding window keeps only the last keys; a static cache has more keys than positions.
    """
    rows, prompt = places.shape
    whole = places.new_zeros(rows, max(length, keys))
    whole[:, :prompt] = places
    return whole[:, length - keys : length] if keys < length else whole[:, :keys]


def in_proportion(layers: tuple[int, int], depth: int, of: int = 32, *, beyond: int = 0) -> tuple[int, int]:
    """Scale the first and last layer published for a model of ``of`` layers to one of ``depth``; the range is never empty.

    Both are at most ``depth - 1 - beyond``: ``beyond`` layers must follow the last one.
    """
    first, last = (max(0, min(round(i * depth / of), depth - 1 - beyond)) for i in layers)
    return first, last


def mlp_of(adapter: Adapter, layer: int) -> nn.Module:
    """Return the feed-forward module of a layer.

    Raises:
        HookError: the layer has no separate feed-forward module.
    """
    names = ("mlp", "feed_forward", "block_sparse_moe", "ffn")
    module = decoder_layers(adapter)[layer]
    found = next((child for name, child in module.named_children() if name in names), None)
    if found is None:
        raise HookError(
            f"layer {layer} has no feed-forward module among {', '.join(n for n, _ in module.named_children())}",
            hint="this family computes its feed-forward inside the layer, out of reach of memvr() and vista()",
        )
    return unwrapped(found)  # type: ignore[no-any-return]


class LogitLens:
    """Computes logits of intermediate layers at the last position by applying final norm and head to their hidden states.

    Layer 0 is the input of the first layer, layer i the output of the i-th; all are taken before the final norm
    (transformers' ``hidden_states[-1]`` is taken after it).

    Args:
        layers: layer indices in ``[0, number of layers - 1]``.
        normed: apply the final norm before the head.
    """

    def __init__(self, adapter: Adapter, layers: Sequence[int], *, normed: bool = True) -> None:
        self.adapter, self.layers = adapter, tuple(layers)
        self.norm = final_norm(adapter) if normed else None
        self.hidden: dict[int, Tensor] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the hidden states of the forward inside the block."""
        stack = decoder_layers(self.adapter)

        def keep(layer: int) -> Callable[..., None]:
            def fn(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
                self.hidden[layer] = tensor_of(output)[:, -1].clone()

            return fn

        def entering(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.hidden[0] = tensor_of(args[0] if args else kwargs["hidden_states"])[:, -1].clone()

        with ExitStack() as hooks:
            for i in self.layers:
                hooks.enter_context(pre_hook(stack[0], entering) if i == 0 else post_hook(stack[i - 1], keep(i)))
            yield

    def logits(self) -> Tensor:
        """Return logits ``[layers, B, V]`` in float32 or wider."""
        rows = torch.stack([self.hidden[layer] for layer in self.layers])
        out = self.adapter.logits(rows if self.norm is None else self.norm(rows))
        return out.to(torch.promote_types(out.dtype, torch.float32))
