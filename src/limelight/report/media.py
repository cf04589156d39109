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
from limelight.types import Clip, Prompt

Box = tuple[float, float, float, float]
Samples = npt.NDArray[np.float32]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Media:
    """Decoded media in the order of the prompt.

    Attributes:
        pictures: RGB pictures. ``boxes``: the part of each that the model saw, (left, top, right, bottom) as fractions
            of width and height (outside [0, 1] where it was padded); all of it when left out.
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
                hint="give one box a picture, or none (the whole picture)",
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
    def of(cls, prompt: Prompt, processor: Any = None) -> Media:
        """What of ``prompt.media`` can be shown: pictures (objects or files), ``(samples, rate)``, clips, lists of frames.

        A prompt that ``Adapter.prepare`` made holds sound and video decoded. Files are left out (reading them is the
        models layer's work): their positions are still shown, over time instead of over a waveform. With the model's
        ``processor`` the boxes are told from its settings.
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
        boxes = [seen_box(getattr(processor, "image_processor", None), p.size) for p in pictures]
        complete = len(sounds) == len(media.get("audio", ())), len(videos) == len(media.get("video", ()))
        return cls(pictures, boxes, sounds if complete[0] else (), videos if complete[1] else ())


def picture(source: Any) -> Image.Image:
    """An upright RGB picture from an object or a file, as the models see it.

    Raises:
        MediaError: see :func:`read_image`.
    """
    return read_image(source)


def seen_box(image_processor: Any, size: tuple[int, int]) -> Box:
    """The part of a picture of ``size`` (width, height) that an image processor hands to the model, as fractions.

    Told from the processor's settings: resizing and centre crop (CLIP), padding to a square; a processor that squeezes
    the whole picture into its shape, or cuts it into tiles, sees all of it.
    """
    width, height = size
    if getattr(image_processor, "do_pad", False) and callable(getattr(image_processor, "pad_to_square", None)):
        side = max(width, height)
        dx, dy = (side - width) / 2 / width, (side - height) / 2 / height
        return (-dx, -dy, 1 + dx, 1 + dy)
    if not getattr(image_processor, "do_center_crop", False):
        return WHOLE
    crop, target = image_processor.crop_size, getattr(image_processor, "size", None) or {}
    shortest = _get(target, "shortest_edge") if getattr(image_processor, "do_resize", True) else None
    if shortest:
        scale = (shortest / min(width, height),) * 2
    elif getattr(image_processor, "do_resize", True) and _get(target, "height"):
        scale = (_get(target, "width") / width, _get(target, "height") / height)
    else:
        scale = (1.0, 1.0)
    w, h = _get(crop, "width") / scale[0] / width, _get(crop, "height") / scale[1] / height
    return ((1 - w) / 2, (1 - h) / 2, (1 + w) / 2, (1 + h) / 2)


def _get(size: Any, name: str) -> float:
    value = size.get(name) if hasattr(size, "get") else getattr(size, name, None)
    return float(value or 0)
