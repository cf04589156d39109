"""Where a token is chosen: logits processors, then argmax or sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from limelight.decoding.processors import applied, foreseen, prepared, stateless
from limelight.errors import SettingError


class TokenSampler:
    """From logits to tokens, as transformers does it: processors, then argmax or multinomial sampling.

    Args:
        processors: transformers' LogitsProcessorList.
        sample: draw instead of argmax.
        seeds: one seed a row, so that a row's draws do not depend on its neighbours; None uses torch's global state,
            as transformers does.
    """

    def __init__(self, processors: Any, *, sample: bool, seeds: Sequence[int] | None = None) -> None:
        self.processors = prepared(processors)
        self.sample = sample
        self.seeds = seeds
        self._generators: list[torch.Generator] = []

    def scores(self, ids: Tensor, logits: Tensor) -> Tensor:
        """Processed logits ``[B, V]`` of the token to emit. Processors may keep state: the loop alone calls this, once
        per token; inside a step ask :meth:`foreseen`."""
        return applied(self.processors, ids, logits)

    def uncut(self, ids: Tensor, processed: Tensor, unchanged: Tensor | None) -> Tensor:
        """``processed`` [B, V]; a row in which nothing is left takes the processed ``unchanged`` logits instead.

        Transformers' own processors can be asked a second time, anybody's only if they keep no state: otherwise the row
        stays as it is.
        """
        barred = torch.isneginf(processed.amax(dim=-1))
        if unchanged is None or not bool(barred.any()) or not all(stateless(p) for p in self.processors):
            return processed
        return torch.where(barred[:, None], self.foreseen(ids)(unchanged), processed)

    def foreseen(self, ids: Tensor) -> Callable[[Tensor], Tensor]:
        """Logits ``[B, V]`` -> what ``scores`` would make of them, for choices inside the step that follows ``ids``
        [B, T]. May run the model (for ``guidance_scale``), so call it outside hooks and graphs."""
        return foreseen(self.processors, ids)

    def pick(self, scores: Tensor) -> Tensor:
        """Token ids ``[B]``."""
        if not self.sample:
            return scores.argmax(dim=-1)
        p = torch.softmax(scores, dim=-1)
        if self.seeds is None:
            return torch.multinomial(p, 1)[:, 0]
        if not self._generators:
            if len(self.seeds) != p.shape[0]:
                raise SettingError(
                    f"expected one seed a row, got {len(self.seeds)} for {p.shape[0]} rows", hint="pass one integer"
                )
            self._generators = [torch.Generator(device=p.device).manual_seed(s) for s in self.seeds]
        return torch.cat([torch.multinomial(row, 1, generator=g) for row, g in zip(p, self._generators, strict=True)])
