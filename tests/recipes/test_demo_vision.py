"""The recipe of the vision miniature runs end to end at toy size, and its parts do what they say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from recipes.demo_vision.data import coverage, training_scene
from recipes.demo_vision.evaluate import auc, chair, features_of, margins
from recipes.demo_vision.text import Packer, blocks, train_tokenizer
from recipes.demo_vision.train import Plan, new_model, run_stages
from tests.recipes.blocks import check_separate_blocks
from transformers import AutoProcessor, LlavaForConditionalGeneration

from limelight.demo import language
from limelight.demo.questions import questions
from limelight.demo.scenes import OBJECTS


@pytest.fixture(scope="module")
def packer() -> Packer:
    return Packer(train_tokenizer())


def test_two_steps_of_every_stage(tmp_path: Path) -> None:
    plan = Plan(
        cache=tmp_path / "cache", target=tmp_path / "out", pictures=12, dev_pictures=12, vision_steps=2, vision_batch=4,
        language_steps=2, projector_steps=1, align_steps=2, batch=2, yes_no=1, check=4, workers=1, tiny=True, probe_steps=2,
    )  # fmt: skip
    run_stages(plan)
    model = LlavaForConditionalGeneration.from_pretrained(plan.target)
    assert AutoProcessor.from_pretrained(plan.target).image_token_id == model.config.image_token_id
    trained = torch.load(plan.file("align"), weights_only=True)["lm_head.weight"]
    assert torch.equal(model.lm_head.weight, trained)
    untrained, _ = new_model(plan)
    assert not torch.equal(untrained.lm_head.weight, trained)
    assert "rule" in json.loads((plan.target / "examples" / "examples.json").read_text())
    before = plan.file("align").stat().st_mtime_ns
    run_stages(plan, ("vision", "align"))
    assert plan.file("align").stat().st_mtime_ns == before  # a finished stage is not run again


def test_words_of_the_world_are_single_tokens(packer: Packer) -> None:
    for word in (*OBJECTS, "yes", "no", "plain", *language.PROPS):
        assert len(packer.tokenizer.tokenize(" " + word)) == 1
    assert packer.tokenizer.decode(packer.tokenizer.encode("Ein Zebra, 3 €!")) == "Ein Zebra, 3 €!"


def test_blocks_of_one_picture_do_not_see_one_another(packer: Packer) -> None:
    model, _ = new_model(Plan(tiny=True))
    rng = np.random.default_rng(0)
    row = blocks(rng, training_scene(3), 2)
    seen = torch.randn(1, 49, model.config.vision_config.hidden_size)
    from recipes.demo_vision.model import decode

    check_separate_blocks(decode, model, packer, row, seen)


def test_hints_are_right_nine_times_in_ten_and_answers_balanced() -> None:
    rng, hinted, right, yes, asked = np.random.default_rng(1), 0, 0, 0, 0
    for index in range(400):
        picture = training_scene(index)
        for block in blocks(rng, picture, 5)[:5]:
            asked, yes = asked + 1, yes + (block.answer == "yes")
            if block.text.startswith("There is"):
                hinted += 1
                right += block.text.startswith("There is no") == (block.answer == "no")
    assert abs(yes / asked - 0.5) < 0.05
    assert abs(right / hinted - 0.9) < 0.05


def test_coverage_counts_the_pixels_of_a_patch() -> None:
    mask = np.zeros((112, 112), np.float32)
    mask[16:32, 32:40] = 1
    share = coverage({"key": mask}).reshape(7, 7, -1)[..., OBJECTS.index("key")]
    assert share[1, 2] == 128
    assert np.count_nonzero(share) == 1


def test_auc_and_chair_on_hand_made_tables() -> None:
    assert auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])) == 0.75
    assert auc(np.zeros(4), np.array([True, False, True, False])) == 0.5
    from limelight.demo.questions import captions

    items = captions("dev", n=2)
    texts = [language.caption(items[0].scene.names), "A picture of a unicorn."]
    table = chair(items, texts)
    assert table["chair_i"] == 0
    assert table["recall"] == len(items[0].objects) / sum(len(c.objects) for c in items)
    absent = next(name for name in OBJECTS if name not in items[0].objects)
    assert chair(items[:1], [f"A {absent}."]) == {"chair_s": 1.0, "chair_i": 1.0, "recall": 0.0}


def test_margins_are_those_of_the_ordinary_forward_pass(packer: Packer) -> None:
    from recipes.demo_vision.ship import processor_for

    model, _ = new_model(Plan(tiny=True))
    model.eval()
    items = questions("dev", "E-wrong/clear", 3)
    quick = margins(model, packer, items, features_of(model, [q.scene for q in items]))
    processor = processor_for(packer)
    batch = processor.apply_chat_template(
        [q.messages for q in items], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        processor_kwargs={"padding": True},
    )  # fmt: skip
    with torch.no_grad():
        logits = model(**batch).logits[:, -1]
    yes, no = (packer.encode(" " + word)[0] for word in ("yes", "no"))
    torch.testing.assert_close(quick, logits[:, yes] - logits[:, no], atol=1e-5, rtol=1e-4)
