"""Qwen-VL-Chat read from its published layout, held against the published formulas; and everything limelight does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import limelight
from limelight.errors import ModelError, PromptError, UnsupportedError
from limelight.models.adapter import Adapter
from limelight.models.checkpoints.qwen_vl_chat.processor import SPECIAL
from tests.models.checkpoints.qwen_vl_chat import published
from tests.slow_twins import qwen_vl_chat as twin
from tests.tiny import snapshot

QUESTION = "what is in the picture ?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published.write(tmp_path_factory.mktemp("qwen-vl-chat"))


@pytest.fixture(scope="module")
def adapter(folder: Path) -> Adapter:
    found = limelight.load(folder)
    found.model.generation_config.eos_token_id = None
    return found


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 60, 3), dtype=np.uint8))


def test_the_published_computation(adapter: Adapter) -> None:
    prompt = adapter.prepare(QUESTION, {"image": [picture(0), picture(1)]})
    ids = prompt.tensors["input_ids"]
    with torch.no_grad():
        got = adapter.model(**prompt.tensors).logits[0]
    want = twin.logits(published.state(), published.config(), ids[0].tolist(), prompt.tensors["pixel_values"])
    torch.testing.assert_close(got.double(), want, atol=2e-4, rtol=2e-4)
    assert float(want.std()) > 0.5


def test_sixteen_bit_and_other_files(folder: Path, adapter: Adapter, tmp_path: Path) -> None:
    other = limelight.load(published.write(tmp_path, safetensors=True))
    for name, weight in adapter.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], weight)
    narrow = limelight.load(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in narrow.model.parameters()} == {torch.bfloat16}
    answer = limelight.generate(narrow, messages=QUESTION, media={"image": picture()}, max_new_tokens=2)
    assert len(answer.token_ids) == 2


def test_the_published_prompt(adapter: Adapter) -> None:
    prompt = adapter.prepare(QUESTION, {"image": picture()})
    text = adapter.tokenizer.decode(prompt.tensors["input_ids"][0])
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nPicture 1: <img>"
        + "<imgpad>" * published.QUERIES
        + f"</img>\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt.tensors["pixel_values"].shape == (1, 3, 24, 24)


def test_the_tokenizer_is_the_ranks_and_their_specials(adapter: Adapter) -> None:
    tokenizer, ranks = adapter.tokenizer, published.ranks()
    for text in ("what is in the picture", "naïve 猫 12345\n\n  x's", "Pic<img>", "e\u0301"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text.replace("e\u0301", "é")
    assert tokenizer("what is")["input_ids"] == [ranks[b"what"], ranks[b" is"]]
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL)) == list(range(len(ranks), len(ranks) + len(SPECIAL)))
    assert len(SPECIAL) == 217
    assert SPECIAL.index("<img>") == 214  # 151857 of the published 151643


def test_family_spans_and_the_papers_settings(adapter: Adapter) -> None:
    assert adapter.family.name == "qwen-vl-chat"
    assert limelight.lime().resolved(adapter).lr == 4e-4
    assert adapter.placeholders == {published.config()["visual"]["image_start_id"] + 2: "image"}
    prompt = adapter.prepare(QUESTION, {"image": [picture(0), picture(1)]})
    grids = [s.grid for s in prompt.spans if s.modality == "image"]
    assert grids == [(4, 4), (4, 4)]
    assert adapter.traits.kv_heads == 4


@pytest.mark.parametrize("strategy", ["greedy", "meter", "relevance-contrastive", "lime", "lime-cached", "vcd", "pai"])
def test_decoding(adapter: Adapter, strategy: str) -> None:
    settings: dict[str, Any] = {"lime": {"steps": 3, "lr": 1e-2}, "lime-cached": {"lr": 1e-2}, "pai": {"start": 0}}
    prompt = adapter.prepare(QUESTION, {"image": picture()})
    limelight.generate(adapter, messages=prompt, max_new_tokens=1)
    before = snapshot(adapter.model)
    answer = limelight.generate(
        adapter, messages=prompt, strategy=limelight.strategy(strategy, **settings.get(strategy, {})), max_new_tokens=3
    )
    assert len(answer.steps) == 3
    assert snapshot(adapter.model) == before
    if strategy in ("greedy", "lime"):
        assert answer.steps[0].relevance is not None
        assert answer.steps[0].relevance.on_grid().shape == (4, 4)
    if strategy == "greedy":
        own = adapter.model.generate(**prompt.tensors, max_new_tokens=3, do_sample=False)
        assert answer.token_ids == tuple(own[0, -3:].tolist())


def test_meter_and_relevance_agree(adapter: Adapter) -> None:
    prompt = adapter.prepare(QUESTION, {"image": picture()})
    relevance = limelight.attribute(adapter, prompt.tensors)
    step = limelight.generate(adapter, messages=prompt, strategy="meter", max_new_tokens=1).steps[0]
    token, _, logit, phi = step.candidates[0]
    assert token == relevance.target
    assert phi == pytest.approx(relevance.total("image"), abs=1e-3)
    assert logit == pytest.approx(relevance.logit, abs=1e-4)


def test_a_batch_equals_its_rows(adapter: Adapter) -> None:
    asks = [
        [{"role": "user", "content": [{"type": "image", "image": picture(i)}, {"type": "text", "text": words}]}]
        for i, words in enumerate(("what is", QUESTION))
    ]
    many = limelight.generate_many(adapter, requests=asks, strategy="lime-cached", max_new_tokens=3)
    for ask, answer in zip(asks, many, strict=True):
        alone = limelight.generate(adapter, messages=ask, strategy="lime-cached", max_new_tokens=3)
        assert answer.token_ids == alone.token_ids


def test_what_the_checkpoint_was_not_trained_for_is_refused(adapter: Adapter) -> None:
    with pytest.raises(UnsupportedError, match="trained on 256"):
        limelight.generate(adapter, messages="what is " * 120, media={"image": picture()}, max_new_tokens=1)
    for strategy in ("greedy", "meter"):
        with pytest.raises(UnsupportedError, match="trained on 256"):
            limelight.generate(
                adapter, messages="what is " * 87, media={"image": picture()}, strategy=strategy, max_new_tokens=60,
                relevance=False,
            )  # fmt: skip
    with pytest.raises(PromptError, match="pixel_values"):
        adapter.model(input_ids=torch.tensor([[adapter.model.config.image_token_id]]))


def broken(folder: Path, tmp_path: Path, what: str) -> Path:
    published.write(tmp_path)
    if what == "a weight is missing":
        path = tmp_path / "pytorch_model-00001-of-00002.bin"
        weights = torch.load(path)
        del weights[next(n for n in weights if "c_attn" in n)]
        torch.save(weights, path)
    elif what == "a weight too many":
        torch.save({"transformer.h.7.ln_1.weight": torch.ones(32)}, tmp_path / "pytorch_model-00003.bin")
    elif what == "a damaged file":
        (tmp_path / "pytorch_model-00001-of-00002.bin").write_bytes(b"nothing")
    elif what == "no tokenizer":
        (tmp_path / "qwen.tiktoken").unlink()
    elif what == "no ranks":
        (tmp_path / "qwen.tiktoken").write_text("no ranks at all\n")
    elif what == "another tokenizer":
        (tmp_path / "qwen.tiktoken").write_text("YQ== 0\n")
    elif what == "no weights":
        for path in tmp_path.glob("*.bin"):
            path.unlink()
    else:
        changes = {"an unusual decoder": {"no_bias": False}, "other heads": {"kv_channels": 16}}[what]
        (tmp_path / "config.json").write_text(json.dumps(published.config() | changes))
    return tmp_path


@pytest.mark.parametrize(
    "what",
    [
        "a weight is missing", "a weight too many", "a damaged file", "no tokenizer", "no ranks", "another tokenizer",
        "no weights", "an unusual decoder", "other heads",
    ],
)  # fmt: skip
def test_a_damaged_checkpoint_is_reported(folder: Path, tmp_path: Path, what: str) -> None:
    with pytest.raises(ModelError) as caught:
        limelight.load(broken(folder, tmp_path, what))
    assert caught.value.hint
