"""How the rules of a composite come onto a model and off again, block within block, and what is known of a model then.

Two sets of rules on one model would act on each other's gradients. So whatever a block has put on comes off while a
block within it holds, and is put on again after that one's end, whatever happened inside. Attention hooks of the caller
stay; only the hook that belongs to a set of rules is exchanged, at its place among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from limelight.errors import HookError
from limelight.models.adapter import Adapter
from limelight.models.runtime.attention import AttentionHook, active_hooks, check_bound, exactly_hooks
from limelight.models.runtime.wrappers import modules_of
from limelight.relevance.classify import classify_modules
from limelight.relevance.composites import ATTN_LRP, Composite, composite_of
from limelight.relevance.differentiable import check_differentiable
from limelight.relevance.kind import ModuleMatch, nothing
from limelight.relevance.layers import gated_attention, output_head
from limelight.relevance.layers.attention import AttentionRule
from limelight.relevance.layers.router import routers
from limelight.relevance.mode import Mode

Putting = Callable[[ExitStack], tuple[AttentionHook, ...]]


class Attachment:
    """What one block has put on a model.

    Args:
        rule: the attention hook of the rules; it takes the place of the surrounding block's.
        put_on: puts everything else on and gives the stack what takes it off again; returns attention hooks that run
            behind all others. Called again after a block within.

    Attributes:
        runs: forwards of the decoder that ended under it.
        depth: forwards under way (capturing a prompt from within one is another).
    """

    def __init__(self, rule: AttentionHook, put_on: Putting) -> None:
        self.rule, self.put_on = rule, put_on
        self.last: tuple[AttentionHook, ...] = ()
        self.runs = 0
        self.depth = 0
        self._stack = ExitStack()

    def on(self, decoder: Any) -> None:
        """Put everything on; nothing stays where that fails."""
        with ExitStack() as stack:
            self.last = self.put_on(stack)
            stack.callback(decoder.register_forward_pre_hook(self._enter).remove)
            stack.callback(decoder.register_forward_hook(self._count).remove)
            stack.callback(decoder.register_forward_hook(self._leave, always_call=True).remove)
            self._stack = stack.pop_all()

    def off(self, error: BaseException | None = None) -> None:
        stack, self._stack = self._stack, ExitStack()
        stack.__exit__(None if error is None else type(error), error, None if error is None else error.__traceback__)

    def _enter(self, *_: Any) -> None:
        self.depth += 1

    def _count(self, *_: Any) -> None:
        self.runs += 1

    def _leave(self, *_: Any) -> None:
        self.depth -= 1


_HELD: dict[int, list[Attachment | None]] = {}  # by id of the decoder, None where set aside; emptied as blocks end


@contextmanager
def set_aside(adapter: Adapter) -> Iterator[Attachment | None]:
    """Inside, the model is without what the surrounding block has put on it, which is yielded. Exclusive.

    Raises:
        HookError: in the middle of a forward that runs under it (a hook or callback within that forward).
    """
    with adapter.exclusive():
        held = _HELD.get(id(adapter.decoder))
        outer = held[-1] if held else None
        if held is None or outer is None:
            yield None
            return
        if outer.depth:
            raise HookError(
                "expected rules to be attached between two forwards, got it in the middle of one that has rules attached",
                hint="call attribute(), attached() or generate() after that forward, not from a hook inside it",
            )
        outer.off()
        held.append(None)
        try:
            yield outer
        finally:
            held.pop()
            outer.on(adapter.decoder)


@contextmanager
def holding(adapter: Adapter, mine: Attachment, *hooks: AttentionHook) -> Iterator[set[int]]:
    """``mine`` on the model, and the caller's further attention ``hooks``; yields the layers whose attention was called.

    A hook that is active already is not run a second time.
    """
    key = id(adapter.decoder)
    with set_aside(adapter) as outer:
        mine.on(adapter.decoder)
        held = _HELD.setdefault(key, [])
        held.append(mine)
        try:
            with exactly_hooks(*_joined(outer, mine, hooks)) as seen:
                yield seen
        except BaseException as error:
            mine.off(error)
            raise
        else:
            mine.off()
        finally:
            held.pop()
            if not held:
                del _HELD[key]


def _joined(outer: Attachment | None, mine: Attachment, hooks: tuple[AttentionHook, ...]) -> list[AttentionHook]:
    active = active_hooks()
    own = () if outer is None else (outer.rule, *outer.last)
    kept = [mine.rule if outer is not None and hook is outer.rule else hook for hook in active]
    kept = [hook for hook in kept if not any(hook is other for other in own)]
    if not any(hook is mine.rule for hook in kept):
        kept.append(mine.rule)
    kept += [hook for hook in hooks if not any(hook is other for other in kept)]
    return [*kept, *mine.last]


Structure = tuple[int, ...]
_MATCHES: WeakKeyDictionary[nn.Module, tuple[Structure, list[ModuleMatch]]] = WeakKeyDictionary()
_GATES: WeakKeyDictionary[nn.Module, Structure] = WeakKeyDictionary()
_DIFFERENTIABLE: WeakKeyDictionary[nn.Module, Structure] = WeakKeyDictionary()


def structure(adapter: Adapter) -> Structure:
    """Which module instances there are: adapters and quantisers exchange them. A walk over the modules: take it along."""
    return (*map(id, modules_of(adapter.decoder)), id(adapter.head))


def matches_of(adapter: Adapter, now: Structure | None = None) -> list[ModuleMatch]:
    """The kinds of a model's modules, told once and again when modules have been exchanged (``now``: its structure)."""
    now = structure(adapter) if now is None else now
    with adapter.exclusive():  # modules are probed by running them
        known = _MATCHES.get(adapter.decoder)
        if known is None or known[0] != now:
            with set_aside(adapter):
                known = _MATCHES[adapter.decoder] = (now, classify_modules(adapter.decoder))
    return known[1]


