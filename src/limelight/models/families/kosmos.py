"""Kosmos-2 and Kosmos-2.5: a mask marks the image positions, and position ids start after the padding id."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from limelight.models.families import Family


def _positions(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Add position ids, computed as by the decoder from token ids (from embeddings it could not detect padding)."""
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor):
        return {}
    pad = model.config.get_text_config().pad_token_id
    real = (ids != pad).long()
    return {"position_ids": real.cumsum(dim=1) * real + pad}


FAMILY = Family("kosmos", ("kosmos-2", "kosmos-2.5"), extra_inputs=_positions, marked=True)
