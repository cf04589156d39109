"""From tokens to text as it grows: what was said stays said, and stop strings are cut off before anybody reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class GrowingText:
    """Joined deltas equal the finished text: decoded without special tokens, stripped, cut before the first stop string.

    Half a character, trailing white space and what may become a stop string are held back until they are settled.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        self.decode, self.stops = decode, tuple(stops)
        self.ids: list[int] = []
        self.said = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """What may be said after one more token."""
        self.ids.append(token)
        whole = self.decode(self.ids)
        cuts = [i for i in (whole.find(s) for s in self.stops) if i >= 0]
        if cuts:
            self.stopped = True
            return self._say(whole[: min(cuts)].strip())
        return self._say(self._settled(whole).strip())

    def finish(self) -> str:
        """What was held back."""
        return "" if self.stopped else self._say(self.decode(self.ids).strip())

    def _say(self, text: str) -> str:
        if not text.startswith(self.said):
            return ""
        delta, self.said = text[len(self.said) :], text
        return delta

    def _settled(self, whole: str) -> str:
        keep = len(whole.rstrip("\ufffd"))
        for stop in self.stops:
            longest = min(len(stop) - 1, len(whole))
            overlap = next((n for n in range(longest, 0, -1) if whole.endswith(stop[:n])), 0)
            keep = min(keep, len(whole) - overlap)
        return whole[:keep]
