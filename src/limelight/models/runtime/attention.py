"""The library's attention function, and hooks into its computation.

It is registered with transformers under the name ``limelight``, both as an attention function and as a mask function
(without the latter, transformers would build no causal mask). Without hooks it performs the same operations in the same
order as the models' ``eager`` attention, so logits are bit-equal. Hooks are stored in a ContextVar: threads do not share
them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from limelight import compat
from limelight.errors import HookError, UnsupportedError
from limelight.models.inputs.ready_masks import additive
from limelight.models.runtime import fused
from limelight.models.runtime.wrappers import modules_of

NAME = "limelight"
# Arguments of some families' attention that change its result and are not supported here.
_CHANGING = frozenset({"position_bias", "sinks", "block_indices", "alibi"})


CROSS_ATTENTION = (
    "cross_attn",
    "encoder_attn",
    "crossattention",
    "encoder_decoder_attention",
)  # suffixes of module names
# Cross-attention modules that share their layer_idx with a self-attention module -> their own number.
_NUMBERS: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


def is_attention(module: nn.Module) -> bool:
    """Return whether this is an attention module of transformers: it has a ``layer_idx`` and projections."""
    if getattr(module, "layer_idx", None) is None:
        return False
    children = {name for name, _ in module.named_children()}
    return any(
        name in children for name in ("q_proj", "qkv_proj", "k_proj", "q_b_proj", "query_key_value", "kv_b_proj")
    )


def number(module: nn.Module, given: int) -> None:
    """Assign a number to an attention module, which replaces its ``layer_idx`` in hooks and caches."""
    _NUMBERS[module] = given


def number_of(module: nn.Module) -> int | None:
    """Return the number of an attention module in hooks and caches: an assigned one, or its ``layer_idx``."""
    own = _NUMBERS.get(module)
    index = getattr(module, "layer_idx", None) if own is None else own
    return None if index is None else int(index)


class AttentionHook:
    """Base class of hooks into the attention computation; every method is the identity until overridden.

    Shapes: ``q`` [B, H, Q, d], ``k``/``v`` [B, Hkv, K, d] (after rotary embedding and cache), scores and weights
    [B, H, Q, K], out [B, H, Q, d]. ``layer`` is the attention module's ``layer_idx``, plus the number of layers for
    cross-attention in a layer that also has self-attention (:mod:`limelight.models.inputs.encoder_decoder`).

    Attributes:
        only: ids of the attention modules that the hook applies to (if several models are in use); None: all.
    """

    only: frozenset[int] | None = None

    def qkv(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Change queries, keys and values, before the key/value heads are repeated."""
        return q, k, v

    def raw_scores(self, layer: int, scores: Tensor, q: Tensor) -> Tensor:
        """Change ``q k^T``, before scaling, soft-cap and mask."""
        return scores

    def softcap(self, layer: int, scores: Tensor, value: Tensor) -> Tensor:
        """Change ``value = cap * tanh(scores / cap)``; called only if there is a soft-cap."""
        return value

    def scores(self, layer: int, scores: Tensor) -> Tensor:
        """Change the scaled, soft-capped and masked scores, before the softmax."""
        return scores

    def out(self, layer: int, out: Tensor, weights: Tensor) -> Tensor:
        """Change the output ``weights @ v``."""
        return out

    def attended(self, layer: int, out: Tensor) -> None:
        """Observe the final output, after every :meth:`out`; for hooks that do not need the weights."""

    def attend(self, call: AttentionCall) -> tuple[Tensor, Tensor | None] | None:
        """Return (output [B, Q, H, d], weights) to replace the whole computation, or None to leave it unchanged."""
        return None


@dataclass
class AttentionCall:
    """Arguments of one call of the attention function."""

    module: nn.Module
    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scaling: float
    softcap: float | None
    sinks: Tensor | None


@dataclass
class _Active:
    hooks: tuple[AttentionHook, ...]
    seen: set[int] = field(default_factory=set)


_ACTIVE: ContextVar[_Active | None] = ContextVar("limelight_attention", default=None)


@contextmanager
def attention_hooks(*hooks: AttentionHook) -> Iterator[set[int]]:
    """Run ``hooks`` in every attention call inside the block, after those of the enclosing blocks.

    Yields the set of layer numbers that have called the attention function so far.
    """
    with exactly_hooks(*active_hooks(), *hooks) as seen:
        yield seen


