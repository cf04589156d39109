"""Phi-4-multimodal: asked in the words of its model card."""

from limelight.models.families import Family

FAMILY = Family("phi4-multimodal", ("phi4_multimodal",), transcribe="Transcribe the audio clip into text.")
