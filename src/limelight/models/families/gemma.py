"""PaliGemma and Gemma 3: attention that is not causal within the prompt, determined by token_type_ids."""

from collections.abc import Mapping
from typing import Any

from limelight.models.families import Family


def _types(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Add token_type_ids. Gemma 3: 1 at image positions, which attend to each other. PaliGemma: 0 everywhere, since the whole
    prompt is a prefix."""
    ids = inputs.get("input_ids")
    if ids is None or inputs.get("token_type_ids") is not None:
        return {}
    image = ids == model.config.image_token_id
    return {"token_type_ids": (image if model.config.model_type == "gemma3" else image & ~image).long()}


FAMILY = Family("gemma", ("gemma3", "paligemma"), extra_inputs=_types)
