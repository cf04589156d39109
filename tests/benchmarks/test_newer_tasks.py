"""What the benchmarks of 2024 to 2026 ask, and what is particular to each of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from limelight.benchmarks.loading import load
from limelight.benchmarks.runner import run
from limelight.benchmarks.scorers.measure import evaluate
from limelight.benchmarks.task import Scoring, task
from limelight.errors import DataError
from limelight.types import Record, Sample
from tests.benchmarks.official_newer import WRITERS


def loaded(name: str, folder: Path) -> dict[str, Sample]:
    WRITERS[name](folder)
    return {s.id: s for s in load(task(name), folder).samples}


def test_repope_scores_the_same_answers_with_both_labels(tmp_path: Path) -> None:
    samples = loaded("repope", tmp_path)
    assert len(samples) == 18
    assert samples["random/2"].target == {"POPE": "no", "RePOPE": "yes"}
    assert samples["random/4"].target == {"POPE": "no"}  # removed as ambiguous
    results = run("repope", lambda s: "yes", tmp_path / "run", data=tmp_path, splits=["random"], progress=False)
    found = {k: m.value for k, m in results.metrics.items()}
    assert (found["random/POPE/accuracy"], found["random/RePOPE/accuracy"]) == (3 / 6, 4 / 5)
    assert (results.metrics["random/POPE/accuracy"].n, results.metrics["random/RePOPE/accuracy"].n) == (6, 5)
    assert found["random/labels changed"] == pytest.approx(1 / 6)


def test_repope_without_the_file_of_pope_has_the_corrected_labels_alone(tmp_path: Path) -> None:
    WRITERS["repope"](tmp_path)
    (tmp_path / "coco/coco_pope_popular.json").unlink()
    found = load(task("repope"), tmp_path, splits=["popular"]).samples
    assert [s.target for s in found] == [{"RePOPE": a} for a in ("yes", "yes", "yes", "yes", "no")]
    blocks = task("repope").score([Record(s.id, "yes", s.target, s.meta) for s in found], Scoring("dash-b"))
    assert [b.name for b in blocks] == ["popular/RePOPE"]


def test_repope_refuses_mismatched_files(tmp_path: Path) -> None:
    WRITERS["repope"](tmp_path)
    other = (tmp_path / "coco/coco_pope_random.json").read_text().replace("a dog", "a cow")
    (tmp_path / "coco/coco_pope_random.json").write_text(other)
    with pytest.raises(
        DataError, match=r"is there a dog in the image\?' about COCO_val2014_000000000000.jpg is not in"
    ):
        load(task("repope"), tmp_path, splits=["random"])


def test_dash_b_asks_the_official_question_about_both_lists(tmp_path: Path) -> None:
    samples = loaded("dash_b", tmp_path)
    one = samples["neg/openimages/Fire hydrant/2.jpg"]
    assert one.prompt == "Can you see a Fire hydrant in this image? Please answer only with yes or no."
    assert (one.target, one.meta["cluster"]) == ("no", "Fire hydrant")
    assert one.media["image"] == [tmp_path / "images/neg/openimages/Fire hydrant/2.jpg"]
    (tmp_path / "images/dash_benchmark_pos.json").write_text(json.dumps({"a": ["1.jpg"]}))
    with pytest.raises(DataError, match=r"is not \{dataset: \{object"):
        load(task("dash_b"), tmp_path)


def test_phd_puts_the_context_and_the_instruction_before_the_question(tmp_path: Path) -> None:
    samples = loaded("phd", tmp_path)
    follow = (
        " In case there is an inconsistency between the context and the image content, you should follow the image. "
    )
    assert samples["base/0/yes"].prompt == "Are there two dogs?"
    assert samples["iac/0/yes"].prompt == f"Dogs often come in threes.{follow}Are there two dogs?"
    assert samples["icc/1/no"].prompt == f"There are three dogs in the picture.{follow}Are there three dogs?"
    assert [p.name for p in samples["icc/1/no"].media["image"]] == ["COCO_val2014_000000000101.jpg"]
    assert [p.name for p in samples["ccs/2/yes"].media["image"]] == ["0.png"]
    # a row's context changes the question's answer or does not: the share misled is over those right without it
    answers = {i: (s.target if not i.startswith("icc/0") else "no") for i, s in samples.items()}
    records = [Record(i, answers[i], s.target, s.meta) for i, s in samples.items()]
    found = evaluate(task("phd").score(records, Scoring("strict")), resamples=0)
    assert (found["icc/misled"].value, found["icc/misled"].n) == (1 / 4, 4)
    assert found["iac/misled"].value == 0.0
    assert found["icc/object recognition/PhD index"].value == 0.0
    assert found["icc/PhD index"].value == pytest.approx(2 * 0.5 * 1 / 1.5)


def test_phd_takes_the_first_release_s_odd_images_too(tmp_path: Path) -> None:
    row = {
        "image_path": "images/CCS_images/7.png",
        "ccs_description": "x",
        "yes_question": "Is it?",
        "no_question": "Not?",
    }
    (tmp_path / "data.json").write_text(json.dumps([row]))
    found = load(task("phd"), tmp_path, splits=["ccs"], check=False).samples
    assert [p.as_posix() for s in found for p in s.media["image"]] == [f"{tmp_path.as_posix()}/CCS_images/7.png"] * 2
    (tmp_path / "images/CCS_images").mkdir(parents=True)
    (tmp_path / "images/CCS_images/7.png").write_bytes(b"x")
    assert len(load(task("phd"), tmp_path, splits=["ccs"]).samples) == 2


def test_eventhallusion_questions_and_descriptions(tmp_path: Path) -> None:
    samples = loaded("eventhallusion", tmp_path)
    asked = samples["entire/entire_001/1"]
    assert asked.prompt == "Does the dog bark?\nPlease answer yes or no:"
    assert asked.media == {"video": [tmp_path / "videos/entire/entire_001.mp4"]}
    described = samples["interleave/descriptions/interleave_002"]
    assert described.prompt == "Please describe this video in detail."
    assert described.target == "It falls."  # the unexpected event; of the other kinds the event itself
    assert samples["misleading/descriptions/misleading_001"].target == "A dog barks."
    (tmp_path / "questions/interleave_questions.json").rename(tmp_path / "questions/mix_questions.json")
    assert load(task("eventhallusion"), tmp_path, splits=["interleave"]).samples[0].id == "interleave/interleave_001/0"


def test_videohallucer_pairs_count_when_both_answers_are_right(tmp_path: Path) -> None:
    samples = loaded("videohallucer", tmp_path)
    one = samples["semantic_detail/0/hallucination"]
    assert one.prompt == "Is there a dog?\nAnswer the question using 'yes' or 'no'."
    assert one.media["video"][0].name == "v0_b.mp4"
    records = [Record(i, "Yes.", s.target, s.meta) for i, s in samples.items()]
    found = evaluate(task("videohallucer").score(records, Scoring("videohallucer")), resamples=0)
    assert found["temporal/accuracy"].value == 0.0
    assert found["mean/basic/accuracy"].value == 1.0
    assert found["mean/hallucination/accuracy"].value == 0.0
    assert found["temporal/accuracy"].n == 2


def test_videohallucer_s_mean_is_over_subsets_without_fact_detect(tmp_path: Path) -> None:
    samples = loaded("videohallucer", tmp_path)
    right = {"temporal", "fact_detect"}
    records = [Record(i, s.target if s.meta["split"] in right else "?", s.target, s.meta) for i, s in samples.items()]
    found = evaluate(task("videohallucer").score(records, Scoring("videohallucer")), resamples=0)
    assert found["mean/accuracy"].value == pytest.approx(1 / 5)
    # without the file the subset is left out, and named when it is asked for
    (tmp_path / "fact_detect/fact_detect.json").unlink()
    assert "fact_detect" not in load(task("videohallucer"), tmp_path).splits
    with pytest.raises(DataError, match=r"fact_detect/fact_detect\.json"):
        load(task("videohallucer"), tmp_path, splits=["fact_detect"])


def test_cmm_gives_video_audio_or_both_and_asks_for_yes_or_no(tmp_path: Path) -> None:
    samples = {s.meta["split"]: s for s in loaded("cmm", tmp_path).values()}
    assert set(samples["language-dominance"].media) == {"video"}
    assert set(samples["audio-language"].media) == {"audio"}
    assert set(samples["visual-dominance"].media) == {"video", "audio"}
    assert all(s.prompt == "Did you see a cup in the video? Answer with yes or no." for s in samples.values())
    rows = json.loads((tmp_path / "all_data_final_reorg.json").read_text())
    rows[0]["question"] += " Answer with yes or no."  # as in the released example
    (tmp_path / "all_data_final_reorg.json").write_text(json.dumps(rows))
    (first, *_) = load(task("cmm"), tmp_path).samples
    assert first.prompt == "Did you see a cup in the video? Answer with yes or no."


def test_cmm_by_hand(tmp_path: Path) -> None:
    records = [Record(i, "yes", s.target, s.meta) for i, s in loaded("cmm", tmp_path).items()]
    found = evaluate(task("cmm").score(records, Scoring("cmm")), resamples=0)
    assert (found["PA"].value, found["HR"].value, found["accuracy"].value) == (1.0, 0.0, 0.5)
    assert found["audio-dominance/event-level/HR"].value == 0.0


def test_haloquest_rows(tmp_path: Path) -> None:
    samples = loaded("haloquest", tmp_path)
    one = samples["eval/0"]
    assert one.prompt == "What is in the cat's paw, if anything?"
    assert one.target == "Nothing; There is no cat."
    assert (one.meta["kind"], one.meta["image_type"]) == ("false premises", "generated")
    assert one.meta["url"] == "https://example.org/0.png"


def test_vstar_and_textvqa_prompts(tmp_path: Path) -> None:
    one = loaded("vstar", tmp_path)["relative_position/1"]
    assert one.prompt.endswith("(A) right\n(B) left\nAnswer with the option's letter from the given choices directly.")
    assert (one.target, one.meta["choices"]) == ("B", ["A", "B"])
    two = loaded("textvqa", tmp_path)["val/34602"]
    assert two.prompt == "what does the sign say?\nAnswer the question using a single word or phrase."
    content = json.loads((tmp_path / "TextVQA_0.5.1_val.json").read_text())
    for row in content["data"]:
        del row["answers"]  # as in the test file
    (tmp_path / "TextVQA_0.5.1_val.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="no column answers"):
        load(task("textvqa"), tmp_path)
    (tmp_path / "TextVQA_0.5.1_val.json").write_text("[]")
    with pytest.raises(DataError, match='"data"'):
        load(task("textvqa"), tmp_path)
