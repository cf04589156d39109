"""What load() hands on to transformers' from_pretrained, to which part of it, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, LlavaForConditionalGeneration

import limelight
from limelight.errors import ModelError, SettingError
from limelight.models import loading
from limelight.models.loading import load
from tests.tiny import tokenizer, vision_processor
from tests.zoo import ZOO
from tests.zoo.parts import TEXT


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    ZOO["llava"].build().save_pretrained(path)
    vision_processor().save_pretrained(path)
    return path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """Keyword arguments that config, model and processor were asked for with."""
    import limelight.media.video_tensors as processors

    seen: dict[str, dict[str, Any]] = {}
    real_config, real_model, real_processor = (
        AutoConfig.from_pretrained, LlavaForConditionalGeneration.from_pretrained, processors.load_processor,
    )  # fmt: skip

    def config(source: Any, **kwargs: Any) -> Any:
        seen.setdefault("config", kwargs)  # AutoProcessor asks for it once more
        return real_config(source)

    def model(source: Any, **kwargs: Any) -> Any:
        seen["model"] = kwargs
        return real_model(source, dtype=kwargs["dtype"], attn_implementation=kwargs.get("attn_implementation"))

    def processor(source: Any, model_type: str, **kwargs: Any) -> Any:
        seen["processor"] = kwargs
        return real_processor(source, model_type)

    monkeypatch.setattr(AutoConfig, "from_pretrained", config)
    monkeypatch.setattr(LlavaForConditionalGeneration, "from_pretrained", model)
    monkeypatch.setattr(processors, "load_processor", processor)
    return seen


def test_every_setting_goes_where_it_belongs(folder: Path, calls: dict[str, dict[str, Any]]) -> None:
    everywhere = {
        "revision": "main", "token": "secret", "cache_dir": "cache", "local_files_only": True, "force_download": False,
    }  # fmt: skip
    own = {
        "device_map": "auto",
        "quantization_config": object(),
        "attn_implementation": "eager",
        "max_memory": {0: "1GB"},
    }
    load(folder, dtype=torch.float64, trust_remote_code=True, processor_kwargs={"max_pixels": 9}, **everywhere, **own)
    trust = {"trust_remote_code": True}
    assert calls["config"] == {**everywhere, **trust}
    assert calls["processor"] == {**everywhere, **trust, "max_pixels": 9}
    assert calls["model"] == {**everywhere, **own, **trust, "dtype": torch.float64}


def test_settings_take_effect(folder: Path) -> None:
    adapter = load(folder, attn_implementation="eager", torch_dtype=torch.bfloat16)
    assert adapter.model.config._attn_implementation == "eager"
    assert adapter.model.dtype == torch.bfloat16
    assert load(folder, dtype=torch.float64).model.dtype == torch.float64
    moved = load(folder, device_map="cpu")
    assert moved.device.type == "cpu"
    kept = load(folder, processor_kwargs={"image_token": "<image>"}).processor
    assert kept.image_token == "<image>"


@pytest.mark.parametrize(
    ("settings", "says", "hint"),
    [
        ({"revison": "main"}, "'revison'", "did you mean revision?"),
        ({"max_pixels": 9}, "'max_pixels'", "processor_kwargs"),
        ({"load_in_4bit": True}, "'load_in_4bit'", "limelight.wrap"),
        ({"device": "cpu", "device_map": "auto"}, "mutually exclusive", "keep one"),
        ({"device": "cpu", "quantization_config": object()}, "quantised", "device_map='cpu'"),
        ({"dtype": torch.float32, "torch_dtype": torch.float16}, "mutually exclusive", "old name"),
    ],
)
def test_unknown_or_contradictory_settings_are_refused_before_reading(
    settings: dict[str, Any], says: str, hint: str
) -> None:
    with pytest.raises(SettingError) as caught:
        load("no/such/model", **settings)
    assert says in str(caught.value)
    assert hint in caught.value.hint


def test_errors_of_transformers_name_the_setting(folder: Path) -> None:
    with pytest.raises(ModelError, match="attn_implementation") as caught:
        load(folder, attn_implementation="telepathy")
    assert caught.value.hint


def test_a_layout_of_its_own_takes_no_settings_of_transformers(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from types import SimpleNamespace

    asked: list[Any] = []
    way = SimpleNamespace(claims=lambda path, config: True, load=lambda path, dtype: asked.append(dtype) or 1 / 0)
    monkeypatch.setattr(loading, "families", lambda: {"x": SimpleNamespace(published=way)})
    for settings in ({"attn_implementation": "eager"}, {"processor_kwargs": {"max_pixels": 9}}):
        with pytest.raises(SettingError, match="its own layout") as caught:
            load(folder, **settings)  # type: ignore[arg-type]
        assert next(iter(settings)) in str(caught.value)
    with pytest.raises(ZeroDivisionError):
        load(folder, dtype="float32", revision="main")
    assert asked == ["float32"]


def test_a_text_only_checkpoint(tmp_path: Path) -> None:
    model = LlamaForCausalLM(LlamaConfig(**TEXT)).eval()
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    adapter = load(tmp_path)
    assert type(adapter.model) is LlamaForCausalLM
    said = limelight.generate(adapter, "what is here ?", max_new_tokens=1)
    assert said.shares() == {"text": 1.0}


@pytest.mark.parametrize("name", ["path/to/checkpoint", "./here", "/nowhere", Path("nowhere"), "a b"])
def test_a_folder_that_is_missing_is_not_looked_for_on_the_hub(name: str | Path) -> None:
    with pytest.raises(ModelError, match="there is no folder") as caught:
        load(name)
    assert "Hub name" in caught.value.hint


@pytest.mark.parametrize(("typed", "meant"), [("demo-vison", "demo-vision"), ("whisper-bas", "whisper-base")])
def test_a_misspelt_name_gets_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(ModelError, match="cannot load") as caught:
        load(typed)
    assert f"did you mean {meant}?" in caught.value.hint
    with pytest.raises(ModelError) as caught:
        load("someone/else")
    assert "did you mean" not in caught.value.hint
