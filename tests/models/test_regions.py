"""What each position shows of the original, held to a spot that is painted there and to the positions that it reaches."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from limelight.decoding.collate import shift_spans
from limelight.errors import SettingError
from limelight.models import regions
from limelight.models.adapter import Adapter
from limelight.relevance.attribute import attribute
from limelight.types import Interval, Region, Relevance, Span
from tests.models import films
from tests.models.markers import apart, cells, film, local, reached, spotted
from tests.models.test_processors import (
    Minimal,
    audioflamingo3,
    gemma3,
    idefics3,
    llava_next,
    mistral3,
    paligemma,
    qwen,
    template,
)
from tests.tiny import tokenizer
from tests.zoo import ZOO

WIDE, TALL = (150, 60), (70, 160)
ASK = "what is here ?"


def llava(**changes: Any) -> Any:
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    settings = dict(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}) | changes
    return LlavaProcessor(
        CLIPImageProcessorPil(**settings), tokenizer({"<image>": 5}), patch_size=4,
        vision_feature_select_strategy="default", num_additional_image_tokens=1, image_token="<image>",
        chat_template=template("<image>"),
    )  # fmt: skip


def squeezed(images: Any, count: int, between: str = "") -> Any:
    """A processor that makes ``count`` positions of every tile, with a word between them."""

    def expand(seen: Any, n: int) -> str:
        pixels = seen["pixel_values"]
        return between.join(["<image>" * count] * (len(pixels) if pixels.ndim == 4 else 1))

    return Minimal(images, tokenizer({"<image>": 5}), "<image>", template("<image>"), expand)


def padded() -> Any:
    """LLaVA's other way: padded to a square."""
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    size = {"height": 16, "width": 16}
    return squeezed(LlavaImageProcessorPil(do_pad=True, size={"shortest_edge": 16}, crop_size=size), 16)


