"""A bad row costs itself: it is named before anything is asked, or left out and counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from limelight.benchmarks import rowlog
from limelight.benchmarks.data import Folder, Needed
from limelight.benchmarks.loading import load
from limelight.benchmarks.results import open_results
from limelight.benchmarks.runner import run
from limelight.benchmarks.scorers.measure import block as block_of
from limelight.benchmarks.scorers.measure import count
from limelight.benchmarks.scorers.yes_no import label, yes_no
from limelight.benchmarks.tables import render, side_by_side
from limelight.benchmarks.task import Task, task
from limelight.errors import DataError, SettingError
from limelight.types import Record, Sample
from tests.benchmarks.official import WRITERS, put
from tests.benchmarks.stored import read_results

SPLIT = "coco/random"


@pytest.fixture
def pope(tmp_path: Path) -> Path:
    WRITERS["pope"](tmp_path / "data")
    return tmp_path / "data"


def file(data: Path) -> Path:
    return data / "coco/coco_pope_random.json"


def lines(data: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file(data).read_text().splitlines()]


def change(data: Path, number: int, **values: Any) -> None:
    """Change columns of a row (counted from 1); ``...`` takes the column out."""
    rows = lines(data)
    rows[number - 1] = {k: v for k, v in {**rows[number - 1], **values}.items() if v is not ...}
    file(data).write_text("".join(json.dumps(r) + "\n" for r in rows))


def never(sample: Sample) -> str:
    pytest.fail("asked before all rows were checked")


def go(data: Path, answer: Any = never, **options: Any) -> Any:
    return run("pope", answer, data.parent / "run", data=data, splits=[SPLIT], progress=False, **options)


def right(sample: Sample) -> str:
    return str(sample.target)


BAD = [
    ({"label": "maybe"}, "the label 'maybe' is not yes or no"),
    ({"label": None}, "the label None is not yes or no"),
    ({"label": ...}, "no column label or answer"),
    ({"label": 2}, "the label 2"),
    ({"text": None}, "expected text in the column 'text', got null"),
    ({"text": "  "}, "expected text in the column 'text'"),
    ({"text": ["a"]}, "expected text"),
    ({"text": ...}, "no column text or question"),
    ({"image": None}, "expected text in the column 'image'"),
    ({"image": 0.5}, "0.5 does not exist"),
    ({"image": "lost.jpg"}, "lost.jpg does not exist"),
    ({"question_id": None}, "expected text in the column 'question_id'"),
    ({"question_id": 1}, "repeats the id 'coco/random/1', first in"),
]


@pytest.mark.parametrize(("values", "says"), BAD)
def test_a_bad_row_is_named_before_any_answer(pope: Path, values: dict[str, Any], says: str) -> None:
    change(pope, 3, **values)
    with pytest.raises(DataError) as error:
        go(pope)
    if "does not exist" not in says:  # media that are missing keep their own list
        assert f"{file(pope)}, line 3: " in str(error.value)
        assert says in str(error.value)
        assert "--skip-bad-rows" in str(error.value)
    assert not (pope.parent / "run").exists()
    results = go(pope, right, skip_bad_rows=True)
    stored = read_results(pope.parent / "run")
    assert stored["bad_rows"]["count"] == 1
    assert stored["bad_rows"]["rows"][0].startswith(f"{file(pope)}, line 3: ")
    assert says in stored["bad_rows"]["rows"][0]
    assert (stored["rows"], stored["total"], stored["complete"]) == (5, 5, True)
    assert results.metrics[f"{SPLIT}/accuracy"].value == 1.0
    assert "invalid rows skipped" in render([side_by_side([results])])


def test_one_line_that_is_not_json(pope: Path) -> None:
    texts = file(pope).read_text().splitlines()
    texts[1] = '{"question_id": 2, "image'
    file(pope).write_text("\n".join(texts))
    with pytest.raises(DataError, match=r"line 2: is not valid JSON"):
        go(pope)
    results = go(pope, right, skip_bad_rows=True)
    assert [r.id for r in results.run.records] == [f"{SPLIT}/{k}" for k in (1, 3, 4, 5, 6)]
    assert [row["place"] for row in results.run.rows.values()] == [[0, k] for k in (0, 2, 3, 4, 5)]


def test_all_bad_rows_are_listed_and_only_bad_rows_are_an_error(pope: Path) -> None:
    for k in range(1, 7):
        change(pope, k, label="maybe")
    with pytest.raises(DataError, match="6 of 6 rows of pope") as error:
        go(pope)
    assert str(error.value).count("maybe") == 6
    with pytest.raises(DataError, match="6 of 6"):
        go(pope, skip_bad_rows=True)


SPELLED = ["yes", "Yes ", "YES", "yes.", '"yes"', "\tyes\r", True, "True", "true", 1, "1", 1.0, "1.0", "y", "Y"]


@pytest.mark.parametrize("value", SPELLED)
def test_labels_however_they_are_spelled(value: Any) -> None:
    assert label(value) == "yes"
    opposite = {"y": "n", "yes": "no", "true": "false", "1": "0", "1.0": "0.0"}
    text = str(value).strip(' "\t\r.').lower()
    spelled = str(value).lower().replace(text, opposite[text])
    assert label(spelled) == "no"
    assert label(opposite[text].upper()) == "no"
    assert yes_no("", [Record("a", "yes", value)], "strict").columns["correct"].tolist() == [1.0]


@pytest.mark.parametrize("value", ["maybe", None, "", 2, -1, "yesno", "no idea", [], "yes or no", float("nan")])
def test_labels_that_are_none(value: Any) -> None:
    with pytest.raises(DataError, match="not yes or no"):
        label(value)


@pytest.mark.parametrize("value", [True, "Yes.", 1, " yes\n"])
def test_spellings_reach_the_score(pope: Path, value: Any) -> None:
    change(pope, 1, label=value)
    assert go(pope, right).metrics[f"{SPLIT}/accuracy"].value == 1.0
    assert rowlog.read(pope.parent / "run/rows.jsonl")[0]["target"] == "yes"


FORMATS = {
    "bom": lambda text: "\ufeff" + text,
    "crlf": lambda text: text.replace("\n", "\r\n"),
    "empty lines": lambda text: "\n" + text.replace("\n", "\n \n\n"),
    "array": lambda text: json.dumps([json.loads(x) for x in text.splitlines()], indent=1),
    "line separators inside": lambda text: text.replace("the image", "the\u2028image"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_shapes_of_the_file(pope: Path, name: str) -> None:
    file(pope).write_bytes(FORMATS[name](file(pope).read_text()).encode())
    results = go(pope, right)
    assert len(results.run.records) == 6
    assert results.run.bad_rows == ()


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("a.json", '[\n{"a": 1},\n\n{"a":\n2}, 3, {"a": 4}]', [2, 4, 5, 5]),
        ("a.jsonl", '\ufeff{"a": 1}\r\n\r\n{"a": 2}\r\n3\r\n', [1, 3, 4]),
        ("a.tsv", "# about\na\tb\n\n1\t2\n# more\n3\t4\n5\n", [4, 6, 7]),
        ("a.csv", 'a,b\n"1\n1",2\n3,4\n', [3, 4]),
        ("a.csv", 'a,b\n1,2\n3,"4\n5,6\n', [2, 4]),
    ],
)
def test_where_a_row_stands(tmp_path: Path, name: str, text: str, where: list[int]) -> None:
    (tmp_path / name).write_bytes(text.encode())
    folder = Folder(tmp_path)
    found = [folder.rejected.at for _ in folder.samples(Needed((name,), ""), lambda row: Sample("a", str(row["a"])))]
    stands = [*found, *(row.where for row in folder.rejected.bad)]
    assert sorted(stands) == sorted(f"{tmp_path / name}, line {n}" for n in where)


def test_a_corrected_label_is_scored_without_asking_again(pope: Path) -> None:
    asked: list[str] = []

    def answer(sample: Sample) -> str:
        asked.append(sample.id)
        return "yes"

    before = go(pope, answer)
    assert before.metrics[f"{SPLIT}/accuracy"].value == 0.5
    change(pope, 2, label="yes")
    after = go(pope)
    assert len(asked) == 6
    assert after.metrics[f"{SPLIT}/accuracy"].value == pytest.approx(4 / 6)
    assert open_results(pope.parent / "run").score().metrics == after.metrics  # what a report reads later
    sessions = after.to_json()["sessions"]
    assert [(s["asks"], s["corrects"]) for s in sessions] == [(6, 0), (0, 1)]
    kept = (pope.parent / "run/rows.jsonl").read_bytes()
    go(pope)
    assert (pope.parent / "run/rows.jsonl").read_bytes() == kept  # corrected once


def test_a_label_that_goes_bad_and_is_corrected(pope: Path) -> None:
    go(pope, right)
    change(pope, 2, label="maybe")
    with pytest.raises(DataError, match="line 2"):
        go(pope)
    skipped = go(pope, skip_bad_rows=True)
    assert len(skipped.run.records) == 5
    change(pope, 2, label="yes")
    again = go(pope)
    assert len(again.run.records) == 6
    assert again.metrics[f"{SPLIT}/accuracy"].value == pytest.approx(5 / 6)
    assert read_results(pope.parent / "run")["bad_rows"]["count"] == 0


def test_a_skipped_row_is_answered_once_corrected(pope: Path) -> None:
    change(pope, 2, label="maybe")
    asked: list[str] = []
    answer = lambda s: asked.append(s.id) or right(s)  # noqa: E731
    for i in range(2):
        go(pope, answer, skip_bad_rows=True, shard=(i, 2))
    change(pope, 2, label="no")
    for i in range(2):
        last = go(pope, answer, shard=(i, 2))
    assert sorted(asked) == [f"{SPLIT}/{k}" for k in range(1, 7)]  # the others stay in their shard
    assert last.run.complete
    assert last.metrics[f"{SPLIT}/accuracy"].value == 1.0


@pytest.mark.parametrize("what", ["prompt", "picture", "suffix-like"])
def test_changed_questions_are_answered_again(pope: Path, what: str) -> None:
    asked: list[str] = []
    answer = lambda s: asked.append(s.id) or right(s)  # noqa: E731
    go(pope, answer)
    asked.clear()
    if what == "prompt":
        change(pope, 2, text="Is there a bus in the image?")
    elif what == "picture":
        (pope / "val2014/COCO_val2014_000000000000.jpg").write_bytes(b"y")  # as long as before
    else:
        rows = lines(pope)
        put(file(pope), "".join(json.dumps({**r, "text": r["text"] + " "}) + "\n" for r in rows))
    go(pope, answer)
    changed = {"prompt": [2], "picture": [1, 2], "suffix-like": range(1, 7)}
    assert asked == [f"{SPLIT}/{k}" for k in changed[what]]
    assert len(open_results(pope.parent / "run").records) == 6


def test_a_picture_that_was_only_copied_is_the_same(pope: Path) -> None:
    go(pope, right)
    for picture in (pope / "val2014").iterdir():
        picture.write_bytes(picture.read_bytes())  # another time of change, the clock may have been set back too
    assert len(go(pope).run.records) == 6


def test_more_rows_may_come_but_answered_ones_may_not_go(pope: Path) -> None:
    go(pope, right)
    rows = lines(pope)
    put(file(pope), "".join(json.dumps(r) + "\n" for r in [*rows, {**rows[0], "question_id": 9}]))
    asked: list[str] = []
    assert len(go(pope, lambda s: asked.append(s.id) or right(s)).run.records) == 7
    assert asked == [f"{SPLIT}/9"]
    put(file(pope), "".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(SettingError, match="answers to 1 questions, first coco/random/9"):
        go(pope)


def test_bad_rows_keep_their_place_under_a_limit(pope: Path) -> None:
    change(pope, 2, label="maybe")
    change(pope, 6, label="maybe")
    loaded = load(task("pope"), pope, splits=[SPLIT], limit=3, skip_bad_rows=True)
    assert [s.id for s in loaded.samples] == [f"{SPLIT}/1", f"{SPLIT}/3"]
    assert len(loaded.bad) == 1


def own(score: Any, targets: list[Any]) -> Task:
    samples = [Sample(str(k), f"{k}?", {}, t, {"split": "all"}) for k, t in enumerate(targets)]
    return Task("own", "1", "", "", "image", ("all",), lambda s: [], lambda f, s: samples, score, ("strict",))


def test_truths_that_only_a_scorer_understands(tmp_path: Path) -> None:
    """A task of somebody else's: its scorer tells before anything is asked."""
    mine = own(lambda records, scoring: [yes_no("", records, scoring.parser)], ["yes", "perhaps", "no"])
    with pytest.raises(DataError, match="1 of 3 rows of own") as error:
        run(mine, never, tmp_path / "a", progress=False)
    assert "perhaps" in str(error.value)
    results = run(mine, right, tmp_path / "a", progress=False, skip_bad_rows=True)
    assert len(results.run.records) == 2
    assert results.to_json()["bad_rows"]["count"] == 1
    with pytest.raises(DataError, match="2 of 2"):
        run(own(mine.score, ["a", "b"]), never, tmp_path / "b", progress=False, skip_bad_rows=True)


