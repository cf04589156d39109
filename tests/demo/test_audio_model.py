"""The shipped audio miniature: it loads without a network, hears clear recordings, and is misled by a wrong hint."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
import torch

import limelight
from limelight.demo import sound_language as language
from limelight.demo.probe import Probe
from limelight.demo.sound_questions import Request, captions, questions, transcriptions
from limelight.demo.sounds import EVENTS, VOICES

FOLDER = VOICES.parent


@pytest.fixture(scope="module")
def adapter() -> limelight.Adapter:
    return limelight.load("demo-audio")


def batch(adapter: limelight.Adapter, items: Sequence[Request]) -> dict[str, torch.Tensor]:
    turns = [[{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": q.text}]}] for q in items]
    texts = [adapter.processor.apply_chat_template(t, add_generation_prompt=True, tokenize=False) for t in turns]
    return dict(
        adapter.processor(
            text=texts, audio=[q.recording.samples() for q in items], sampling_rate=16_000, padding=True,
            return_tensors="pt", add_special_tokens=False,
        )
    )  # fmt: skip


def yes_no(adapter: limelight.Adapter) -> list[int]:
    return [adapter.tokenizer(f" {a}", add_special_tokens=False)["input_ids"][0] for a in ("yes", "no")]


@torch.no_grad()
def accuracy(adapter: limelight.Adapter, cell: str, n: int = 50) -> float:
    items = questions("dev", cell, n, seed=3)
    logits = adapter.model(**batch(adapter, items)).logits[:, -1]
    yes, no = yes_no(adapter)
    assert torch.isin(logits.argmax(-1), torch.tensor([yes, no])).all()
    said = logits[:, yes] > logits[:, no]
    return float(np.mean([bool(s) == (q.truth == "yes") for s, q in zip(said, items, strict=True)]))


def test_files_are_small_and_float32(adapter: limelight.Adapter) -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 12_000_000
    assert {p.dtype for p in adapter.model.parameters()} == {torch.float32}


def test_one_recording_becomes_50_audio_tokens_of_80_ms(adapter: limelight.Adapter) -> None:
    asked = questions("dev", "none/clear", 1)[0]
    prompt = adapter.prepare(asked.messages)
    (span,) = [s for s in prompt.spans if s.modality == "audio"]
    assert len(span) == 50
    assert span.seconds == pytest.approx(0.08)
    assert adapter.tokenizer.decode(prompt.tensors["input_ids"][0][-3:]).endswith("ASSISTANT:")


def test_easy_questions_are_answered_and_wrong_hints_mislead(adapter: limelight.Adapter) -> None:
    assert accuracy(adapter, "none/clear") >= 0.88
    assert accuracy(adapter, "E-right/clear") >= 0.92
    assert accuracy(adapter, "E-wrong/clear") <= 0.75
    assert accuracy(adapter, "C-wrong/clear") <= 0.8


def test_left_padding_changes_nothing(adapter: limelight.Adapter) -> None:
    items = [questions("dev", cell, 1)[0] for cell in ("none/clear", "C-right/clear")]
    inputs = batch(adapter, items)
    assert inputs["attention_mask"][0, 0] == 0  # the shorter one is padded on the left
    with torch.no_grad():
        together = adapter.model(**inputs).logits[:, -1]
        alone = torch.cat([adapter.model(**batch(adapter, [q])).logits[:, -1] for q in items])
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=1e-3)


def test_it_describes_transcribes_and_is_silent_about_silence(adapter: limelight.Adapter) -> None:
    def answers(items: Sequence[Request]) -> list[str]:
        inputs = batch(adapter, items)
        out = adapter.model.generate(**inputs, max_new_tokens=20, do_sample=False)
        found = adapter.tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in found]

    described = captions("dev", n=16)
    said = [language.mentioned(text) for text in answers(described)]
    hits = sum(len(set(words) & set(a.truth)) for words, a in zip(said, described, strict=True))
    assert hits / sum(len(a.truth) for a in described) > 0.6
    spoken = transcriptions("dev", "usual/clear", 12)
    pairs = [(text.split(), a.truth.split()) for text, a in zip(answers(spoken), spoken, strict=True)]
    assert sum(len(set(told) & set(true)) for told, true in pairs) / sum(len(true) for _, true in pairs) > 0.7
    assert answers(transcriptions("dev", "silence", 4)) == [""] * 4


def test_limelight_transcribe_asks_what_it_was_taught(adapter: limelight.Adapter) -> None:
    asked = transcriptions("dev", "usual/clear", 1)[0]
    heard = limelight.transcribe(adapter, audio=(asked.recording.samples(), 16_000), relevance=False)
    assert heard.prompt == language.TRANSCRIBE
    assert set(heard.text.split()) & set(asked.truth.split())


def test_the_probe_is_a_ceiling(adapter: limelight.Adapter) -> None:
    items = questions("dev", "none/clear", 40, seed=3)
    inputs = batch(adapter, items)
    with torch.no_grad():
        heard = adapter.model.model.audio_tower(inputs["input_features"]).last_hidden_state
        logits = Probe.load(FOLDER / "probe.safetensors")(adapter.model.model.multi_modal_projector(heard))
    said = logits[torch.arange(len(items)), [EVENTS.index(q.object) for q in items]] > 0
    assert np.mean([bool(s) == (q.truth == "yes") for s, q in zip(said, items, strict=True)]) >= 0.9


def test_examples_are_complete_and_mislead(adapter: limelight.Adapter) -> None:
    table = json.loads((FOLDER / "examples" / "examples.json").read_text())
    assert table["rule"]
    assert len(table["examples"]) >= 4
    for row in table["examples"]:
        prompt = adapter.prepare(row["text"], {"audio": str(FOLDER / "examples" / row["audio"])})
        with torch.no_grad():
            token = int(adapter.model(**prompt.tensors).logits[0, -1].argmax())
        answer = adapter.tokenizer.decode([token]).strip()
        assert answer == row["greedy"]
        assert answer != row["label"]
        assert row["id"].startswith("demo/")
        assert (row["object"] in row["objects"]) == (row["label"] == "yes")