@contextmanager
def exactly_hooks(*hooks: AttentionHook) -> Iterator[set[int]]:
    """Like :func:`attention_hooks`, but with these hooks only: those of the enclosing blocks are suspended."""
    outer = _ACTIVE.get()
    active = _Active(hooks)
    try:
        with fused.holding(_ACTIVE, active):
            yield active.seen
    finally:
        if outer is not None:
            outer.seen |= active.seen


def active_hooks() -> tuple[AttentionHook, ...]:
    """Return the active hooks of the current context, outermost first."""
    active = _ACTIVE.get()
    return active.hooks if active else ()


def check_bound(seen: set[int], expected: set[int]) -> None:
    """Raise HookError if a layer of ``expected`` never called the attention function, so that its hooks did not run."""
    missing = sorted(expected - seen)
    if missing:
        raise HookError(
            f"attention hooks did not bind: expected layers {sorted(expected)}, layers {missing} never called them",
            hint="this attention does not go through transformers' attention interface; run `limelight models --check`",
        )


def no_attention_hooks() -> AbstractContextManager[None]:
    """Suspend all hooks inside the block (for a reference forward pass)."""
    return fused.holding(_ACTIVE, None)


def repeat_heads(x: Tensor, groups: int) -> Tensor:
    """Repeat each key/value head ``groups`` times in a row: [B, Hkv, K, d] -> [B, Hkv * groups, K, d]."""
    if groups == 1:
        return x
    b, h, k, d = x.shape
    return x[:, :, None].expand(b, h, groups, k, d).reshape(b, h * groups, k, d)


def fit_mask(mask: Tensor | None, keys: int) -> Tensor | None:
    """Cut an additive mask [B, 1, Q, K'] to the number of keys, as the models' eager attention does."""
    if mask is None:
        return None
    return mask if mask.shape[-1] == keys else mask[..., :keys]


