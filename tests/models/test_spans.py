"""Runs become pictures, tiles, frames and seconds: by the processor's grids, the config, or a family's own way."""

from __future__ import annotations

import itertools
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limelight.models.families import families
from limelight.models.families.llava_next import tiled_grid
from limelight.models.spans import grown, layouts, newline_grid, runs, squares, tower_side
from limelight.types import MODALITIES, Span
from tests.tiny import built
from tests.zoo import ZOO


def config(**values: Any) -> Any:
    vision = SimpleNamespace(**values.pop("vision", {}))
    return SimpleNamespace(vision_config=vision, **values)


def told(spans: Any) -> list[tuple[int, int, str, Any]]:
    return [(s.start, s.stop, s.modality, s.grid) for s in spans if s.modality != "text"]


def row(*parts: tuple[int, int]) -> torch.Tensor:
    """(modality, length) pairs as one row of ids."""
    return torch.tensor([[m for m, n in parts for _ in range(n)]])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_runs_are_a_maximal_partition(ids: list[int]) -> None:
    spans = runs(ids)
    assert spans[0].start == 0
    assert spans[-1].stop == len(ids)
    assert [MODALITIES.index(s.modality) for s in spans for _ in range(len(s))] == ids
    assert all(a.stop == b.start and a.modality != b.modality for a, b in itertools.pairwise(spans))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 50)), min_size=1, max_size=6), st.integers(0, 20))
def test_whatever_the_layout_the_spans_partition_the_row(parts: list[tuple[int, int]], more: int) -> None:
    ids = row(*parts)
    length = ids.shape[1]
    conf = config(vision={"image_size": 16, "patch_size": 4}, image_seq_length=9)
    for family in (None, *{f.pictures for f in families().values() if f.pictures}):
        if family is not None:
            conf.image_grid_pinpoints, conf.vision_config.image_size = [[16, 32]], 16
        spans = grown(
            layouts(ids, conf, {"image_sizes": torch.tensor([[16, 24], [9, 9]])}, [1.0], family)[0], length + more
        )
        assert spans[0].start == 0
        assert spans[-1].stop == length + more
        assert all(a.stop == b.start for a, b in itertools.pairwise(spans))
        inside = [s.modality for s in spans for _ in range(len(s))]
        assert inside == [MODALITIES[int(i)] for i in ids[0]] + ["text"] * more


def test_a_square_picture_and_several_of_them() -> None:
    conf = config(vision={"image_size": 16, "patch_size": 4})
    assert told(layouts(row((0, 3), (1, 16), (0, 2)), conf, {})[0]) == [(3, 19, "image", (4, 4))]
    two = told(
        layouts(
            row(
                (1, 32),
            ),
            conf,
            {},
        )[0]
    )
    assert two == [(0, 16, "image", (4, 4)), (16, 32, "image", (4, 4))]


def test_declared_lengths_come_first() -> None:
    for name in ("image_seq_length", "mm_tokens_per_image", "image_seq_len"):
        conf = config(vision={"image_size": 16, "patch_size": 4}, **{name: 4})
        assert told(squares(Span(0, 8, "image"), conf)) == [(0, 4, "image", (2, 2)), (4, 8, "image", (2, 2))]


@pytest.mark.parametrize(
    ("extra", "side"), [({"downsample_ratio": 0.5}, 3), ({"scale_factor": 2}, 3), ({"scale_factor": 3}, 2), ({}, 6)]
)
def test_tiles_shrink_according_to_the_config(extra: dict[str, Any], side: int) -> None:
    conf = config(vision={"image_size": [24, 24], "patch_size": [4, 4]}, **extra)
    assert tower_side(conf) == 6
    count = side * side
    tiles = squares(Span(5, 5 + 4 * count, "image"), conf)
    assert [s.grid for s in tiles] == [(side, side)] * 4  # four tiles of 3 x 3 are not one of 6 x 6


def test_a_class_token_stands_before_its_grid() -> None:
    conf = config(vision={"image_size": 16, "patch_size": 4}, vision_feature_select_strategy="full")
    assert told(squares(Span(2, 36, "image"), conf)) == [
        (2, 3, "image", None), (3, 19, "image", (4, 4)), (19, 20, "image", None), (20, 36, "image", (4, 4))
    ]  # fmt: skip


def test_what_fits_nothing_keeps_its_layout_to_itself() -> None:
    assert told(squares(Span(0, 7, "image"), config(vision={"image_size": 16, "patch_size": 4}))) == [
        (0, 7, "image", None)
    ]
    assert told(squares(Span(0, 25, "image"), config())) == [(0, 25, "image", (5, 5))]
    assert told(squares(Span(0, 1, "image"), config())) == [(0, 1, "image", (1, 1))]


