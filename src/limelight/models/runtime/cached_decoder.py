"""One cached forward stream: transformers' own prefill and one-token steps, on the model's own cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from limelight.models.adapter import Adapter


class Stream:
    """Ordinary cached decoding of one prompt batch, a token at a time.

    ``next(None)`` prefills and returns the logits ``[B, V]`` of the first new token (float32 or better);
    ``next(tokens)`` appends ``tokens`` [B] and returns the following ones. ``output`` is the model's last output.
    """

    def __init__(self, adapter: Adapter, input_ids: Tensor, kwargs: Mapping[str, Any], **forward: Any) -> None:
        self.adapter = adapter
        self.ids = input_ids
        self.kwargs: dict[str, Any] = {**kwargs, "use_cache": True}
        self.forward = forward
        self.output: Any = None

    @classmethod
    def fresh(cls, adapter: Adapter, input_ids: Tensor, kwargs: Mapping[str, Any], **forward: Any) -> Stream:
        """A stream with a cache of its own (the prompt's prepared cache belongs to the main stream)."""
        from transformers import DynamicCache

        own = {k: v for k, v in kwargs.items() if k != "past_key_values"}
        prepared: Any = kwargs.get("past_key_values")
        if type(prepared) is DynamicCache:  # not every model makes its cache itself
            own["past_key_values"] = DynamicCache(config=adapter.model.config.get_text_config(decoder=True))
        return cls(adapter, input_ids, own, **forward)

    def next(self, tokens: Tensor | None) -> Tensor:
        with self.adapter.exclusive():
            return self._next(tokens)

    def _next(self, tokens: Tensor | None) -> Tensor:
        model = self.adapter.model
        if tokens is None:
            inputs = model.prepare_inputs_for_generation(self.ids, is_first_iteration=True, **self.kwargs)
        else:
            self.ids = torch.cat([self.ids, tokens[:, None].to(self.ids.device)], dim=-1)
            inputs = model.prepare_inputs_for_generation(self.ids, next_sequence_length=1, **self.kwargs)
        self.output = model(**inputs, **self.forward, return_dict=True)
        self.kwargs = model._update_model_kwargs_for_generation(self.output, self.kwargs, is_encoder_decoder=False)
        logits: Tensor = self.output.logits[:, -1]
        return logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)
