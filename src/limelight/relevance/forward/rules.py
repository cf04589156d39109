"""Forward mode on a model: the Jacobian-vector products of a composite's rules, and off again.

Row block 0 of every tensor is the model itself, the further blocks are tangents along ``c * x``. What each kind does to
them stands in its file of :mod:`limelight.relevance.layers`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from limelight.errors import UnknownKindError, UnsupportedError
from limelight.models.adapter import Adapter
from limelight.models.runtime.attention import AttentionHook, active_hooks, check_bound
from limelight.models.runtime.wrappers import modules_of
from limelight.relevance.attachment import Attachment, holding, matches_of, set_aside
from limelight.relevance.composites import ATTN_LRP, CP_LRP, Composite
from limelight.relevance.forward.cache import DualCache
from limelight.relevance.layers.attention import DualAttention
from limelight.relevance.mode import FALLBACK, Mode


class JvpRules:
    """The rules of one model in forward mode, built once and attached around every forward.

    Raises:
        UnknownKindError, UnsupportedError: a composite or a module without a forward mode; the hint names the fallback.
    """

    def __init__(self, adapter: Adapter, mode: Mode, cache: DualCache, composite: Composite = ATTN_LRP) -> None:
        if composite not in (ATTN_LRP, CP_LRP):
            raise UnknownKindError(
                f"{composite.name!r} has no forward mode", hint="use attnlrp or cp-lrp, or exact mode"
            )
        mode.cache, mode.divisors = cache, composite.attention
        self.adapter, self.mode = adapter, mode
        self.attention = DualAttention(mode, cache, composite.attention)
        self.attention.only = frozenset(map(id, modules_of(adapter.decoder)))
        with set_aside(adapter):  # rules go around the modules' own forwards, and modules are probed by running them
            self.parts = [p for match in matches_of(adapter) for p in composite.rules[match.kind](match, mode)]

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The rules on the model inside the block, also off again after an exception; those of a surrounding block wait.

        Raises:
            UnsupportedError: attention hooks of the caller are active, which forward mode does not run.
        """

        def put_on(stack: ExitStack) -> tuple[AttentionHook, ...]:
            for part in self.parts:
                stack.callback(part())
            return ()

        with self.adapter.routed(), holding(self.adapter, Attachment(self.attention, put_on)) as seen:
            others = sorted({type(h).__name__ for h in active_hooks() if h.only is None})
            if others:
                raise UnsupportedError(
                    f"expected no attention hooks around forward-mode relevance, got {', '.join(others)}", hint=FALLBACK
                )
            yield
            check_bound(seen, self.adapter.attending(seen))
