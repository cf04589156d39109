"""SALMONN: the paper's settings (second audio column), and its own checkpoint layout of several published parts."""

from typing import Any

from limelight.models.checkpoints.formats import Published
from limelight.models.checkpoints.salmonn import checkpoint
from limelight.models.families import Family, PaperSettings


def seconds(config: Any) -> float:
    """Return the duration of one audio input's positions: 20 ms per frame, ``window`` frames per query (0.34 s)."""
    return 0.02 * int(config.window) * int(config.audio_seq_length) / int(config.queries)


FAMILY = Family(
    "salmonn",
    ("salmonn",),
    PaperSettings(),
    seconds=seconds,
    transcribe="Recognize the speech and give me the transcription.",
    published=Published(checkpoint.claims, checkpoint.load),
)
