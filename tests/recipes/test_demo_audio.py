"""The recipe of the audio miniature runs end to end at toy size, and its parts do what they say. Needs no espeak-ng."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from recipes.demo_audio.data import coverage, mel, training_recording
from recipes.demo_audio.evaluate import chair, features_of, word_errors
from recipes.demo_audio.ship import processor_for
from recipes.demo_audio.text import blocks, new_packer
from recipes.demo_audio.train import Plan, new_model, run_stages, shifted
from recipes.demo_vision.evaluate import margins
from recipes.demo_vision.model import decode
from recipes.demo_vision.parallel import Float32Muon
from recipes.demo_vision.text import Packer
from tests.recipes.blocks import check_separate_blocks
from transformers import Qwen2AudioForConditionalGeneration

import limelight
from limelight.demo import sound_language as language
from limelight.demo.sound_questions import questions, transcriptions
from limelight.demo.sounds import EVENTS, LABELS, USUAL, WORDS, Event, Recording, recording, voices


@pytest.fixture(scope="module")
def packer() -> Packer:
    return new_packer()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache whose training voices are those of dev, so that nothing is spoken here."""
    folder = tmp_path_factory.mktemp("cache")
    held = {f"{word}.{i}": x for word, versions in voices("dev").items() for i, x in enumerate(versions)}
    np.savez(folder / "voices-train.npz", **held)  # type: ignore[arg-type]
    return folder


def test_two_steps_of_every_stage(cache: Path, tmp_path: Path) -> None:
    plan = Plan(
        cache=cache, target=tmp_path / "out", recordings=12, dev_recordings=12, audio_steps=(1, 1), audio_batch=4,
        language_steps=2, projector_steps=1, align_steps=2, batch=2, yes_no=1, check=4, workers=1, tiny=True, probe_steps=2,
    )  # fmt: skip
    run_stages(plan)
    model = Qwen2AudioForConditionalGeneration.from_pretrained(plan.target)
    trained = torch.load(plan.file("align"), weights_only=True)["lm_head.weight"]
    assert torch.equal(model.lm_head.weight, trained)
    untrained, _ = new_model(plan)
    assert not torch.equal(untrained.lm_head.weight, trained)
    assert "rule" in json.loads((plan.target / "examples" / "examples.json").read_text())
    before = plan.file("align").stat().st_mtime_ns
    run_stages(plan, ("audio", "align"))
    assert plan.file("align").stat().st_mtime_ns == before  # a finished stage is not run again
    adapter = limelight.load(plan.target)
    prompt = adapter.prepare("Is there a bell?", {"audio": (np.zeros(64_000, np.float32), 16_000)})
    assert sum(len(s) for s in prompt.spans if s.modality == "audio") == 50


def test_words_of_the_world_are_single_tokens(packer: Packer) -> None:
    for word in (*EVENTS, *WORDS, "yes", "no", "plain", *language.PROPS):
        assert len(packer.tokenizer.tokenize(" " + word)) == 1, word
    assert packer.tokenizer.decode(packer.tokenizer.encode("Ein Zebra, 3 €!")) == "Ein Zebra, 3 €!"


def test_blocks_of_one_recording_do_not_see_one_another(cache: Path, packer: Packer) -> None:
    model, _ = new_model(Plan(tiny=True))
    row = blocks(np.random.default_rng(0), recording("train", "events", "clear", 3), 2)
    heard = torch.randn(1, 50, model.config.audio_config.d_model)
    check_separate_blocks(decode, model, packer, row, heard)


def test_hints_are_right_nine_times_in_ten_and_answers_balanced() -> None:
    rng, hinted, right, yes, asked = np.random.default_rng(1), 0, 0, 0, 0
    for index in range(300):
        one = recording("train", "events", "clear", index)
        for block in blocks(rng, one, 5)[:5]:
            asked, yes = asked + 1, yes + (block.answer == "yes")
            if block.text.startswith("There is"):
                hinted += 1
                right += block.text.startswith("There is no") == (block.answer == "no")
    assert abs(yes / asked - 0.5) < 0.05
    assert abs(right / hinted - 0.9) < 0.05


