"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL: the paper's settings (second column); the authors' span includes the vision markers."""

from limelight.models.families import Family, PaperSettings

FAMILY = Family(
    "qwen-vl",
    ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"),
    PaperSettings(lr=3e-4, kl_weight=0.1, markers=True),
)
