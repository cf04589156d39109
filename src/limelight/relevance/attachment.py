"""Rules and twins on a model's modules, block within block: the innermost one holds, those around it wait.

Two sets of rules on one model would act on each other's gradients. So whatever a block has put on comes off while a
block within it holds, and is put on again after that one's end, whatever happened inside. Attention hooks of the caller
stay; only the hook that belongs to a set of rules is exchanged, at its place among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from limelight.errors import HookError
from limelight.models.adapter import Adapter
from limelight.models.runtime.attention import AttentionHook, active_hooks, exactly_hooks

PutOn = Callable[[ExitStack], tuple[AttentionHook, ...]]


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

    def __init__(self, rule: AttentionHook, put_on: PutOn) -> None:
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
