"""Forward mode on a model: attaching and removing the Jacobian-vector products of a composite's rules.

Row block 0 of every tensor is the model itself, the other blocks are tangents along ``c * x``. The rule of each kind is in
its file of :mod:`limelight.relevance.layers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from limelight.errors import UnknownKindError, UnsupportedError
from limelight.models.adapter import Adapter
from limelight.models.runtime.attention import active_hooks, check_bound
from limelight.relevance.attachment import Attachment, holding, matches_of, set_aside
from limelight.relevance.composites import ATTN_LRP, COMPOSITES, Composite
from limelight.relevance.forward.cache import DualCache
from limelight.relevance.layers.attention import DualAttention
from limelight.relevance.mode import FALLBACK, Mode


class JvpRules:
    """The forward-mode rules of one model, built once and attached around every forward.

    Args:
        check: called after the rules are rebuilt because modules were replaced.
        rotations: layer -> dimensions of queries and keys that rotate, for a composite that attributes to positions
            (:func:`limelight.relevance.positions.rotations_of`).

    Attributes:
        table: the model's modules, kept as long as these rules.

    Raises:
        UnknownKindError, UnsupportedError: a composite or a module without a forward mode; the hint names the fallback.
    """

    def __init__(
        self,
        adapter: Adapter,
        mode: Mode,
        cache: DualCache,
        composite: Composite = ATTN_LRP,
        check: Callable[[], None] = lambda: None,
        rotations: Mapping[int, tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        if not composite.forward:
            known = ", ".join(c.name for c in COMPOSITES.values() if c.forward)
            raise UnknownKindError(f"{composite.name!r} has no forward mode", hint=f"use {known}; or exact mode")
        mode.cache, mode.divisors = cache, composite.attention
        self.adapter, self.mode, self.composite, self.check = adapter, mode, composite, check
        self.rule = DualAttention(mode, cache, composite.attention, rotations)
        with set_aside(adapter):  # rules wrap the modules' own forwards, and probing runs modules
            self.table = adapter.table()
            self._attachment = self._build()

    def _build(self) -> Attachment:
        matches = matches_of(self.adapter)
        self.rule.only, self._built_for = self.table.ids, self.table.identity
        return Attachment(
            self.rule, [p for match in matches for p in self.composite.rules[match.kind](match, self.mode)]
        )

    @property
    def current(self) -> bool:
        """Whether the modules are still those that the rules were built for."""
        self.table.refresh()
        return self.table.identity is self._built_for

    def _built(self) -> Attachment:
        if not self.current:
            self._attachment = self._build()
            self.check()
        elif not self._attachment.fits:
            self._attachment = self._build()
        return self._attachment

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Attach the rules inside the block, in place of a surrounding block's; removed also after an exception.

        Raises:
            UnsupportedError: attention hooks of the caller are active, which forward mode does not support.
        """
        with self.adapter.routed(), holding(self.adapter, self._built) as (_, seen):
            others = sorted({type(h).__name__ for h in active_hooks() if h.only is None})
            if others:
                raise UnsupportedError(
                    f"expected no attention hooks around forward-mode relevance, got {', '.join(others)}", hint=FALLBACK
                )
            yield
            check_bound(seen, self.adapter.attending(seen))
