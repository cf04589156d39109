"""Draw the figures of docs/audio-video.md into docs/images: python -m recipes.doc_pictures

bell.png by demo-audio on a recording that is made here; film.png by demo-video on a shipped film: the word pizza of its caption.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from limelight.demo.film_language import DESCRIBE as WATCH
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


def draw(model: str, *options: str) -> None:
    """Run `limelight attribute` in the folder of the pictures."""
    done = subprocess.run([sys.executable, "-m", "limelight", "attribute", model, *options], cwd=IMAGES, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def small(path: Path, width: int = 1000) -> None:
    with Image.open(path) as drawn:
        picture = drawn.convert("RGB").resize(
            (width, round(drawn.height * width / drawn.width)), Image.Resampling.LANCZOS
        )
    picture.save(path, optimize=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "street.wav"
        street(wav)
        draw("demo-audio", "--audio", str(wav), "--prompt", DESCRIBE, "--word", "bell", "--overlay", "bell.png")
    film = ("--video", "example:pizza-film", "--prompt", WATCH, "--word", "pizza", "--overlay", "film.png")
    draw("demo-video", *film)
    for name in ("bell.png", "film.png"):
        small(IMAGES / name)


if __name__ == "__main__":
    main()
