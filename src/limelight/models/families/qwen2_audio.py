"""Qwen2-Audio: the paper's audio column; 25 positions a second."""

from limelight.models.families import Family, PaperSettings

FAMILY = Family("qwen2-audio", ("qwen2_audio",), PaperSettings(lr=5e-4, kl_weight=7e-3, markers=True))
