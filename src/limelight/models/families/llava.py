"""LLaVA-1.5: only the paper's settings (first column of its table); everything else is in the config."""

from limelight.models.families import Family, PaperSettings

FAMILY = Family("llava", ("llava", "vipllava"), PaperSettings(lr=3e-4, kl_weight=0.1))
