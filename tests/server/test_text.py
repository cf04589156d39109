"""Text as it grows."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limelight.server.text import GrowingText

PIECES = [" a", "b ", "\n", "end", "en", "d", "é", " ", "x", "de"]


def text(stops: Sequence[str] = ()) -> GrowingText:
    return GrowingText(lambda ids: "".join(PIECES[i] for i in ids), stops)


@given(
    st.lists(st.integers(0, len(PIECES) - 1), max_size=12),
    st.lists(st.sampled_from(["end", "de", "x", "a b"]), max_size=2),
)
def test_deltas_join_to_the_text_before_the_first_stop(ids: list[int], stops: list[str]) -> None:
    growing = text(stops)
    said = ""
    for i in ids:
        said += growing.push(i)
        if growing.stopped:
            break
    said += growing.finish()
    whole = "".join(PIECES[i] for i in growing.ids)
    cuts = [whole.find(s) for s in stops if s in whole]
    assert growing.stopped == bool(cuts)
    assert said == (whole[: min(cuts)] if cuts else whole).strip()


def test_a_stop_string_is_never_shown_in_part() -> None:
    growing = text(["end"])
    assert [growing.push(i) for i in (0, 4)] == ["a", ""]
    assert growing.push(5) == ""
    assert growing.stopped
    growing = text(["end"])
    assert [growing.push(i) for i in (0, 4, 8)] == ["a", "", "enx"]


@pytest.mark.parametrize("half", [b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98"])
def test_half_a_character_waits(half: bytes) -> None:
    whole = {b"\xc3": "é", b"\xe2\x82": "€", b"\xf0\x9f\x98": "😀"}[half].encode()
    pieces = [b"a", half, whole[len(half) :]]
    growing = GrowingText(lambda ids: b"".join(pieces[i] for i in ids).decode(errors="replace"))
    assert [growing.push(i) for i in range(3)] == ["a", "", whole.decode()]
