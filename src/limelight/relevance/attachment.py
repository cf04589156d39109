"""Attaching a composite's rules to a model and removing them, with nested blocks, and cached facts about the model.

Two sets of rules on one model would modify each other's gradients. Therefore an outer block's attachments are removed
while an inner block is active, and restored when it ends, also after an exception. The caller's attention hooks stay;
only the hook that belongs to a set of rules is exchanged, in place.

Rules are built once for the lifetime of the model's :class:`ModuleTable` (an answer, a dual stream, a block). Between
forwards they are removed, so that other code sees the unmodified model: the built rules are kept, and attaching them again
only exchanges entries of the instances' dictionaries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from limelight.errors import HookError, UnsupportedError
from limelight.models.adapter import Adapter
from limelight.models.runtime.attention import AttentionHook, active_hooks, check_bound, exactly_hooks
from limelight.relevance.classify import classify_modules
from limelight.relevance.composites import ATTN_LRP, Composite, composite_of
from limelight.relevance.differentiable import check_differentiable
from limelight.relevance.kind import Attach, ModuleMatch, Replacement, nothing
from limelight.relevance.layers import gated_attention, output_head
from limelight.relevance.layers.attention import AttentionRule
from limelight.relevance.layers.router import routers
from limelight.relevance.mode import Mode

_Checking = AbstractContextManager[tuple[AttentionHook, ...]]


class Attachment:
    """Rules built for a model, which can be attached and removed repeatedly.

    Args:
        rule: their attention hook; it replaces the surrounding block's.
        parts: the other attachments. Built around the modules' own forwards while nothing was attached.
    """

    def __init__(self, rule: AttentionHook, parts: Iterable[Attach]) -> None:
        self.rule = rule
        self._forwards: list[tuple[dict[str, Any], Any, Any]] = []  # instance, its own forward, the rule's
        self._others: list[Attach] = []
        for part in parts:
            if isinstance(part, Replacement):
                own = vars(part.module)
                self._forwards.append((own, own.get("forward"), part.forward))
            else:
                self._others.append(part)
        self._found: list[Any] = []

    @property
    def fits(self) -> bool:
        """Whether the instances still have the forwards that the rules were built around. Valid on the bare model only."""
        return all(own.get("forward") is before for own, before, _ in self._forwards)

    def attach(self, stack: ExitStack) -> None:
        """Attach everything; ``stack`` removes it again, also if attaching fails."""
        self._found = [own.get("forward") for own, _, _ in self._forwards]
        stack.callback(self._restore)
        for own, _, forward in self._forwards:
            own["forward"] = forward
        for part in self._others:
            stack.callback(part())

    def _restore(self) -> None:
        try:
            self._put_back()
        except BaseException:
            self._put_back()  # restore everything, also on an interrupt
            raise

    def _put_back(self) -> None:
        for (own, _, _), found in zip(self._forwards, self._found, strict=True):
            if found is not None:
                own["forward"] = found
            else:
                own.pop("forward", None)


class _Block:
    """One use of an attachment, active between :meth:`on` and :meth:`off`, which may be called repeatedly.

    Args:
        first: a context around every :meth:`on`; yields attention hooks that run after all others.

    Attributes:
        runs: number of decoder forwards completed while active.
        depth: number of forwards in progress (capturing a prompt within one is another).
    """

    def __init__(self, attachment: Attachment, first: Callable[[], _Checking]) -> None:
        self.attachment, self.first = attachment, first
        self.last: tuple[AttentionHook, ...] = ()
        self.runs = 0
        self.depth = 0
        self._stack = ExitStack()

    def on(self, decoder: Any) -> None:
        """Attach everything. If this fails, :meth:`off` removes what was attached."""
        self.attachment.attach(self._stack)
        self.last = self._stack.enter_context(self.first())
        self._stack.callback(decoder.register_forward_pre_hook(self._enter).remove)
        self._stack.callback(decoder.register_forward_hook(self._count).remove)
        self._stack.callback(decoder.register_forward_hook(self._leave, always_call=True).remove)

    def off(self, error: BaseException | None = None) -> None:
        stack, self._stack = self._stack, ExitStack()
        stack.__exit__(None if error is None else type(error), error, None if error is None else error.__traceback__)

    def _enter(self, *_: Any) -> None:
        self.depth += 1

    def _count(self, *_: Any) -> None:
        self.runs += 1

    def _leave(self, *_: Any) -> None:
        self.depth -= 1


_HELD: dict[int, list[_Block | None]] = {}  # by id of the decoder; None while set aside; removed when blocks end


@contextmanager
def set_aside(adapter: Adapter) -> Iterator[_Block | None]:
    """Remove the surrounding block's attachments inside this block, and yield the surrounding block. Exclusive.

    Raises:
        HookError: called during a forward with rules attached (from a hook or callback within that forward).
    """
    with adapter.exclusive():
        held = _HELD.get(id(adapter.decoder))
        outer = held[-1] if held else None
        if held is None or outer is None:
            yield None
            return
        if outer.depth:
            raise HookError(
                "rules cannot be attached during a forward that already has rules attached",
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
def holding(
    adapter: Adapter,
    built: Callable[[], Attachment],
    *hooks: AttentionHook,
    first: Callable[[], _Checking] = lambda: nullcontext(()),
) -> Iterator[tuple[_Block, set[int]]]:
    """Attach the result of ``built`` (called on the bare model) and the caller's additional attention ``hooks``.

    Yields the block, and the layers whose attention was called. A hook that is already active is not run twice.
    """
    key = id(adapter.decoder)
    with set_aside(adapter) as outer:
        block = _Block(built(), first)
        held = _HELD.setdefault(key, [])
        depth = len(held)
        try:
            held.append(block)
            block.on(adapter.decoder)
            with exactly_hooks(*_joined(outer, block, hooks)) as seen:
                yield block, seen
        except BaseException as error:
            block.off(error)
            raise
        else:
            block.off()
        finally:
            del held[depth:]
            if not held:
                del _HELD[key]


def _joined(outer: _Block | None, mine: _Block, hooks: tuple[AttentionHook, ...]) -> list[AttentionHook]:
    active = active_hooks()
    own = () if outer is None else (outer.attachment.rule, *outer.last)
    rule = mine.attachment.rule
    kept = [rule if outer is not None and hook is outer.attachment.rule else hook for hook in active]
    kept = [hook for hook in kept if hook is rule or not any(hook is other for other in own)]
    if not any(hook is rule for hook in kept):
        kept.append(rule)
    kept += [hook for hook in hooks if not any(hook is other for other in kept)]
    return [*kept, *mine.last]


_FACTS: WeakKeyDictionary[nn.Module, tuple[tuple[object, ...], dict[str, Any]]] = WeakKeyDictionary()


def structure(adapter: Adapter) -> tuple[object, ...]:
    """Return the identity of the current modules and weights, which adapters and quantisers may replace."""
    return adapter.table().identity


def facts(adapter: Adapter) -> dict[str, Any]:
    """Return what is known about a model's decoder and head, by name; empty again after a module or weight is replaced."""
    now = structure(adapter)
    known = _FACTS.get(adapter.decoder)
    if known is None or known[0] != now:
        known = _FACTS[adapter.decoder] = (now, {})
    return known[1]


