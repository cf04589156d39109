"""A cached forward stream: transformers' own prefill and one-token steps on the model's own cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from limelight import compat
from limelight.errors import UnsupportedError
from limelight.models.adapter import Adapter


class Stream:
    """Ordinary cached decoding of one prompt batch, token by token.

    ``next(None)`` prefills and returns the logits ``[B, V]`` of the first new token (float32 or wider);
    ``next(tokens)`` appends ``tokens`` [B] and returns the next logits. ``output`` is the model's last output.

    Args:
        config: the generation config of the call, for a stream that continues a cache containing part of the prompt, or
            that prefills in chunks.

    With ``use_cache=False`` among ``kwargs`` every token recomputes the whole sequence, as in transformers.
    """

    def __init__(self, adapter: Adapter, input_ids: Tensor, kwargs: Mapping[str, Any], config: Any = None) -> None:
        self.adapter = adapter
        self.ids = input_ids
        self.kwargs: dict[str, Any] = {**kwargs, "use_cache": kwargs.get("use_cache") is not False}
        if (states := kwargs.get("encoder_outputs")) is not None:  # some decoders add to them in place
            own = {k: v.clone() if isinstance(v, Tensor) else v for k, v in states.items()}
            self.kwargs["encoder_outputs"] = type(states)(**own)
        self.config = config
        self.output: Any = None

    @classmethod
    def fresh(cls, adapter: Adapter, input_ids: Tensor, kwargs: Mapping[str, Any]) -> Stream:
        """Create a stream with its own cache (the prompt's prepared cache belongs to the main stream)."""
        from transformers import DynamicCache

        own = {k: v for k, v in kwargs.items() if k != "past_key_values"}
        prepared: Any = kwargs.get("past_key_values")
        if type(prepared) is DynamicCache:  # not every model makes its cache itself
            own["past_key_values"] = DynamicCache(config=adapter.model.config.get_text_config(decoder=True))
        return cls(adapter, input_ids, own)

    @property
    def cache(self) -> Any:
        """The current cache, with the prompt and all appended tokens (None: the model has no cache)."""
        return self.kwargs.get("past_key_values")

    def next(self, tokens: Tensor | None) -> Tensor:
        return self.extend(None if tokens is None else tokens[:, None])

    def extend(self, tokens: Tensor | None) -> Tensor:
        """Append several tokens ``[B, n]`` at once and return the logits after the last one."""
        with self.adapter.exclusive():
            if tokens is not None and tokens.shape[1] > 1 and self._one_by_one:
                return [self._extend(tokens[:, i : i + 1]) for i in range(tokens.shape[1])][-1]
            return self._extend(tokens)

    @property
    def _one_by_one(self) -> bool:
        """Whether tokens must be processed one at a time (recurrent states, or further inputs per token)."""
        model = self.adapter.model
        return compat.takes_one_token_at_a_time(model) or not self.kwargs["use_cache"]

    def _extend(self, tokens: Tensor | None) -> Tensor:
        model = self.adapter.model
        count = 1 if tokens is None else tokens.shape[1]
        if tokens is None and self.config is None and getattr(self.cache, "get_seq_length", int)():
            raise UnsupportedError(
                "the cache already contains part of the prompt, and this stream would append the whole prompt again",
                hint="limelight.decoding.streams: main_stream(run) continues the cache, second_stream(run) uses a new one",
            )
        if tokens is None and self.config is not None:
            self.output = compat.prefill(model, self.ids, self.config, self.kwargs)
        else:
            if tokens is not None:
                self.ids = torch.cat([self.ids, tokens.to(self.ids.device)], dim=-1)
            if count > 1:  # the latest output made room for one token
                self.kwargs = compat.update_kwargs(model, {}, self.kwargs, count - 1)
            whole = tokens is None or not self.kwargs["use_cache"]
            inputs = compat.next_inputs(
                model, self.ids, self.kwargs, count=None if whole else count, first=tokens is None
            )
            self.output = model(**inputs, return_dict=True)
        self.kwargs = compat.update_kwargs(model, self.output, self.kwargs)
        logits: Tensor = self.output.logits[:, -1]
        return logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)
