"""Which positions of a prompt the chat template added: everything outside the texts of the messages."""

from __future__ import annotations

from collections.abc import Sequence

from limelight.types import Span

_INVISIBLE = str.maketrans("", "", "▁Ġ")  # how tokenizers spell a space


def template_positions(tokens: Sequence[str], spans: Sequence[Span], texts: Sequence[str]) -> frozenset[int]:
    """Return the text positions that belong to none of the messages' texts: role names, markers, line breaks.

    The texts are searched for in order in the concatenated tokens, both without white space. Where one of them is not found
    (a template that rewrites it), nothing is known, and no position is returned.

    Args:
        tokens: the text of every position ``[T]``.
        texts: the messages' texts in order.
    """
    written, owner = [], []
    text_positions = [i for s in spans if s.modality == "text" for i in range(s.start, s.stop)]
    for i in text_positions:
        visible = _bare(tokens[i])
        written.append(visible)
        owner += [i] * len(visible)
    whole, at = "".join(written), 0
    own: set[int] = set()
    for text in texts:
        wanted = _bare(text)
        if not wanted:
            continue
        found = whole.find(wanted, at)
        if found < 0:
            return frozenset()
        at = found + len(wanted)
        own.update(owner[found:at])
    inside = {
        i for a, b in zip(sorted(own), sorted(own)[1:], strict=False) for i in range(a, b)
    }  # spaces between words
    return frozenset(i for i in text_positions if i not in own and (i not in inside or _bare(tokens[i])))


def _bare(text: str) -> str:
    return "".join(text.translate(_INVISIBLE).split())
