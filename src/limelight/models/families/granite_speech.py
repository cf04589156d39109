"""Granite-speech: the transcription prompt of its model card."""

from limelight.models.families import Family

FAMILY = Family(
    "granite-speech", ("granite_speech",), transcribe="can you transcribe the speech into a written format?"
)