def require_gradients(adapter: Adapter, now: Structure | None = None) -> None:
    """Raise NotDifferentiableError when a linear layer or the head lets no gradient through."""
    now = structure(adapter) if now is None else now
    if _DIFFERENTIABLE.get(adapter.decoder) != now:
        deciding = {id(r) for m in adapter.decoder.layers.modules() for _, r in routers(m)}
        parts = [(n, m) for n, m in adapter.decoder.layers.named_modules(prefix="layers") if id(m) not in deciding]
        with set_aside(adapter):
            check_differentiable([*parts, ("the head", adapter.head)])
        _DIFFERENTIABLE[adapter.decoder] = now


@contextmanager
def gates_checked(adapter: Adapter, now: Structure | None = None) -> Iterator[tuple[AttentionHook, ...]]:
    """The first forward inside is checked: gates of attention do what their rule takes them to do. Yields its hook."""
    now = structure(adapter) if now is None else now
    gates = [match for match in matches_of(adapter, now) if match.kind == gated_attention.KIND.name]
    if not gates or _GATES.get(adapter.decoder) == now:
        yield ()
        return
    runs: list[int] = []
    handle = adapter.decoder.register_forward_hook(lambda *_: runs.append(1))
    try:
        with gated_attention.checked(gates) as hook:
            yield (hook,)
    finally:
        handle.remove()
    if runs:
        _GATES[adapter.decoder] = now


@contextmanager
def attached(adapter: Adapter, composite: Composite | str = ATTN_LRP, *hooks: AttentionHook) -> Iterator[None]:
    """The rules of a composite (or of its name) on this model's decoder inside the block, and further attention ``hooks``
    after them.

    Blocks may be nested, also by what attaches rules itself (:func:`attribute`, strategies): the innermost rules hold, and
    those around them are back afterwards. ``hooks`` of the surrounding block stay active.

    On exit, also after an exception, the instances are as they were (the model is bit-equal).

    Raises:
        UnknownKindError: a module has no known kind (not for GRADIENT_INPUT, which needs none).
        NotDifferentiableError: a linear layer lets no gradient through (some quantised kinds).
        HookError: attention did not go through the hooks; or rules are attached in the middle of a forward that has some.
    """
    composite = composite_of(composite)
    with ExitStack() as stack:
        stack.enter_context(adapter.exclusive())
        now = structure(adapter)
        require_gradients(adapter, now)
        matches = matches_of(adapter, now) if composite.rules else []
        mode = Mode(graph="surrogate", backward=True, divisors=composite.attention)

        def put_on(inner: ExitStack) -> tuple[AttentionHook, ...]:
            for match in matches:
                for part in composite.rules.get(match.kind, nothing)(match, mode):
                    inner.callback(part())
            if not composite.rules:
                return ()
            inner.callback(output_head.put_on(adapter))
            return inner.enter_context(gates_checked(adapter, now))

        stack.enter_context(adapter.routed())
        mine = Attachment(AttentionRule(composite.attention, frozenset(now)), put_on)
        seen = stack.enter_context(holding(adapter, mine, *hooks))
        yield
        if mine.runs:
            check_bound(seen, adapter.attending(seen))