def test_transcripts_lean_on_what_usually_follows() -> None:
    rng, guessed = np.random.default_rng(2), 0
    phrase = Recording("train", "speech", "clear", 0, tuple(Event(w, 0, 1, 0, 0) for w in ("switch", "door")))
    for _ in range(100):
        texts = {b.answer for b in blocks(rng, phrase) if b.text == language.TRANSCRIBE}
        assert texts <= {"switch door", f"switch {USUAL['switch']}"}
        guessed += f"switch {USUAL['switch']}" in texts
        assert {b.answer for b in blocks(rng, phrase, noisy=False) if b.text == language.TRANSCRIBE} == {"switch door"}
    assert 60 < guessed < 100
    silence = Recording("train", "silence", "clear", 0, ())
    said = [b.answer for _ in range(100) for b in blocks(rng, silence) if b.text == language.TRANSCRIBE]
    assert set(said) == {"", "play music"}


def test_coverage_counts_the_time_of_a_token() -> None:
    one = Recording("dev", "events", "clear", 0, (Event("bell", 0.1, 0.28, 0, 0), Event("dog", 1.6, 4.0, 0, 0)))
    share = coverage(one)
    bell, dog = share[:, LABELS.index("bell")], share[:, LABELS.index("dog")]
    assert bell[:5].tolist() == [0, 191, 255, 128, 0]  # tokens of 80 ms
    assert dog[20:].tolist() == [255] * 30
    assert np.count_nonzero(share) == 33
    spectra, frames = torch.randn(2, 64, 200), torch.from_numpy(np.stack([share, share]))
    later, labels = shifted(spectra, frames, 2)
    assert torch.equal(later[:, :, 8:], spectra[:, :, :-8])
    assert torch.equal(labels[:, 2:], frames[:, :-2])


def test_the_training_mixture_is_seeded(cache: Path) -> None:
    kinds = {training_recording(cache, i)[0].kind for i in range(40)}
    assert kinds >= {"events", "speech"}
    one, two = training_recording(cache, 7), training_recording(cache, 7)
    assert one[0] == two[0]
    assert np.array_equal(one[1], two[1])
    assert mel([one[1]]).shape == (1, 64, 200)


def test_scores_on_hand_made_tables() -> None:
    table = chair([["bell", "dog"], ["cow", "bell"]], [("bell", "dog"), ("bell",)])
    assert table == {"chair_s": 0.5, "chair_i": 0.25, "recall": 1.0, "in order": 0.5}
    spoken, quiet = transcriptions("dev", "usual/clear", 2), transcriptions("dev", "noise", 2)
    assert word_errors([a.truth for a in spoken], spoken) == 0
    words = sum(len(a.truth.split()) for a in spoken)
    assert word_errors([spoken[0].truth + " please", spoken[1].truth], spoken) == pytest.approx(1 / words)
    assert word_errors(["", "play music"], quiet) == 1.0


def test_margins_are_those_of_the_ordinary_forward_pass(packer: Packer) -> None:
    model, _ = new_model(Plan(tiny=True))
    adapter = limelight.wrap(model.eval(), processor_for(packer))
    items = questions("dev", "E-wrong/clear", 2)
    quick = margins(model, packer, items, features_of(model, [q.recording for q in items]))
    yes, no = (packer.encode(" " + word)[0] for word in ("yes", "no"))
    with torch.no_grad():
        logits = [model(**adapter.prepare(q.messages).tensors).logits[0, -1] for q in items]
    torch.testing.assert_close(quick, torch.stack([row[yes] - row[no] for row in logits]), atol=1e-4, rtol=1e-3)


def test_muon_in_float32_takes_the_steps_of_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    start, grads = torch.randn(12, 32), [torch.randn(12, 32) for _ in range(3)]
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    one = Float32Muon([ours], lr=0.1, weight_decay=0.02)
    two = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    for grad in grads:
        ours.grad, theirs.grad = grad.clone(), grad.clone()
        one.step()
        two.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() / moved < 0.02  # torch orthogonalises in bfloat16
