"""Whisper: its checkpoints in CTranslate2's layout are read as well."""

from limelight.models.checkpoints import whisper_ct2
from limelight.models.checkpoints.formats import Convertible
from limelight.models.families import Family

FAMILY = Family("whisper", ("whisper",), published=Convertible(whisper_ct2.claims, whisper_ct2.convert))
