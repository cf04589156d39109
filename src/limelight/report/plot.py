"""``Relevance.plot``: the figure that suits the media."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from limelight.errors import SettingError
from limelight.media.audio import read_audio
from limelight.media.image import read_image
from limelight.report.frames import contact_sheet
from limelight.report.media import Media
from limelight.report.overlay import overlay
from limelight.report.waveform import waveform
from limelight.types import Clip, Relevance

RATE = 16000


def plot(relevance: Relevance, media: Any = None, **settings: Any) -> Figure:
    """Draw a relevance over its image (overlay), audio (waveform) or video (contact sheet).

    Args:
        media: a Media, ``Prompt.media``, a file, an image, ``(samples, rate)``, a Clip, or a list of images.

    Raises:
        SettingError: the relevance has no image, audio or video. MediaError: a file that cannot be read.
    """
    kinds = {s.modality for s in relevance.spans} - {"text"}
    if not kinds:
        raise SettingError(
            "the prompt has no image, audio or video to draw relevance over",
            hint="relevance.top(10), or relevance.to_pandas()",
        )
    shown = media_of(media, "audio" if kinds == {"audio"} else "image")
    if shown.videos and ("video" in kinds or not shown.pictures):
        return contact_sheet(relevance, shown, **settings)
    if "image" in kinds:
        return overlay(relevance, shown, **settings)
    if "video" in kinds:
        raise SettingError("a video is drawn over its frames", hint="relevance.plot(prompt.media)")
    samples, rate = shown.sounds[settings.get("index", 0)] if shown.sounds else (None, RATE)
    return waveform(relevance, samples, rate, **settings)


def media_of(given: Any, kind: str) -> Media:
    """Return what was given as a Media; ``kind``: what a file is."""
    if given is None:
        return Media()
    if isinstance(given, Media):
        return given
    if isinstance(given, Mapping):
        lists = {k: v if isinstance(v, (list, tuple)) and not _sound(v) else [v] for k, v in given.items()}
        return Media(
            [read_image(i) for i in lists.get("image", ())],
            (),
            [s if _sound(s) else (read_audio(s, RATE), RATE) for s in lists.get("audio", ())],
            lists.get("video", ()),
        )
    if isinstance(given, Clip):
        return Media(videos=[given])
    if _sound(given) or kind == "audio":
        return Media(sounds=[given if _sound(given) else (read_audio(given, RATE), RATE)])
    many = isinstance(given, Sequence) and not isinstance(given, (str, bytes, Image.Image))
    return Media([read_image(i) for i in (given if many else [given])])


def _sound(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], int) and hasattr(value[0], "shape")
