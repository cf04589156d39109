"""``limelight bench`` on the shipped miniature, and its options."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from limelight.benchmarks.results import open_results
from limelight.benchmarks.tables import side_by_side
from limelight.cli.answering import ModelAnswer, _item, grounding_meta, loaded
from limelight.cli.bench import bench, settings_of
from limelight.cli.bench_options import Judging, parse_shard
from limelight.cli.sweep import combinations, label, values_of
from limelight.errors import SettingError
from limelight.types import Clip, Generation, Prompt, Region, Relevance, Sample, Span, Step
from tests.benchmarks.stored import read_results

app = typer.Typer()
app.command()(bench)


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=True)


def test_two_strategies_side_by_side_and_resumed(tmp_path: Path) -> None:
    command = [
        "demo_vision", "--model", "demo-vision", "--split", "E-wrong/clear", "--limit", "4", "--out", str(tmp_path),
        "--strategies", "greedy,sampled", "--max-new-tokens", "4", "--quiet",
    ]  # fmt: skip
    first = call(*command)
    assert first.exit_code == 0, first.output
    assert "E-wrong/clear/accuracy" in first.output
    assert "sampled" in first.output
    assert "4 of 4" in first.output
    assert "tokens/s" in first.output
    stored = {name: read_results(tmp_path / name) for name in ("greedy", "sampled")}
    assert stored["greedy"]["identity"]["settings"]["generation"] == {"max_new_tokens": 4, "do_sample": False}
    assert stored["sampled"]["identity"]["settings"]["generation"]["do_sample"] is True
    assert stored["greedy"]["identity"]["settings"]["strategy"] == "greedy"
    assert stored["greedy"]["tokens_per_second"] > 0
    before = (tmp_path / "greedy/rows.jsonl").read_text()
    assert {json.loads(line)["answer"] for line in before.splitlines()} <= {"yes", "no"}
    assert call(*command).exit_code == 0
    assert (tmp_path / "greedy/rows.jsonl").read_text() == before
    refused = call(*command, "--seed", "1")
    assert isinstance(refused.exception, SettingError)
    assert "seed: was 0, now 1" in str(refused.exception)


def test_relevance_is_recorded(tmp_path: Path) -> None:
    done = call(
        "demo_vision", "--model", "demo-vision", "--split", "none/clear", "--limit", "2", "--out", str(tmp_path),
        "--relevance", "--quiet",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    run = open_results(tmp_path)
    for record in run.records:
        assert sum(record.meta["shares"].values()) == pytest.approx(1.0)
        assert torch.tensor(record.meta["image_relevance"]).shape == (7, 7)
        assert record.meta["tokens"] >= 1
    assert "image reliance" in dict.fromkeys(row[0] for row in side_by_side([run.score()]).rows)


def test_failed_rows_set_the_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelAnswer, "__call__", lambda self, sample: 1 / 0)
    command = ["demo_vision", "--model", "demo-vision", "--split", "none/clear", "--limit", "2", "--out", str(tmp_path)]
    done = call(*command)
    assert done.exit_code == 1
    assert "rows failed" in done.output


def test_a_question_without_a_picture_is_answered_by_the_plain_model() -> None:
    answer = ModelAnswer("demo-vision", generation={"max_new_tokens": 3, "do_sample": False})
    reply = answer(Sample("a", "Is there a cup in the picture?", {}, meta={"seed": 5}))
    assert reply.meta["text_only"] is True
    assert 1 <= reply.meta["tokens"] <= 3


def test_questions_about_one_image_share_its_prefill() -> None:
    picture = Image.new("RGB", (112, 112), "grey")
    samples = [
        Sample(w, f"Is there a {w} in the picture?", {"image": [picture]}, meta={"seed": 1}) for w in ("cup", "dog")
    ]
    plain = ModelAnswer("demo-vision", "meter", generation={"max_new_tokens": 3, "do_sample": False})
    cached = replace(plain, prefix_cache=2)
    assert "prefix_cache" not in plain.identity()
    assert cached.identity()["prefix_cache"] == 2
    want = [plain(s).text for s in samples]
    assert [cached(s).text for s in samples] == want
    known = cached._adapter().prefix_cache
    assert (known.hits, known.misses) == (1, 1)
    assert plain._adapter().prefix_cache is None


def test_a_prefix_cache_needs_prompts_that_run_alone(tmp_path: Path) -> None:
    arguments = ["demo_vision", "--model", "demo-vision", "--out", str(tmp_path), "--limit", "1"]
    done = call(*arguments, "--prefix-cache", "2", "--batch", "4")
    assert isinstance(done.exception, SettingError)
    assert "--batch 4" in done.exception.message


def test_sampling_depends_on_the_row_s_seed_alone() -> None:
    from PIL import Image

    answer = ModelAnswer("demo-vision", generation={"max_new_tokens": 6, "do_sample": True, "temperature": 3.0})
    picture = Image.new("RGB", (112, 112), "grey")

    def said(seed: int) -> str:
        return answer(Sample("a", "Describe the picture.", {"image": [picture]}, meta={"seed": seed})).text

    first = said(1)
    torch.manual_seed(77)
    assert said(1) == first
    assert len({said(s) for s in range(8)}) > 1


def test_the_model_is_loaded_once_for_all_strategies() -> None:
    assert loaded("demo-vision", "auto", None, False) is loaded("demo-vision", "auto", None, False)


def test_list_and_help() -> None:
    listed = call("--list")
    assert listed.exit_code == 0
    assert "audio_hallucination" in listed.output
    shown = call("--help")
    assert "limelight bench pope" in shown.output
    assert "The same command resumes" in shown.output
    assert isinstance(call("pope").exception, SettingError)


def test_shards() -> None:
    assert parse_shard("1/4") == (1, 4)
    for wrong in ("1", "a/b", "1/2/3"):
        with pytest.raises(SettingError, match="i/n"):
            parse_shard(wrong)


def test_settings_of_strategies() -> None:
    texts = ["lime.lr=1e-3", "lime.group=margin", "vcd.alpha=1", "steps=3", "on=true"]
    assert settings_of(texts, "lime", ["lime", "vcd"]) == {"lr": 1e-3, "group": "margin", "steps": 3, "on": True}
    assert settings_of(texts, "vcd", ["lime", "vcd"]) == {"alpha": 1, "steps": 3, "on": True}
    assert settings_of(["lr=0.5"], "lime", ["lime"]) == {"lr": 0.5}
    for wrong in ("lr", "pai.alpha=1"):
        with pytest.raises(SettingError, match="key=value"):
            settings_of([wrong], "lime", ["lime"])


def test_judges(tmp_path: Path) -> None:
    assert Judging().judge() is None
    with pytest.raises(SettingError, match="--judge-model"):
        Judging("http://x").judge()
    (tmp_path / "t.txt").write_text("Rate {answer}")
    judge = Judging("http://x", "m", judge_template=tmp_path / "t.txt").judge()
    assert judge is not None
    assert judge.template == "Rate {answer}"


def test_media_of_samples_are_decoded(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed (pip install 'limelight[audio]')")
    file = io.BytesIO()
    soundfile.write(file, [0.0, 0.5, -0.5, 0.0], 8000, format="WAV")
    samples, rate = _item("audio", {"bytes": file.getvalue(), "path": "a.wav"})
    assert rate == 8000
    assert samples.tolist() == pytest.approx([0.0, 0.5, -0.5, 0.0], abs=1e-3)
    (tmp_path / "a.wav").write_bytes(file.getvalue())
    assert _item("audio", {"bytes": None, "path": str(tmp_path / "a.wav")})[1] == 8000
    clear = Image.new("RGBA", (4, 3), (255, 0, 0, 0))
    clear.save(tmp_path / "a.png")
    for item in (
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        {"bytes": (tmp_path / "a.png").read_bytes(), "path": None},
    ):
        assert _item("image", item).getpixel((0, 0)) == (255, 255, 255)  # as the server and the app show it
    assert _item("image", clear) is clear  # the library's reader puts it on white when the prompt is made


def step(token: int, scores: list[float] | None) -> Step:
    spans = (Span(0, 4, "image", grid=(2, 2)), Span(4, 6, "audio", seconds=0.5), Span(6, 7, "text"))
    found = None if scores is None else Relevance(torch.tensor(scores), ("",) * 7, spans, 0)
    return Step(token, "x", relevance=found, shares=found.shares() if found else {})


def test_relevance_of_an_answer() -> None:
    """Summed over tokens, each normalised; the end-of-sequence token does not count."""
    steps = (
        step(5, [1.0, 0.0, 0.0, -1.0, 1.0, 0.0, 1.0]),
        step(6, [0.0, 2.0, 0.0, 0.0, 0.0, 2.0, 0.0]),
        step(2, [9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0]),
    )
    found = grounding_meta(Generation("x", (5, 6, 2), steps, Prompt({}, (), ())), {2})
    assert found["image_relevance"] == [[0.25, 0.5], [0.0, -0.25]]
    assert found["audio_relevance"] == {"scores": [0.25, 0.5], "seconds": 0.5}
    assert found["shares"] == {"image": 0.5, "audio": 0.375, "text": 0.125}
    assert grounding_meta(Generation("x", (5,), (step(5, None),), Prompt({}, (), ())), set()) == {}


def test_relevance_of_a_film_is_per_frame() -> None:
    """Two frames per time step share its score; a repeated frame that fills the last step has no time."""
    region = Region(0, (4, 4), (0, 0, 4, 4), frames=((0, 1), (2, 3)))
    spans = (Span(0, 1, "text"), Span(1, 5, "video", (2, 1, 2), region=region))
    scores = torch.tensor([2.0, 1.0, -1.0, 0.0, 4.0])
    relevance = Relevance(scores, ("a", "v", "v", "v", "v"), spans, 0)
    clip = Clip((Image.new("RGB", (4, 4)),) * 3, (0.0, 0.5, 1.0))
    prompt = Prompt({}, (), (), {"video": [clip]})
    told = Step(5, "x", relevance=relevance, shares=relevance.shares())
    found = grounding_meta(Generation("x", (5,), (told,), prompt), set())
    assert found["video_relevance"] == {
        "scores": [[0.0625, -0.0625], [0.0625, -0.0625], [0.0, 0.25]],
        "seconds": [0.0, 0.5, 1.0],
    }
    assert "video_relevance" not in grounding_meta(Generation("x", (5,), (told,), Prompt({}, (), ())), set())


def test_a_sweep_is_one_run_for_each_value(tmp_path: Path) -> None:
    done = call(
        "demo_vision", "--model", "demo-vision", "--split", "none/clear", "--limit", "2", "--out", str(tmp_path), "--quiet",
        "--strategies", "greedy,relevance-contrastive", "--sweep", "alpha=0.5,4",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    names = ["greedy", "relevance-contrastive,alpha=0.5", "relevance-contrastive,alpha=4"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    settings = [open_results(tmp_path / n).settings["strategy_settings"] for n in names]
    assert [s.get("alpha") for s in settings] == [None, 0.5, 4]


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["alpha"], "not key=value,value"),
        (["vcd.alpha=1"], "not key=value,value or strategy.key"),
        (["beam=1,2"], "no strategy has a setting 'beam'"),
        (["alpha=1,1"], "a value twice"),
        (["alpha=1,"], "an empty value"),
        (["alpha=1", "icd.alpha=2"], "'alpha' of icd twice"),
    ],
)
def test_sweeps_that_cannot_be_read(texts: list[str], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        values_of(texts, ["greedy", "icd"])


def test_values_of_a_sweep() -> None:
    found = values_of(["layers=low,high", "dola.beta=0.1", "icd.alpha=1,2.5"], ["dola", "icd", "sampled"])
    assert found == {"dola": {"layers": ["low", "high"], "beta": [0.1]}, "icd": {"alpha": [1, 2.5]}, "sampled": {}}
    assert combinations(found["dola"]) == [{"layers": "low", "beta": 0.1}, {"layers": "high", "beta": 0.1}]
    assert values_of(["dola.layers=[1,2],[3]"], ["dola"])["dola"] == {"layers": [[1, 2], [3]]}
    assert label("dola", {"layers": [1, 2], "scale": True}) == "dola,layers=[1,2],scale=true"
    assert combinations({}) == [{}]


def test_frames_are_part_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("limelight.cli.answering.read", lambda kind, media, **options: asked.append((kind, options)))
    _item("video", "clip.mp4", 16)
    _item("image", "photo.png", 16)
    _item("video", "clip.mp4")
    group = {"group": "bench"}
    assert asked == [("video", {**group, "frames": 16}), ("image", group), ("video", group)]
    assert ModelAnswer("demo-vision", frames=16).identity()["frames"] == 16
    assert "frames" not in ModelAnswer("demo-vision").identity()
