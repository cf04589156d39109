"""Which positions show what, and which part of a picture the model saw."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from limelight.errors import MediaError, SettingError
from limelight.report.media import WHOLE, Media, picture, seen_box
from limelight.report.views import views
from limelight.types import Clip, Prompt, Span
from tests.report import examples


def processor(**settings: object) -> SimpleNamespace:
    return SimpleNamespace(**settings)


@pytest.mark.parametrize(
    ("settings", "size", "expected"),
    [
        ({"do_center_crop": True, "crop_size": {"height": 224, "width": 224}, "size": {"shortest_edge": 224}}, (640, 480), (0.125, 0, 0.875, 1)),
        ({"do_center_crop": True, "crop_size": {"height": 224, "width": 224}, "size": {"shortest_edge": 448}}, (100, 100), (0.25, 0.25, 0.75, 0.75)),
        ({"do_center_crop": True, "crop_size": {"height": 50, "width": 50}, "size": {"height": 100, "width": 100}}, (300, 60), (0.25, 0.25, 0.75, 0.75)),
        ({"do_center_crop": True, "do_resize": False, "crop_size": {"height": 50, "width": 100}}, (200, 100), (0.25, 0.25, 0.75, 0.75)),
        ({"do_center_crop": False, "size": {"height": 384, "width": 384}}, (640, 480), WHOLE),
        ({"do_pad": True, "pad_to_square": lambda: None}, (200, 100), (0, -0.5, 1, 1.5)),
        ({}, (10, 10), WHOLE),
    ],
)  # fmt: skip
def test_seen_box(settings: dict[str, object], size: tuple[int, int], expected: tuple[float, ...]) -> None:
    assert seen_box(processor(**settings), size) == pytest.approx(expected)


def test_seen_box_is_what_clip_really_crops() -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    clip = CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 40, "width": 40}, do_normalize=False)
    columns = np.zeros((80, 160, 3), np.uint8)
    columns[..., 0] = np.arange(160)[None]
    image = picture_of(columns)
    seen = np.asarray(clip(image, return_tensors="np")["pixel_values"])[0, 0] * 255
    left, _, right, _ = seen_box(clip, image.size)
    assert seen[0, 0] == pytest.approx(left * 160, abs=3)
    assert seen[0, -1] == pytest.approx(right * 160, abs=3)


def picture_of(pixels: np.ndarray) -> object:
    from PIL import Image

    return Image.fromarray(pixels)


def test_one_span_a_picture() -> None:
    spans = (Span(0, 2, "text"), Span(2, 6, "image", (2, 2)), Span(6, 10, "image", (2, 2)), Span(10, 12, "text"))
    media = Media([examples.picture(), examples.picture()], [(0.1, 0, 0.9, 1), WHOLE])
    one, two = views(spans, media)
    assert (one.source, one.label, one.box) == (0, "picture 1", (0.1, 0, 0.9, 1))
    assert (two.source, two.label) == (1, "picture 2")
    assert [v.source for v in views(spans, Media())] == [None, None]


def test_tiles_are_bare() -> None:
    spans = tuple(Span(4 * i, 4 * i + 4, "image", (2, 2)) for i in range(3))
    found = views(spans, Media([examples.picture()]))
    assert [v.label for v in found] == [f"picture 1, tile {i} of 3" for i in (1, 2, 3)]
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
    assert [v.label for v in found] == ["frame 1 · 0.0 s", "frames 2–3 · 0.5–1.0 s", "frames 4–5 · 1.5–2.0 s"]
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
    media = Media.of(of, SimpleNamespace(image_processor=None))
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
