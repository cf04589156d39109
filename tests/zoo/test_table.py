"""The table of families in the documentation says what the tests say."""

from __future__ import annotations

import pytest

from tests.models.test_conformance import RAISES, WORKING
from tests.relevance.forward.test_stream import RAISES as NO_TANGENTS
from tests.zoo import ABSENT, FOUNDATION, ZOO
from tests.zoo.table import COLUMNS, PAGE, WHOLE, answers, page


@pytest.mark.skipif(bool(ABSENT), reason="the page is that of a release with all families")
def test_the_committed_page_is_what_the_tests_hold() -> None:
    assert PAGE.read_text() == page(), "run python -m tests.zoo.table"


def test_every_no_has_a_reason_and_every_yes_has_none() -> None:
    for name in ZOO:
        found, why = answers(name)
        assert tuple(found) == COLUMNS
        assert all(found.values()) == (not [w for w in why if w not in ("checked in float32", WHOLE)]), name


def test_columns_follow_the_tables() -> None:
    assert [n for n in ZOO if answers(n)[0]["attribution"]] == [n for n in ZOO if n in WORKING]
    assert not any(answers(n)[0]["exact"] for n in RAISES)
    assert not any(answers(n)[0]["meter"] for n in (*RAISES, *NO_TANGENTS))
    assert all(all(answers(n)[0].values()) for n in FOUNDATION if ZOO[n].batch is not None)
    assert sum(answers(n)[0]["attribution"] for n in ZOO) > 40
