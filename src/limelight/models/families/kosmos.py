"""Kosmos-2 and Kosmos-2.5: a mask marks the image positions, and position ids start after the padding id."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from limelight.errors import UnsupportedError
from limelight.models.families import Family


def _positions(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Add position ids, computed as by the decoder from token ids (from embeddings it could not detect padding).

    Raises:
        UnsupportedError: Kosmos-2 in float64.
    """
    wide = model.dtype is torch.float64 and torch.get_default_dtype() is not torch.float64
    if wide and model.config.get_text_config().model_type == "kosmos_2_text_model":
        raise UnsupportedError(
            "Kosmos-2 cannot run in float64: transformers builds its attention mask in torch's default dtype, which overflows",
            hint="use float32, or torch.set_default_dtype(torch.float64)",
        )
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor):
        return {}
    pad = model.config.get_text_config().pad_token_id
    real = (ids != pad).long()
    return {"position_ids": real.cumsum(dim=1) * real + pad}


FAMILY = Family(
    "kosmos",
    ("kosmos-2", "kosmos-2.5"),
    extra_inputs=_positions,
    marked=True,
    no_padding="transformers counts the positions of generated tokens from the start of the padding",
)