def test_a_video_of_fixed_frames_is_one_span() -> None:
    conf = config(vision={"image_size": 16, "patch_size": 4}, image_seq_length=16)
    assert told(squares(Span(1, 49, "video"), conf)) == [(1, 49, "video", (3, 4, 4))]


def test_grids_of_the_processor_in_order_over_runs_and_rows() -> None:
    conf = config(vision={"spatial_merge_size": 2})
    ids = torch.cat([row((1, 2), (0, 1), (1, 6), (0, 1)), row((0, 2), (1, 4), (0, 4))])
    thw = torch.tensor([[1, 2, 4], [1, 4, 6], [1, 4, 4]])
    first, second = layouts(ids, conf, {"image_grid_thw": thw})
    assert told(first) == [(0, 2, "image", (1, 2)), (3, 9, "image", (2, 3))]
    assert told(second) == [(2, 6, "image", (2, 2))]  # the second row's own picture, not the first row's


def test_pictures_side_by_side_are_cut_by_their_grids() -> None:
    thw = torch.tensor([[1, 2, 2], [1, 2, 6]])
    spans = layouts(row((0, 1), (1, 4)), config(vision={"spatial_merge_size": 2}), {"image_grid_thw": thw})[0]
    assert told(spans) == [(1, 2, "image", (1, 1)), (2, 5, "image", (1, 3))]


def test_a_video_is_one_span_or_one_per_frame() -> None:
    conf = config(vision={"spatial_merge_size": 1})
    thw = {"video_grid_thw": torch.tensor([[3, 2, 2]])}
    assert told(layouts(row((2, 12)), conf, thw)[0]) == [(0, 12, "video", (3, 2, 2))]
    frames = told(layouts(row((2, 4), (0, 1), (2, 4), (0, 1), (2, 4)), conf, thw)[0])
    assert frames == [(0, 4, "video", (1, 2, 2)), (5, 9, "video", (1, 2, 2)), (10, 14, "video", (1, 2, 2))]


def test_seconds_of_each_sound() -> None:
    ids = torch.cat([row((3, 10), (0, 2)), row((0, 7), (3, 5))])
    first, second = layouts(ids, config(), {}, [0.4, 0.25])
    assert first[0].seconds == pytest.approx(0.04)
    assert second[1].seconds == pytest.approx(0.05)


def test_windows_of_one_sound_are_pooled() -> None:
    spans = layouts(row((3, 30), (0, 1)), config(), {}, [1.0, 0.5])[0]
    assert spans[0].seconds == pytest.approx(0.05)
    assert layouts(row((3, 30)), config(), {}, [])[0][0].seconds is None


