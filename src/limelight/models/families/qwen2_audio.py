"""Qwen2-Audio: the paper's settings (audio column of its table); 25 positions per second."""

from limelight.models.families import Family, PaperSettings

FAMILY = Family("qwen2-audio", ("qwen2_audio",), PaperSettings(lr=5e-4, kl_weight=7e-3, markers=True))
