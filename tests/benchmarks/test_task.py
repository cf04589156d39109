"""Every task runs end to end on files of its official format, with a fake answerer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from limelight.benchmarks.loading import load
from limelight.benchmarks.runner import run
from limelight.benchmarks.scorers.measure import evaluate
from limelight.benchmarks.task import Reply, Scoring, opened, task, tasks
from limelight.errors import DataError, SettingError
from limelight.types import Record, Sample
from tests.benchmarks.official import WRITERS

# the metrics that a perfect answerer must reach, and one that never answers
PERFECT = {
    "pope": {
        "coco/mean/F1": 1.0,
        "aokvqa/random/accuracy": 1.0,
        "gqa/mean/accuracy": 1.0,
        "coco/random/yes ratio": 0.5,
    },
    "chair": {"CHAIR_s": 0.0, "CHAIR_i": 0.0, "recall": 1.0},
    "coco_grounding": {"spatial/grounding": 1.0, "spatial/chance": 0.25, "masks/grounding": 1.0, "seen/accuracy": 1.0},
    "amber": {"generative/CHAIR": 0.0, "generative/Cover": 1.0, "discriminative/F1": 1.0, "AMBER score": 100.0},
    "hallusionbench": {"aAcc": 1.0, "qAcc": 1.0, "fAcc": 1.0, "hard/accuracy": 1.0},
    "mmhal": {"rating": 6.0, "hallucination rate": 0.0, "counting/rating": 6.0},
    "mme": {"existence/score": 200.0, "total/score": 800.0, "color/accuracy+": 1.0},
    "audio_hallucination": {"mean/F1": 1.0, "random/accuracy": 1.0},
    "air_bench": {"speech/accuracy": 1.0, "sound/mean of tasks/accuracy": 1.0, "music/unparsed": 0.0},
    "dcase": {"temporal/grounding": 1.0, "heard/accuracy": 1.0, "answers without relevance": 0.0},
    "repope": {
        "random/RePOPE/accuracy": 1.0,
        "random/POPE/accuracy": 5 / 6,
        "random/labels changed": 1 / 6,
        "random/questions removed": 1 / 6,
        "mean/RePOPE/F1": 1.0,
        "adversarial/RePOPE/yes ratio": 0.8,
    },
    "dash_b": {"accuracy": 1.0, "TPR": 1.0, "TNR": 1.0, "harmonic mean": 1.0, "yes ratio": 0.5},
    "phd": {
        "base/PhD index": 1.0,
        "icc/counting/PhD index": 1.0,
        "ccs/accuracy": 1.0,
        "icc/misled": 0.0,
        "iac/helped": None,
    },
    "eventhallusion": {
        "entire/accuracy": 1.0,
        "overall/accuracy": 1.0,
        "interleave/descriptions/correct": 1.0,
        "descriptions/mean/correct": 1.0,
    },
    "videohallucer": {
        "temporal/accuracy": 1.0,
        "mean/accuracy": 1.0,
        "mean/hallucination/accuracy": 1.0,
        "fact_detect/basic/accuracy": 1.0,
    },
    "cmm": {"PA": 1.0, "HR": 1.0, "language-dominance/PA": 1.0, "audio-language/object-level/PA": 1.0, "accuracy": 1.0},
    "haloquest": {"correct": 1.0, "false premises/correct": 1.0, "real/unjudged": 0.0},
    "vstar": {"accuracy over all": 1.0, "relative_position/accuracy": 1.0, "direct_attributes/unparsed": 0.0},
    "textvqa": {"accuracy": 1.0, "empty": 0.0},
    "asr": {"test-clean/WER": 0.0, "silence/clips with invented words": 0.0, "manifest/exact": 1.0},
}
SILENT = {
    "pope": {"coco/random/accuracy": 0.5, "coco/random/yes ratio": 1.0, "coco/random/empty": 6.0},
    "chair": {"CHAIR_s": 0.0, "CHAIR_i": None, "recall": 0.0},
    "coco_grounding": {"spatial/grounding": None, "answers without relevance": 3.0},
    "amber": {"discriminative/unparsed": 5.0, "discriminative/F1": 0.0, "generative/Cover": 0.0},
    "hallusionbench": {"aAcc": 0.0, "unparsed": 4.0},
    "mmhal": {"rating": None, "unparsed": 4.0},
    "mme": {"existence/score": 0.0},
    "audio_hallucination": {"random/unparsed": 4.0, "random/accuracy": 0.0},
    "air_bench": {"speech/unparsed": 3.0, "speech/accuracy": None, "speech/accuracy over all": 0.0},
    "dcase": {"temporal/grounding": None, "heard/unparsed": 3.0},
    "repope": {"random/RePOPE/unparsed": 5.0, "popular/POPE/accuracy": 0.0, "random/labels changed": 1 / 6},
    "dash_b": {"accuracy": 0.0, "TPR": 0.0, "harmonic mean": 0.0, "unparsed": 6.0},
    "phd": {"base/PhD index": 0.0, "base/recall of yes": 0.0, "icc/misled": None, "icc/helped": 0.0},
    "eventhallusion": {
        "entire/accuracy": 0.0,
        "entire/descriptions/correct": None,
        "entire/descriptions/unjudged": 2.0,
    },
    "videohallucer": {"mean/accuracy": 0.0, "temporal/basic/unparsed": 2.0},
    "cmm": {"PA": 0.0, "HR": 0.0, "unparsed": 12.0},
    "haloquest": {"correct": None, "unjudged": 6.0},
    "vstar": {"accuracy over all": 0.0, "unparsed": 2.0},
    "textvqa": {"accuracy": 0.0, "empty": 2.0},
    "asr": {"test-clean/WER": 1.0, "test-clean/deletions": 1.0},
}


def relevance(sample: Sample) -> dict[str, object]:
    """All relevance on the true region, of the fixtures' boxes (the upper left quarter) and events."""
    if not sample.media:
        return {"shares": {"text": 1.0}}
    if "image" in sample.media:
        return {"image_relevance": [[-1.0, 0.0], [0.0, 0.0]], "shares": {"image": 0.25, "text": 0.75}}
    if "video" in sample.media:
        return {"shares": dict.fromkeys(sample.media, 0.5)}
    if not isinstance(sample.target, list):
        return {"shares": {"audio": 0.5, "text": 0.5}}
    inside = [any(on <= t < off for on, off in sample.target) for t in (0, 1, 2, 3)]
    return {"audio_relevance": {"scores": [float(x) for x in inside], "seconds": 1.0}}


