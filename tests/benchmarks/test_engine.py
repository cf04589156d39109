from __future__ import annotations

import pytest

from limelight.benchmarks.engine import Local, checked
from limelight.benchmarks.task import Reply
from limelight.errors import SettingError
from limelight.types import Sample

SAMPLES = [Sample(str(i), f"p{i}") for i in range(7)]


def test_one_by_one_and_in_batches() -> None:
    sizes = []

    def many(batch: list[Sample]) -> list[str]:
        sizes.append(len(batch))
        return [s.prompt.upper() for s in batch]

    single = [o.reply for o in Local(lambda s: s.prompt.upper())(SAMPLES)]
    batched = [o.reply for o in Local(answer_many=many, batch_size=3)(SAMPLES)]
    assert single == batched == [Reply(f"P{i}") for i in range(7)]
    assert sizes == [3, 3, 1]


def test_a_failing_batch_is_answered_one_by_one() -> None:
    def many(batch: list[Sample]) -> list[str]:
        if any(s.id == "4" for s in batch):
            raise MemoryError("too much")
        return [s.id for s in batch]

    found = list(Local(answer_many=many, batch_size=3)(SAMPLES))
    assert [o.id for o in found] == [s.id for s in SAMPLES]
    assert {o.id: o.error["type"] for o in found if o.error} == {"4": "MemoryError"}
    assert "too much" in str(found[4].error)
    alone = list(Local(lambda s: f"alone {s.id}", many, batch_size=3)(SAMPLES))
    assert [o.reply.text for o in alone if o.reply] == ["0", "1", "2", "alone 3", "alone 4", "alone 5", "alone 6"]


def test_interrupts_are_not_answers() -> None:
    def answer(sample: Sample) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(Local(answer)(SAMPLES))


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (3, "int"),
        (None, "NoneType"),
        (Reply("x", {"a": object()}), "not valid JSON"),
        (Reply("x", {"a": float("nan")}), "NaN"),
    ],
)
def test_replies_are_checked(reply: object, says: str) -> None:
    with pytest.raises(SettingError, match=says):
        checked(reply)
    (outcome,) = Local(lambda s: reply)(SAMPLES[:1])  # type: ignore[arg-type, return-value]
    assert outcome.error is not None
    assert outcome.error["type"] == "SettingError"


def test_too_few_answers() -> None:
    outcomes = list(Local(answer_many=lambda batch: ["a"], batch_size=2)(SAMPLES[:2]))
    assert [o.reply for o in outcomes] == [Reply("a"), Reply("a")]  # asked again one by one
    (outcome,) = Local(answer_many=lambda batch: [])(SAMPLES[:1])
    assert outcome.error is not None
    assert "0 answers for 1" in outcome.error["message"]


def test_callables_are_made_ready_once_and_may_refuse() -> None:
    class Model:
        loads = 0

        def prepare(self) -> None:
            self.loads += 1
            if self.loads > 1:
                raise OSError("no weights")

        def __call__(self, sample: Sample) -> str:
            return str(self.loads)

    model = Model()
    assert {o.reply.text for o in Local(model)(SAMPLES) if o.reply} == {"1"}
    assert list(Local(model)([])) == []
    with pytest.raises(OSError, match="no weights"):
        list(Local(model)(SAMPLES))


def test_settings() -> None:
    with pytest.raises(SettingError, match="no callable to answer"):
        Local()
    with pytest.raises(SettingError, match="batch_size"):
        Local(lambda s: "", batch_size=0)
