"""Which positions show what, and which part of a picture the model saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from limelight.errors import MediaError, SettingError
from limelight.report.media import WHOLE, Media, picture
from limelight.report.views import stages, views
from limelight.types import Clip, Interval, Prompt, Region, Span
from tests.report import examples


def test_one_span_a_picture() -> None:
    spans = (Span(0, 2, "text"), Span(2, 6, "image", (2, 2)), Span(6, 10, "image", (2, 2)), Span(10, 12, "text"))
    media = Media([examples.picture(), examples.picture()], [(0.1, 0, 0.9, 1), WHOLE])
    one, two = views(spans, media)
    assert (one.source, one.label, one.box) == (0, "image 1", (0.1, 0, 0.9, 1))
    assert (two.source, two.label) == (1, "image 2")
    assert [v.source for v in views(spans, Media())] == [None, None]


def test_regions_place_what_spans_show() -> None:
    """Tiles beside one another are one stage, the picture as a whole another; a class token has no place."""
    halves = [Region(1, (80, 40), (x, 0, x + 40.0, 40)) for x in (0.0, 40.0)]
    whole = Region(1, (80, 40), (-10, 0, 90, 40))
    spans = (
        Span(0, 4, "image", (2, 2), region=halves[0]),
        Span(4, 8, "image", (2, 2), region=halves[1]),
        Span(8, 9, "image"),
        Span(9, 13, "image", (2, 2), region=whole),
        Span(13, 14, "text"),
    )
    found = views(spans, Media([examples.picture(), examples.picture(80, 40)]))
    assert [v.source for v in found] == [1, 1, None, 1]
    assert [v.label for v in found] == ["image 2, 2 tiles", "image 2, 2 tiles", "image", "image 2, in 2 x 2"]
    assert [len(s) for s in stages(found)] == [2, 1, 1]
    assert found[0].box == (0, 0, 0.5, 1)
    assert found[3].box == (-0.125, 0, 1.125, 1)
    alone = views(spans[:2], Media([examples.picture(), examples.picture(80, 40)]))
    assert {v.label for v in alone} == {"image 2"}


def test_regions_of_films_tell_frames_and_place() -> None:
    frames = [examples.picture() for _ in range(5)]
    region = Region(0, (112, 112), (10, 0, 102, 112), ((0, 1), (2, 3), (4,)))
    (found,) = views((Span(0, 12, "video", (3, 2, 2), region=region),), Media(videos=[frames]))
    assert found.steps == ((0, "frames 1–2"), (2, "frames 3–4"), (4, "frame 5"))
    assert found.box == (10 / 112, 0, 102 / 112, 1)
    (film,) = views((Span(0, 4, "image", (2, 2), region=Region(0, (112, 112), (0, 0, 112, 112), ((3,),))),),
                    Media(videos=[frames]))  # fmt: skip
    assert (film.kind, film.steps) == ("video", ((3, "frame 4"),))


def test_windows_of_one_sound_are_one_stage() -> None:
    spans = tuple(Span(4 * i, 4 * i + 4, "audio", None, 0.5, interval=Interval(0, 2.0 * i, 3.0)) for i in range(2))
    found = views(spans, Media(sounds=[examples.tone()]))
    assert [(v.source, v.label) for v in found] == [(0, "audio"), (0, "audio")]
    assert len(stages(found)) == 1


def test_tiles_are_bare() -> None:
    spans = tuple(Span(4 * i, 4 * i + 4, "image", (2, 2)) for i in range(3))
    found = views(spans, Media([examples.picture()]))
    assert [v.label for v in found] == [f"image 1, tile {i} of 3" for i in (1, 2, 3)]
    assert all(v.source is None for v in found)


def test_a_span_without_layout_is_one_row() -> None:
    (found,) = views((Span(0, 5, "image"),), Media([examples.picture()]))
    assert found.source is None
    assert found.grid == (1, 5)


def test_frames_as_spans_and_video_as_one_span() -> None:
    frames = [examples.picture() for _ in range(3)]
    each = tuple(Span(4 * i, 4 * i + 4, "image", (2, 2)) for i in range(3))
    assert [(v.kind, v.source, v.steps, v.label) for v in views(each, Media(videos=[frames]))] == [
        ("video", 0, ((i, f"frame {i + 1}"),), f"frame {i + 1}") for i in range(3)
    ]
    (whole,) = views((Span(0, 12, "video", (3, 2, 2)),), Media(videos=[frames]))
    assert (whole.source, len(whole.steps), whole.label, whole.grid) == (0, 3, "video", (3, 2, 2))


def test_steps_in_time_as_spans_of_their_own() -> None:
    """Qwen3-VL: one span a pair of frames, with words between; LLaVA-OneVision: a newline embedding at the end."""
    clip = Clip(tuple(examples.picture() for _ in range(5)), (0.0, 0.5, 1.0, 1.5, 2.0))
    spans = tuple(Span(6 * i, 6 * i + 4, "video", (1, 2, 2)) for i in range(3))
    found = views(spans, Media(videos=[clip]))
    assert [v.label for v in found] == ["frames 1–2 · 0.0–0.5 s", "frames 3–4 · 1.0–1.5 s", "frame 5 · 2.0 s"]
    assert all(v.source == 0 for v in found)
    two = views(
        tuple(Span(4 * i, 4 * i + 4, "video", (1, 2, 2)) for i in range(4)), Media(videos=[clip, clip.frames[:2]])
    )
    assert [v.source for v in two] == [0, 0, 0, 1]
    assert two[3].label == "video 2, frames 1–2"
    whole = views((Span(0, 20, "video", (5, 2, 2)), Span(20, 21, "video")), Media(videos=[clip]))
    assert [len(v.steps) for v in whole] == [5, 0]
    assert whole[1].label == "end of the video"
    odd = views(tuple(Span(4 * i, 4 * i + 4, "video", (1, 2, 2)) for i in range(11)), Media(videos=[clip, clip]))
    assert all(v.source is None for v in odd)  # eleven steps fit no two videos of five frames


def test_row_breaks_are_not_drawn() -> None:
    span = Span(2, 14, "image", (3, 4), margin=1)
    (found,) = views((span,), Media([examples.picture()]))
    scores = np.arange(16, dtype=np.float32)
    assert found.grid == (3, 3)
    np.testing.assert_array_equal(found.cells(scores), [[2, 3, 4], [6, 7, 8], [10, 11, 12]])


def test_media_of_a_prompt(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    examples.picture(30, 20).save(file)
    tone = examples.tone()
    of = Prompt(
        {}, (), (), {"image": [str(file), examples.picture()], "audio": [tone], "video": [[examples.picture()]]}
    )
    media = Media.of(of)
    assert [p.size for p in media.pictures] == [(30, 20), (112, 112)]
    assert media.sounds[0][1] == tone[1]
    assert len(media.videos[0]) == 1
    left_out = Media.of(Prompt({}, (), (), {"audio": ["x.wav"], "video": ["x.mp4"]}))
    assert (left_out.sounds, left_out.videos) == ((), ())


def test_what_cannot_be_shown(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="got int"):
        picture(3)
    broken = tmp_path / "b.png"
    broken.write_bytes(b"not a picture")
    with pytest.raises(MediaError, match=r"b\.png"):
        picture(broken)
    with pytest.raises(SettingError, match="1 boxes for 2"):
        Media([examples.picture()] * 2, [WHOLE])
