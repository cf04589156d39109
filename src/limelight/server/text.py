"""Incremental detokenisation: emitted text is never revised, and stop strings are never emitted."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class GrowingText:
    """Emits text whose concatenation equals the final text: without special tokens, stripped, cut at the first stop string.

    Incomplete characters, trailing white space and possible starts of a stop string are held back until resolved.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        self.decode, self.stops = decode, tuple(stops)
        self.ids: list[int] = []
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Add a token and return the newly emitted text."""
        self.ids.append(token)
        text = self.decode(self.ids)
        cuts = [i for i in (text.find(s) for s in self.stops) if i >= 0]
        if cuts:
            self.stopped = True
            return self._append(text[: min(cuts)].strip())
        return self._append(self._stable(text).strip())

    def finish(self) -> str:
        """Return the text held back."""
        return "" if self.stopped else self._append(self.decode(self.ids).strip())

    def _append(self, text: str) -> str:
        if not text.startswith(self.text):
            return ""
        delta, self.text = text[len(self.text) :], text
        return delta

    def _stable(self, text: str) -> str:
        keep = len(text.rstrip("\ufffd"))
        for stop in self.stops:
            longest = min(len(stop) - 1, len(text))
            overlap = next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
            keep = min(keep, len(text) - overlap)
        return text[:keep]