def test_a_truth_that_cannot_be_kept(tmp_path: Path) -> None:
    mine = own(lambda records, scoring: [], ["yes", {1, 2}, float("nan")])
    with pytest.raises(DataError, match="2 of 3 rows") as error:
        run(mine, never, tmp_path, progress=False)
    assert "not valid JSON" in str(error.value)


def fussy(records: Any, scoring: Any) -> Any:
    rows = [(r.id, {"length": float(100 / len(r.answer))} if r.answer != "blank" else {}) for r in records]
    return [block_of("", rows, [count("length", "length")])]


def test_an_answer_that_makes_a_scorer_raise_costs_itself(tmp_path: Path) -> None:
    results = run(own(fussy, list("abc")), lambda s: "" if s.id == "1" else "word", tmp_path, progress=False)
    assert results.metrics["length"].value == 50.0
    stored = read_results(tmp_path)
    assert stored["unscored"] == {"count": 1, "rows": {"1": "division by zero"}}
    assert stored["complete"]
    assert "rows that could not be scored" in render([side_by_side([results])])
    with pytest.raises(ZeroDivisionError):  # nobody's fault alone: the scorer's
        run(own(lambda records, scoring: 1 / 0, list("abc")), lambda s: "x", tmp_path / "b", progress=False)
    assert len(rowlog.read(tmp_path / "b/rows.jsonl")) == 3


