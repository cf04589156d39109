"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL: M-RoPE needs mm_token_type_ids, without which positions are silently those of text."""

from collections.abc import Mapping
from typing import Any

from limelight.models.families import Family, PaperSettings


def _type_ids(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    if inputs.get("mm_token_type_ids") is not None or inputs.get("input_ids") is None:
        return {}
    ids = inputs["input_ids"]
    config = model.config
    types = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
    return {"mm_token_type_ids": types}


FAMILY = Family(
    "qwen-vl",
    ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"),
    PaperSettings(lr=3e-4, kl_weight=0.1, markers=True),
    extra_inputs=_type_ids,
)
