"""Draw the figures of docs/audio-video.md into docs/images: python -m recipes.doc_pictures

bell.png: demo-audio on a synthetic recording. film.png: the constructed model of tests/cli/tiny_film.py, which only responds to
brightness.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image
from tests.cli.tiny_film import save_checkpoint
from tests.models.films import film

from limelight.cli.attribute import attribute
from limelight.demo.sound_language import DESCRIBE
from limelight.demo.synthesis import RATE, make

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"


def street(path: Path) -> None:
    """Write a recording of four seconds with a dog at 0.4 s and a bell at 2.2 s."""
    rng = np.random.default_rng(3)
    samples = 0.005 * rng.normal(size=4 * RATE).astype(np.float32)
    for name, start, seconds in (("dog", 0.4, 0.9), ("bell", 2.2, 1.2)):
        one = make(name, rng, int(seconds * RATE))
        samples[int(start * RATE) :][: len(one)] += 0.1 * one / np.sqrt(np.mean(one**2))
    soundfile.write(path, samples, RATE)


def small(path: Path, width: int = 1000) -> None:
    with Image.open(path) as drawn:
        picture = drawn.convert("RGB").resize(
            (width, round(drawn.height * width / drawn.width)), Image.Resampling.LANCZOS
        )
    picture.save(path, optimize=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        wav, mp4 = Path(folder) / "street.wav", Path(folder) / "film.mp4"
        street(wav)
        attribute("demo-audio", DESCRIBE, audio=[wav], word="bell", overlay=IMAGES / "bell.png")
        film(mp4, [0] * 8, lit=(4, 5))
        planted = save_checkpoint(Path(folder) / "planted")
        attribute(str(planted), "what is here ?", video=[mp4], max_new_tokens=1, overlay=IMAGES / "film.png")
    for name in ("bell.png", "film.png"):
        small(IMAGES / name)


if __name__ == "__main__":
    main()
