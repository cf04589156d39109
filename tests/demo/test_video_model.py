"""The shipped video miniature: it loads without a network, sees clear films, and is misled by a wrong hint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

import limelight
from limelight.cli.app import _examples
from limelight.demo import film_language as language
from limelight.demo.example import EXAMPLES
from limelight.demo.film_questions import FilmRequest, captions, questions
from limelight.demo.films import NAMES
from limelight.demo.outcome import VIDEO
from limelight.demo.probe import FrameProbe
from limelight.media.image import kind_of

SHA256 = "5e7771fe6a5566e88bd5280c44620e24617c2d97b81d80e6be184c0b39655620"


@pytest.fixture(scope="module")
def adapter() -> limelight.Adapter:
    return limelight.load("demo-video")


def batch(adapter: limelight.Adapter, items: Sequence[FilmRequest]) -> dict[str, Tensor]:
    turns = [[{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": q.text}]}] for q in items]
    texts = [adapter.processor.apply_chat_template(t, add_generation_prompt=True, tokenize=False) for t in turns]
    return dict(
        adapter.processor(
            text=texts, videos=[q.film.pixels() for q in items], padding=True, return_tensors="pt",
            add_special_tokens=False,
        )
    )  # fmt: skip


def yes_no(adapter: limelight.Adapter) -> list[int]:
    return [adapter.tokenizer(f" {a}", add_special_tokens=False)["input_ids"][0] for a in ("yes", "no")]


@torch.no_grad()
def accuracy(adapter: limelight.Adapter, cell: str, n: int = 60) -> float:
    items = questions("dev", cell, n, seed=3)
    logits = adapter.model(**batch(adapter, items)).logits[:, -1]
    yes, no = yes_no(adapter)
    assert torch.isin(logits.argmax(-1), torch.tensor([yes, no])).all()
    said = logits[:, yes] > logits[:, no]
    return float(np.mean([bool(s) == (q.truth == "yes") for s, q in zip(said, items, strict=True)]))


def test_files_are_small_and_the_ones_that_were_measured(adapter: limelight.Adapter) -> None:
    assert sum(path.stat().st_size for path in VIDEO.rglob("*") if path.is_file()) < 12_000_000
    assert {p.dtype for p in adapter.model.parameters()} == {torch.float32}
    assert hashlib.sha256((VIDEO / "model.safetensors").read_bytes()).hexdigest() == SHA256


def test_a_film_becomes_nine_tokens_a_frame(adapter: limelight.Adapter) -> None:
    prompt = adapter.prepare(questions("dev", "what-none/clear", 1)[0].messages)
    assert [s.grid for s in prompt.spans if s.modality == "video"] == [(8, 3, 3), None]
    assert adapter.tokenizer.decode(prompt.tensors["input_ids"][0][-3:]).endswith("ASSISTANT:")


def test_easy_questions_are_answered_and_wrong_hints_mislead(adapter: limelight.Adapter) -> None:
    assert accuracy(adapter, "what-none/clear") >= 0.93
    assert accuracy(adapter, "when-none/clear") >= 0.8
    assert accuracy(adapter, "order-none/clear") >= 0.8
    for topic in ("what", "when", "order"):
        assert accuracy(adapter, f"{topic}-E-right/clear") >= 0.95
        assert accuracy(adapter, f"{topic}-E-wrong/clear") <= 0.6
    assert accuracy(adapter, "what-C-wrong/clear") <= 0.85


def test_left_padding_changes_nothing(adapter: limelight.Adapter) -> None:
    items = [questions("dev", cell, 1)[0] for cell in ("what-none/clear", "what-C-right/clear")]
    inputs = batch(adapter, items)
    assert inputs["attention_mask"][0, 0] == 0  # the shorter one is padded on the left
    with torch.no_grad():
        together = adapter.model(**inputs).logits[:, -1]
        alone = torch.cat([adapter.model(**batch(adapter, [q])).logits[:, -1] for q in items])
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=1e-3)


def test_it_tells_what_happens_in_order(adapter: limelight.Adapter) -> None:
    items = captions("dev", n=16)
    inputs = batch(adapter, items)
    out = adapter.model.generate(**inputs, max_new_tokens=40, do_sample=False)
    texts = adapter.tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    said = [tuple(language.mentioned(text)) for text in texts]
    assert np.mean([names == c.film.names for names, c in zip(said, items, strict=True)]) > 0.7
    told = [set(language.told(text)) for text in texts]
    hits = sum(len(events & set(c.truth)) for events, c in zip(told, items, strict=True))
    assert hits / sum(len(c.truth) for c in items) > 0.8


def test_the_probe_is_a_ceiling(adapter: limelight.Adapter) -> None:
    items = questions("dev", "what-none/clear", 40, seed=3)
    with torch.no_grad():
        tokens = adapter.model.model.get_video_features(
            batch(adapter, items)["pixel_values_videos"], return_dict=True
        ).pooler_output
        logits = FrameProbe.load(VIDEO / "probe.safetensors")(tokens)  # [n, frames, objects]
    said = [bool((row[:, NAMES.index(q.objects[0])] > 0).any()) for row, q in zip(logits, items, strict=True)]
    assert np.mean([s == (q.truth == "yes") for s, q in zip(said, items, strict=True)]) >= 0.9


def test_examples_are_complete_and_mislead(adapter: limelight.Adapter) -> None:
    table = json.loads((VIDEO / "examples" / "examples.json").read_text())
    assert table["rule"]
    assert len(table["examples"]) >= 4
    for row in table["examples"]:
        prompt = adapter.prepare(row["text"], {"video": str(VIDEO / "examples" / row["video"])})
        with torch.no_grad():
            token = int(adapter.model(**prompt.tensors).logits[0, -1].argmax())
        answer = adapter.tokenizer.decode([token]).strip()
        assert answer == row["greedy"]
        assert answer != row["label"]
        assert row["id"].startswith("demo/")
        if row["cell"].startswith("what"):
            assert (row["object"] in row["objects"]) == (row["label"] == "yes")


def test_every_example_by_name_is_there_and_the_app_offers_films() -> None:
    for name, file in EXAMPLES.items():
        assert limelight.example(name).is_file()
        assert name.endswith("-film") == file.startswith("video/")
    offered = _examples("demo-video")
    assert len(offered) == 4
    assert {kind_of(file) for file, _ in offered} == {"video"}


def test_relevance_of_a_named_object_lies_in_the_frames_that_show_it(adapter: limelight.Adapter) -> None:
    shares, chances, hits = [], [], []
    for c in captions("dev", n=4, seed=3):
        answer = limelight.generate(adapter, messages=c.text, media=c.film.clip(), max_new_tokens=40)
        named = {}
        for step in answer.steps:
            word = adapter.tokenizer.decode([step.token]).strip()
            if word in c.film.names and step.relevance is not None:
                named.setdefault(word, step.relevance)
        for word, found in named.items():
            scores = found.on_grid(0, "video").abs().sum((1, 2))
            frames = list(c.film.of(word).frames)
            shares.append(float(scores[frames].sum() / scores.sum()))
            chances.append(len(frames) / 8)
            hits.append(int(scores.argmax()) in frames)
    assert len(shares) >= 8
    assert np.mean(shares) > np.mean(chances) + 0.3
    assert np.mean(hits) > 0.9
