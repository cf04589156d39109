"""The views that a strategy took before it answered, for the page: each on the original, with its answer and margin."""

from __future__ import annotations

from typing import Any

from limelight.report.media import Media
from limelight.report.pictures import data_url
from limelight.types import Generation, TakenView

THUMBNAIL = 360  # longest side, pixels


def looks(generation: Generation, media: Media) -> list[dict[str, Any]]:
    """Return, for every token at which the media were looked at again, its text and its views as plain values.

    A view has ``place`` (in words), ``answer``, ``margin``, ``between``, ``weight``, ``src`` (a data URL of what it shows;
    none of a sound) and, of a part, ``box`` in percent of the medium: left, top, width, height.
    """
    return [
        {"text": step.text.strip() or step.text, "views": [_view(v, media) for v in step.views]}
        for step in generation.steps
        if step.views
    ]


def _view(view: TakenView, media: Media) -> dict[str, Any]:
    out: dict[str, Any] = {
        "kind": view.kind,
        "source": view.source,
        "place": place_of(view),
        "answer": view.answer.strip(),
        "margin": round(view.margin, 2),
        "between": [t.strip() for t in view.between],
        "weight": round(view.weight, 2),
    }
    if view.kind == "audio":
        if view.source < len(media.sounds):
            samples, rate = media.sounds[view.source]
            total = len(samples) / rate
            start, stop = view.interval or (0.0, total)
            out["box"] = [_percent(start, total), 0.0, _percent(stop - start, total), 100.0]
        return out
    picture = _picture(view, media)
    if picture is None:
        return out
    whole = picture.size
    if view.box is not None:
        left, top, right, bottom = view.box
        out["box"] = [_percent(left, whole[0]), _percent(top, whole[1]), _percent(right - left, whole[0]),
                      _percent(bottom - top, whole[1])]  # fmt: skip
        picture = picture.crop(
            (int(left), int(top), max(int(left) + 1, round(right)), max(int(top) + 1, round(bottom)))
        )
    out["src"] = data_url(picture, THUMBNAIL)
    return out


def _picture(view: TakenView, media: Media) -> Any:
    """The original picture; of a film the middle frame of the view."""
    if view.kind == "image":
        return media.pictures[view.source] if view.source < len(media.pictures) else None
    if view.source >= len(media.videos):
        return None
    frames, times = media.frames(view.source), media.times(view.source)
    if view.interval is None or len(times) != len(frames):
        return frames[len(frames) // 2]
    middle = sum(view.interval) / 2
    return frames[min(range(len(frames)), key=lambda i: abs(times[i] - middle))]


def _percent(part: float, whole: float) -> float:
    return round(100 * part / whole, 2) if whole else 0.0


def place_of(view: TakenView) -> str:
    """What a view shows, in words."""
    number = f" {view.source + 1}" if view.source else ""
    when = "" if view.interval is None else f"{view.interval[0]:.2f}-{view.interval[1]:.2f} s"
    where = "" if view.box is None else f"pixels {', '.join(f'{x:.0f}' for x in view.box)}"
    return f"{view.kind}{number}, {', '.join(t for t in (when, where) if t) or 'whole'}"