def tiles(side: int, count: int, between: str = "") -> Any:
    """InternVL's and Aya's dynamic tiles, with a view of the whole behind them."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    size = {"height": side, "width": side}
    return squeezed(
        GotOcr2ImageProcessorPil(size=size, crop_to_patches=True, min_patches=1, max_patches=6), count, between
    )


def internvl() -> Any:
    return tiles(24, 9)


def aya() -> Any:
    return tiles(16, 4, " red ")


def idefics3_overlapping() -> Any:
    return idefics3()


def deepseek() -> Any:
    """Padded to a square around its middle."""
    from transformers.models.deepseek_vl.image_processing_pil_deepseek_vl import DeepseekVLImageProcessorPil

    return squeezed(DeepseekVLImageProcessorPil(size={"height": 16, "width": 16}, min_size=2), 16)


def janus() -> Any:
    from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

    return squeezed(JanusImageProcessorPil(size={"height": 16, "width": 16}, min_size=2), 16)


def gemma3_pan_and_scan() -> Any:
    made = gemma3()
    settings = dict(do_pan_and_scan=True, pan_and_scan_min_crop_size=8, pan_and_scan_max_num_crops=3,
                    pan_and_scan_min_ratio_to_activate=1.1)  # fmt: skip
    for name, value in settings.items():
        setattr(made.image_processor, name, value)
    return made


def glm4v() -> Any:
    from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil

    images = Glm4vImageProcessorPil(
        patch_size=4, temporal_patch_size=2, merge_size=2, size={"shortest_edge": 64, "longest_edge": 2048}
    )
    ids = {"<|vision_start|>": 3, "<|vision_end|>": 4, "<|image_pad|>": 5, "<|video_pad|>": 6}
    chat, mark = template("<|vision_start|><|image_pad|><|vision_end|>"), "<|image_pad|>"
    return Minimal(
        images, tokenizer(ids), mark, chat, lambda seen, n: mark * int(seen["image_grid_thw"][n].prod() // 4)
    )


# case -> (row of the zoo, processor)
CASES: dict[str, tuple[str, Callable[[], Any]]] = {
    "llava, centre crop": ("llava", llava),
    "llava, resized to more than the crop": ("llava", lambda: llava(size={"shortest_edge": 24})),
    "llava, crop alone": ("llava", lambda: llava(do_resize=False, crop_size={"height": 16, "width": 16})),
    "llava, padded to a square": ("llava", padded),
    "vipllava": ("vipllava", llava),
    "llava_next": ("llava_next", llava_next),
    "qwen2_vl": ("qwen2_vl", qwen),
    "qwen2_5_vl": ("qwen2_5_vl", qwen),
    "glm4v": ("glm4v", glm4v),
    "idefics3": ("idefics3", idefics3),
    "smolvlm": ("smolvlm", idefics3),
    "paligemma": ("paligemma", paligemma),
    "gemma3": ("gemma3", gemma3),
    "gemma3, pan and scan": ("gemma3", gemma3_pan_and_scan),
    "mistral3": ("mistral3", mistral3),
    "internvl, tiles": ("internvl", internvl),
    "aya_vision, tiles": ("aya_vision", aya),
    "deepseek_vl": ("deepseek_vl", deepseek),
    "janus": ("janus", janus),
}


@cache
def adapter_of(case: str) -> Adapter:
    row, make = CASES[case]
    return Adapter(ZOO[row].build(), make())


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
@pytest.mark.parametrize("size", [WIDE, TALL])
@pytest.mark.parametrize("case", CASES)
def test_a_spot_reaches_the_cells_that_hold_it(case: str, size: tuple[int, int]) -> None:
    adapter = adapter_of(case)
    plain = adapter.prepare(ASK, {"image": spotted(size, None)})
    places = list(cells(plain.spans, "image"))
    assert len(places) >= sum(s.cells[0] * s.cells[1] for s in plain.spans if s.modality == "image" and s.grid), case
    width, height = size
    for x, y in ((0.06, 0.5), (0.5, 0.06), (0.5, 0.5), (0.3, 0.7), (0.72, 0.33), (0.94, 0.95)):
        spot = (round(x * width) - 3, round(y * height) - 3, round(x * width) + 3, round(y * height) + 3)
        found = reached(adapter, plain, adapter.prepare(ASK, {"image": spotted(size, spot)}))
        for at, _, _, box, span in places:
            side = max((box[2] - box[0]), (box[3] - box[1]))
            reach = max(2.0, 0.5 * side)  # resampling looks beyond a cell's edge
            middle = (spot[0] + 2, spot[1] + 2, spot[2] - 2, spot[3] - 2)
            if apart(middle, box) < -1.5:
                assert at in found, (case, spot, box, span.grid)
            elif apart(spot, box) > reach:
                assert at not in found, (case, spot, box, span.grid)


def test_cross_attention_states_know_their_tiles() -> None:
    """Llama 3.2 Vision: the picture's tiles are read by cross-attention; some are padding in part, some altogether."""
    from transformers import MllamaProcessor
    from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

    images = MllamaImageProcessorPil(size={"height": 16, "width": 16}, max_image_tiles=4)
    words = tokenizer({"<|image|>": 5, "<|python_tag|>": 6})
    adapter = Adapter(ZOO["mllama"].build(), MllamaProcessor(images, words, chat_template=template("<|image|>")))
    plain = adapter.prepare(ASK, {"image": spotted(WIDE, None)})
    spans = attribute(adapter, plain.tensors).spans
    tiles = [s for s in spans if s.grid == (2, 2)]
    assert [s.region is not None for s in tiles] == [True] * 4
    boxes = [s.region.box for s in tiles if s.region]
    assert [v for b in boxes[:3] for v in b] == pytest.approx([0, 0, 60, 60, 60, 0, 120, 60, 120, 0, 180, 60], abs=1.0)
    assert boxes[3] == (0, 0, 0, 0)
    spot = (65, 5, 75, 15)
    marked = adapter.prepare(ASK, {"image": spotted(WIDE, spot)})
    with local(adapter):
        one, two = (adapter.capture(p.tensors).row(0).embeds[0] for p in (plain, marked))
    found = set(((one - two).abs().amax(-1) > 0).nonzero()[:, 0].tolist())
    assert [at for at, *_ in cells(spans, "image") if at in found] == [tiles[1].start]


