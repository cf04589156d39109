"""``limelight generate``: the answer, the document, the picture, the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import limelight
from limelight.cli import terminal
from limelight.errors import UnsupportedError
from tests.cli.conftest import Run
from tests.cli.test_main import flat
from tests.report.test_page import data_of

ASK = ("--prompt", "is there a cup ?", "--max-new-tokens", 4)


def test_the_answer_alone_is_on_stdout(run: Run, checkpoint: Path, photo: Path) -> None:
    result = run("generate", checkpoint, "--image", photo, *ASK)
    assert result.exit_code == 0, result.output
    adapter = limelight.load(checkpoint)
    expected = limelight.generate(adapter, messages="is there a cup ?", media={"image": str(photo)}, max_new_tokens=4)
    assert result.stdout == expected.text + "\n"
    told = flat(result.stderr)
    assert "greedy: 4 tokens" in told
    assert f"{expected.shares()['image']:.0%} image" in told


def test_json(run: Run, checkpoint: Path, photo: Path) -> None:
    result = run(
        "generate",
        checkpoint,
        "--image",
        photo,
        *ASK,
        "--strategy",
        "lime",
        "--set",
        "lr=1e-2",
        "--set",
        "steps=3",
        "--json",
    )
    document = json.loads(result.stdout)
    assert document["strategy"] == "lime"
    assert document["settings"]["steps"] == 3
    assert len(document["steps"]) == 4
    assert all(s["intervened"] and len(s["losses"]["kl"]) == 2 for s in document["steps"])
    assert sum(document["shares"].values()) == pytest.approx(1)
    assert [w["tokens"][0] for w in document["words"]] == sorted(w["tokens"][0] for w in document["words"])
    assert document["seconds"] > 0


def test_overlay_and_page(run: Run, checkpoint: Path, photo: Path, tmp_path: Path) -> None:
    picture, page = tmp_path / "o.png", tmp_path / "o.html"
    result = run(
        "generate", checkpoint, "--image", photo, *ASK, "--overlay", picture, "--word", -1, "--html", page, "--json"
    )
    document = json.loads(result.stdout)
    assert document["files"] == {"overlay": str(picture), "html": str(page), "word": document["words"][-1]["text"]}
    with Image.open(picture) as drawn:
        assert drawn.size[0] > 300
    html = page.read_text(encoding="utf-8")
    assert "is there a cup ?" in html
    # the processor makes 21 x 16 of 40 x 30, and keeps columns 2 to 18
    assert data_of(html)["cases"][0]["views"][0]["box"] == pytest.approx([2 / 21, 0, 18 / 21, 1], abs=0.005)
    wrong = run("generate", checkpoint, "--image", photo, *ASK, "--overlay", picture, "--word", "zebra")
    assert wrong.exit_code == 2
    assert "no word 'zebra'" in flat(wrong.stderr)


def test_sampling_is_seeded(run: Run, checkpoint: Path, photo: Path) -> None:
    def said(seed: int) -> str:
        asked = ("generate", checkpoint, "--image", photo, "-p", "is there ?", "--max-new-tokens", 8, "--no-relevance")
        return run(*asked, "--sample", "--temperature", 2.0, "--seed", seed).stdout

    answers = [said(seed) for seed in (1, 1, 2, 3)]
    assert answers[0] == answers[1]
    assert len(set(answers)) > 1


def test_no_relevance_is_plain_decoding(run: Run, checkpoint: Path, photo: Path) -> None:
    result = run("generate", checkpoint, "--image", photo, *ASK, "--no-relevance", "--json")
    document = json.loads(result.stdout)
    assert document["shares"] == {}
    assert all("relevance" not in w for w in document["words"])
    assert document["text"] == json.loads(run("generate", checkpoint, "--image", photo, *ASK, "--json").stdout)["text"]


@pytest.mark.parametrize("strategy", ["vcd", "relevance-contrastive", "meter"])
def test_every_strategys_words_have_a_relevance(
    run: Run, checkpoint: Path, photo: Path, tmp_path: Path, strategy: str
) -> None:
    picture = tmp_path / "o.png"
    asked = ("generate", checkpoint, "--image", photo, *ASK, "--strategy", strategy, "--json")
    document = json.loads(run(*asked, "--overlay", picture, "--word", -1).stdout)
    assert picture.stat().st_size > 0
    assert sum(document["shares"].values()) == pytest.approx(1, abs=1e-4)
    assert all("relevance" in w for w in document["words"])
    assert all(sum(s["shares"].values()) == pytest.approx(1, abs=1e-4) for s in document["steps"])
    assert bool(document["contributions"]) == (strategy != "vcd")
    plain = json.loads(run(*asked, "--no-relevance").stdout)
    assert plain["shares"] == {}
    assert plain["contributions"] == document["contributions"]
    assert all(w["shares"] == {} and w["perceptual_share"] is None for w in plain["words"])


def test_the_meters_parts_are_named_as_such(run: Run, checkpoint: Path, photo: Path) -> None:
    asked = ("generate", checkpoint, "--image", photo, *ASK, "--strategy", "meter")
    assert "of the logits, by the meter" in flat(run(*asked, "--no-relevance").stderr)
    assert "by the meter" not in flat(run(*asked).stderr)


def test_loading_is_quiet_and_leaves_transformers_as_it_was() -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with terminal.quiet():
        assert logging.get_verbosity() == logging.ERROR
        assert not logging.is_progress_bar_enabled()
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_words_are_coloured_on_a_terminal(checkpoint: Path, photo: Path) -> None:
    from rich.console import Console

    adapter = limelight.load(checkpoint)
    said = limelight.generate(adapter, messages="is there ?", media={"image": str(photo)}, max_new_tokens=3)
    text = terminal.coloured(said)
    assert text.plain == said.text
    console = Console(force_terminal=True, color_system="truecolor", width=200)
    with console.capture() as held:
        console.print(text)
    assert "\x1b[" in held.get()


def test_strategies_side_by_side_on_the_page(run: Run, checkpoint: Path, photo: Path, tmp_path: Path) -> None:
    page = tmp_path / "o.html"
    result = run(
        "generate", checkpoint, "--image", photo, *ASK, "--strategy", "meter",
        "--compare", "relevance-contrastive,alpha=8", "--compare", "greedy", "--html", page,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    columns = data_of(page.read_text(encoding="utf-8"))["cases"][0]["columns"]
    assert [c["name"] for c in columns if c["name"] != "decision"] == ["meter", "relevance-contrastive", "greedy"]
    assert "alpha 8" in columns[1]["settings"]
    for column in columns[:3]:
        assert all("h" in w and "c" in w for w in column["words"])  # heat and candidates, whatever the strategy
    assert "only affects the page" in flat(run("generate", checkpoint, "--image", photo, *ASK, "--no-meter").stderr)
    wrong = run("generate", checkpoint, "--image", photo, *ASK, "--compare", "nothing", "--html", page)
    assert "unknown strategy 'nothing'" in flat(wrong.stderr)


def test_compare_prints_every_answer_and_what_decides(run: Run) -> None:
    asked = (
        "generate",
        "demo-vision",
        "--image",
        "example:hat",
        "-p",
        "There is no hat. Is there a hat in the picture?",
    )
    compare = ("--compare", "relevance-contrastive,preset=questions")
    result = run(*asked, *compare)
    assert result.exit_code == 0, result.output
    assert [line.split() for line in result.stdout.splitlines()] == [["greedy", "no"], ["relevance-contrastive", "yes"]]
    assert "yes rather than no: text" in flat(result.stderr)
    document = json.loads(run(*asked, *compare, "--json").stdout)
    assert [a["text"] for a in document["compared"]] == ["yes"]
    assert document["decisions"][0]["rather_than"] == "no"
    assert all("USER" not in text for text, _ in document["decisions"][0]["text"])
    assert "no example 'cat'" in flat(run("generate", "demo-vision", "--image", "example:cat", "-p", "x").stderr)


def test_a_model_without_a_meter_suggests_no_meter(
    run: Run, checkpoint: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> object:
        raise UnsupportedError("no forward mode here", hint="greedy works")

    monkeypatch.setattr("limelight.decoding.methods.meter.meter_stream", refused)
    page = tmp_path / "o.html"
    ask = ("generate", checkpoint, "--image", photo, *ASK, "--html", page)
    assert "greedy works; if the meter" in flat(run(*ask).stderr)
    assert not page.exists()
    assert run(*ask, "--no-meter").exit_code == 0
    assert all("h" in w and "c" not in w for w in data_of(page.read_text())["cases"][0]["columns"][0]["words"])


def test_words_alone_are_answered_and_all_is_text(run: Run, tmp_path: Path) -> None:
    page = tmp_path / "o.html"
    done = run(
        "generate", "demo-vision", "-p", "Is there a cup?", "--max-new-tokens", "2", "--json", "--html", str(page)
    )
    assert done.exit_code == 0, done.stderr
    steps = json.loads(done.stdout)["steps"]
    assert [s["shares"] for s in steps] == [{"text": 1.0}] * len(steps)
    assert page.stat().st_size > 1000
    drawn = run("generate", "demo-vision", "-p", "Is there a cup?", "--overlay", str(tmp_path / "o.png"))
    assert drawn.exit_code == 2
    assert "no image, audio or video to draw" in drawn.stderr


def test_settings_of_loading_reach_the_model(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from limelight.models import loading

    real, seen = loading.load, dict[str, Any]()

    def load(name: str, **settings: Any) -> Any:
        seen.update(settings)
        return real(name)

    monkeypatch.setattr(loading, "load", load)
    done = run(
        "generate",
        "demo-vision",
        "-p",
        "Is there a cup?",
        "--max-new-tokens",
        "1",
        "--revision",
        "v2",
        "--device-map",
        "auto",
    )
    assert done.exit_code == 0, done.stderr
    assert (seen["revision"], seen["device_map"]) == ("v2", "auto")
