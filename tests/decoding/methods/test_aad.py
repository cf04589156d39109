from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from limelight.decoding.methods.aad import Aad, aad
from limelight.errors import SettingError, UnsupportedError
from limelight.models.adapter import Adapter
from tests.decoding.peers import CLOSE, TOKENS, check_against_twin, double, emitted, inputs_of, run
from tests.slow_twins import aad as twin
from tests.zoo import ZOO
from tests.zoo.parts import AUDIO


@pytest.mark.parametrize("variant", ["silent", "absent"])
@pytest.mark.parametrize("name", ["qwen2_audio", "voxtral", "audioflamingo3"])
def test_equals_the_slow_twin(name: str, variant: str) -> None:
    adapter, inputs = double(name), inputs_of(name)
    out = run(adapter, inputs, aad(alpha=0.7, variant=variant, silence=-1.5))
    tokens = emitted(out, inputs)
    silence = -1.5 if variant == "silent" else None
    wanted = [twin.aad(adapter.model, inputs, tokens[:, :t], 0.7, silence, AUDIO) for t in range(TOKENS)]
    check_against_twin(out, wanted, rows=1)


@pytest.mark.parametrize("variant", ["silent", "absent"])
def test_rows_of_a_batch(variant: str) -> None:
    adapter = double("qwen2_audio")
    inputs = inputs_of("qwen2_audio", "batch")
    out = run(adapter, inputs, aad(variant=variant, silence=-1.5))
    tokens = emitted(out, inputs)
    assert out.logits is not None
    silence = -1.5 if variant == "silent" else None
    for t in range(TOKENS):
        for row in (0, 1):
            alone = ZOO["qwen2_audio"].inputs(adapter.model, row=row)
            wanted = twin.aad(adapter.model, alone, tokens[row : row + 1, :t], 0.5, silence, AUDIO)
            torch.testing.assert_close(out.logits[t][row], wanted[0], **CLOSE)


def test_the_extractor_determines_the_value_of_silence() -> None:
    adapter, inputs = double("qwen2_audio"), inputs_of("qwen2_audio")
    processor = SimpleNamespace(feature_extractor=WhisperFeatureExtractor(feature_size=16), tokenizer=None)
    asked = run(Adapter(adapter.model, processor), inputs, aad(), n=1).logits
    told = run(adapter, inputs, aad(silence=-1.5), n=1).logits
    assert asked is not None
    assert told is not None
    torch.testing.assert_close(asked[0], told[0], atol=1e-4, rtol=1e-4)


class Humming:
    """A feature extractor whose silence is not constant."""

    sampling_rate = 16000
    model_input_names = ("input_features",)

    def __call__(self, sound: Any, **kwargs: Any) -> dict[str, Any]:
        return {"input_features": np.linspace(0, 1, 8)[None]}


@pytest.mark.parametrize(("extractor", "match"), [(None, "feature extractor"), (Humming(), "not constant")])
def test_silence_that_cannot_be_made(extractor: Any, match: str) -> None:
    processor = SimpleNamespace(feature_extractor=extractor, tokenizer=None)
    with pytest.raises(SettingError, match=match):
        run(Adapter(double("qwen2_audio").model, processor), inputs_of("qwen2_audio"), aad())


@pytest.mark.parametrize("variant", ["silent", "absent"])
def test_a_prompt_without_sound(variant: str) -> None:
    with pytest.raises(UnsupportedError, match="without audio"):
        run(double("llava"), inputs_of("llava"), aad(variant=variant, silence=0.0))


@pytest.mark.parametrize("wrong", [{"alpha": -1}, {"beta": 2}, {"variant": "quiet"}])
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="aad"):
        Aad(**wrong)
