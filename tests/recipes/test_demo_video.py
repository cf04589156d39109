"""The recipe of the video miniature runs end to end at toy size, can be stopped at any step, and its parts do what they say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from recipes.demo_video import train
from recipes.demo_video.data import coverage, films, pooled
from recipes.demo_video.evaluate import caption_scores, features_of, onset, probe_margins
from recipes.demo_video.ship import processor_for, write_film
from recipes.demo_video.text import as_words, blocks, new_packer
from recipes.demo_video.train import Plan, new_model, run_stages, run_steps
from recipes.demo_vision.evaluate import margins
from recipes.demo_vision.model import decode, media_tokens
from recipes.demo_vision.parallel import Optimiser
from recipes.demo_vision.text import Packer
from tests.recipes.blocks import check_separate_blocks
from transformers import LlavaOnevisionForConditionalGeneration

import limelight
from limelight.demo import film_language as language
from limelight.demo.film_questions import captions, questions
from limelight.demo.films import FRAMES, NAMES, film, render
from limelight.demo.probe import FrameProbe
from limelight.media.video import read_video


@pytest.fixture(scope="module")
def packer() -> Packer:
    return new_packer()


def test_two_steps_of_every_stage(tmp_path: Path) -> None:
    plan = Plan(
        cache=tmp_path / "cache", target=tmp_path / "out", films=8, dev_films=4, vision_steps=2, vision_batch=4,
        language_steps=2, projector_steps=1, align_steps=2, batch=2, yes_no=1, check=4, tiny=True, probe_steps=2,
    )  # fmt: skip
    run_stages(plan)
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(plan.target)
    trained = torch.load(plan.file("align"), weights_only=True)["lm_head.weight"]
    assert model.dtype == torch.float32
    assert torch.equal(model.lm_head.weight, trained.half().float())
    assert (plan.target / "model.safetensors").stat().st_size < 2.2 * sum(p.numel() for p in model.parameters())
    untrained, _ = new_model(plan)
    assert not torch.equal(untrained.lm_head.weight, trained)
    assert "rule" in json.loads((plan.target / "examples" / "examples.json").read_text())
    before = plan.file("align").stat().st_mtime_ns
    run_stages(plan, ("vision", "align"))
    assert plan.file("align").stat().st_mtime_ns == before  # a finished stage is not run again
    adapter = limelight.load(plan.target)
    prompt = adapter.prepare("Is there a cup?", {"video": film("dev", "clear", 0).clip()})
    assert [s.grid for s in prompt.spans if s.modality == "video"] == [(8, 3, 3), None]
    assert limelight.generate(adapter, None, prompt, max_new_tokens=2).text is not None


def test_a_stopped_stage_resumes_with_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "SAVE_EVERY", 0.0)

    def trained(folder: Path, stop_at: int | None) -> torch.Tensor:
        folder.mkdir(exist_ok=True)
        torch.manual_seed(0)
        module, rng = torch.nn.Linear(3, 3), np.random.default_rng(0)

        def loss_of(step: int) -> torch.Tensor:
            if step == stop_at:
                raise KeyboardInterrupt
            return module(torch.from_numpy(rng.normal(size=(2, 3))).float()).square().sum()

        run_steps(
            Plan(cache=folder), "some", 6, {"one": module}, Optimiser([module], 6, muon=0.0, adam=0.1), rng, loss_of
        )
        return module.weight.detach().clone()

    through = trained(tmp_path / "a", None)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "b", 4)
    assert torch.equal(trained(tmp_path / "b", None), through)


def test_a_stopped_rendering_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recipes.demo_video import data

    monkeypatch.setattr(data, "PART", 2)
    draw, drawn = data.render, []

    def counted(one: object) -> object:
        drawn.append(one)
        if len(drawn) == 4:
            raise KeyboardInterrupt
        return draw(one)  # type: ignore[arg-type]

    monkeypatch.setattr(data, "render", counted)
    with pytest.raises(KeyboardInterrupt):
        films(tmp_path, "dev", 5)
    found = films(tmp_path, "dev", 5)
    assert len(drawn) == 4 + 3  # the first two are not drawn again
    for number, one in enumerate(found.films):
        frames, masks = render(one)
        assert np.array_equal(found.pixels[number], frames)
        assert np.array_equal(found.patches[number], coverage(masks))
        shown = [[t in a.frames for t in range(FRAMES)] for a in one.appearances]
        assert found.present[number][:, [NAMES.index(n) for n in one.names]].T.tolist() == shown


def test_words_of_the_world_are_single_tokens(packer: Packer) -> None:
    words = (*NAMES, "yes", "no", "plain", "appears", "appear", "leaves", "then", "first", "second", "before", "after")
    for word in words:
        assert len(packer.tokenizer.tokenize(" " + word)) == 1, word
    assert packer.tokenizer.decode(packer.tokenizer.encode("Ein Zebra, 3 €!")) == "Ein Zebra, 3 €!"


def test_blocks_of_one_film_do_not_see_one_another(packer: Packer) -> None:
    model, _ = new_model(Plan(tiny=True))
    row = blocks(np.random.default_rng(0), film("train", "clear", 3), 2)
    seen = torch.randn(1, FRAMES, 36, model.config.vision_config.hidden_size)
    check_separate_blocks(decode, model, packer, row, seen)


def test_hints_are_right_nine_times_in_ten_and_answers_balanced() -> None:
    rng, hinted, right, yes, asked = np.random.default_rng(1), 0, 0, 0, 0
    for index in range(300):
        for block in blocks(rng, film("train", "clear", index), 5)[:5]:
            asked, yes = asked + 1, yes + (block.answer == "yes")
            hint, _, question = block.text.rpartition(". ")
            if hint.startswith("The "):
                hinted += 1
                says_yes = hint.removeprefix("The ").replace("appears", "appear") in question
                right += says_yes == (block.answer == "yes")
    assert abs(yes / asked - 0.5) < 0.05
    assert hinted > 200
    assert abs(right / hinted - 0.9) < 0.05


def test_whoever_watches_writes_the_truth_and_whoever_does_not_errs() -> None:
    def wrong(noisy: bool) -> float:
        rng, texts = np.random.default_rng(3), []
        for index in range(150):
            one = film("train", "clear", index)
            texts.append(blocks(rng, one, 0, 0.0, noisy)[-1].answer != language.caption(one.events))
        return float(np.mean(texts))

    assert wrong(noisy=False) == 0
    assert 0.1 < wrong(noisy=True) < 0.5


def test_a_written_film_has_its_words_where_the_objects_are(packer: Packer) -> None:
    one = film("train", "clear", 0)
    labels = coverage(render(one)[1])
    assert pooled(labels).shape == (72, 16)
    ids = as_words(np.random.default_rng(0), labels, one, packer.tokenizer.get_vocab(), {"clear": 0.0})
    assert ids[-1] == packer.image
    written = packer.tokenizer.convert_ids_to_tokens(ids[:-1].tolist())
    for name in one.names:
        frames = {i // 9 for i, word in enumerate(written) if word == "Ġ" + name}
        assert len(frames & set(one.of(name).frames)) >= len(one.of(name).frames) - 1


def test_margins_are_those_of_the_ordinary_forward_pass(packer: Packer) -> None:
    model, _ = new_model(Plan(tiny=True))
    adapter = limelight.wrap(model.eval(), processor_for(packer))
    for cell in ("what-C-wrong/clear", "order-E-wrong/poor"):
        items = questions("dev", cell, 2)
        quick = margins(model, packer, items, features_of(model, [q.film for q in items]))
        yes, no = (packer.encode(" " + word)[0] for word in ("yes", "no"))
        with torch.no_grad():
            logits = [model(**adapter.prepare(q.messages).tensors).logits[0, -1] for q in items]
        torch.testing.assert_close(quick, torch.stack([row[yes] - row[no] for row in logits]), atol=1e-4, rtol=1e-3)


def test_the_probe_reads_what_when_and_order_off_the_frames(packer: Packer) -> None:
    model, _ = new_model(Plan(tiny=True))

    class Told(FrameProbe):
        """A probe that knows which frames show what."""

        def __init__(self, shown: torch.Tensor) -> None:
            super().__init__(model.config.text_config.hidden_size, objects=len(NAMES))
            self.shown = shown

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            assert super().forward(tokens).shape == self.shown.shape
            return self.shown

    for topic in ("what", "when", "order"):
        items = questions("dev", f"{topic}-none/clear", 12)
        shown = torch.full((12, FRAMES, len(NAMES)), -9.0)
        for number, q in enumerate(items):
            for a in q.film.appearances:
                shown[number, a.start : a.stop, NAMES.index(a.name)] = 9.0
        seen = torch.randn(12, FRAMES, 36, model.config.vision_config.hidden_size)
        assert media_tokens(model, seen).shape == (12, 73, model.config.text_config.hidden_size)
        says = probe_margins(model, Told(shown), items, seen) > 0
        assert says.tolist() == [q.truth == "yes" for q in items]
    torch.testing.assert_close(onset(torch.tensor([0.5, 0.5, 1.0])), torch.tensor([0.5, 0.25, 0.25]))


def test_scores_on_hand_made_captions() -> None:
    items = captions("dev", n=2)
    true = [language.caption(c.truth) for c in items]
    assert caption_scores(true, items) == {
        "CHAIR_s": 0.0, "CHAIR_i": 0.0, "recall": 1.0, "event recall": 1.0, "objects in order": 1.0, "all in order": 1.0,
    }  # fmt: skip
    absent = next(n for n in NAMES if n not in items[0].film.names)
    said = caption_scores([f"A {absent} appears.", true[1]], items)
    assert said["CHAIR_s"] == 0.5
    assert said["CHAIR_i"] == pytest.approx(1 / (1 + len(items[1].film.names)))
    assert said["objects in order"] == 0.5


def test_a_film_survives_its_file(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="PyAV is not installed (pip install 'limelight[video]')")
    one = film("demo", "clear", 2)
    write_film(one, tmp_path / "film.mp4")
    clip = read_video(str(tmp_path / "film.mp4"))
    assert clip.seconds == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5])
    drawn = one.pixels(192).astype(float)
    read = np.stack([np.asarray(f, float) for f in clip.frames])
    assert np.abs(read - drawn).mean() < 8
