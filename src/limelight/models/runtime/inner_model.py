"""Models whose ``generate()`` hands the merged prompt on to the language model inside (BLIP-2, InstructBLIP)."""

from __future__ import annotations

from typing import Any

from limelight.errors import ModelError
from limelight.models.adapter import Adapter
from limelight.models.runtime.wrappers import unwrapped


def inside(parent: Adapter, model: Any) -> Adapter:
    """The adapter that ``generate()`` works on: ``parent``, or one of the language model inside that it has handed on to.

    Raises:
        ModelError: ``model`` is no part of ``parent``'s.
    """
    if unwrapped(model) is parent.model:
        return parent
    if not any(m is model for m in parent.model.modules()):
        raise ModelError(
            f"generate() runs a {type(model).__name__} that is no part of the {type(parent.model).__name__} given",
            hint="custom_generate(strategy, parent_model=...) takes the model whose generate() is called",
        )
    inner = Adapter(model, parent.processor, parent.model)
    inner.calibration = parent.calibration
    return inner
