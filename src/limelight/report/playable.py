"""A sound as something that a page can play."""

from __future__ import annotations

import base64
import io
import wave
from typing import Any

import numpy as np

from limelight.report import heat

LARGEST = 4 * 2**20
"""Characters that the sounds of one page may take together: about three minutes at 16 kHz."""


def playable(samples: heat.Floats, rate: int) -> str:
    """Mono samples ``[n]`` as a data URL of 16 bits: FLAC, or WAV (about twice as long) where soundfile is not installed.

    A sound louder than full scale is made quieter as a whole instead of being clipped.
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
    """Take the ``src`` of those sounds out, in order, that would bring all above ``LARGEST``; ``unheard`` says so."""
    left = LARGEST
    for sound in sounds:
        if len(sound["src"]) <= left:
            left -= len(sound["src"])
            continue
        del sound["src"]
        sound["unheard"] = (
            f"Too long to be played here: the sounds of a page may take {LARGEST / 2**20:.0f} MB together."
        )
