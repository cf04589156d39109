"""Qwen-VL-Chat: the paper's settings (third vision column), and its own checkpoint layout, built from transformers' parts."""

from limelight.models.checkpoints.formats import Published
from limelight.models.checkpoints.qwen_vl_chat import checkpoint
from limelight.models.families import Family, PaperSettings

FAMILY = Family(
    "qwen-vl-chat",
    ("qwen_vl_chat",),
    PaperSettings(lr=4e-4, kl_weight=0.1),
    published=Published(checkpoint.claims, checkpoint.load),
)
