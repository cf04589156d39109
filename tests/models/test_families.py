"""Family files are found by listing the folder, and hold the paper's settings where the paper has them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from limelight.models import families as package
from limelight.models.families import GENERIC, Family, PaperSettings, families, family_of
from tests.tiny import built
from tests.zoo import ZOO

PAPER = {
    "llava": PaperSettings(lr=3e-4, kl_weight=0.1, tau=0.1, steps=7, markers=False),
    "qwen2_5_vl": PaperSettings(lr=3e-4, kl_weight=0.1, tau=0.1, steps=7, markers=True),
    "qwen2_audio": PaperSettings(lr=5e-4, kl_weight=7e-3, tau=0.1, steps=7, markers=True),
}


def test_every_file_ends_in_a_family() -> None:
    files = [p for p in Path(package.__file__).parent.glob("*.py") if p.stem != "__init__"]
    found = families()
    assert len({id(f) for f in found.values()}) == len(files)
    assert all(isinstance(f, Family) and f.name for f in found.values())
    assert all(kind in f.model_types for kind, f in found.items())
    assert sum(len(f.model_types) for f in {id(f): f for f in found.values()}.values()) == len(found)  # no type twice


def test_files_are_small_and_contain_only_what_a_config_lacks() -> None:
    for path in Path(package.__file__).parent.glob("*.py"):
        if path.stem != "__init__":
            assert len(path.read_text().splitlines()) <= 80, path.name


def test_the_papers_table() -> None:
    for name, settings in PAPER.items():
        assert built(name).family.paper == settings
    assert GENERIC.paper == PaperSettings()


def test_a_config_finds_its_family() -> None:
    def config(kind: str, tower: str = "") -> SimpleNamespace:
        return SimpleNamespace(model_type=kind, vision_config=SimpleNamespace(model_type=tower))

    assert family_of(config("llava")).name == "llava"
    assert family_of(config("llava", "clip_vision_model")).name == "llava"
    assert family_of(config("llava", "pixtral")).name == "pixtral"
    assert family_of(config("mistral3", "pixtral")).name == "pixtral"
    assert family_of(config("gemma3")).extra_inputs is not None
    assert family_of(config("unheard of")) is GENERIC
    assert family_of(SimpleNamespace()) is GENERIC


def test_seconds_of_gemma3n() -> None:
    """16 frames of 10 ms a position, here and in the published models."""
    from transformers import Gemma3nConfig

    adapter = built("gemma3n")
    spans = adapter.spans(ZOO["gemma3n"].inputs(adapter.model))
    assert [s.seconds for s in spans if s.modality == "audio"] == [pytest.approx(0.16)]
    assert adapter.family.seconds is not None
    assert adapter.family.seconds(Gemma3nConfig()) == pytest.approx(30.08)
