"""SALMONN: the paper's second audio column; its parts read from where they are published."""

from typing import Any

from limelight.models.checkpoints.formats import Published
from limelight.models.checkpoints.salmonn import checkpoint
from limelight.models.families import Family, PaperSettings


def seconds(config: Any) -> float:
    """Of sound that the positions of one medium stand for: 20 ms a frame, ``window`` frames a query (0.34 s)."""
    return 0.02 * int(config.window) * int(config.audio_seq_length) / int(config.queries)


FAMILY = Family(
    "salmonn",
    ("salmonn",),
    PaperSettings(),
    seconds=seconds,
    transcribe="Recognize the speech and give me the transcription.",
    published=Published(checkpoint.claims, checkpoint.load),
)
