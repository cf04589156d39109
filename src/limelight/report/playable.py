"""Encoding of audio for playback in a page."""

from __future__ import annotations

import base64
import io
import wave
from typing import Any

import numpy as np

from limelight.report import heat

LARGEST = 4 * 2**20
"""Maximum total characters of the audio of one page: about three minutes at 16 kHz."""


def playable(samples: heat.Floats, rate: int) -> str:
    """Encode mono samples ``[n]`` as a 16-bit data URL: FLAC, or WAV (about twice as long) where soundfile is not installed.

    Audio louder than full scale is scaled down instead of being clipped.
    """
    scale = 32767 / max(1.0, float(np.abs(samples).max(initial=0.0)))
    pcm = np.rint(samples * scale).astype("<i2")
    buffer = io.BytesIO()
    try:
        import soundfile
    except (ImportError, OSError):  # OSError: the package without its library
        with wave.open(buffer, "wb") as file:
            file.setparams((1, 2, rate, pcm.size, "NONE", ""))
            file.writeframes(pcm.tobytes())
        return _url("wav", buffer)
    soundfile.write(buffer, pcm, rate, format="FLAC", subtype="PCM_16")
    return _url("flac", buffer)


def _url(kind: str, buffer: io.BytesIO) -> str:
    return f"data:audio/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def bounded(sounds: list[dict[str, Any]]) -> None:
    """Remove the ``src`` of clips that would exceed ``LARGEST`` in total, in order; ``unheard`` explains it."""
    left = LARGEST
    for sound in sounds:
        if len(sound["src"]) <= left:
            left -= len(sound["src"])
            continue
        del sound["src"]
        sound["unheard"] = f"Too long to be played here: the audio of a page is limited to {LARGEST / 2**20:.0f} MB."
