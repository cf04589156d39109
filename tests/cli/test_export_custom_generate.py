"""The exported folder, loaded by transformers from disk, decodes like the strategy itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from huggingface_hub import ModelCard
from transformers import GenerationMixin
from typer.testing import CliRunner

import limelight
from limelight.cli.export_custom_generate import export_custom_generate, write
from limelight.errors import SettingError
from tests.zoo.encoder_decoder import PAIRED

IMAGE = Path(limelight.__file__).parent / "demo" / "vision" / "examples" / "E-wrong-000.png"
app = typer.Typer()
app.command()(export_custom_generate)


@pytest.fixture
def adapter() -> Any:
    return limelight.load("demo-vision")


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder into which transformers copies the code."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


def decoded(adapter: Any, **options: Any) -> list[int]:
    inputs = dict(adapter.prepare("Describe the picture.", {"image": str(IMAGE)}).tensors)
    inputs.pop("modality_ids", None)
    with torch.no_grad():
        out = adapter.model.generate(**inputs, max_new_tokens=8, do_sample=False, **options)
    return [int(t) for t in out[0, inputs["input_ids"].shape[1] :]]


def test_the_folder_decodes_like_the_strategy(adapter: Any, tmp_path: Path) -> None:
    folder = tmp_path / "contrastive"
    done = CliRunner().invoke(app, [str(folder), "--strategy", "relevance-contrastive", "--set", "alpha=8"])
    assert done.exit_code == 0, done.output
    exported = decoded(adapter, custom_generate=str(folder), trust_remote_code=True, processor=adapter.processor)
    own = limelight.custom_generate(limelight.relevance_contrastive(alpha=8.0), processor=adapter.processor)
    assert exported == decoded(adapter, custom_generate=own)
    plain = decoded(adapter)
    assert exported != plain  # the setting is strong enough to show
    again = decoded(
        adapter, custom_generate=str(folder), trust_remote_code=True, processor=adapter.processor,
        strategy_settings={"alpha": 0.0},
    )  # fmt: skip
    assert again == plain


def test_a_method_that_needs_the_tensors(adapter: Any, tmp_path: Path) -> None:
    write(tmp_path / "vcd", "vcd", ["alpha=1"])
    options = {"trust_remote_code": True, "processor": adapter.processor, "seed": 3}
    torch.manual_seed(0)
    found = decoded(adapter, custom_generate=str(tmp_path / "vcd"), **options)
    inputs = dict(adapter.prepare("Describe the picture.", {"image": str(IMAGE)}).tensors)
    inputs.pop("modality_ids", None)
    torch.manual_seed(0)
    own = limelight.custom_generate(
        limelight.strategy("vcd", alpha=1.0), processor=adapter.processor, tensors=inputs, seed=3
    )
    assert found == decoded(adapter, custom_generate=own)


def test_code_runs_only_when_it_is_trusted(adapter: Any, tmp_path: Path) -> None:
    write(tmp_path / "greedy", "greedy", [])
    with pytest.raises(ValueError, match="trust_remote_code"):
        decoded(adapter, custom_generate=str(tmp_path / "greedy"), trust_remote_code=False)


def test_the_files_of_the_folder(tmp_path: Path) -> None:
    write(tmp_path / "m", "m3id", ["variant=released", "decay=0.1"])
    assert (tmp_path / "m/custom_generate/requirements.txt").read_text() == f"limelight=={limelight.__version__}\n"
    card = ModelCard.load(tmp_path / "m/README.md")
    assert "custom_generate" in card.data.tags
    assert "| `variant` | `'released'` |" in card.text
    names: dict[str, Any] = {}
    exec((tmp_path / "m/custom_generate/generate.py").read_text(), names)
    assert names["STRATEGY"] == "m3id"
    assert limelight.strategy("m3id", **names["SETTINGS"]).settings() == names["SETTINGS"]


def test_every_strategy_can_be_exported(tmp_path: Path) -> None:
    from limelight.decoding.registry import strategies

    for name in strategies():
        write(tmp_path / name, name, [])
        names: dict[str, Any] = {}
        exec((tmp_path / name / "custom_generate/generate.py").read_text(), names)
        assert limelight.strategy(name, **names["SETTINGS"]).settings() == limelight.strategy(name).settings()


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    with pytest.raises(SettingError, match="not empty"):
        write(tmp_path / "full", "vcd", [])
    assert (tmp_path / "full/file").read_text() == "mine"
    with pytest.raises(SettingError, match="unknown strategy"):
        write(tmp_path / "new", "vdc", [])
    with pytest.raises(SettingError, match="no setting"):
        write(tmp_path / "new", "vcd", ["gamma=1"])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["whisper", "moonshine", "donut"])
@pytest.mark.parametrize("strategy", ["vcd", "relevance-contrastive"])
def test_encoder_decoders(name: str, strategy: str, tmp_path: Path) -> None:
    """The media are the first argument, and methods that disturb them find them."""
    write(tmp_path / "m", strategy, [])
    row = PAIRED[name]
    model = row.build()
    inputs = row.inputs(model)
    media = inputs[model.main_input_name]
    rest = {k: v for k, v in inputs.items() if k != model.main_input_name}
    options: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False}
    own = limelight.custom_generate(limelight.strategy(strategy), tensors=inputs)
    want = GenerationMixin.generate(model, **inputs, custom_generate=own, **options)[0, -3:].tolist()
    options |= {"custom_generate": str(tmp_path / "m"), "trust_remote_code": True}
    assert model.generate(**inputs, **options)[0, -3:].tolist() == want
    assert model.generate(media, **rest, **options)[0, -3:].tolist() == want
