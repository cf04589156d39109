"""Inputs on which transformers' own code fails: every entry point raises an error that names the cause."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image

import limelight
from limelight.errors import LimelightError, MediaError, PromptError, SettingError, UnsupportedError
from limelight.models.adapter import Adapter
from tests.models.test_processors import mistral3
from tests.tiny import built
from tests.zoo import ZOO

Call = Callable[[Adapter, dict[str, Any]], Any]


def custom_generate(adapter: Adapter, inputs: dict[str, Any]) -> Any:
    method = limelight.custom_generate(limelight.strategy("greedy"), parent_model=adapter.parent_model)
    return adapter.parent_model.generate(**inputs, max_new_tokens=1, custom_generate=method)


CALLS: dict[str, Call] = {
    "attribute": limelight.attribute,
    "generate": lambda adapter, inputs: limelight.generate(adapter, messages=inputs, max_new_tokens=1),
    "custom_generate": custom_generate,
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@every_call
@pytest.mark.parametrize("name", ["llava", "qwen2_audio", "gemma3n"])
@pytest.mark.parametrize("token", [10**6, -3])
def test_token_ids_outside_of_the_vocabulary(name: str, token: int, call: Call) -> None:
    adapter = built(name)
    inputs = ZOO[name].inputs(adapter.model)
    inputs["input_ids"] = inputs["input_ids"].clone()
    inputs["input_ids"][0, -1] = token
    with pytest.raises(PromptError, match=f"got {token}") as caught:
        call(adapter, inputs)
    assert "another model" in (caught.value.hint or "")


@every_call
def test_a_model_whose_mask_overflows_in_float64(call: Call) -> None:
    adapter = built("kosmos2", torch.float64)
    with pytest.raises(UnsupportedError, match="cannot run in float64") as caught:
        call(adapter, ZOO["kosmos2"].inputs(adapter.parent_model))
    assert "float32" in (caught.value.hint or "")


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (1, 40), (40, 1)], ids=str)
def test_images_that_are_too_small(size: tuple[int, int]) -> None:
    adapter = limelight.wrap(built("mistral3").model, mistral3())
    kind: type[LimelightError] = MediaError if max(size) < 9 else PromptError  # the processor cannot resize a line
    with pytest.raises(kind) as caught:
        limelight.generate(adapter, messages="what ?", media={"image": Image.new("RGB", size)}, max_new_tokens=1)
    assert caught.value.hint
    several = [Image.new("RGB", (1, 1))] * 2
    assert limelight.generate(adapter, messages="what ?", media={"image": several}, max_new_tokens=1).steps


@pytest.mark.parametrize(
    "given", ["lime", limelight.lime, 3, type(limelight.lime())], ids=["name", "factory", "number", "class"]
)
def test_what_is_not_a_strategy(given: Any) -> None:
    adapter = built("llava")
    inputs = ZOO["llava"].inputs(adapter.model)
    with pytest.raises(SettingError, match="expected a strategy") as caught:
        adapter.model.generate(**inputs, max_new_tokens=1, custom_generate=limelight.custom_generate(given))
    assert caught.value.hint
    if not isinstance(given, str):
        with pytest.raises(SettingError, match="expected a strategy"):
            limelight.generate(adapter, messages=inputs, strategy=given, max_new_tokens=1)
