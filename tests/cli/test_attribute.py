"""``limelight attribute``: the relevance of an answer, given or generated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import limelight
from limelight.cli.attribute import token_ids
from limelight.relevance.composites import CP_LRP
from tests.cli.conftest import Run
from tests.cli.test_main import flat

ASK = ("--prompt", "is there a cup ?")


def test_scores_are_those_of_the_library(run: Run, checkpoint: Path, photo: Path) -> None:
    result = run(
        "attribute", checkpoint, "--image", photo, *ASK, "--answer", "no cup", "--composite", "cp-lrp", "--json"
    )
    document = json.loads(result.stdout)
    adapter = limelight.load(checkpoint)
    prompt = adapter.prepare("is there a cup ?", {"image": str(photo)})
    ids = adapter.tokenizer("no cup", add_special_tokens=False)["input_ids"]
    expected = limelight.attribute_generated(adapter, prompt.tensors, ids, composite=CP_LRP)
    assert [w["text"] for w in document["words"]] == ["no", "cup"]
    for word, one in zip(document["words"], expected, strict=True):
        assert word["scores"] == pytest.approx(one.scores.tolist(), rel=1e-4, abs=1e-6)
        assert word["shares"]["image"] == pytest.approx(one.share("image"), rel=1e-4)
    span = document["spans"][1]
    assert {k: span[k] for k in ("start", "stop", "modality", "grid", "margin", "seconds", "interval")} == {
        "start": 3, "stop": 19, "modality": "image", "grid": [4, 4], "margin": 0, "seconds": None, "interval": None,
    }  # fmt: skip
    assert span["region"]["size"] == [40, 30]
    assert span["region"]["box"] == pytest.approx([40 * 2 / 21, 0, 40 * 18 / 21, 30], abs=0.3)
    assert len(document["tokens"]) == len(prompt.tokens)


def test_table_and_overlay(run: Run, checkpoint: Path, photo: Path, tmp_path: Path) -> None:
    path = tmp_path / "cup.png"
    result = run(
        "attribute", checkpoint, "--image", photo, *ASK, "--answer", "no cup", "--overlay", path, "--word", "cup"
    )
    assert result.exit_code == 0, result.output
    assert path.stat().st_size > 1000
    told = flat(result.stdout)
    assert "% image" in told
    assert "row " in told
    assert "relevance of 'cup'" in flat(result.stderr)


def test_the_models_own_answer(run: Run, checkpoint: Path, photo: Path) -> None:
    document = json.loads(run("attribute", checkpoint, "--image", photo, *ASK, "--max-new-tokens", 3, "--json").stdout)
    adapter = limelight.load(checkpoint)
    said = limelight.generate(adapter, messages="is there a cup ?", media={"image": str(photo)}, max_new_tokens=3)
    assert document["text"] == said.text
    assert [s["token"] for s in document["steps"]] == list(said.token_ids)
    assert document["shares"]["image"] == pytest.approx(said.shares()["image"], rel=1e-3)


def test_sinks_are_left_out_of_shares(run: Run, checkpoint: Path, photo: Path) -> None:
    def asked(*more: object) -> dict[str, object]:
        return dict(
            json.loads(run("attribute", checkpoint, "--image", photo, *ASK, "--answer", "no", *more, "--json").stdout)
        )

    plain, without = asked(), asked("--sinks", "0,1")
    assert plain["words"][0]["scores"] == without["words"][0]["scores"]  # type: ignore[index]
    assert plain["shares"] != without["shares"]


def test_one_answer_rather_than_another(run: Run, checkpoint: Path, photo: Path) -> None:
    def scores(*answer: object) -> list[float]:
        document = json.loads(run("attribute", checkpoint, "--image", photo, *ASK, *answer, "--json").stdout)
        return list(document["words"][0]["scores"])

    yes, no, both = scores("--answer", "yes"), scores("--answer", "no"), scores("--answer", "yes", "--against", "no")
    assert both == pytest.approx([a - b for a, b in zip(yes, no, strict=True)], abs=1e-4)


def test_an_answer_may_be_given_as_text(checkpoint: Path, photo: Path) -> None:
    adapter = limelight.load(checkpoint)
    prompt = adapter.prepare("is there a cup ?", {"image": str(photo)})
    got, want = (
        limelight.attribute_generated(adapter, prompt, a) for a in ("no cup", token_ids(adapter, prompt, "no cup"))
    )
    assert [r.scores.tolist() for r in got] == [r.scores.tolist() for r in want] and len(got) == 2
    with pytest.raises(limelight.LimelightError, match="no tokens"):
        limelight.attribute_generated(adapter, prompt, " ")


def test_relevance_is_carried_on_to_pixels(run: Run, checkpoint: Path, photo: Path, tmp_path: Path) -> None:
    ask = ("attribute", checkpoint, "--image", photo, *ASK, "--composite", "gradient-input", "--through-encoder")
    drawing = tmp_path / "heat.png"
    document = json.loads(run(*ask, "--answer", "no cup", "--overlay", drawing, "--json").stdout)
    assert drawing.stat().st_size > 1000
    adapter = limelight.load(checkpoint)
    prompt = adapter.prepare("is there a cup ?", {"image": str(photo)})
    ids = token_ids(adapter, prompt, "no cup")
    found = limelight.attribute_generated(adapter, prompt, ids, composite="gradient-input", through_encoder=True)
    told = [w["inputs"]["pixel_values"]["relevance"] for w in document["words"]]
    assert told == pytest.approx([float(r.media_inputs["pixel_values"].sum()) for r in found], rel=1e-4)
    both = json.loads(run(*ask, "--answer", "no", "--against", "yes", "--json").stdout)["words"][0]["inputs"]
    want = limelight.attribute(
        adapter, prompt, "no", against="yes", composite="gradient-input", through_encoder=True
    ).media_inputs["pixel_values"]
    assert both["pixel_values"]["relevance"] == pytest.approx(float(want.sum()), rel=1e-4)


def test_an_answer_may_begin_with_a_space_where_the_model_would(checkpoint: Path, photo: Path) -> None:
    adapter = limelight.load(checkpoint)
    prompt = adapter.prepare("is there a cup ?", {"image": str(photo)})
    logits = adapter.model(**prompt.tensors).logits[0, -1].detach()
    adapter.tokenizer.backend_tokenizer.pre_tokenizer.add_prefix_space = False
    spelled = {t: adapter.tokenizer(t, add_special_tokens=False)["input_ids"] for t in ("no", " no")}
    assert spelled["no"] != spelled[" no"]
    expected = max(spelled.values(), key=lambda ids: float(logits[ids[0]]))
    assert token_ids(adapter, prompt, "no") == expected
    assert token_ids(adapter, prompt, " no") == spelled[" no"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--against", "no"), "--against needs --answer"),
        (("--answer", "no cup", "--against", "no dog"), "start with the same token"),
        (("--composite", "lrp"), "unknown composite"),
        (("--sinks", "a"), "cannot read --sinks"),
        (("--sinks", "999"), "outside the prompt"),
        (("--answer", " "), "the answer is empty"),
        (("--through-encoder",), "--through-encoder has no output"),
        (("--through-encoder", "--json", "--html", "page.html"), "no place on the page"),
        (("--through-encoder", "--video", "film.mp4", "--overlay", "heat.png"), "not drawn over frames"),
    ],
)
def test_what_is_refused(run: Run, checkpoint: Path, photo: Path, more: tuple[str, ...], message: str) -> None:
    result = run("attribute", checkpoint, "--image", photo, *ASK, *more)
    assert result.exit_code == 2
    assert message in flat(result.stderr)
