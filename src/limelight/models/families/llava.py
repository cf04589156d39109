"""LLaVA-1.5: everything is in the config; the paper's first column."""

from limelight.models.families import Family, PaperSettings

FAMILY = Family("llava", ("llava", "vipllava"), PaperSettings(lr=3e-4, kl_weight=0.1))
