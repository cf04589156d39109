"""The decoded media of a prompt, for drawing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from limelight.errors import SettingError
from limelight.media.image import read_image
from limelight.types import Box, Clip, Prompt

Samples = npt.NDArray[np.float32]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Media:
    """Decoded media in the order of the prompt.

    Attributes:
        pictures: RGB images. ``boxes``: for spans without a region (see :class:`limelight.types.Span`), the part of
            each image that its positions show, as fractions of width and height (outside [0, 1]: padding).
        sounds: (mono samples ``[n]``, Hz).
        videos: the frames that the model was given, with their times where these are known.
    """

    pictures: Sequence[Image.Image] = ()
    boxes: Sequence[Box] = ()
    sounds: Sequence[tuple[Samples, int]] = ()
    videos: Sequence[Clip | Sequence[Image.Image]] = ()

    def __post_init__(self) -> None:
        if self.boxes and len(self.boxes) != len(self.pictures):
            raise SettingError(
                f"{len(self.boxes)} boxes for {len(self.pictures)} images",
                hint="give one box per image, or none",
            )

    def box(self, index: int) -> Box:
        return self.boxes[index] if self.boxes else WHOLE

    def frames(self, video: int) -> Sequence[Image.Image]:
        chosen = self.videos[video]
        return chosen.frames if isinstance(chosen, Clip) else chosen

    def times(self, video: int) -> Sequence[float]:
        """Return the time of each frame in seconds; empty where unknown."""
        chosen = self.videos[video]
        return chosen.seconds if isinstance(chosen, Clip) else ()

    @classmethod
    def of(cls, prompt: Prompt) -> Media:
        """Return the displayable part of ``prompt.media``: images (objects or files), ``(samples, rate)``, clips, lists of frames.

        Prompts from ``Adapter.prepare`` have decoded audio and video. Audio and video files are omitted (they are read by
        the models layer): their positions are shown over time instead of over a waveform.
        """
        media = prompt.media
        pictures = [picture(p) for p in media.get("image", ())]
        sounds = [
            (np.asarray(s[0], dtype=np.float32), int(s[1])) for s in media.get("audio", ()) if isinstance(s, tuple)
        ]
        videos = [
            v if isinstance(v, Clip) else [picture(f) for f in v]
            for v in media.get("video", ())
            if isinstance(v, (Clip, list, tuple))
        ]
        complete = len(sounds) == len(media.get("audio", ())), len(videos) == len(media.get("video", ()))
        return cls(pictures, (), sounds if complete[0] else (), videos if complete[1] else ())


def picture(source: Any) -> Image.Image:
    """Read an upright RGB image from an object or a file, as the models see it.

    Raises:
        MediaError: see :func:`read_image`.
    """
    return read_image(source)
