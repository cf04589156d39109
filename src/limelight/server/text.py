"""Incremental detokenisation: emitted text is never revised, and stop strings are never emitted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

_PROBE = "a a , do n't . ' b !"  # a decoder that tidies up, or joins what is repeated, changes it
_TIDIED = 8  # characters: clean_up_tokenization_spaces takes spaces out of at most the last four


class GrowingText:
    """Emits text whose concatenation equals the final text: without special tokens, stripped, cut at the first stop string.

    Incomplete characters, trailing white space and possible starts of a stop string are held back until resolved.

    Args:
        decode: returns the text of all token ids so far.
        step: returns the text that one more token adds (empty while a character is incomplete). With None, ``decode`` is
            called for every token.
        unsettled: number of characters at the end of ``decode``'s text that later tokens may change.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        stops: Sequence[str] = (),
        step: Callable[[int], str] | None = None,
        unsettled: int = 0,
    ) -> None:
        self.decode, self.stops, self.step, self.unsettled = decode, tuple(stops), step, unsettled
        self.ids: list[int] = []
        self.decoded = self.text = ""
        self.stopped = False

    @classmethod
    def of(cls, tokenizer: Any, stops: Sequence[str] = ()) -> GrowingText:
        """Use tokenizers' DecodeStream, whose cost per token does not grow with the text, if the tokenizer's ``decode`` adds
        nothing to the backend's. Otherwise decode all ids for every token."""
        step = _stream(tokenizer)
        tidies = step is None and getattr(tokenizer, "clean_up_tokenization_spaces", False)
        decode = partial(tokenizer.decode, skip_special_tokens=True)
        return cls(decode, stops, step, _TIDIED if tidies else 0)

    def push(self, token: int) -> str:
        """Add a token and return the newly emitted text."""
        self.ids.append(token)
        text = self._grown(token)
        cuts = [i for i in (text.find(s) for s in self.stops) if i >= 0]
        if cuts:
            self.stopped = True
            return self._append(text[: min(cuts)].strip())
        return self._append(self._stable(text).strip())

    def finish(self) -> str:
        """Return the text held back."""
        return "" if self.stopped else self._append(self.decode(self.ids).strip())

    def _grown(self, token: int) -> str:
        if self.step is not None:
            try:
                self.decoded += self.step(token)
                return self.decoded
            except Exception:  # noqa: BLE001  # tokenizers raises Exception where a token changes what stands before it
                self.step = None
        return self.decode(self.ids)

    def _append(self, text: str) -> str:
        if not text.startswith(self.text):
            return ""
        delta, self.text = text[len(self.text) :], text
        return delta

    def _stable(self, text: str) -> str:
        keep = len(text.rstrip("\ufffd")) - (0 if self.step else self.unsettled)
        for stop in self.stops:
            longest = min(len(stop) - 1, len(text))
            overlap = next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
            keep = min(keep, len(text) - overlap)
        return text[: max(keep, 0)]


def _stream(tokenizer: Any) -> Callable[[int], str] | None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or type(tokenizer).decode is not PreTrainedTokenizerBase.decode:
        return None
    ids = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    if tokenizer.decode(ids) != backend.decode(ids, skip_special_tokens=False):
        return None
    stream = DecodeStream(skip_special_tokens=True)
    return lambda token: stream.step(backend, token) or ""
