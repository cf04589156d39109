"""limelight.generate: messages in, a Generation out; and what it says to input that cannot be used."""

from __future__ import annotations

import threading
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import GenerationConfig, TextIteratorStreamer

import limelight
from limelight.errors import (
    InputError,
    MediaError,
    PromptError,
    SettingError,
    UnsupportedError,
)
from limelight.models.adapter import Adapter
from limelight.types import Generation, Prompt, Step
from tests.tiny import audio_processor, fresh, llava, llava_inputs, snapshot, vision_processor
from tests.zoo import ZOO

QUESTION = "what is in the picture ?"


@pytest.fixture(scope="module")
def vision() -> Adapter:
    return limelight.wrap(ZOO["llava"].build(), vision_processor())


@pytest.fixture(scope="module")
def audio() -> Adapter:
    return limelight.wrap(ZOO["qwen2_audio"].build(), audio_processor())


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    path = tmp_path / "sound.wav"
    samples = (np.sin(np.arange(8000) / 20) * 8000).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(samples.tobytes())
    return path


def ask(adapter: Adapter, messages: Any = QUESTION, **kwargs: Any) -> Generation:
    return limelight.generate(adapter, messages=messages, **{"max_new_tokens": 3, **kwargs})


@pytest.mark.parametrize("strategy", [None, "greedy", "lime", limelight.lime(steps=3, lr=1e-3)], ids=str)
def test_an_answer_and_where_it_came_from(vision: Adapter, picture: Image.Image, strategy: Any) -> None:
    got = ask(vision, media={"image": picture}, strategy=strategy)
    assert got.strategy == ("greedy" if strategy in (None, "greedy") else "lime")
    assert len(got.token_ids) == len(got.steps) == 3
    assert got.text == vision.tokenizer.decode(list(got.token_ids), skip_special_tokens=True).strip()
    assert str(got) == got.text
    assert "".join(s.text for s in got.steps).replace("<pad>", "") == got.text
    assert set(got.shares()) == {"text", "image"}
    assert sum(got.shares().values()) == pytest.approx(1.0)
    for step in got.steps:
        assert step.relevance is not None
        assert step.relevance.on_grid().shape == (4, 4)
        assert step.relevance.target == step.token
        assert step.relevance.tokens[1] == "<image>"
        assert -50 < step.logprob <= 0
        assert bool(step.losses) == (got.strategy == "lime")
    assert got.prompt.media == {"image": [picture]}
    assert limelight.strategy(got.strategy, **got.settings).settings() == got.settings


def test_three_lines(picture: Image.Image) -> None:
    model, processor = ZOO["llava"].build(), vision_processor()
    messages = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": QUESTION}]}]
    answer = limelight.generate(model, processor, messages, strategy=limelight.lime(steps=2), max_new_tokens=2)
    assert len(answer.steps) == 2