def matches_of(adapter: Adapter) -> list[ModuleMatch]:
    """Return the matches of a model's modules, cached until modules are replaced."""
    with adapter.exclusive():  # modules are probed by running them
        known = facts(adapter)
        if "matches" not in known:
            with set_aside(adapter):
                known["matches"] = classify_modules(adapter.decoder)
    found: list[ModuleMatch] = known["matches"]
    return found


def require_gradients(adapter: Adapter) -> None:
    """Raise NotDifferentiableError if a linear layer or the head does not propagate gradients."""
    known = facts(adapter)
    if "differentiable" not in known:
        deciding = {id(r) for m in adapter.decoder.layers.modules() for _, r in routers(m)}
        parts = [(n, m) for n, m in adapter.decoder.layers.named_modules(prefix="layers") if id(m) not in deciding]
        with set_aside(adapter):
            check_differentiable([*parts, ("the head", adapter.head)])
        known["differentiable"] = True


@contextmanager
def gates_checked(adapter: Adapter) -> Iterator[tuple[AttentionHook, ...]]:
    """Check the first forward inside: attention gates must compute what their rule assumes. Yields the hook to activate."""
    known = facts(adapter)
    gates = [m for m in matches_of(adapter) if m.kind == gated_attention.KIND.name] if "gates" not in known else []
    if not gates:
        known["gates"] = True
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
        known["gates"] = True


def _backward(adapter: Adapter, composite: Composite) -> Attachment:
    """Return a composite's backward rules, built once per :class:`ModuleTable`. Call on the bare model."""
    prepared = adapter.table().prepared
    key = ("backward", id(composite))
    known: Attachment | None = prepared.get(key, (None, None))[1]
    if known is None or not known.fits:
        mode = Mode(graph="surrogate", backward=True, divisors=composite.attention)
        parts: list[Attach] = []
        if composite.rules:
            for match in matches_of(adapter):
                parts += composite.rules.get(match.kind, nothing)(match, mode)
            parts.append(lambda: output_head.attach(adapter))
        known = Attachment(AttentionRule(composite.attention, adapter.table().ids), parts)
        prepared[key] = (composite, known)  # keep the composite too, since ids are reused
    return known


@contextmanager
def attached(adapter: Adapter, composite: Composite | str = ATTN_LRP, *hooks: AttentionHook) -> Iterator[None]:
    """Attach the rules of a composite (or its name) to the model's decoder inside the block, and further attention ``hooks``
    after them.

    Blocks may be nested, also through functions that attach rules (:func:`attribute`, strategies): the innermost rules
    apply, and the surrounding ones are restored afterwards. ``hooks`` of the surrounding block stay active.

    On exit, also after an exception, the instances are restored (the model is bit-equal).

    Raises:
        UnknownKindError: a module has no known kind (not for GRADIENT_INPUT, which needs no rules).
        NotDifferentiableError: a linear layer does not propagate gradients (some quantised kinds).
        UnsupportedError: the composite attributes to positions (``pa-lrp``), which only :func:`attribute` sums up.
        HookError: attention did not call the hooks; or rules are attached during a forward that already has some.
    """
    composite = composite_of(composite)
    if composite.positional and not any(getattr(hook, "positions", None) is not None for hook in hooks):
        raise UnsupportedError(
            f"{composite.name!r} has a part for rotary positions, which attribute() alone adds up",
            hint="use attribute(composite=...); here attnlrp is what it is without that part",
        )

    def checking() -> _Checking:
        return gates_checked(adapter) if composite.rules else nullcontext(())

    with ExitStack() as stack:
        stack.enter_context(adapter.exclusive())
        require_gradients(adapter)
        stack.enter_context(adapter.routed())
        built = partial(_backward, adapter, composite)
        block, seen = stack.enter_context(holding(adapter, built, *hooks, first=checking))
        yield
        if block.runs:
            check_bound(seen, adapter.attending(seen))
