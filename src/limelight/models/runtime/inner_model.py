"""Models whose ``generate()`` delegates to an inner language model (BLIP-2, InstructBLIP)."""

from __future__ import annotations

from typing import Any

from limelight.errors import ModelError
from limelight.models.adapter import Adapter
from limelight.models.runtime.wrappers import unwrapped


def inside(parent: Adapter, model: Any) -> Adapter:
    """Return the adapter that ``generate()`` works on: ``parent``, or an adapter of the inner language model.

    Raises:
        ModelError: ``model`` is not part of ``parent``'s model.
    """
    if unwrapped(model) is parent.model:
        return parent
    if not any(m is model for m in parent.model.modules()):
        raise ModelError(
            f"generate() runs a {type(model).__name__} that is not part of the given {type(parent.model).__name__}",
            hint="custom_generate(strategy, parent_model=...) takes the model whose generate() is called",
        )
    inner = Adapter(model, parent.processor, parent.model)
    inner.calibration = parent.calibration
    return inner
