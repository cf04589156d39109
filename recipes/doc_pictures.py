"""Draw the figures of docs/audio-video.md into docs/images: python -m recipes.doc_pictures

bell.png by demo-audio on a recording that is made here; film.png by demo-vision, a model of images, which is asked about every
frame of a film of four scenes: what speaks for "yes" rather than "no".
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image

import limelight
from limelight.cli.attribute import attribute
from limelight.demo.sound_language import DESCRIBE
from limelight.demo.synthesis import RATE, make
from limelight.media.image import read_image
from limelight.report.frames import contact_sheet
from limelight.types import Clip, Region, Relevance, Span

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"


def street(path: Path) -> None:
    """Write a recording of four seconds with a dog at 0.4 s and a bell at 2.2 s."""
    rng = np.random.default_rng(3)
    samples = 0.005 * rng.normal(size=4 * RATE).astype(np.float32)
    for name, start, seconds in (("dog", 0.4, 0.9), ("bell", 2.2, 1.2)):
        one = make(name, rng, int(seconds * RATE))
        samples[int(start * RATE) :][: len(one)] += 0.1 * one / np.sqrt(np.mean(one**2))
    soundfile.write(path, samples, RATE)


SCENES, ASKED = ("pizza", "hat", "pig", "fish"), "Is there a hat in the picture?"


def film_sheet(path: Path) -> None:
    """A contact sheet of single frames: the decision of every frame, and the text's of all, as one relevance."""
    adapter = limelight.load("demo-vision")
    frames = [read_image(str(limelight.example(name))) for name in SCENES]
    found = [limelight.attribute(adapter, messages=ASKED, media=f, target="yes", against="no") for f in frames]
    (image,) = found[0].spans_of("image")
    rows, columns = image.grid or (0, 0)
    texts = torch.stack([torch.cat([r.scores[: image.start], r.scores[image.stop :]]) for r in found]).mean(0)
    media = torch.cat([r.scores[image.start : image.stop] for r in found])
    tokens = [*found[0].tokens[: image.start], *found[0].tokens[image.stop :]]
    hidden = {i if i < image.start else i - len(image) for i in found[0].template}
    split, length = image.start, len(media)
    width, height = frames[0].size
    region = Region(0, (width, height), (0, 0, width, height), frames=tuple((i,) for i in range(len(frames))))
    spans = (
        Span(0, split, "text"),
        Span(split, split + length, "video", (len(frames), rows, columns), region=region),
        Span(split + length, len(tokens) + length, "text"),
    )
    joined = Relevance(
        torch.cat([texts[:split], media, texts[split:]]),
        (*tokens[:split], *["<video>"] * length, *tokens[split:]),
        spans,
        found[0].target,
        found[0].target_token,
        sum(r.logit for r in found) / len(found),
        against=found[0].against,
        against_token=found[0].against_token,
        template=frozenset(i if i < split else i + length for i in hidden),
    )
    clip = Clip(tuple(frames), tuple(2.0 * i for i in range(len(frames))))
    contact_sheet(joined, clip, path=path)


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
        attribute("demo-audio", DESCRIBE, audio=[wav], word="bell", overlay=IMAGES / "bell.png")
    film_sheet(IMAGES / "film.png")
    for name in ("bell.png", "film.png"):
        small(IMAGES / name)


if __name__ == "__main__":
    main()
