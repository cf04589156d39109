"""Whisper's prompt from text and language, and what is not one; its special tokens are no words."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import limelight
from limelight.decoding.transcribe import is_invented, segment_means, special_tokens, token_limit
from limelight.errors import PromptError, SettingError, UnsupportedError
from limelight.models.detect import special_ids
from limelight.relevance.targets import answer_ids
from limelight.types import Step
from tests.models.checkpoints import ct2

START = "<|startoftranscript|>"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> limelight.Adapter:
    return ct2.listening(tmp_path_factory.mktemp("whisper"))


def noise(seconds: float = 0.5, seed: int = 0) -> tuple[Any, int]:
    return (0.1 * np.random.default_rng(seed).standard_normal(int(16_000 * seconds))).astype(np.float32), 16_000


def transcribed(adapter: limelight.Adapter, seconds: float = 0.5, **settings: Any) -> limelight.Transcript:
    given: dict[str, Any] = {"relevance": False, "meter": False, "max_new_tokens": 2, **settings}
    return limelight.transcribe(adapter, audio=noise(seconds), **given)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"prompt": f"{START}<|en|>", "language": "de"}, SettingError, "the prompt is the decoder's own"),
        ({"prompt": "Speech in {language}."}, SettingError, "no language is given"),
        ({"prompt": f"{START}<|xx|>"}, PromptError, r"no token <\|xx\|>"),
        ({"prompt": "He said <|endoftext|> no"}, PromptError, r"previous text contains <\|endoftext\|>"),
        ({"language": "Klingon"}, SettingError, "does not know the language 'Klingon'"),
        ({"drop_invented": "yes"}, SettingError, "expected a finite threshold, got 'yes'"),
        ({"drop_invented": None}, SettingError, "expected a finite threshold, got None"),
        ({"chunk_seconds": float("nan")}, SettingError, "expected pieces of at least 0.2 s, got nan"),
        ({"chunk_seconds": float("inf")}, SettingError, "expected pieces of at least 0.2 s, got inf"),
        ({"chunk_seconds": "10"}, SettingError, "expected pieces of at least 0.2 s, got .10."),
        *(({"max_new_tokens": n}, SettingError, "expected a positive integer as max_new_tokens") for n in (0, -1, 2.5)),
    ],
)
def test_what_is_refused(adapter: limelight.Adapter, settings: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        transcribed(adapter, **settings)


@pytest.mark.parametrize(
    "option",
    [{"return_timestamps": True}, {"task": "translate"}, {"no_speech_threshold": 0.6}, {"temperature": (0.0, 0.2)}],
)
def test_options_of_its_own_generate_are_not_ignored(adapter: limelight.Adapter, option: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match="is an option of Whisper's own generate") as told:
        transcribed(adapter, **option)
    assert "audit_segments" in str(told.value.hint)
    assert transcribed(adapter, return_timestamps=False, do_sample=True, temperature=0.5, seed=1).segments


def test_the_language_is_written_into_previous_text(adapter: limelight.Adapter) -> None:
    said = transcribed(adapter, prompt="Speech in {language}.", language="German")
    assert said.prompt.startswith("<|startofprev|> Speech in German.<|startoftranscript|><|de|>")


def test_special_tokens_are_no_words(adapter: limelight.Adapter) -> None:
    tokenizer = adapter.tokenizer
    special = [tokenizer.convert_tokens_to_ids(t) for t in ct2.SPECIAL]
    assert special_ids(tokenizer) == set(special) == special_tokens(adapter) | {ct2.WORDS}
    steps = [
        Step(special[-1], "<|notimestamps|>", grounding=9.0, support=9.0),
        Step(40, " I", grounding=1.0, support=2.0),
    ]
    assert segment_means(steps, special_tokens(adapter)) == (1.0, 2.0)
    assert special_ids(None) == frozenset()


@pytest.mark.parametrize("text", [" .", " \u266a", "\ufffd"])
def test_a_segment_without_letters_is_judged_too(text: str) -> None:
    means = segment_means([Step(40, text, grounding=1.0, support=0.5), Step(41, " ", grounding=7.0, support=7.0)], ())
    assert means == (1.0, 0.5) and is_invented(text.strip(), means, 2.0)
    letters = segment_means([Step(40, text, support=0.5), Step(41, "a", support=3.5)], ())
    assert letters.support == (2.0 if text == "\ufffd" else 3.5)


def test_the_usual_limit_leaves_room_for_previous_text(adapter: limelight.Adapter) -> None:
    prompt = adapter.prepare("word " * 40, {"audio": noise()})
    assert len(prompt.tokens) + token_limit(30.0, adapter, prompt) == 64 < token_limit(30.0)
    said = transcribed(adapter, prompt="word " * 40, max_new_tokens=None)
    assert len(said.segments[0].generation.token_ids) == 64 - len(prompt.tokens)


def test_an_answer_begins_with_the_blank_that_the_model_writes(adapter: limelight.Adapter) -> None:
    call = adapter.capture(adapter.prepare("", {"audio": noise()}).tensors)
    want = adapter.tokenizer(" no", add_special_tokens=False).input_ids
    assert answer_ids(adapter, call, call.length - 1, "no") == want
    found = limelight.attribute(adapter, adapter.prepare("", {"audio": noise()}), "no")
    assert found.target == want[0]


def test_the_models_own_length_limit_causes_no_warning(adapter: limelight.Adapter, caplog: Any) -> None:
    adapter.model.generation_config.max_length = 64
    try:
        with caplog.at_level(logging.WARNING):
            logging.getLogger("transformers").addHandler(caplog.handler)
            assert len(transcribed(adapter).segments[0].generation.token_ids) == 2
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
        adapter.model.generation_config.max_length = None
    assert not [r for r in caplog.records if "max_length" in r.message]


def test_segments_after_the_recordings_end_are_kept_and_measured(adapter: limelight.Adapter) -> None:
    """Whisper may mark times in its padding; nothing that it said is lost without a word."""
    rows = [{"start": 0.0, "end": 0.4, "tokens": [40, 41]}, {"start": 2.0, "end": 4.0, "tokens": [42]}]
    told = limelight.audit_segments(adapter, noise(0.5), rows, language="en")
    assert [(s.start, s.stop) for s in told.segments] == [(0.0, 0.4), (pytest.approx(0.4), 0.5)]
    assert told.segments[1].generation.token_ids == (42,)


def test_the_asr_benchmark_asks_for_no_more_than_the_sound(
    adapter: limelight.Adapter, monkeypatch: Any, tmp_path: Path
) -> None:
    """Its instruction would be previous text to Whisper's decoder."""
    from limelight.benchmarks.tasks.asr import PROMPT
    from limelight.cli import answering
    from limelight.types import Sample

    monkeypatch.setattr(answering, "loaded", lambda *_, **__: adapter)
    wanted = limelight.generate(adapter, None, "", media={"audio": noise()}, relevance=False, max_new_tokens=3)
    ask = answering.ModelAnswer("tiny", generation={"max_new_tokens": 3})
    for size in (1, 2):
        samples = [Sample(str(n), PROMPT, {"audio": [noise()]}, "", {"seed": 0}) for n in range(size)]
        for reply in ask.many(samples):
            assert reply.text == wanted.text and reply.meta["tokens"] == 3
            json.dumps(reply.meta)
