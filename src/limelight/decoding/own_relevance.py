"""Relevance of emitted tokens under the unchanged model, for tokens chosen by any strategy."""

from __future__ import annotations

import torch
from torch import Tensor

from limelight.decoding.strategy import GenerationContext
from limelight.models.runtime.capture import DecoderCall
from limelight.relevance.attribute import relevance_of
from limelight.relevance.composites import ATTN_LRP
from limelight.types import Relevance


class OwnRelevance:
    """Computes relevance under ``ATTN_LRP``, with one forward of prompt and answer so far and one backward per token.

    The encoders run once: the prompt is captured when the first token is explained and extended with the answer.
    """

    def __init__(self, context: GenerationContext) -> None:
        self.context = context
        self.call: DecoderCall | None = None
        self.length = context.ids.shape[1]

    def of(self, row: int, token: int, ids: Tensor) -> Relevance:
        """Compute the relevance of ``token`` after the row's ``ids`` [B, T] (prompt and all generated tokens).

        Raises:
            NotDifferentiableError, UnknownKindError: see :func:`limelight.attribute`.
        """
        call = self._grown(ids)
        return relevance_of(
            self.context.adapter, call.row(row), self.context.inputs, [(call.length - 1, token)], row=row, composite=ATTN_LRP,
            generated=ids[row, self.context.ids.shape[1] :], prompt_spans=self.context.spans[row] if self.context.spans else None,
        )[0]  # fmt: skip

    def _grown(self, ids: Tensor) -> DecoderCall:
        adapter = self.context.adapter
        with torch.inference_mode(False), torch.no_grad():
            call = adapter.capture(self.context.inputs).cloned() if self.call is None else self.call
            for at in range(self.length, ids.shape[1]):
                call = call.appended(adapter.embed(ids[:, at : at + 1].clone()))
        self.call, self.length = call, ids.shape[1]
        return call