def test_the_same_prompt_however_it_is_given(vision: Adapter, picture: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    picture.save(path)
    chat = [{"role": "user", "content": [{"type": "image", "path": str(path)}, {"type": "text", "text": QUESTION}]}]
    ways = [
        ask(vision, media={"image": picture}), ask(vision, media={"image": [path]}), ask(vision, chat),
        ask(vision, vision.prepare(QUESTION, {"image": str(path)})),
        ask(vision, [{"role": "user", "content": QUESTION}], media={"image": picture}),
    ]  # fmt: skip
    assert len({way.token_ids for way in ways}) == 1
    assert isinstance(ways[3].prompt, Prompt)


def test_plain_decoding_equals_the_models_own(vision: Adapter, picture: Image.Image) -> None:
    prompt = vision.prepare(QUESTION, {"image": picture})
    own = vision.model.generate(**prompt.tensors, max_new_tokens=3, do_sample=False)
    assert ask(vision, prompt).token_ids == tuple(own[0, -3:].tolist())


def test_without_relevance_it_is_only_decoding(vision: Adapter, picture: Image.Image) -> None:
    got = ask(vision, media={"image": picture}, relevance=False)
    assert got.token_ids == ask(vision, media={"image": picture}).token_ids
    assert all(s.relevance is None for s in got.steps)
    assert got.shares() == {}


def test_sampling_with_a_seed(vision: Adapter, picture: Image.Image) -> None:
    settings: dict[str, Any] = {"media": {"image": picture}, "do_sample": True, "temperature": 3.0, "max_new_tokens": 5}
    first, again, other = (ask(vision, seed=s, **settings).token_ids for s in (1, 1, 2))
    assert first == again != other


def test_stop_strings_streamers_and_steps_as_they_come(vision: Adapter, picture: Image.Image) -> None:
    plain = ask(vision, media={"image": picture})
    heard: list[Step] = []
    streamer = TextIteratorStreamer(vision.tokenizer, skip_prompt=True, timeout=120)
    thread = threading.Thread(
        target=ask, args=(vision,),
        kwargs={
            "media": {"image": picture}, "streamer": streamer, "stop_strings": plain.steps[1].text,
            "on_step": lambda row, step: heard.append(step),
        },
    )  # fmt: skip
    thread.start()
    text = "".join(streamer)
    thread.join(200)
    assert text == "".join(s.text for s in plain.steps[:2])
    assert [s.token for s in heard] == list(plain.token_ids[:2])


@pytest.mark.parametrize(
    "bad",
    [
        {"messages": ""},
        {"media": {"scent": "rose"}},
        {"num_beams": 2},
        {"media": {"image": "missing.png"}},
        {"num_return_sequences": 2},
    ],
    ids=str,
)
def test_a_streamer_ends_whatever_is_wrong(vision: Adapter, picture: Image.Image, bad: dict[str, Any]) -> None:
    streamer = TextIteratorStreamer(vision.tokenizer, skip_prompt=True, timeout=5)
    with pytest.raises(limelight.LimelightError):
        ask(vision, **{"media": {"image": picture}, "streamer": streamer, **bad})
    assert "".join(streamer) == ""
    assert streamer.text_queue.empty()


def test_a_generation_config_of_the_callers_stands(vision: Adapter, picture: Image.Image) -> None:
    config = GenerationConfig(max_new_tokens=2, do_sample=False, pad_token_id=0, eos_token_id=None)
    got = limelight.generate(vision, messages=QUESTION, media={"image": picture}, generation_config=config)
    assert got.token_ids == ask(vision, media={"image": picture}).token_ids[:2]
    assert config.return_dict_in_generate is not True
    sampled = GenerationConfig(max_new_tokens=6, do_sample=True, temperature=4.0, pad_token_id=0)
    two = {
        limelight.generate(
            vision, messages=QUESTION, media={"image": picture}, generation_config=sampled, seed=s
        ).token_ids
        for s in range(3)
    }
    assert len(two) > 1
    length = len(vision.prepare(QUESTION, {"image": picture}).tokens)
    by_length = limelight.generate(vision, messages=QUESTION, media={"image": picture}, max_length=length + 2)
    assert len(by_length.token_ids) == 2


def test_one_answer_at_a_time(vision: Adapter, picture: Image.Image) -> None:
    for more in (
        {"num_return_sequences": 2},
        {"generation_config": GenerationConfig(num_return_sequences=2, do_sample=True)},
    ):
        with pytest.raises(UnsupportedError) as caught:
            ask(vision, media={"image": picture}, **more)
        assert caught.value.hint


def test_sound(audio: Adapter, sound: Path) -> None:
    got = ask(audio, "what is the sound ?", media={"audio": sound}, strategy=limelight.lime(steps=2, lr=1e-3))
    scores, seconds = got.steps[0].relevance.on_seconds()  # type: ignore[union-attr]
    assert len(scores) * seconds == pytest.approx(0.5, abs=0.05)
    assert set(got.shares()) == {"text", "audio"}


BAD: dict[str, tuple[type[Exception], dict[str, Any]]] = {
    "an empty prompt": (PromptError, {"messages": "", "media": {"image": "picture"}}),
    "white space": (PromptError, {"messages": " \n\t", "media": {"image": "picture"}}),
    "no messages": (PromptError, {"messages": [], "media": {"image": "picture"}}),
    "no user turn": (PromptError, {"messages": [{"role": "system", "content": "be brief"}], "media": {"image": "picture"}}),
    "not a message": (PromptError, {"messages": ["hello"], "media": {"image": "picture"}}),
    "an unknown content type": (PromptError, {"messages": [{"role": "user", "content": [{"type": "smell", "text": "a"}]}]}),
    "an image item without an image": (
        PromptError, {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}]}
    ),
    "a corrupt image": (MediaError, {"media": {"image": "corrupt.png"}}),
    "an image cut short": (MediaError, {"media": {"image": "short.png"}}),
    "an empty file": (MediaError, {"media": {"image": "empty.png"}}),
    "a missing file": (MediaError, {"media": {"image": "missing.png"}}),
    "a folder": (MediaError, {"media": {"image": "."}}),
    "a URL": (MediaError, {"media": {"image": "https://example.org/cat.png"}}),
    "a number": (MediaError, {"media": {"image": 3}}),
    "a sound file as an image": (MediaError, {"media": {"image": "sound.wav"}}),
    "a sound for a vision model": (MediaError, {"media": {"audio": "sound.wav"}}),
    "a video for a vision model": (MediaError, {"media": {"video": "film.mp4"}}),
    "an unknown strategy": (SettingError, {"media": {"image": "picture"}, "strategy": "limes"}),
    "beam sampling": (UnsupportedError, {"media": {"image": "picture"}, "num_beams": 4, "do_sample": True}),
    "an unknown medium": (InputError, {"media": {"image": "picture", "smell": "picture"}}),
    "a placeholder in the words": (PromptError, {"messages": "what is <image> here ?", "media": {"image": "picture"}}),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_reported_with_a_hint(
    vision: Adapter, picture: Image.Image, sound: Path, tmp_path: Path, case: str
) -> None:
    kind, arguments = BAD[case]
    picture.save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "corrupt.png").write_bytes(b"this is no picture")
    (tmp_path / "short.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "film.mp4").write_bytes(b"film")

    def found(item: Any) -> Any:
        if item == "picture":
            return picture
        local = isinstance(item, str) and "://" not in item
        return tmp_path / item if local else item

    media = {k: found(v) for k, v in arguments.get("media", {}).items()}
    before = snapshot(vision.model)
    with pytest.raises(kind) as caught:
        ask(vision, **{**arguments, "media": media})
    assert isinstance(caught.value, limelight.LimelightError)
    assert caught.value.hint
    assert snapshot(vision.model) == before


def test_a_picture_for_an_audio_model(audio: Adapter, picture: Image.Image) -> None:
    with pytest.raises(MediaError) as caught:
        ask(audio, media={"image": picture})
    assert "audio" in str(caught.value)


def test_tensors_without_placeholders() -> None:
    adapter = fresh("llava")
    ids = torch.tensor([[1, 31, 32]])
    pixels = llava_inputs(adapter.model)["pixel_values"]
    tensors = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    prompt = Prompt(tensors, ("a", "b", "c"), ())
    with pytest.raises(PromptError) as caught:
        ask(adapter, prompt)
    assert "although there are" in str(caught.value)
    assert caught.value.hint


def test_no_processor_and_no_multimodal_model(picture: Image.Image) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.zoo.parts import TEXT

    with pytest.raises(PromptError) as caught:
        ask(fresh("llava"), media={"image": picture})
    assert "processor" in str(caught.value)
    text_only = LlamaForCausalLM(LlamaConfig(**TEXT)).eval()
    with pytest.raises(MediaError, match="takes text") as missing:
        limelight.generate(text_only, vision_processor().tokenizer, "what ?", media={"image": picture})
    assert missing.value.hint


def test_nan_weights(picture: Image.Image) -> None:
    model = ZOO["llava"].build()
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    for strategy in (None, "lime"):
        with pytest.raises(limelight.errors.NotFiniteError) as caught:
            ask(limelight.wrap(model, vision_processor()), media={"image": picture}, strategy=strategy)
        assert caught.value.hint


def test_a_bfloat16_model(picture: Image.Image) -> None:
    adapter = limelight.wrap(ZOO["llava"].build().to(torch.bfloat16), vision_processor())
    got = ask(adapter, media={"image": picture}, strategy="lime")
    assert len(got.token_ids) == 3
    assert got.prompt.tensors["pixel_values"].dtype == torch.bfloat16


def test_a_prompt_without_a_tokenizer() -> None:
    adapter = Adapter(llava())
    inputs = llava_inputs(adapter.model)
    prompt = Prompt(inputs, adapter.words(inputs), adapter.spans(inputs))
    got = ask(adapter, prompt)
    assert got.text == ""
    assert len(got.token_ids) == 3


def test_lengths_of_the_models_own_config_count(picture: Image.Image) -> None:
    adapter = limelight.wrap(ZOO["llava"].build(), vision_processor())
    adapter.model.generation_config.eos_token_id = None
    prompt = adapter.prepare(QUESTION, {"image": picture})
    length = prompt.tensors["input_ids"].shape[1]
    for name, value in (("max_new_tokens", 3), ("max_length", length + 3)):
        setattr(adapter.model.generation_config, name, value)
        assert len(limelight.generate(adapter, None, prompt).token_ids) == 3
        assert [len(a.token_ids) for a in limelight.generate_many(adapter, None, [prompt, prompt])] == [3, 3]
        assert len(limelight.generate(adapter, None, prompt, max_new_tokens=2).token_ids) == 2
        setattr(adapter.model.generation_config, name, None)


def test_several_answers_are_refused_wherever_they_are_requested(picture: Image.Image) -> None:
    adapter = limelight.wrap(ZOO["llava"].build(), vision_processor())
    prompt = adapter.prepare(QUESTION, {"image": picture})
    adapter.model.generation_config.num_return_sequences = 2
    for ask_it in (limelight.generate, lambda a, p, m, **k: limelight.generate_many(a, p, [m], **k)):
        with pytest.raises(UnsupportedError, match="single answer"):
            ask_it(adapter, None, prompt, do_sample=True, max_new_tokens=1)


@pytest.mark.parametrize("bad", [5, 1.5, object(), {1, 2}], ids=lambda x: type(x).__name__)
def test_what_are_no_messages_at_all(vision: Adapter, bad: Any) -> None:
    with pytest.raises(PromptError) as caught:
        limelight.generate(vision, None, bad)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("given", "there"), [(True, True), (np.bool_(True), True), (np.bool_(False), False), (0, False)]
)
def test_whether_relevance_is_wanted(vision: Adapter, picture: Image.Image, given: Any, there: bool) -> None:
    settings: dict[str, Any] = {"relevance": given, "max_new_tokens": 1}
    asked = vision.prepare(QUESTION, {"image": picture})
    one, (other,) = (
        limelight.generate(vision, None, asked, **settings), limelight.generate_many(vision, None, [asked], **settings)
    )  # fmt: skip
    assert [s.relevance is not None for s in (*one.steps, *other.steps)] == [there] * len((*one.steps, *other.steps))


@pytest.mark.parametrize("bad", ["no", 2, [], 0.5], ids=str)
def test_values_other_than_true_and_false(vision: Adapter, picture: Image.Image, bad: Any) -> None:
    with pytest.raises(SettingError, match="True, False or None"):
        limelight.generate(vision, None, QUESTION, media=picture, relevance=bad, max_new_tokens=1)
