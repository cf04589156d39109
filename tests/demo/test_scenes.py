"""The pictures: the same from the same seed, other splits other pictures, boxes around the objects."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from limelight.demo import scenes
from limelight.demo.scenes import CO_OCCURRENCE, INDEPENDENT, OBJECTS, SIZE, SPLITS, TRIOS, VISIBILITIES, render, scene


@pytest.mark.parametrize("kind", ["independent", "trio", "broken"])
@pytest.mark.parametrize("visibility", VISIBILITIES)
def test_a_scene_is_fixed_by_its_key(kind: scenes.Kind, visibility: scenes.Visibility) -> None:
    one, two = scene("test", kind, visibility, 5), scene("test", kind, visibility, 5)
    assert one == two
    assert np.array_equal(np.asarray(one.image()), np.asarray(two.image()))
    assert one.image().size == (SIZE, SIZE)
    assert one.image().tobytes() != scene("test", kind, visibility, 6).image().tobytes()


def test_splits_share_no_picture() -> None:
    seen = [scene(split, "independent", "clear", i).image().tobytes() for split in SPLITS for i in range(20)]
    assert len(set(seen)) == len(seen)


def test_held_out_textures_are_not_in_training() -> None:
    held = set(scenes._HELD_OUT.values())
    assert "train" not in scenes._HELD_OUT
    assert not held & set(scenes._TEXTURES)


def test_boxes_hold_the_visible_pixels() -> None:
    for index in range(30):
        picture = scene("dev", "independent" if index % 2 else "trio", "clear", index)
        _, masks = render(picture)
        for name, (left, top, right, bottom) in picture.boxes.items():
            assert 0 <= left < right <= SIZE
            assert 0 <= top < bottom <= SIZE
            mask = masks[name] > 0.25
            assert mask.sum() > 100
            outside = mask.copy()
            outside[top:bottom, left:right] = False
            assert not outside.any()
            assert mask.sum() > 0.25 * (right - left) * (bottom - top)


def test_kinds_hold_what_they_promise() -> None:
    for index in range(40):
        assert set(scene("dev", "trio", "poor", index).names) in [set(trio) for trio in TRIOS]
        broken = scene("dev", "broken", "clear", index)
        assert len(broken.names) == 2
        assert {*broken.names, broken.missing} in [set(trio) for trio in TRIOS]
        picture = scene("dev", "independent", "clear", index)
        assert 1 <= len(picture.names) <= 2
        assert set(picture.names) <= set(INDEPENDENT)
        assert picture.missing is None
        assert picture.names == tuple(sorted(picture.names, key=lambda n: picture.boxes[n][0] + picture.boxes[n][2]))
        assert "cup" in scene("dev", "independent", "clear", index, contains="cup").names


def test_worse_visibility_is_further_from_the_object() -> None:
    def contrast(visibility: scenes.Visibility) -> float:
        values = []
        for index in range(15):
            pixels, masks = render(scene("dev", "independent", visibility, index, contains="strawberry"))
            inside = masks["strawberry"] > 0.5
            values.append(pixels[inside].mean(0)[0] - pixels[inside].mean(0)[2])  # redness of a strawberry
        return float(np.mean(values))

    assert contrast("clear") > contrast("medium") > contrast("poor")


def test_training_pictures_keep_trios_together() -> None:
    from recipes.demo_vision.data import training_scene

    kinds = [training_scene(index).kind for index in range(1500)]
    together = kinds.count("trio") / (kinds.count("trio") + kinds.count("broken"))
    assert abs(together - CO_OCCURRENCE) < 0.04


def test_icons_and_errors() -> None:
    assert all(scenes.icon(name).mode == "RGBA" for name in OBJECTS)
    with pytest.raises(ValueError, match="no icon named"):
        scenes.icon("unicorn")
    with pytest.raises(ValueError, match="kind must be"):
        scene("dev", "other", "clear", 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="contains must be"):
        scene("dev", "independent", "clear", 0, contains="fish")


def test_no_torch_is_imported() -> None:
    code = "import sys, limelight.demo.questions; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