BROKEN: dict[str, tuple[str, Any]] = {
    "audio_hallucination": ("random.tsv", lambda text: text.replace("\tyes\t", "\tmaybe\t", 1).replace("\tYes\t", "\tmaybe\t", 1)),
    "amber": ("query_all.json", lambda text: text.replace('"id": 3', '"id": 99')),
    "hallusionbench": ("HallusionBench.json", lambda text: text.replace('"gt_answer": "1"', '"gt_answer": "2"', 1)),
    "mmhal": ("response_template.json", lambda text: text.replace('"gt_answer": "', '"lost": "', 1)),
    "air_bench": ("Foundation_meta.json", lambda text: text.replace('"answer_gt": "', '"answer_gt": "x', 1)),
    "asr": ("manifest.tsv", lambda text: text + "lost\n"),
    "repope": ("coco_repope_random.json", lambda text: text.replace("Is there a cup", "Is there a mug", 1)),
    "dash_b": ("dash_benchmark_neg.json", lambda text: text.replace('"1.jpg"', "1", 1)),
    "phd": ("data.json", lambda text: text.replace('"Is there a banana?"', "null", 1)),
    "eventhallusion": ("entire_questions.json", lambda text: text.replace('"Yes."', '"Perhaps."', 1)),
    "videohallucer": ("temporal.json", lambda text: text.replace('"answer": "no"', '"answer": "none"', 1)),
    "cmm": ("all_data_final_reorg.json", lambda text: text.replace('"./reorg_raw_files/audio-language/1.wav"', "null", 1)),
    "haloquest": ("haloquest-eval.csv", lambda text: text.replace("0.png,https", ",https", 1)),
    "vstar": ("test_questions.jsonl", lambda text: text.replace('"label": "B"', '"label": "C"', 1)),
    "textvqa": ("TextVQA_0.5.1_val.json", lambda text: text.replace('["stop", "stop", ', '["stop", ', 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_every_task_keeps_a_bad_row_to_itself(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    found = sorted(tmp_path.rglob(BROKEN[name][0]))
    text = found[0].read_text()
    broken = BROKEN[name][1](text)
    assert broken != text
    whole = len(load(task(name), tmp_path).samples)
    found[0].write_text(broken)
    with pytest.raises(DataError, match=r"rows of \w+ are invalid") as error:
        load(task(name), tmp_path)
    assert str(found[0]) in str(error.value)
    loaded = load(task(name), tmp_path, skip_bad_rows=True)
    assert len(loaded.bad) == 1
    assert len(loaded.samples) >= whole - 1


def test_names_with_accents_are_found_in_either_normal_form(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/cafe\u0301.jpg").write_bytes(b"x")
    folder = Folder(tmp_path)
    assert folder.media(Needed(("images/",), ""), "caf\u00e9.jpg").is_file()
