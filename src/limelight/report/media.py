"""What was looked at or listened to."""

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
        pictures: RGB pictures. ``boxes``: for spans without a region (see :class:`limelight.types.Span`), the part of
            each picture that its positions show, as fractions of width and height (outside [0, 1]: padding).
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
                f"{len(self.boxes)} boxes for {len(self.pictures)} pictures",
                hint="give one box a picture, or none",
            )

    def box(self, index: int) -> Box:
        return self.boxes[index] if self.boxes else WHOLE

    def frames(self, video: int) -> Sequence[Image.Image]:
        chosen = self.videos[video]
        return chosen.frames if isinstance(chosen, Clip) else chosen

    def times(self, video: int) -> Sequence[float]:
        """Seconds of each frame; empty where not known."""
        chosen = self.videos[video]
        return chosen.seconds if isinstance(chosen, Clip) else ()

    @classmethod
    def of(cls, prompt: Prompt) -> Media:
        """What of ``prompt.media`` can be shown: pictures (objects or files), ``(samples, rate)``, clips, lists of frames.

        A prompt that ``Adapter.prepare`` made holds sound and video decoded. Files are left out (reading them is the
        models layer's work): their positions are still shown, over time instead of over a waveform.
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
    """An upright RGB picture from an object or a file, as the models see it.

    Raises:
        MediaError: see :func:`read_image`.
    """
    return read_image(source)
