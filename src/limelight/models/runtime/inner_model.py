"""Models whose ``generate()`` hands the merged prompt on to the language model inside (BLIP-2, InstructBLIP)."""

from __future__ import annotations

from typing import Any

from limelight.errors import ModelError
from limelight.models.adapter import Adapter
from limelight.models.runtime.wrappers import unwrapped


def inside(whole: Adapter, model: Any) -> Adapter:
    """The adapter that ``generate()`` works on: ``whole``, or one of the language model inside that it has handed on to.

    Raises:
        ModelError: ``model`` is no part of ``whole``'s.
    """
    if unwrapped(model) is whole.model:
        return whole
    if not any(m is model for m in whole.model.modules()):
        raise ModelError(
            f"generate() runs a {type(model).__name__} that is no part of the {type(whole.model).__name__} given",
            hint="custom_generate(strategy, whole=...) takes the model whose generate() is called",
        )
    return Adapter(model, whole.processor, whole.model)
