"""Messages become tensors by the model's own template and processor; nothing is dropped in silence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

import limelight
from limelight.errors import MediaError, PromptError
from limelight.models.adapter import Adapter
from limelight.models.prompts import as_messages, split_media
from tests.tiny import audio_processor, vision_processor
from tests.zoo import ZOO

RED = Image.new("RGB", (20, 20), "red")


@pytest.fixture(scope="module")
def vision() -> Adapter:
    return limelight.wrap(ZOO["llava"].build(), vision_processor())


@pytest.fixture(scope="module")
def audio() -> Adapter:
    return limelight.wrap(ZOO["qwen2_audio"].build(), audio_processor())


def test_words_and_loose_media_become_a_chat() -> None:
    got = as_messages("what ?", {"image": [RED, RED], "audio": "a.wav"})
    assert got == [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": RED}, {"type": "image", "image": RED}, {"type": "audio", "audio": "a.wav"},
                {"type": "text", "text": "what ?"},
            ],
        }
    ]  # fmt: skip


def test_loose_media_go_to_the_last_user_turn() -> None:
    turns = [
        {"role": "user", "content": "first"}, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "second"}
    ]  # fmt: skip
    got = as_messages(turns, {"image": RED})
    assert [len(m["content"]) for m in got] == [1, 1, 2]
    assert turns[2]["content"] == "second"  # the caller's messages are left alone


@pytest.mark.parametrize("key", ["image", "path", "url"])
def test_media_are_taken_out_in_order(key: str) -> None:
    turns = [
        {"role": "user", "content": [{"type": "image", key: "1.png"}, {"type": "text", "text": "a"}]},
        {"role": "user", "content": [{"type": "audio", "audio": "2.wav"}, {"type": "image_url", "image_url": "3.png"}]},
    ]
    bare, found = split_media(turns)
    assert found == {"image": ["1.png", "3.png"], "audio": ["2.wav"], "video": []}
    assert bare[0]["content"][0] == {"type": "image"}
    assert bare[1]["content"][1] == {"type": "image"}


def test_a_prompt_has_its_tensors_words_and_spans(vision: Adapter) -> None:
    prompt = vision.prepare("what is here ?", {"image": RED})
    assert prompt.tokens == ("<s>", *["<image>"] * 16, "what", "is", "here", "?", "answer")
    assert [(s.start, s.stop, s.modality, s.grid) for s in prompt.spans] == [
        (0, 1, "text", None), (1, 17, "image", (4, 4)), (17, 22, "text", None)
    ]  # fmt: skip
    assert prompt.tensors["input_ids"].shape == (1, 22)
    assert prompt.tensors["input_ids"][0, 0] == 1
    assert prompt.tensors["input_ids"][0, 1] != 1  # one beginning, though the template writes it too
    assert prompt.media == {"image": [RED]}


def test_two_pictures_and_several_turns(vision: Adapter) -> None:
    turns = [
        {"role": "user", "content": [{"type": "image", "image": RED}, {"type": "text", "text": "what ?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "the picture"}]},
        {"role": "user", "content": [{"type": "image", "image": RED}, {"type": "text", "text": "is the ?"}]},
    ]
    prompt = vision.prepare(turns)
    assert [s.grid for s in prompt.spans if s.modality == "image"] == [(4, 4), (4, 4)]
    assert prompt.tensors["pixel_values"].shape[0] == 2


def test_sound(audio: Adapter) -> None:
    prompt = audio.prepare("what is the sound ?", {"audio": (np.zeros(10240, np.float32), 16000)})
    assert [(len(s), s.seconds) for s in prompt.spans if s.modality == "audio"] == [(16, 0.04)]


def test_without_a_chat_template_the_placeholders_stand_before_the_words() -> None:
    processor = vision_processor()
    processor.chat_template = None
    adapter = limelight.wrap(ZOO["llava"].build(), processor)
    prompt = adapter.prepare("what is here ?", {"image": RED})
    assert prompt.tokens.count("<image>") == 16
    assert prompt.tokens[-1] == "?"


def test_a_template_that_drops_the_picture_raises() -> None:
    processor = vision_processor()
    processor.chat_template = "{% for m in messages %}{% for i in m['content'] %}{% if i['type'] == 'text' %} {{ i['text'] }}{% endif %}{% endfor %}{% endfor %}"
    adapter = limelight.wrap(ZOO["llava"].build(), processor)
    with pytest.raises(PromptError) as caught:
        adapter.prepare("what is here ?", {"image": RED})
    assert caught.value.hint


@pytest.mark.parametrize(
    ("messages", "media", "kind"),
    [
        ("", {"image": RED}, PromptError), ("", None, PromptError), ("what ?", {"image": [None]}, PromptError),
        ("what ?", {"image": RED, "scent": RED}, PromptError), ("what ?", {"audio": "x.wav"}, MediaError),
        ("what ?", {"video": [RED]}, MediaError), ([{"role": "user"}], {"image": RED}, PromptError),
        ([{"role": "assistant", "content": "a"}], {"image": RED}, PromptError),
        ([{"role": "user", "content": [{"type": "image", "image": None}, {"type": "text", "text": "a"}]}], None, PromptError),
        ([{"role": "user", "content": [{"type": "tool", "text": "a"}]}], {"image": RED}, PromptError),
        ("one <image> more ?", {"image": RED}, PromptError), ("what ?", {"image": [RED, "gone.png"]}, MediaError),
    ],
)  # fmt: skip
def test_what_cannot_be_used_raises(vision: Adapter, messages: Any, media: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        vision.prepare(messages, media)
    assert isinstance(caught.value, limelight.LimelightError)
    assert caught.value.hint


def test_pixels_come_in_the_models_dtype() -> None:
    import torch

    adapter = limelight.wrap(ZOO["llava"].build().to(torch.bfloat16), vision_processor())
    tensors = adapter.prepare("what ?", {"image": RED}).tensors
    assert tensors["pixel_values"].dtype == torch.bfloat16
    assert tensors["input_ids"].dtype == torch.int64
