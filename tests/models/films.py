"""Tiny real video processors of transformers, and films made here: what the tests of video share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limelight.media.video_tensors import plain_class, processor_class
from tests.tiny import tokenizer
from tests.zoo.llava import PINPOINTS

SHADES = tuple(range(10, 250, 30))  # of a film's frames, in order


def film(
    path: Path, shades: Sequence[int] = SHADES, rate: int = 4, size: tuple[int, int] = (32, 48),
    lit: Sequence[int] | None = None,
) -> Path:  # fmt: skip
    """A film whose frames are evenly grey, with a white square that wanders from left to right; H.264 or MPEG-4.

    ``lit``: the frames that have the square; all when left out.
    """
    av = pytest.importorskip("av", reason="PyAV is not installed (pip install 'limelight[video]')")
    height, width = size
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4" if path.suffix == ".avi" else "libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i, shade in enumerate(shades):
            picture = np.full((height, width, 3), shade, np.uint8)
            left = round(i * (width - 8) / max(1, len(shades) - 1))
            if lit is None or i in lit:
                picture[8:16, left : left + 8] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def chat(video: str, image: str) -> str:
    return (
        "{% for m in messages %}{% for i in m['content'] %}{% if i['type'] == 'text' %} {{ i['text'] }}"
        f"{{% elif i['type'] == 'video' %}} {video} {{% else %}} {image} {{% endif %}}{{% endfor %}}{{% endfor %}} answer"
    )


TIMES = {"<0.1": 11, "<0.6": 12, "<1.1": 13, "<1.6": 14, "seconds>": 15, "00:00:": 16, "00:01:": 17}


def _qwen(model_type: str, size: dict[str, int], **changes: Any) -> Any:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    names = {"vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>",
             "image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}  # fmt: skip
    ids = {"<|vision_start|>": 3, "<|vision_end|>": 4, "<|image_pad|>": 5, "<|video_pad|>": 6, **TIMES}
    words = tokenizer(ids, extra_special_tokens=names)
    own = dict(patch_size=4, temporal_patch_size=2, merge_size=2, size=size, **changes)
    video = plain_class(model_type)
    marks = chat(*(f"<|vision_start|><|{kind}_pad|><|vision_end|>" for kind in ("video", "image")))
    return processor_class(model_type, video)(
        Qwen2VLImageProcessorPil(**own), words, video(**own, cap_pixels_per_frame=False), chat_template=marks
    )


def qwen2_5_vl(**changes: Any) -> Any:
    return _qwen("qwen2_5_vl", {"shortest_edge": 64, "longest_edge": 1024}, **changes)


def qwen3_vl() -> Any:
    return _qwen("qwen3_vl", {"shortest_edge": 64, "longest_edge": 8 * 1024})


def llava_onevision() -> Any:
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

    square = {"height": 8, "width": 8}
    video = plain_class("llava_onevision")
    return processor_class("llava_onevision", video)(
        LlavaOnevisionImageProcessorPil(size=square, image_grid_pinpoints=PINPOINTS),
        tokenizer({"<image>": 5, "<video>": 6}), video(size=square), num_image_tokens=4,
        vision_feature_select_strategy="full", chat_template=chat("<video>", "<image>"),
    )  # fmt: skip


def internvl() -> Any:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    square = {"height": 24, "width": 24}
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
             "video_token": "<video>"}  # fmt: skip
    ids = {"<img>": 3, "</img>": 4, "<IMG_CONTEXT>": 5, "<video>": 6}
    video = plain_class("internvl")
    return processor_class("internvl", video)(
        GotOcr2ImageProcessorPil(size=square), tokenizer(ids, extra_special_tokens=names), video(size=square),
        image_seq_length=9, chat_template=chat("<video>", "<IMG_CONTEXT>"),
    )  # fmt: skip


def smolvlm() -> Any:
    pytest.importorskip("num2words", reason="num2words is not installed (pip install 'limelight[video]')")
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    own = dict(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    ids = {
        "<image>": 5,
        "<video>": 6,
        "<fake_token_around_image>": 8,
        "<end_of_utterance>": 9,
        "<global-img>": 10,
        **TIMES,
    }
    video = plain_class("smolvlm")
    return processor_class("smolvlm", video)(
        SmolVLMImageProcessorPil(**own), tokenizer(ids), video(**own, num_frames=8, fps=1), image_seq_len=4,
        chat_template=chat("<video>", "<image>"),
    )  # fmt: skip


# family -> (processor, spans of frames: modality and grid, for 8 frames of 32 x 48 pixels)
FILMS: dict[str, tuple[Callable[[], Any], str, list[tuple[int, ...] | None]]] = {
    "qwen2_5_vl": (qwen2_5_vl, "video", [(4, 3, 4)]),
    "qwen3_vl": (qwen3_vl, "video", [(1, 3, 4)] * 4),
    "llava_onevision": (llava_onevision, "video", [(8, 1, 1), None]),
    "internvl": (internvl, "image", [(3, 3)] * 8),
    "smolvlm": (smolvlm, "image", [(2, 2)] * 8),
}
