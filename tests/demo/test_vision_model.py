"""The shipped vision miniature: it loads without a network, sees clear pictures, and is misled by a wrong hint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

import limelight.demo
from limelight.demo import language
from limelight.demo.probe import Probe
from limelight.demo.questions import Question, captions, questions
from limelight.demo.scenes import OBJECTS

FOLDER = Path(limelight.demo.__file__).parent / "vision"


@pytest.fixture(scope="module")
def model() -> LlavaForConditionalGeneration:
    return LlavaForConditionalGeneration.from_pretrained(FOLDER, local_files_only=True).eval()


@pytest.fixture(scope="module")
def processor() -> LlavaProcessor:
    return AutoProcessor.from_pretrained(FOLDER, local_files_only=True)


def batch(processor: LlavaProcessor, items: list[Question]) -> dict[str, torch.Tensor]:
    return processor.apply_chat_template(  # type: ignore[no-any-return]
        [q.messages for q in items], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        processor_kwargs={"padding": True},
    )  # fmt: skip


@torch.no_grad()
def accuracy(model: LlavaForConditionalGeneration, processor: LlavaProcessor, cell: str, n: int = 60) -> float:
    items = questions("dev", cell, n, seed=3)
    logits = model(**batch(processor, items)).logits[:, -1]
    yes, no = processor.tokenizer.convert_tokens_to_ids(["Ġyes", "Ġno"])
    assert torch.isin(logits.argmax(-1), torch.tensor([yes, no])).all()
    said = logits[:, yes] > logits[:, no]
    return float(np.mean([bool(s) == (q.label == "yes") for s, q in zip(said, items, strict=True)]))


def test_files_are_small_and_float32(model: LlavaForConditionalGeneration) -> None:
    assert (FOLDER / "model.safetensors").stat().st_size < 12_000_000
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_one_message_becomes_49_image_tokens(model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
    one = processor.apply_chat_template(
        questions("dev", "none/clear", 1)[0].messages, add_generation_prompt=True, tokenize=True, return_dict=True,
        return_tensors="pt",
    )  # fmt: skip
    assert int((one["input_ids"] == model.config.image_token_id).sum()) == 49
    assert one["pixel_values"].shape == (1, 3, 112, 112)
    text = processor.tokenizer.decode(one["input_ids"][0][-3:])
    assert text.endswith("ASSISTANT:")


def test_easy_questions_are_answered_and_wrong_hints_mislead(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor
) -> None:
    assert accuracy(model, processor, "none/clear") >= 0.88
    assert accuracy(model, processor, "E-right/clear") >= 0.92
    assert accuracy(model, processor, "E-wrong/clear") <= 0.75
    assert accuracy(model, processor, "intact/clear") >= 0.9


def test_left_padding_changes_nothing(model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
    items = [questions("dev", cell, 1)[0] for cell in ("none/clear", "C-right/clear")]
    inputs = batch(processor, items)
    assert inputs["attention_mask"][0, 0] == 0  # the shorter one is padded on the left
    with torch.no_grad():
        together = model(**inputs).logits[:, -1]
        alone = torch.cat([model(**batch(processor, [q])).logits[:, -1] for q in items])
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=1e-3)


def test_generate_answers_and_describes(model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
    items = questions("dev", "none/clear", 4)
    inputs = batch(processor, items)
    out = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    answers = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert {answer.strip() for answer in answers} <= {"yes", "no"}
    hits = told = 0
    for wanted in captions("dev", n=6):
        inputs = processor.apply_chat_template(
            wanted.messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        out = model.generate(**inputs, max_new_tokens=28, do_sample=False)
        text = processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        assert text.startswith("A picture of a ")
        assert text.endswith(".")
        hits, told = hits + len(language.mentioned(text) & wanted.objects), told + len(wanted.objects)
    assert hits / told > 0.6


def test_the_probe_is_a_ceiling(model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
    items = questions("dev", "none/clear", 60, seed=3)
    with torch.no_grad():
        tokens = model.get_image_features(batch(processor, items)["pixel_values"]).pooler_output
        logits = Probe.load()(torch.stack(list(tokens)))
    said = logits[torch.arange(60), [OBJECTS.index(q.object) for q in items]] > 0
    assert np.mean([bool(s) == (q.label == "yes") for s, q in zip(said, items, strict=True)]) >= 0.95


def test_examples_are_complete_and_mislead(model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
    table = json.loads((FOLDER / "examples" / "examples.json").read_text())
    assert table["rule"]
    assert len(table["examples"]) >= 4
    for row in table["examples"]:
        with Image.open(FOLDER / "examples" / row["image"]) as picture:
            turn = [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": picture.convert("RGB")},
                        {"type": "text", "text": row["text"]},
                    ],
                }
            ]
            inputs = processor.apply_chat_template(
                turn, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )
        with torch.no_grad():
            token = int(model(**inputs).logits[0, -1].argmax())
        answer = processor.tokenizer.decode([token]).strip()
        assert answer == row["greedy"]
        assert answer != row["label"]
        assert (row["object"] in row["objects"]) == (row["label"] == "yes")
