"""smol-vision, as shipped: a projector and low-rank changes; once loaded it is a LLaVA like others."""

from limelight.models.checkpoints import smol_vision
from limelight.models.checkpoints.formats import Published
from limelight.models.families import Family

FAMILY = Family("smol-vision", (smol_vision.KIND,), published=Published(smol_vision.claims, smol_vision.load))
