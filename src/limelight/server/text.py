"""Incremental detokenisation: emitted text is never taken back, and stop strings are cut off before they are emitted."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class GrowingText:
    """Joined deltas equal the finished text: decoded without special tokens, stripped, cut before the first stop string.

    Half a character, trailing white space and what may become a stop string are held back until they are settled.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        self.decode, self.stops = decode, tuple(stops)
        self.ids: list[int] = []
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """What may be said after one more token."""
        self.ids.append(token)
        whole = self.decode(self.ids)
        cuts = [i for i in (whole.find(s) for s in self.stops) if i >= 0]
        if cuts:
            self.stopped = True
            return self._append(whole[: min(cuts)].strip())
        return self._append(self._settled(whole).strip())

    def finish(self) -> str:
        """What was held back."""
        return "" if self.stopped else self._append(self.decode(self.ids).strip())

    def _append(self, text: str) -> str:
        if not text.startswith(self.text):
            return ""
        delta, self.text = text[len(self.text) :], text
        return delta

    def _settled(self, whole: str) -> str:
        keep = len(whole.rstrip("\ufffd"))
        for stop in self.stops:
            longest = min(len(stop) - 1, len(whole))
            overlap = next((n for n in range(longest, 0, -1) if whole.endswith(stop[:n])), 0)
            keep = min(keep, len(whole) - overlap)
        return whole[:keep]
