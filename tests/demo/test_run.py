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
from limelight.demo.outcome import Caption, Decision, Example, Outcome
from limelight.demo.verdicts import caption_verdict, question_verdict
from limelight.errors import SettingError
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
        tmp_path / "out", model=checkpoint, strategies=("lime",), settings={"lime": {"lr": 0.01, "steps": 2}},
        examples=examples, console=Console(file=printed, width=200), on_progress=progress.append,
    )  # fmt: skip
    assert {n: len(o) for n, o in done.outcomes.items()} == {"greedy": 3, "lime": 3}
    for outcome in (*done.outcomes["greedy"], *done.outcomes["lime"]):
        first = words(outcome.generation)[0]
        assert outcome.right == (first.text == outcome.example.label)
        assert 0 < outcome.share < 1
    assert [d.inside is not None for d in done.decisions] == [True, False, False]
    assert all(d.overlay.stat().st_size > 1000 for d in done.decisions)
    assert [d.relevance.explains for d in done.decisions] == [
        "yes rather than no",
        "no rather than yes",
        "no rather than yes",
    ]
    assert done.outcomes["lime"][0].generation.settings["steps"] == 2
    html = done.page.read_text(encoding="utf-8")
    assert html.count('<article class="case') == 3
    told = " ".join(printed.getvalue().split())
    assert all(v in told for v in done.verdicts)
    assert "in the box of the cup" in told
    assert done.summary in told
    assert "improvements but no regressions" in done.summary
    assert len(progress) == 7
    assert done.caption is None
    plain = demo.as_plain(done)
    json.dumps(plain, allow_nan=False)
    assert set(plain["examples"][0]["answers"]) == {"greedy", "lime"}
    assert plain["rule"] == "Those that greedy gets wrong."


def outcome(said: str, label: str, hint: str = "There is no cup.", strategy: str = "greedy") -> Outcome:
    example = Example("e", Path("/nowhere.png"), "?", label, hint=hint, object="cup", objects={"boat": (), "crab": ()})
    answer = generation(prompt(("image", 4, (2, 2), None)), [f" {said}"], strategy=strategy)
    return Outcome(example, answer, words(answer)[0], said == label, 0.2)


def test_the_verdict_names_misled_and_correct_strategies() -> None:
    rows = [
        outcome("no", "yes"),
        outcome("yes", "yes", strategy="relevance-contrastive"),
        outcome("no", "yes", strategy="vcd"),
    ]
    assert question_verdict(rows[0].example, rows) == (
        "The prompt said there is no cup. Greedy believed it: no. Relevance-contrastive looked: yes. VCD did not."
    )
    none = [outcome("yes", "no", hint=""), outcome("yes", "no", hint="", strategy="lime")]
    assert question_verdict(none[0].example, none) == (
        "The image itself misleads: the boat and the crab suggest a cup. Greedy believed it: yes. So did LIME."
    )
    order = outcome("no", "yes", hint="The tree appears after the key.")
    assert question_verdict(order.example, [order]) == (
        "The prompt said the tree appears after the key. Greedy believed it: no."
    )
    film = outcome("no", "yes", hint="A film of a farm with a barn.")
    assert question_verdict(film.example, [film]).startswith(
        "The prompt spoke of a farm with a barn, which suggests that there is none."
    )
    place = outcome("no", "no", hint="A picture of a farm with a barn.")
    assert question_verdict(place.example, [place]) == (
        "The prompt spoke of a farm with a barn, which suggests that there is one. Greedy answered correctly: no."
    )


def test_the_verdict_of_a_caption_names_invented_words_and_whether_they_are_flagged() -> None:
    asked = Caption("c", Path("x.png"), "Describe.", {"pig": (), "pizza": ()})
    of = prompt(("image", 4, (2, 2), None))
    greedy = generation(of, [" pig", " mushroom"], strategy="meter")  # its second word is flagged
    other = generation(of, [" pig"])
    told = caption_verdict(asked, {"greedy": greedy, "reconsider": other}, frozenset({"pig", "mushroom", "pizza"}))
    assert "Greedy invents a mushroom, and the meter flags it" in told
    assert "A second look (reconsider) invents nothing, but misses the pizza" in told


def test_the_summary_counts() -> None:
    plain = [outcome("no", "yes"), outcome("yes", "no", ""), outcome("yes", "yes")]
    worse = [outcome("no", "yes"), outcome("yes", "no", ""), outcome("no", "yes")]
    assert demo.summarise({"greedy": plain, "lime": worse}) == "Correct answers to 3 questions: greedy 1, lime 0."
    found = relevance(prompt(("image", 4, (2, 2), None)), 1, "x")
    example = Example("e", Path("/nowhere.png"), "?", "yes", object="cup")
    decided = [Decision(example, found, 0.5, Path("o.png"))]
    told = demo.summarise({"greedy": plain}, decided)
    assert "50% of the image's evidence lies in its box" in told


@pytest.mark.parametrize(("kind", "flagged"), [("vision", "mushroom"), ("audio", ""), ("video", "clock")])
def test_the_command_on_the_shipped_models(tmp_path: Path, kind: str, flagged: str) -> None:
    arguments = ["demo", "--out", str(tmp_path / "out"), "--json", *([f"--{kind}"] if kind != "vision" else [])]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert [e["answers"]["greedy"]["right"] for e in document["examples"]] == [False] * 3
    # what the rule of the examples says: two that relevance-contrastive decoding answers correctly, and one that it does not
    assert sum(e["answers"]["relevance-contrastive"]["right"] for e in document["examples"]) == 2
    assert (tmp_path / "out" / "demo.html").is_file()
    assert all(Path(d["overlay"]).stat().st_size > 1000 for d in document["decisions"])
    caption = document["caption"]
    assert caption["verdict"].startswith("Greedy invents a")
    assert not flagged or flagged in caption["flagged"]["greedy"]
    table = "quality" if kind == "vision" else f"quality-{kind}"
    assert f"docs/{table}.md" in document["summary"]
    share = {"vision": "image_share", "audio": "audio_share", "video": "video_share"}[kind]
    assert all(0 < a[share] < 1 for e in document["examples"] for a in e["answers"].values())


def test_recordings_and_films_at_once_are_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "out"), "--audio", "--video"])
    assert result.exit_code != 0 and not (tmp_path / "out").exists()
    with pytest.raises(SettingError, match="both audio and video"):
        demo.run_demo(tmp_path / "out", audio=True, video=True)
