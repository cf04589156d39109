"""Relevance over the time of a sound's own input."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from limelight.errors import SettingError
from limelight.models.adapter import Adapter
from limelight.relevance.attribute import attribute
from limelight.relevance.input_time import time_axis, without_padding
from limelight.report.input_time import over_time
from tests.models.test_encoder_decoder import WORKING, built, given
from tests.models.test_processors import audioflamingo3
from tests.tiny import fresh
from tests.wide import prompt
from tests.zoo import ZOO
from tests.zoo.encoder_decoder import PAIRED

AXES = {"whisper": (2, 0.01), "cohere_asr": (1, 0.01), "canary": (1, 0.01), "moonshine": (1, 1 / 16000),
        "moonshine_streaming": (1, 1 / 16000)}  # fmt: skip


@pytest.mark.parametrize("name", [n for n in WORKING if PAIRED[n].modality == "audio"])
def test_seconds_sum_to_the_whole(name: str) -> None:
    adapter = built(name)
    got = attribute(adapter, given(name, adapter), 17, composite="cp-lrp", through_encoder=True)
    ((media, scores),) = got.media_inputs.items()
    assert got.media_times == {media: AXES[name]}
    axis, step = AXES[name]
    parts = over_time(got, 0.05)
    assert len(parts) == -(-round(scores.shape[axis] * step * 1000) // 50)
    torch.testing.assert_close(parts.sum(), scores.sum(), atol=1e-5, rtol=1e-5)
    first = scores.narrow(axis, 0, round(0.05 / step)).sum()
    torch.testing.assert_close(parts[0], first, atol=1e-5, rtol=1e-5)


def test_decoder_only_models_too() -> None:
    adapter = fresh("qwen2_audio")
    inputs, _, _ = prompt("qwen2_audio", adapter)
    got = attribute(adapter, inputs, 3, composite="cp-lrp", through_encoder=True)
    frames = got.media_inputs["input_features"][0].sum(0)
    assert got.media_times == {"input_features": (2, 0.01)}
    torch.testing.assert_close(over_time(got, 0.01), frames)


def test_a_sound_of_several_windows_is_whole() -> None:
    """1.5 s in windows of .64 s: three rows of the tensor, one sound."""
    adapter = Adapter(ZOO["audioflamingo3"].build(), audioflamingo3())
    samples = np.random.default_rng(0).normal(size=24000).astype(np.float32)
    prompt = adapter.prepare("what is here ?", {"audio": (samples, 16000)})
    got = attribute(adapter, prompt, 3, composite="cp-lrp", through_encoder=True)
    (values,) = got.media_inputs.values()
    parts = over_time(got, 0.64)
    assert len(values) == 3
    torch.testing.assert_close(parts, values.sum((1, 2)))


def test_pictures_have_no_time() -> None:
    adapter = built("donut")
    got = attribute(adapter, given("donut", adapter), 17, through_encoder=True)
    assert got.media_times == {}
    with pytest.raises(SettingError, match="is unknown"):
        over_time(got)


def test_the_axis_is_the_one_that_does_not_count_bins() -> None:
    adapter = SimpleNamespace(
        processor=SimpleNamespace(feature_extractor=SimpleNamespace(feature_size=8, sampling_rate=8000, hop_length=80)),
        parent_model=SimpleNamespace(config=SimpleNamespace()),
    )
    assert time_axis(adapter, "input_features", torch.zeros(1, 8, 30)) == (2, 0.01)  # type: ignore[arg-type]
    assert time_axis(adapter, "input_features", torch.zeros(1, 30, 8)) == (1, 0.01)  # type: ignore[arg-type]
    assert time_axis(adapter, "input_features", torch.zeros(1, 30, 9)) is None  # type: ignore[arg-type]
    assert time_axis(adapter, "input_values", torch.zeros(1, 400)) == (1, 1 / 8000)  # type: ignore[arg-type]
    assert time_axis(adapter, "pixel_values", torch.zeros(1, 8, 30)) is None  # type: ignore[arg-type]
    mask = {"attention_mask": torch.tensor([[1, 1, 0]])}
    assert without_padding(torch.ones(1, 2, 3), (2, 0.01), mask).tolist() == [[[1, 1, 0], [1, 1, 0]]]
    assert without_padding(torch.ones(1, 3, 2), (1, 0.01), mask).tolist() == [[[1, 1], [1, 1], [0, 0]]]
    assert without_padding(torch.ones(1, 2, 4), (2, 0.01), mask).all()
