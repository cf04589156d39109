"""Whisper in CTranslate2's layout: converted once, equal to the model it was written from; what is wrong is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import limelight
from limelight.errors import ModelError, SettingError
from limelight.models.checkpoints import whisper_ct2
from limelight.models.checkpoints.weights_on_disk import fetched
from limelight.models.loading import _published
from limelight.user_cache_dir import user_cache_dir
from tests.models.checkpoints import ct2


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMELIGHT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return ct2.write(tmp_path / "tiny-ct2", ct2.variables(ct2.tiny()))


def test_it_is_the_model_it_was_written_from(folder: Path) -> None:
    want, got = ct2.tiny(), limelight.load(folder)
    state = want.state_dict()
    assert state.keys() == got.model.state_dict().keys()
    assert all(torch.equal(v, state[k]) for k, v in got.model.state_dict().items())
    for name in ("d_model", "encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads",
                 "encoder_ffn_dim", "decoder_ffn_dim", "num_mel_bins", "max_source_positions", "max_target_positions",
                 "vocab_size", "activation_function", "decoder_start_token_id", "eos_token_id", "pad_token_id"):  # fmt: skip
        assert getattr(got.model.config, name) == getattr(want.config, name), name


def test_tokenizer_and_generation_settings(folder: Path) -> None:
    got = limelight.load(folder)
    assert got.tokenizer.convert_tokens_to_ids("<|0.20|>") == got.model.config.vocab_size - 1
    settings = got.model.generation_config
    assert settings.no_timestamps_token_id == ct2.WORDS + 9
    assert (settings.suppress_tokens, settings.begin_suppress_tokens) == ([1, 2], [3, ct2.WORDS])
    assert settings.alignment_heads == [[1, 0]] and settings.prev_sot_token_id == ct2.WORDS + 7
    assert got.processor.feature_extractor.feature_size == 8
    features = got.processor(np.zeros(1600), sampling_rate=16000).input_features
    assert features[0].shape[0] == 8


@pytest.mark.parametrize(("kind", "close"), [(torch.int8, 0.01), (torch.int16, 0.002)])
def test_quantised(tmp_path: Path, kind: torch.dtype, close: float) -> None:
    folder = ct2.write(tmp_path / "small", ct2.quantised(ct2.variables(ct2.tiny()), kind))
    got, want = limelight.load(folder).model.state_dict(), ct2.tiny().state_dict()
    for name, value in got.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, want[name], atol=close, rtol=1e-3)
    assert not torch.equal(got["model.decoder.layers.0.fc1.weight"], want["model.decoder.layers.0.fc1.weight"])


def test_half_precision_is_kept_on_disk_and_widened_in_memory(tmp_path: Path) -> None:
    found = {k: v.half() if v.is_floating_point() else v for k, v in ct2.variables(ct2.tiny()).items()}
    folder = ct2.write(tmp_path / "half", found)
    got = limelight.load(folder).model
    assert got.dtype == torch.float32
    assert torch.equal(got.model.encoder.conv1.weight, found["encoder/conv1/weight"].float())
    assert limelight.load(folder, dtype=torch.float16).model.dtype == torch.float16


def test_converted_once_and_again_after_a_change(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limelight.load(folder)
    (converted,) = (user_cache_dir() / "converted").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(whisper_ct2, "write", lambda *_: pytest.fail("converted a second time"))
        limelight.load(folder)
    ct2.write(folder, ct2.variables(ct2.tiny(seed=1)))
    (folder / "model.bin").touch()
    got = limelight.load(folder).model.state_dict()
    assert torch.equal(got["model.encoder.conv1.weight"], ct2.tiny(seed=1).model.encoder.conv1.weight)
    assert len(list((user_cache_dir() / "converted").iterdir())) == 2 and converted.is_dir()


def test_settings_of_from_pretrained_are_handed_on(folder: Path) -> None:
    assert limelight.load(folder, attn_implementation="eager").model.config._attn_implementation == "eager"
    with pytest.raises(SettingError, match="no setting 'atn_implementation'"):
        limelight.load(folder, atn_implementation="eager")


def test_nothing_is_left_behind_where_conversion_fails(folder: Path) -> None:
    raw = (folder / "model.bin").read_bytes()
    (folder / "model.bin").write_bytes(raw[:-100])
    with pytest.raises(ModelError, match=r"ends at byte \d+, expected \d+ at least"):
        limelight.load(folder)
    assert not list((user_cache_dir() / "converted").iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder/alibi": torch.tensor(1, dtype=torch.int8)}, "decoder/alibi"),
        ({"decoder/activation": torch.tensor(9, dtype=torch.int8)}, "decoder/activation"),
        ({"decoder/layer_0/attention/linear_1/bias": torch.ones(32)}, "has a bias for keys"),
        ({"decoder/layer_0/attention/linear_1/weight": torch.ones(32, 16, dtype=torch.int8)}, "without .*_scale"),
        ({"decoder/embeddings/weight": torch.ones(100, 16)}, "has 266 tokens, model.bin has 100"),
        ({"decoder/gate": torch.ones(3)}, "do not know where decoder/gate belongs"),
    ],
)
def test_another_model_is_refused(tmp_path: Path, change: dict[str, torch.Tensor], message: str) -> None:
    folder = ct2.write(tmp_path / "odd", ct2.variables(ct2.tiny()) | change)
    with pytest.raises(ModelError, match=message):
        limelight.load(folder)


def test_other_layouts_are_refused(folder: Path) -> None:
    found = ct2.variables(ct2.tiny())
    (folder / "model.bin").write_bytes(ct2.binary(found, version=5))
    with pytest.raises(ModelError, match="'WhisperSpec' in version 5"):
        limelight.load(folder)
    (folder / "model.bin").write_bytes(ct2.binary(found, spec="TransformerSpec"))
    with pytest.raises(ModelError):
        limelight.load(folder)
    (folder / "model.bin").write_bytes(ct2.binary(found))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"lacks tokenizer\.json"):
        limelight.load(folder)


def test_a_checkpoint_of_transformers_is_none_of_its_business(tmp_path: Path) -> None:
    ct2.tiny().save_pretrained(tmp_path / "plain")
    assert _published(tmp_path / "plain", {}, None) is None
    assert whisper_ct2.claims(None, {"alignment_heads": [], "suppress_ids": []})
    assert not whisper_ct2.claims(None, {"alignment_heads": [], "suppress_ids": [], "model_type": "whisper"})


def test_weights_that_were_not_fetched_say_how(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("whisper-base", "whisper-tiny.en"):
        with pytest.raises(ModelError, match="are not in") as told:
            limelight.load(name)
        assert f"python -m recipes.real_weights {name}" in str(told.value.hint) and "openai/" in str(told.value.hint)
    with pytest.raises(ModelError):
        fetched("whisper-base")