def test_a_stretch_of_sound_reaches_the_positions_of_its_time() -> None:
    adapter = Adapter(ZOO["audioflamingo3"].build(), audioflamingo3())
    samples = np.random.default_rng(0).normal(size=8000).astype(np.float32)
    plain = adapter.prepare(ASK, {"audio": (samples, 16000)})
    (span,) = [s for s in plain.spans if s.modality == "audio"]
    assert span.interval == Interval(0, 0.0, 0.5)
    scores, times = attribute(adapter, plain.tensors).on_audio()
    assert len(scores) == len(times) <= len(span)
    for start in (0.05, 0.3):
        changed = samples.copy()
        changed[int(start * 16000) : int((start + 0.06) * 16000)] *= -0.3
        found = reached(adapter, plain, adapter.prepare(ASK, {"audio": (changed, 16000)}))
        hit = [times[at - span.start] for at in sorted(found)]
        assert hit, start
        assert float(hit[0][0]) >= start - 0.06
        assert float(hit[-1][1]) <= start + 0.06 + 0.06
        assert any(float(a) <= start + 0.03 <= float(b) for a, b in hit)


def test_padding_behind_a_sound_is_no_part_of_it() -> None:
    spans = (Span(0, 10, "audio", None, 0.5), Span(10, 12, "text"), Span(12, 22, "audio", None, 0.5))
    timed = regions.timed(spans, [2.2, 5.0])
    assert [s.interval for s in timed] == [Interval(0, 0.0, 2.2), None, Interval(1, 0.0, 5.0)]
    relevance = Relevance(torch.ones(22), ("x",) * 22, timed, 1)
    scores, times = relevance.on_audio(0)
    assert len(scores) == 5
    assert times[-1].tolist() == pytest.approx([2.0, 2.2])
    with pytest.raises(SettingError, match="audio clip 2"):
        relevance.on_audio(2)
    assert regions.timed((Span(0, 10, "audio"),), [2.0])[0].interval is None


def test_a_spot_that_was_cut_away_reaches_nothing() -> None:
    adapter = adapter_of("llava, centre crop")
    plain = adapter.prepare(ASK, {"image": spotted(WIDE, None)})
    (span,) = [s for s in plain.spans if s.modality == "image"]
    assert span.region is not None
    assert span.region.box == pytest.approx((45, 0, 105, 60), abs=1.0)
    marked = adapter.prepare(ASK, {"image": spotted(WIDE, (4, 10, 30, 40))})
    assert reached(adapter, plain, marked) == set()


def test_padding_shows_nothing_of_the_original() -> None:
    adapter = adapter_of("llava, padded to a square")
    (span,) = [s for s in adapter.prepare(ASK, {"image": spotted(WIDE, None)}).spans if s.modality == "image"]
    assert span.region is not None
    assert span.region.box == pytest.approx((0, -45, 150, 105), abs=2.5)
    shown = np.array(span.region.shown((4, 4)))
    assert shown[0].max() < 0.1
    assert shown[1:3].min() > 0.7


