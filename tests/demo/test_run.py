"""The demo: what it prints, draws and says of itself; on a tiny model, and once on the shipped one."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from tests.cli.tiny_llava import save_checkpoint
from tests.report.examples import generation, picture, prompt, relevance
from typer.testing import CliRunner

from limelight.cli.main import app
from limelight.demo import run as demo
from limelight.demo.outcome import Decision, Example, Outcome
from limelight.report.words import words


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    folder = tmp_path / "examples"
    folder.mkdir()
    rows = []
    for i, (label, hint) in enumerate((("yes", "there is no cup . "), ("no", "there is a dog . "), ("no", ""))):
        picture().save(folder / f"{i}.png")
        rows.append({
            "id": f"x/{i}", "image": f"{i}.png", "text": hint + "is there a cup ?", "hint": hint, "question": "is there a cup ?",
            "label": label, "cell": "E-wrong/clear" if hint else "adversarial/clear", "object": "cup",
            "objects": {"cup": [10, 10, 50, 50]} if label == "yes" else {"tree": [0, 0, 9, 9]}, "further": 1,
        })  # fmt: skip
    (folder / "examples.json").write_text(json.dumps({"rule": "Those that greedy gets wrong.", "examples": rows}))
    return folder


def test_run_demo(checkpoint: Path, examples: Path, tmp_path: Path) -> None:
    printed, progress = io.StringIO(), list[str]()
    done = demo.run_demo(
        tmp_path / "out", model=checkpoint, settings={"lime": {"lr": 0.01, "steps": 2}}, examples=examples,
        console=Console(file=printed, width=200), on_progress=progress.append,
    )  # fmt: skip
    assert {n: len(o) for n, o in done.outcomes.items()} == {"greedy": 3, "lime": 3}
    for outcome in (*done.outcomes["greedy"], *done.outcomes["lime"]):
        first = words(outcome.generation)[0]
        assert outcome.right == (first.text == outcome.example.label)
        assert outcome.overlay.stat().st_size > 1000
        assert outcome.relevance is not None
        assert 0 < outcome.share < 1
    assert [d.inside is not None for d in done.decisions] == [True, False, False]
    assert all(d.overlay.is_file() for d in done.decisions)
    assert done.outcomes["lime"][0].generation.settings["steps"] == 2
    html = done.page.read_text(encoding="utf-8")
    assert html.count('<article class="case') == 3
    assert "Those that greedy gets wrong." in html
    text = printed.getvalue()
    assert "3/3" in text
    assert text.count("relevance for yes rather than no: text") == 3
    assert "in the box of the cup" in text
    assert "relevance loss" in text
    assert done.summary in " ".join(text.split())
    assert "can show improvements but not regressions" in done.summary
    assert len(progress) == 7
    plain = demo.as_plain(done)
    json.dumps(plain, allow_nan=False)
    assert set(plain["examples"][0]["answers"]) == {"greedy", "lime"}


def outcome(said: str, label: str, share: float, hint: str = "x") -> Outcome:
    example = Example("e", Path("/nowhere.png"), "?", label, hint=hint)
    answer = generation(prompt(("image", 4, (2, 2), None)), [f" {said}"])
    return Outcome(example, answer, words(answer)[0], said == label, share, Path("o.png"))


def test_the_summary_counts_and_tells_harm_too(examples: Path) -> None:
    plain = [outcome("no", "yes", 0.2), outcome("yes", "no", 0.4, hint=""), outcome("yes", "yes", 0.3)]
    worse = [outcome("yes", "yes", 0.5), outcome("yes", "no", 0.1, hint=""), outcome("no", "yes", 0.3)]
    told = demo.summarise({"greedy": plain, "lime": worse})
    assert told == (
        "Greedy is correct on 1 of 3, lime on 1 (1 of 2 where the text misleads; 0 of 1 where the image misleads), "
        "with the image's share of the deciding word changing from 30% to 30%."
    )
    shown = demo.curated(examples)[0][0]
    found = relevance(prompt(("image", 4, (2, 2), None)), 1, "x")
    decided = [Decision(shown, found, plain[0].generation, 0.5, Path("o.png"))]
    told = demo.summarise({"greedy": plain, "lime": worse}, decided, picked=True)
    assert "50% of the image's relevance for yes rather than no is in its box (13% of the area)" in told
    assert "not regressions" in told


def test_the_command_on_the_shipped_model(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "out"), "--limit", "1", "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["summary"].startswith("Greedy is correct on 0 of 1, lime on ")
    assert (tmp_path / "out" / "demo.html").is_file()
    assert Path(document["examples"][0]["answers"]["lime"]["overlay"]).is_file()


def test_the_command_listens_too(tmp_path: Path) -> None:
    arguments = [
        "demo",
        "--audio",
        "--out",
        str(tmp_path / "out"),
        "--limit",
        "1",
        "--strategy",
        "relevance-contrastive",
    ]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["summary"].startswith("Greedy is correct on 0 of 1, relevance-contrastive on ")
    assert "the recording's share of the deciding word" in document["summary"]
    assert "make bench-quality-audio" in document["summary"]
    answers = document["examples"][0]["answers"]
    assert set(answers) == {"greedy", "relevance-contrastive"}
    assert 0 < answers["greedy"]["audio_share"] < 1
    assert Path(answers["greedy"]["overlay"]).stat().st_size > 1000
    assert (tmp_path / "out" / "demo.html").is_file()
