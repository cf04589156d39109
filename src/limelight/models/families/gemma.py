"""PaliGemma and Gemma3: masks that are not causal over the prompt, told by token_type_ids."""

from collections.abc import Mapping
from typing import Any

from limelight.models.families import Family


def _types(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Gemma3: 1 at a picture, whose positions see one another. PaliGemma: 0 all over, for a prompt is all prefix."""
    ids = inputs.get("input_ids")
    if ids is None or inputs.get("token_type_ids") is not None:
        return {}
    image = ids == model.config.image_token_id
    return {"token_type_ids": (image if model.config.model_type == "gemma3" else image & ~image).long()}


FAMILY = Family("gemma", ("gemma3", "paligemma"), extra_inputs=_types)