@pytest.mark.parametrize("case", ["llava, centre crop", "qwen2_5_vl", "idefics3", "mistral3", "llava_next", "gemma3"])
def test_several_images_are_distinguished(case: str) -> None:
    adapter = adapter_of(case)
    sizes = [WIDE, TALL, (90, 90)]
    pictures = [spotted(s, None) for s in sizes]
    prompt = adapter.prepare(ASK, {"image": pictures})
    spans = [s for s in prompt.spans if s.modality == "image" and s.grid]
    assert all(s.region is not None for s in spans)
    assert sorted({s.region.source for s in spans if s.region}) == [0, 1, 2]
    assert all(s.region.size == sizes[s.region.source] for s in spans if s.region)
    for number, (w, h) in enumerate(sizes):
        spot = (w // 2 - 4, h // 2 - 4, w // 2 + 4, h // 2 + 4)
        marked = [spotted(s, spot if i == number else None) for i, s in enumerate(sizes)]
        found = reached(adapter, prompt, adapter.prepare(ASK, {"image": marked}))
        sources = {source for at, _, source, _, _ in cells(prompt.spans, "image") if at in found}
        assert sources == {number}


@pytest.mark.parametrize("name", ["qwen2_5_vl", "internvl", "smolvlm", "llava_onevision"])
@pytest.mark.parametrize("count", [8, 5])
def test_a_spot_on_a_frame_reaches_its_step(name: str, count: int) -> None:
    make, modality, _ = films.FILMS[name]
    adapter = Adapter(ZOO[name].build(), make())
    size, spot = (48, 32), (20, 12, 30, 22)
    plain = adapter.prepare(ASK, {"video": film(size, count, (0, 0, 0, 0), -1)})
    assert all(s.region is not None and s.region.frames for s in plain.spans if s.modality == modality and s.grid)
    for at in (0, 2, count - 1):
        marked = adapter.prepare(ASK, {"video": film(size, count, spot, at)})
        found = reached(adapter, plain, marked)
        hit = {
            span.region.frames[step]
            for p, step, _, _, span in cells(plain.spans, modality)
            if p in found and span.region
        }
        assert hit, name
        assert all(at in frames for frames in hit), (name, at, hit)


def test_attribution_and_shifts_keep_the_regions() -> None:
    adapter = adapter_of("llava_next")
    prompt = adapter.prepare(ASK, {"image": spotted(WIDE, None)})
    relevance = attribute(adapter, prompt.tensors)
    assert relevance.spans == prompt.spans
    parts = relevance.on_image()
    assert [tuple(scores.shape) for scores, _ in parts] == [s.cells for s in prompt.spans if s.grid]
    moved = shift_spans(prompt.spans, 3)
    assert (moved[0].start, moved[0].stop, moved[0].modality) == (0, 3, "text")
    for before, after in zip(prompt.spans, moved[1:], strict=True):
        assert (after.start, after.stop) == (before.start + 3, before.stop + 3)
        assert (after.grid, after.margin, after.region) == (before.grid, before.margin, before.region)
    assert any(s.margin for s in moved)


def test_charts_are_read_once_for_a_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = Adapter(ZOO["llava"].build(), llava())
    calls: list[int] = []
    original = regions.tiles
    monkeypatch.setattr(regions, "tiles", lambda *a: calls.append(1) or original(*a))
    for picture in (spotted(WIDE, None), spotted(WIDE, (3, 3, 9, 9)), spotted(TALL, None)):
        adapter.prepare(ASK, {"image": picture})
    assert len(calls) == 2
    adapter.processor.image_processor.do_center_crop = False  # other settings, other regions
    adapter.processor.image_processor.size = {"height": 16, "width": 16}
    (span,) = [s for s in adapter.prepare(ASK, {"image": spotted(WIDE, None)}).spans if s.modality == "image"]
    assert span.region == Region(0, WIDE, (0, 0, *WIDE))


def test_what_is_not_linear_in_the_picture_has_no_place() -> None:
    class Stretching:
        """Every picture is scaled by its own contrast: nothing can be told from charts."""

        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            out = self.inner(*args, **kwargs)
            pixels = out["pixel_values"]
            out["pixel_values"] = (pixels - pixels.mean()) / pixels.std().clamp_min(1e-3)
            return out

    adapter = Adapter(ZOO["llava"].build(), llava())
    adapter.processor = Stretching(adapter.processor)
    prompt = adapter.prepare(ASK, {"image": spotted(WIDE, (20, 20, 70, 50))})
    assert {s.region for s in prompt.spans} == {None}


def test_queries_that_look_anywhere_have_no_cells() -> None:
    from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil

    images = Idefics2ImageProcessorPil(size={"shortest_edge": 16, "longest_edge": 16})
    adapter = Adapter(ZOO["idefics2"].build(), squeezed(images, 4))
    prompt = adapter.prepare(ASK, {"image": spotted((64, 64), None)})
    (span,) = [s for s in prompt.spans if s.modality == "image"]
    assert span.grid is None


def test_no_hook_is_left() -> None:
    adapter = adapter_of("paligemma")
    with local(adapter):
        pass
    assert not any(m._forward_hooks for n, m in adapter.parent_model.named_modules() if "Attention" in type(m).__name__)


@pytest.mark.parametrize("size", [(301, 23), (23, 301), (1, 5000), (5000, 1)])
def test_a_picture_too_narrow_for_tiles_has_positions_without_a_place(size: tuple[int, int]) -> None:
    adapter = adapter_of("llava_next")
    prompt = adapter.prepare(ASK, {"image": spotted(size, None)})
    ids = adapter.modality_ids(prompt.tensors)[0]
    assert sum(len(s) for s in prompt.spans if s.modality == "image") == int((ids == 1).sum())
    got = attribute(adapter, prompt.tensors)
    assert 0 < got.share("image") < 1
    with pytest.raises(SettingError, match="unknown"):
        got.on_image()