@pytest.mark.parametrize(
    ("size", "want"),
    [((8, 16), (2, 4)), ((16, 8), (4, 2)), ((16, 16), (4, 4)), ((6, 16), (2, 4)), ((4, 16), (2, 4)), ((16, 5), (4, 2))],
)
def test_tiles_of_any_resolution_are_those_the_model_packs(size: tuple[int, int], want: tuple[int, int]) -> None:
    """The grid must have as many positions as the model's own packing makes."""
    adapter = built("llava_next")
    model = adapter.model.model
    rows, columns = tiled_grid(size, adapter.model.config)
    tiles = [tuple(p) for p in adapter.model.config.image_grid_pinpoints]
    biggest = torch.randn(1 + max(h * w for h, w in tiles) // 64, 4, 32)
    sizes = {(8, 16): 2, (16, 8): 2, (16, 16): 4}
    for _, count in sizes.items():
        features = [biggest[: count + 1]]
        try:
            packed, lengths = model.pack_image_features(
                features, torch.tensor([size]), "default", image_newline=torch.zeros(32)
            )
        except RuntimeError:
            continue  # another number of tiles than this size has
        assert int(lengths[0]) == 4 + rows * (columns + 1)
        assert torch.equal(packed[0][4 + columns], torch.zeros(32))  # the first newline, where the margin is
    assert rows <= want[0]
    assert columns <= want[1]


def test_llava_next_pictures() -> None:
    conf = built("llava_next").model.config
    own = families()["llava_next"].pictures
    sizes = {"image_sizes": torch.tensor([[8, 16], [16, 8]])}
    spans = layouts(row((0, 2), (1, 14), (0, 1), (1, 16), (0, 1)), conf, sizes, pictures=own)[0]
    assert told(spans) == [
        (2, 6, "image", (2, 2)), (6, 16, "image", (2, 5)), (17, 21, "image", (2, 2)), (21, 33, "image", (4, 3))
    ]  # fmt: skip
    assert [s.margin for s in spans if s.modality == "image"] == [0, 1, 0, 1]
    together = layouts(row((1, 30)), conf, sizes, pictures=own)[0]
    assert [s.grid for s in together] == [(2, 2), (2, 5), (2, 2), (4, 3)]
    untiled = layouts(row((1, 10)), conf, {}, pictures=own)[0]
    assert [(len(s), s.grid) for s in untiled] == [(4, (2, 2)), (1, None), (4, (2, 2)), (1, None)]
    odd = layouts(row((1, 13)), conf, sizes, pictures=own)[0]
    assert told(odd) == [(0, 13, "image", None)]


def test_llava_onevision_shrinks_large_pictures_and_ends_videos_in_a_newline() -> None:
    conf = built("llava_onevision").model.config
    own = families()["llava_onevision"].pictures
    conf_small = SimpleNamespace(
        vision_config=conf.vision_config,
        image_grid_pinpoints=conf.image_grid_pinpoints,
        vision_aspect_ratio="anyres_max_1",
    )
    assert tiled_grid((16, 16), conf) == (4, 4)
    assert tiled_grid((16, 16), conf_small) == (2, 2)
    video = layouts(
        row((0, 1), (2, 9)),
        SimpleNamespace(vision_config=SimpleNamespace(image_size=16, patch_size=4)),
        {},
        pictures=own,
    )[0]
    assert told(video) == [(1, 9, "video", (2, 2, 2)), (9, 10, "video", None)]


def test_pixtral_rows_with_their_breaks() -> None:
    family = families()["mistral3"]
    conf = SimpleNamespace(vision_config=SimpleNamespace(patch_size=4), spatial_merge_size=2)
    assert family.members is not None
    ids = torch.tensor([[1, 5, 5, 5, 9, 5, 5, 5, 10, 41, 5, 10, 42]])
    modality = (ids == 5).long()
    grown_ids = family.members(ids, modality)
    assert grown_ids[0].tolist() == [0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 0]
    assert modality.sum() == 7  # the caller's tensor is left alone
    sizes = {"image_sizes": torch.tensor([[16, 24], [8, 8]])}
    spans = layouts(grown_ids, conf, sizes, pictures=family.pictures)[0]
    assert told(spans) == [(1, 9, "image", (2, 4)), (10, 12, "image", (1, 2))]
    assert all(s.margin == 1 for s in spans if s.modality == "image")
    assert told(layouts(grown_ids, conf, {}, pictures=family.pictures)[0]) == [
        (1, 9, "image", None),
        (10, 12, "image", None),
    ]


def test_newline_grid_holds_its_rows() -> None:
    span = newline_grid(3, 2, 4)
    assert (span.start, span.stop, span.grid, span.margin) == (3, 13, (2, 5), 1)


def test_generated_text_grows_the_last_span() -> None:
    spans = (Span(0, 2, "text"), Span(2, 4, "image"))
    assert grown(spans, 4) == spans
    assert grown(spans, 6) == (*spans, Span(4, 6, "text"))
    assert grown((*spans, Span(4, 5, "text")), 9) == (*spans, Span(4, 9, "text"))


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("llava", [(3, 19, (4, 4))]),
        ("llava_next", [(3, 7, (2, 2)), (7, 17, (2, 5))]),
        ("llava_onevision", [(3, 7, (2, 2)), (7, 17, (2, 5))]),
        ("qwen2_vl", [(4, 12, (2, 4))]),
        ("qwen2_5_vl", [(4, 12, (2, 4))]),
        ("internvl", [(3, 12, (3, 3))]),
        ("idefics3", [(4, 8, (2, 2)), (9, 13, (2, 2))]),
        ("smolvlm", [(4, 8, (2, 2)), (9, 13, (2, 2))]),
        ("paligemma", [(0, 16, (4, 4))]),
        ("gemma3", [(4, 8, (2, 2))]),
        ("mistral3", [(3, 11, (2, 4))]),
        ("llava_onevision_video", [(3, 5, (2, 1, 1)), (5, 6, None)]),
        ("qwen2_5_vl_video", [(4, 12, (2, 2, 2))]),
    ],
)
def test_families_on_their_own_inputs(name: str, want: list[Any]) -> None:
    adapter = built(name)
    spans = adapter.spans(ZOO[name].inputs(adapter.model))
    assert [(s.start, s.stop, s.grid) for s in spans if s.modality != "text"] == want


def test_gemma3_of_real_size_is_sixteen_by_sixteen() -> None:
    conf = config(vision={"image_size": 896, "patch_size": 14}, mm_tokens_per_image=256)
    assert told(squares(Span(0, 512, "image"), conf)) == [(0, 256, "image", (16, 16)), (256, 512, "image", (16, 16))]


def test_sizes_are_taken_by_whoever_lays_them_out() -> None:
    own = families()["llava_next"].pictures
    assert own is not None
    sizes = deque([(8, 16), (16, 8)])
    own(Span(0, 14, "image"), built("llava_next").model.config, sizes)
    assert list(sizes) == [(16, 8)]
