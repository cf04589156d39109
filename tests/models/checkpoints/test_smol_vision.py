"""smol-vision: composed of what was fetched, told apart from what was not, and a LLaVA like others once loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import limelight
from limelight.errors import ModelError
from limelight.models.checkpoints import smol_vision
from limelight.models.checkpoints.smol_vision import LANGUAGE, TOWER, compose, merge, pooled
from limelight.models.checkpoints.weights_on_disk import weights_folder
from tests.models.checkpoints import smol


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIMELIGHT_CACHE", str(tmp_path / "cache"))
    smol.write(tmp_path / "cache")
    return tmp_path / "cache"


def test_a_token_is_the_mean_over_a_square() -> None:
    values = torch.arange(16.0).view(1, 16, 1)
    assert pooled(values).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


def test_composed_of_the_published_weights(cache: Path) -> None:
    model, tokenizer = compose(weights_folder(LANGUAGE), weights_folder(TOWER))
    from transformers import AutoModelForCausalLM

    own = AutoModelForCausalLM.from_pretrained(weights_folder(LANGUAGE)).eval()
    ids = torch.tensor([tokenizer.encode("The picture shows a cake.")])
    with torch.no_grad():
        got, want = model.eval()(input_ids=ids).logits, own(input_ids=ids).logits
    assert torch.equal(got[..., : want.shape[-1]], want) and not got[..., want.shape[-1] :].any()
    assert tokenizer.image_token_id == model.config.image_token_id == want.shape[-1]


def test_changes_are_added_to_the_named_layer_alone(cache: Path) -> None:
    model, _ = compose(weights_folder(LANGUAGE), weights_folder(TOWER))
    before = {n: v.clone() for n, v in model.model.language_model.state_dict().items()}
    name = "layers.1.self_attn.q_proj"
    a, b = torch.randn(2, 32), torch.randn(32, 2)
    merge(model, {f"{name}.A": a, f"{name}.B": b})
    for key, value in model.model.language_model.state_dict().items():
        want = before[key] + b @ a if key == f"{name}.weight" else before[key]
        assert torch.allclose(value, want, atol=1e-6), key


def test_what_was_not_fetched_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMELIGHT_CACHE", str(tmp_path / "empty"))
    with pytest.raises(ModelError, match=f"{LANGUAGE} and {TOWER} are not in") as caught:
        limelight.load("smol-vision")
    assert f"real_weights {LANGUAGE} {TOWER}" in str(caught.value) and "make real" in str(caught.value)


def test_weights_of_another_model_are_refused(cache: Path) -> None:
    with pytest.raises(ModelError, match="does not fit the published models"):
        limelight.load("smol-vision")  # the tiny language model has another width


def test_everything_works_on_a_shipped_folder(cache: Path, tmp_path: Path) -> None:
    """A folder as the recipe writes it loads by its path, and attribution, decoders and the grid of tokens are a LLaVA's."""
    from recipes.real_vision.text import TEMPLATE
    from safetensors.torch import save_file

    model, _ = compose(weights_folder(LANGUAGE), weights_folder(TOWER))
    place = tmp_path / "shipped"
    place.mkdir()
    tensors = {f"projector.{n}": v for n, v in model.model.multi_modal_projector.state_dict().items()}
    save_file(tensors, place / "model.safetensors")
    (place / "config.json").write_text('{"model_type": "smol_vision"}')
    (place / "chat_template.jinja").write_text(TEMPLATE)
    adapter = limelight.load(place)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (320, 320, 3), np.uint8))
    said = limelight.generate(adapter, messages="Describe it.", media=image, strategy="meter", max_new_tokens=3)
    found = limelight.attribute(adapter, messages="Describe it.", media=image)
    assert [(s.modality, len(s), s.grid) for s in found.spans if s.modality == "image"] == [("image", 25, (5, 5))]
    assert all(set(s.contributions) == {"image", "text"} for s in said.steps)
    for strategy in ("relevance-contrastive", "lime-cached", "vcd"):
        limelight.generate(adapter, messages="Is there a cake?", media=image, strategy=strategy, max_new_tokens=1)


def test_real_weights_see() -> None:
    """On the fetched weights: what is in a plain picture comes before what is not."""
    if (
        not (weights_folder(TOWER) / "config.json").is_file()
        or not (weights_folder(LANGUAGE) / "config.json").is_file()
    ):
        pytest.skip(f"the weights were not fetched (python -m recipes.real_weights {LANGUAGE} {TOWER})")
    adapter = limelight.load("smol-vision")
    assert adapter.modalities == {"image"} and adapter.model.config.image_token_id == 49152
    image = Image.new("RGB", (320, 320), "white")
    said = limelight.generate(adapter, messages="Describe the picture.", media=image, max_new_tokens=12)
    assert said.text.startswith("The picture shows")
    assert smol_vision.SIDE == 320
