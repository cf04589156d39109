"""Cohere ASR and Canary with their own processors: the decoder prompt names the language, and positions have times."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import limelight
from limelight.decoding.transcribe import prompt_for
from limelight.errors import LimelightError, MediaError, PromptError, SettingError
from tests.zoo.encoder_decoder import PAIRED

SPECIAL = (
    "\u2581", "<|startofcontext|>", "<|startoftranscript|>", "<|emo:undefined|>", "<|en|>", "<|de|>", "<|pnc|>", "<|nopnc|>",
    "<|noitn|>", "<|notimestamp|>", "<|nodiarize|>", "<|endoftext|>",
)  # fmt: skip
TEMPLATE = (
    "{%- for m in messages %}{%- for c in m.content %}{%- if c.type == 'text' %}<|startofcontext|><|startoftranscript|>"
    "<|emo:undefined|><|{{ c.source_language }}|><|{{ c.target_language }}|>{{ '<|pnc|>' if c.punctuation else '<|nopnc|>' }}"
    "<|noitn|><|notimestamp|><|nodiarize|>{%- endif %}{%- endfor %}{%- endfor %}"
)
REST = ("<|pnc|>", "<|noitn|>", "<|notimestamp|>", "<|nodiarize|>")
NAMES = [n for n in ("cohere_asr", "canary") if not PAIRED[n].missing]
families = pytest.mark.parametrize("name", NAMES)


def tokenizer() -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[:60]
    words = {"<pad>": 0, "<unk>": 1, **{c: i + 2 for i, c in enumerate(alphabet)}}
    made = Tokenizer(models.BPE(words, [], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(SPECIAL))
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", eos_token="<|endoftext|>"
    )


@lru_cache(maxsize=2)
def built(name: str) -> limelight.Adapter:
    if name == "cohere_asr":
        processor: Any = hf.CohereAsrProcessor(hf.CohereAsrFeatureExtractor(feature_size=8), tokenizer())
    else:
        processor = hf.CanaryProcessor(hf.ParakeetFeatureExtractor(feature_size=8), tokenizer(), chat_template=TEMPLATE)
    return limelight.wrap(PAIRED[name].build(), processor)


def noise(seconds: float) -> tuple[Any, int]:
    return (0.1 * np.random.default_rng(0).standard_normal(int(16_000 * seconds))).astype(np.float32), 16_000


def heard(name: str, seconds: float = 0.6, **more: Any) -> limelight.Transcript:
    return limelight.transcribe(built(name), audio=noise(seconds), relevance=False, max_new_tokens=2, **more)


@families
@pytest.mark.parametrize("language", ["de", "German", "DE"])
def test_the_prompt_is_the_processors_own(name: str, language: str) -> None:
    tokens = heard(name, language=language).segments[0].generation.prompt.tokens
    assert tokens[-8:] == ("<|startoftranscript|>", "<|emo:undefined|>", "<|de|>", "<|de|>", *REST)
    adapter = built(name)
    samples, rate = noise(0.6)
    if name == "cohere_asr":
        own = adapter.processor(samples, language="de", sampling_rate=rate)
    else:
        own = adapter.processor.apply_transcription_request([samples], source_language="de")
    prompt = adapter.prepare("<|de|>", {"audio": (samples, rate)})
    assert prompt.tensors["decoder_input_ids"].tolist() == own["decoder_input_ids"].tolist()
    assert prompt.tensors["input_features"].shape == own["input_features"].shape


def test_a_model_that_detects_no_language_is_told_one() -> None:
    if "cohere_asr" in NAMES:
        with pytest.raises(PromptError, match="does not detect it") as told:
            heard("cohere_asr")
        assert "--language en" in str(told.value.hint)
    if "canary" in NAMES:  # its processor takes English where it is told none
        assert heard("canary").segments[0].generation.prompt.tokens[3:5] == ("<|en|>", "<|en|>")


@families
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"language": "Klingon"}, PromptError, "does not know the language 'klingon'"),
        ({"language": "fr"}, PromptError, "does not know the language 'fr'"),
        ({"prompt": "He said"}, SettingError, "takes a language and no previous text"),
        ({"prompt": "<|startoftranscript|><|en|>", "language": "de"}, SettingError, "takes a language and no previous"),
    ],
)
def test_what_is_refused(name: str, settings: Any, error: type[LimelightError], message: str) -> None:
    with pytest.raises(error, match=message):
        heard(name, **settings)


@families
def test_a_complete_prompt_is_taken_as_it_is(name: str) -> None:
    said = heard(name, prompt="<|startoftranscript|><|de|>")
    assert said.segments[0].generation.prompt.tokens == ("<|startoftranscript|>", "<|de|>")


@families
def test_positions_have_their_times(name: str) -> None:
    """Frames of 10 ms, two of them in a state of the tiny model (eight in the published ones)."""
    adapter = built(name)
    found = limelight.attribute(adapter, adapter.prepare("<|en|>", {"audio": noise(0.6)}))
    assert found.spans[0].seconds == pytest.approx(0.02)
    scores, times = found.on_audio()
    assert len(scores) == 30 and float(times[5, 0]) == pytest.approx(0.1) and float(times[-1, 1]) == pytest.approx(0.6)


def test_a_sound_that_the_processor_cuts_itself_is_refused() -> None:
    """Cohere ASR's feature extractor makes several inputs of long audio; one prompt reads one."""
    if "cohere_asr" not in NAMES:
        return
    adapter = built("cohere_asr")
    adapter.processor.feature_extractor.max_audio_clip_s, before = (
        6.0,
        adapter.processor.feature_extractor.max_audio_clip_s,
    )
    try:
        with pytest.raises(MediaError, match=r"makes \d inputs of one audio of 7.0 s"):
            adapter.prepare("<|en|>", {"audio": noise(7.0)})
    finally:
        adapter.processor.feature_extractor.max_audio_clip_s = before


@families
def test_a_sound_too_short_for_the_encoder(name: str) -> None:
    with pytest.raises(MediaError, match=r"audio of 0\.000 s is too short"):
        built(name).prepare("<|en|>", {"audio": noise(1 / 16_000)})
    assert built(name).prepare("<|en|>", {"audio": noise(0.05)}).tokens


def test_a_sound_too_short_for_moonshine() -> None:
    processor = hf.Wav2Vec2Processor(hf.Wav2Vec2FeatureExtractor(do_normalize=False), tokenizer())
    adapter = limelight.wrap(PAIRED["moonshine"].build(), processor)
    for seconds in (0.0001, 0.02):
        with pytest.raises(MediaError, match="is too short: Moonshine"):
            limelight.transcribe(adapter, audio=noise(seconds), max_new_tokens=2)
    assert len(limelight.transcribe(adapter, audio=noise(0.1), max_new_tokens=2).segments) == 1


def test_moonshine_takes_no_language() -> None:
    adapter = limelight.wrap(PAIRED["moonshine"].build())
    assert prompt_for(adapter) == "" and prompt_for(adapter, "He said") == "He said"
    with pytest.raises(SettingError, match="takes no language, got 'de'"):
        prompt_for(adapter, None, "de")