def check(metrics: dict[str, float | None], expected: dict[str, float | None]) -> None:
    for name, value in expected.items():
        assert metrics[name] == (pytest.approx(value) if value is not None else None), name


def test_every_task_is_found_and_has_a_fixture() -> None:
    assert set(tasks()) == {*WRITERS, "demo_audio", "demo_video", "demo_vision", "labelled"}
    assert set(PERFECT) == set(SILENT) == set(WRITERS)


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_perfect_and_silent_answers(name: str, tmp_path: Path) -> None:
    best = WRITERS[name](tmp_path / "data")

    def answer(sample: Sample) -> Reply:
        return Reply(best[sample.id], relevance(sample))

    options = {"data": tmp_path / "data", "progress": False}
    judges = {"mmhal": "Good. Rating: 6", "haloquest": "Good. Correct: yes", "eventhallusion": "Yes, it is."}
    judge = (lambda record: judges[name]) if name in judges else None
    results = run(name, answer, tmp_path / "best", judge=judge, **options)
    assert len(results.run.records) == len(best)
    assert not results.run.errors
    assert results.run.complete
    stored = json.loads((tmp_path / "best" / "results.json").read_text())
    check({k: m["value"] for k, m in stored["metrics"].items()}, PERFECT[name])
    assert stored["identity"]["data"]
    assert all(len(f["sha256"]) == 64 for f in stored["identity"]["data"].values())
    modality = task(name).modality
    if name != "dcase":
        share = stored["metrics"][f"{modality} reliance"]["value"]
        assert share == (0.25 if modality == "image" else 0.5)
    silent = run(name, lambda sample: "", tmp_path / "silent", **options).to_json()["metrics"]
    check({k: m["value"] for k, m in silent.items()}, SILENT[name])


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_missing_files_are_named_with_their_origin(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        load(task(name), tmp_path)
    needed = [n for s in task(name).splits for n in task(name).files(s) if n.required]
    for n in needed:
        assert n.names[0] in str(error.value)
        assert n.origin in str(error.value)
    with pytest.raises(DataError, match="pass --data DIR"):
        load(task(name))


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_missing_media_are_named(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    samples = load(task(name), tmp_path).samples
    lost = Path(next(x for s in samples for xs in s.media.values() for x in xs))
    lost.unlink()
    with pytest.raises(DataError, match=lost.name) as error:
        load(task(name), tmp_path)
    assert task(name).media in str(error.value)
    assert len(load(task(name), tmp_path, check=False).samples) == len(samples)


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_no_records_at_all(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    loaded = load(task(name), tmp_path)
    for file, text in loaded.assets.items():
        (tmp_path / file).write_text(text)
    for block in task(name).score([], Scoring(task(name).parser(), tmp_path)):
        assert block.ids == ()


def test_a_task_and_a_parser_of_unknown_name() -> None:
    with pytest.raises(SettingError, match="pope"):
        task("pop")
    with pytest.raises(SettingError, match="lmms-eval"):
        task("pope").parser("mine")
    assert task("pope").parser() == "official"
    assert task("mmhal").parser() == ""
    with pytest.raises(SettingError, match="not parsed"):
        task("mmhal").parser("strict")


def test_lazy_media_are_made_when_opened() -> None:
    made = []
    sample = Sample("a", "?", {"image": [lambda: made.append(1) or "picture", "file.png"]})
    assert opened(sample).media == {"image": ["picture", "file.png"]}
    assert made == [1]


def test_chair_takes_the_listed_pictures(tmp_path: Path) -> None:
    WRITERS["chair"](tmp_path)
    (tmp_path / "chair_images.jsonl").write_text('{"image_id": 2}\n{"image_id": 0, "caption": "x"}\n')
    assert [s.id for s in load(task("chair"), tmp_path).samples] == ["val2014/2", "val2014/0"]
    (tmp_path / "chair_images.jsonl").write_text('{"image_id": 77}\n')
    with pytest.raises(DataError, match="77"):
        load(task("chair"), tmp_path)


def test_air_bench_prompt_and_flac(tmp_path: Path) -> None:
    WRITERS["air_bench"](tmp_path)
    by_id = {s.id: s for s in load(task("air_bench"), tmp_path).samples}
    assert str(by_id["sound/Audio_Grounding_set/0"].media["audio"][0]).endswith("Audio_Grounding_set/0.flac")
    assert by_id["music/Music_AQA_set/0"].prompt.endswith("Is it so?\nA. yes\nB. no\nC. None\nD. None")
    assert by_id["music/Music_AQA_set/0"].meta["choices"] == ["yes", "no"]


def test_hallusionbench_counts_the_original_figures_as_easy() -> None:
    """In VS figure 0 is none and figure 1 the original; in VD figure 0 is the original."""
    rows = [("VS", "0", "0"), ("VS", "1", "1"), ("VS", "2", "2"), ("VD", "0", "1"), ("VD", "1", "2")]
    records = [
        Record(
            f"{category}/{figure}", "No." if seen == "2" else "Yes.", "yes",
            {"category": category, "figure_id": figure, "visual_input": seen, "cluster": category, "question_id": "0"},
        )
        for category, figure, seen in rows
    ]  # fmt: skip
    found = evaluate(task("hallusionbench").score(records, Scoring("strict")), resamples=0)
    assert (found["easy/accuracy"].value, found["easy/accuracy"].n) == (1.0, 3)
    assert (found["hard/accuracy"].value, found["hard/accuracy"].n) == (0.0, 2)
    assert found["fAcc"].n == 4
    assert found["qAcc"].value == 0.0