def softmax_with_sinks(scores: Tensor, sinks: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Compute the softmax over keys in float32 or wider; learned ``sinks`` [H] add a column that is dropped afterwards."""
    if sinks is None:
        return torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(dtype)
    b, h, q, _ = scores.shape
    column = sinks.reshape(1, -1, 1, 1).expand(b, h, q, 1).to(scores.dtype)
    joined = torch.cat([scores, column], dim=-1)
    joined = joined - joined.max(dim=-1, keepdim=True).values
    return torch.softmax(joined, dim=-1, dtype=joined.dtype)[..., :-1].to(dtype)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Compute eager attention with hooks, with the arguments and results of transformers' attention functions.

    Raises:
        UnsupportedError: an argument that changes the result and is not supported here; dropout in training mode.
    """
    further = {
        n: v for n, v in kwargs.items() if v is not None and n != "position_ids"
    }  # already applied by the rotation
    unsupported = [n for n, v in further.items() if n in _CHANGING or _floats(v)]
    if unsupported:
        raise UnsupportedError(
            f"{type(module).__name__} passes {', '.join(unsupported)} to its attention, which limelight's attention function "
            "does not support",
            hint="only methods that leave the attention alone (greedy, vcd, m3id) work on this family",
        )
    if attention_mask is not None and attention_mask.dtype is torch.bool:
        attention_mask = additive(attention_mask, query.dtype)
    if kwargs.get("indices") is not None:
        if fused.left_out(module, attention_mask, query, key, kwargs.get("is_causal")):
            attention_mask = fused.causal_mask(query, key)
        attention_mask = selected(kwargs["indices"], attention_mask, query, key)
    active = _ACTIVE.get()
    hooks = () if active is None else tuple(h for h in active.hooks if h.only is None or id(module) in h.only)
    index = number_of(module)
    layer = -1 if index is None else index  # an encoder that shares the decoder's config
    if active:
        active.seen.add(layer)
    if dropout and module.training:
        raise UnsupportedError(
            "attention dropout is active: relevance and grounding need the model in eval mode", hint="call model.eval()"
        )
    scaling = float(query.shape[-1] ** -0.5) if scaling is None else scaling
    causal = fused.left_out(module, attention_mask, query, key, kwargs.get("is_causal"))
    if causal and any(_overrides(hook, "attend") for hook in hooks):
        attention_mask, causal = fused.causal_mask(query, key), False
    for hook in hooks:
        done = hook.attend(AttentionCall(module, layer, query, key, value, attention_mask, scaling, softcap, s_aux))
        if done is not None:
            return done
    for hook in hooks:
        query, key, value = hook.qkv(layer, query, key, value)
    if _fuses(hooks, query, key, value, attention_mask, softcap, s_aux):
        out = fused.attend(query, key, value, fit_mask(attention_mask, key.shape[-2]), scaling, causal)
        for hook in hooks:
            hook.attended(layer, out)
        return out.transpose(1, 2).contiguous(), None
    if causal:
        attention_mask = fused.causal_mask(query, key)
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_heads(key, groups), repeat_heads(value, groups)
    scores = torch.matmul(query, key.transpose(2, 3))
    for hook in hooks:
        scores = hook.raw_scores(layer, scores, query)
    scores = scores * scaling
    if softcap is not None:
        capped = torch.tanh(scores / softcap) * softcap
        for hook in hooks:
            capped = hook.softcap(layer, scores, capped)
        scores = capped
    mask = fit_mask(attention_mask, key.shape[-2])
    if mask is not None:
        scores = scores + mask
    for hook in hooks:
        scores = hook.scores(layer, scores)
    weights = softmax_with_sinks(scores, s_aux, query.dtype)
    out = torch.matmul(weights, value)
    for hook in hooks:
        out = hook.out(layer, out, weights)
    for hook in hooks:
        hook.attended(layer, out)
    return out.transpose(1, 2).contiguous(), weights


def selected(indices: Tensor, mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor:
    """Build the mask of sparse attention: each query attends to the keys ``indices`` [B, Q, k] that ``mask`` allows."""
    low = torch.finfo(query.dtype).min
    hidden = torch.ones((*indices.shape[:2], key.shape[2]), dtype=torch.bool, device=query.device)
    hidden = hidden.scatter(-1, indices.long(), False)[:, None]
    if mask is None:
        mask = query.new_zeros(1, 1, 1, key.shape[2])
    return mask.masked_fill(hidden, low)


def _overrides(hook: AttentionHook, name: str) -> bool:
    return getattr(type(hook), name) is not getattr(AttentionHook, name)


def _fuses(
    hooks: tuple[AttentionHook, ...],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> bool:
    """Return whether the fused kernel is enabled and nothing needs scores or weights."""
    if fused.fused_state() is None or softcap is not None or sinks is not None:
        return False
    if not query.dtype == key.dtype == value.dtype or (mask is not None and not mask.is_floating_point()):
        return False
    return not any(_overrides(hook, name) for hook in hooks for name in ("raw_scores", "scores", "out"))


def _floats(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def register() -> None:
    """Register the function with transformers under ``NAME`` (idempotent; replaces nothing)."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, fused.additive_mask)


def configs_of(instances: Iterable[dict[str, Any]]) -> list[Any]:
    """Return every transformers config once, given the ``__dict__`` of each module (getattr would be slow)."""
    found = {id(c): c for c in map(dict.get, instances, repeat("config")) if c is not None}
    return [c for c in found.values() if compat.names_attention(c)]


@contextmanager
def switched(decoder: nn.Module, configs: Sequence[Any] | None = None) -> Iterator[None]:
    """Route the attention of ``decoder`` (the text stack only) through :func:`attention` inside the block.

    ``configs``: the transformers configs of its modules, if already known (:meth:`ModuleTable.configs`).

    Raises:
        HookError: there is no transformers config.
    """
    register()
    configs = configs_of(map(vars, modules_of(decoder))) if configs is None else configs
    if not configs:
        raise HookError(
            f"expected {type(decoder).__name__} or its layers to carry a transformers config, found none",
            hint="pass the transformers model itself, not a module taken out of it",
        )
    before: list[tuple[Any, str | None]] = []
    try:
        for config in configs:
            before.append((config, compat.swap_attention_implementation(config, NAME)))
        yield
    finally:
        for config, value in before:
            compat.swap_attention_implementation(config, value)
