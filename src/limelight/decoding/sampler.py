"""Where a token is chosen: logits processors, then argmax or sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from limelight.decoding.processors import applied, prepared, preview, stateless
from limelight.errors import SettingError


class TokenSampler:
    """Chooses tokens from logits as transformers does: processors, then argmax or multinomial sampling.

    Args:
        processors: transformers' LogitsProcessorList.
        sample: sample instead of taking the argmax.
        seeds: one seed per row, so that rows are sampled independently; None uses torch's global state, as transformers
            does.
    """

    def __init__(self, processors: Any, *, sample: bool, seeds: Sequence[int] | None = None) -> None:
        self.processors = prepared(processors)
        self.sample = sample
        self.seeds = seeds
        self._generators: list[torch.Generator] = []

    def scores(self, ids: Tensor, logits: Tensor) -> Tensor:
        """Return the processed logits ``[B, V]`` of the token to emit. Processors may keep state: only the loop calls
        this, once per token; within a step use :meth:`preview`."""
        return applied(self.processors, ids, logits)

    def with_fallback(self, ids: Tensor, processed: Tensor, unchanged: Tensor | None) -> Tensor:
        """Return ``processed`` [B, V], with rows that allow no token replaced by the processed ``unchanged`` logits.

        This calls the processors a second time, so it requires all of them to be stateless; otherwise the row is kept.
        """
        barred = torch.isneginf(processed.amax(dim=-1))
        if unchanged is None or not bool(barred.any()) or not all(stateless(p) for p in self.processors):
            return processed
        return torch.where(barred[:, None], self.preview(ids)(unchanged), processed)

    def preview(self, ids: Tensor) -> Callable[[Tensor], Tensor]:
        """Return a function from logits ``[B, V]`` to what ``scores`` would return, for choices within the step after
        ``ids`` [B, T]. May run the model (for ``guidance_scale``), so call it outside hooks and graphs."""
        return preview(self.processors, ids)

    def pick(self, scores: Tensor) -> Tensor:
        """Choose token ids ``[B]``."""
        if not self.sample:
            return scores.argmax(dim=-1)
        p = torch.softmax(scores, dim=-1)
        if self.seeds is None:
            return torch.multinomial(p, 1)[:, 0]
        if not self._generators:
            if len(self.seeds) != p.shape[0]:
                raise SettingError(
                    f"expected one seed per row, got {len(self.seeds)} for {p.shape[0]} rows", hint="pass one integer"
                )
            self._generators = [torch.Generator(device=p.device).manual_seed(s) for s in self.seeds]
        return torch.cat([torch.multinomial(row, 1, generator=g) for row, g in zip(p, self._generators, strict=True)])
