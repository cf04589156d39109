"""Video processors of transformers without torchvision.

transformers' video processors call torchvision for four operations: resizing, normalising, cropping and converting grey
to RGB. :class:`Plain` does these with torch itself, exactly as torchvision does (torchvision's own resize is
``torch.nn.functional.interpolate``; a test compares the two bit for bit where torchvision is installed), and everything
else (sizes, patches, padding, masks) stays the family's own code. With torchvision installed none of this is used.
"""

from __future__ import annotations

import logging
import platform
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from limelight import compat
from limelight.compat import (
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    PROCESSOR_MAPPING_NAMES,
    BaseVideoProcessor,
    ChannelDimension,
    PILImageResampling,
    Qwen3VLVideoProcessor,
    get_resize_output_image_size,
    get_size_with_aspect_ratio,
    smart_resize,
)
from limelight.errors import MediaError, ModelError, UnsupportedError

# Modes of interpolate that torchvision maps PIL's filters to.
_MODES = {
    Image.Resampling.NEAREST: "nearest",
    Image.Resampling.BILINEAR: "bilinear",
    Image.Resampling.BICUBIC: "bicubic",
}
if torch.__version__ >= "2.12":  # before, LANCZOS is PIL's own
    _MODES[Image.Resampling.LANCZOS] = "lanczos"


def torchvision_is_there() -> bool:
    return find_spec("torchvision") is not None


class Plain(BaseVideoProcessor):  # type: ignore[misc]
    """The four primitives, below a family's own video processor in its bases."""

    def convert_to_rgb(self, video: Tensor, **_: Any) -> Tensor:
        if video.shape[-3] not in (1, 3):
            raise MediaError(f"frames of {video.shape[-3]} channels, expected 3", hint="pass RGB or grey frames")
        return video if video.shape[-3] == 3 else video.expand(*video.shape[:-3], 3, *video.shape[-2:])

    def resize(self, image: Tensor, size: Any, resample: Any = None, antialias: bool = True, **_: Any) -> Tensor:
        """Resize frames ``[..., 3, H, W]`` to ``size``."""
        return resized(image, _target(image, size), resample, antialias)

    def normalize(self, image: Tensor, mean: Any, std: Any, inplace: bool = False, **_: Any) -> Tensor:
        means, stds = (torch.as_tensor(v, dtype=image.dtype).view(-1, 1, 1) for v in (mean, std))
        return image.sub(means).div_(stds)

    def center_crop(self, image: Tensor, size: Any, **_: Any) -> Tensor:
        height, width = image.shape[-2:]
        down, across = max(0, size.height - height), max(0, size.width - width)
        if down or across:
            image = F.pad(image, (across // 2, (across + 1) // 2, down // 2, (down + 1) // 2))
        height, width = image.shape[-2:]
        top, left = int((height - size.height) / 2.0), int((width - size.width) / 2.0)
        return image[..., top : top + size.height, left : left + size.width]


def resized(image: Tensor, size: tuple[int, int], resample: Any = None, antialias: bool = True) -> Tensor:
    """Resize frames ``[..., C, H, W]`` to ``size`` (height, width), on uint8 where torch supports it, else rounded floats."""
    if tuple(image.shape[-2:]) == size:
        return image
    filter_ = Image.Resampling.BILINEAR if resample is None else Image.Resampling(int(resample))
    if filter_ not in _MODES:
        return _by_pil(image, size, filter_)
    mode = _MODES[filter_]
    flat = image.reshape(-1, *image.shape[-3:])
    if flat.dtype != torch.uint8:
        out = _interpolate(flat.float(), size, mode, antialias)
    elif mode != "bilinear" or _fast_bytes():
        out = _interpolate(flat, size, mode, antialias)
    else:  # as torchvision does where the CPU has no fast path for uint8
        out = _interpolate(flat.float(), size, mode, antialias).round().to(torch.uint8)
    return out.reshape(*image.shape[:-2], *size)


def _fast_bytes() -> bool:
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") or platform.machine() in ("aarch64", "arm64")


def _interpolate(flat: Tensor, size: tuple[int, int], mode: str, antialias: bool) -> Tensor:
    if mode == "nearest":
        return F.interpolate(flat, size=list(size), mode=mode)
    return F.interpolate(flat, size=list(size), mode=mode, align_corners=False, antialias=antialias)


def _by_pil(image: Tensor, size: tuple[int, int], filter_: Image.Resampling) -> Tensor:
    flat = image.reshape(-1, *image.shape[-3:]).to(torch.uint8).permute(0, 2, 3, 1)
    frames = [np.asarray(Image.fromarray(f.numpy()).resize(size[::-1], filter_)) for f in flat]
    out = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous()
    return out.reshape(*image.shape[:-2], *size)


def _target(image: Tensor, size: Any) -> tuple[int, int]:
    """Return the (height, width) that a SizeDict specifies."""
    if size.shortest_edge and size.longest_edge:
        found = get_size_with_aspect_ratio(image.shape[-2:], size.shortest_edge, size.longest_edge)
    elif size.shortest_edge:
        found = get_resize_output_image_size(
            image, size=size.shortest_edge, default_to_square=False, input_data_format=ChannelDimension.FIRST
        )
    elif size.height and size.width:
        found = (size.height, size.width)
    else:
        raise UnsupportedError(
            f"cannot derive a height and width from {size}", hint="pip install torchvision for this processor"
        )
    return int(found[0]), int(found[1])


class Qwen2VLVideoProcessor(Qwen3VLVideoProcessor):  # type: ignore[misc]
    """Qwen2-VL and Qwen2.5-VL: patches as in Qwen3-VL, each frame resized within its own pixel budget."""

    image_mean, image_std = OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
    size: ClassVar[dict[str, int]] = {"shortest_edge": 128 * 28 * 28, "longest_edge": 28 * 28 * 768}
    patch_size = 14
    do_sample_frames = cap_pixels_per_frame = False

    def __init__(self, **kwargs: Any) -> None:
        size = dict(kwargs.pop("size", None) or self.size)
        for edge, old in (("shortest_edge", "min_pixels"), ("longest_edge", "max_pixels")):
            value = kwargs.pop(old, None) or size.pop(old, None)
            if value is not None:
                size[edge] = value
        super().__init__(size=size, **kwargs)

    def resize(self, videos: Tensor, size: Any, resample: Any, factor: int, **_: Any) -> Tensor:
        height, width = smart_resize(
            *videos.shape[-2:], factor=factor, min_pixels=size.shortest_edge, max_pixels=size.longest_edge
        )
        return resized(videos, (height, width), resample)


class InternVLVideoProcessor(BaseVideoProcessor):  # type: ignore[misc]
    """InternVL: the base class's steps with InternVL's settings."""

    resample = PILImageResampling.BICUBIC
    image_mean, image_std = OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
    size: ClassVar[dict[str, int]] = {"height": 384, "width": 384}
    do_resize = do_rescale = do_normalize = do_convert_rgb = True
    do_sample_frames = False


# model type -> a video processor's class, or the name of transformers' own, which loads without torchvision
_QWEN3, _GLM4V = "Qwen3VLVideoProcessor", "Glm4vVideoProcessor"
_KNOWN: dict[str, type | str] = {
    "qwen2_vl": Qwen2VLVideoProcessor,
    "qwen2_5_vl": Qwen2VLVideoProcessor,
    "qwen2_5_omni": Qwen2VLVideoProcessor,
    "qwen3_omni_moe": Qwen2VLVideoProcessor,
    "internvl": InternVLVideoProcessor,
    "qwen3_vl": _QWEN3,
    "qwen3_vl_moe": _QWEN3,
    "qwen3_5": _QWEN3,
    "qwen3_5_moe": _QWEN3,
    "glm4v": _GLM4V,
    "glm4v_moe": _GLM4V,
    "smolvlm": "SmolVLMVideoProcessor",
    "llava_onevision": "LlavaOnevisionVideoProcessor",
    "llava_next_video": "LlavaNextVideoVideoProcessor",
    "video_llava": "VideoLlavaVideoProcessor",
}


_VIDEO_BASES = (
    "BaseVideoProcessor",
    "VideoProcessorMixin",
)  # the classes transformers checks a video processor against


def plain_class(model_type: str) -> type[Any]:
    """Return the family's video processor with :class:`Plain` as a base class.

    Raises:
        UnsupportedError: a family whose video processor needs torchvision.
    """
    known = _KNOWN.get(model_type)
    if known is None:
        raise UnsupportedError(
            f"the video processor of {model_type} needs torchvision, which is not installed",
            hint=f"pip install torchvision; without it, {', '.join(_KNOWN)} work",
        )
    cls: type = getattr(compat, known) if isinstance(known, str) else known
    return type(cls.__name__, (cls, Plain), {})


def processor_class(model_type: str, video: type[Any]) -> type[Any]:
    """Return the family's processor, changed to accept a video processor of class ``video``.

    transformers checks it against a class that exists only with torchvision installed.

    Raises:
        UnsupportedError: transformers has no processor for the model type.
    """
    name = PROCESSOR_MAPPING_NAMES.get(model_type)
    cls = getattr(transformers, name, None) if name else None
    if cls is None:
        raise UnsupportedError(f"no processor for {model_type}", hint="pass one to limelight.wrap(model, processor)")

    compat.require("get_possibly_dynamic_module")

    def found(name: str) -> Any:
        return video if name in _VIDEO_BASES else cls.get_possibly_dynamic_module(name)

    own = {"get_possibly_dynamic_module": staticmethod(found), "video_processor_class": _VIDEO_BASES[0]}
    return type(cls.__name__, (cls,), own)


def load_processor(source: Any, model_type: str, **kwargs: Any) -> Any:
    """Call ``AutoProcessor.from_pretrained``; where only torchvision is missing, use the classes of this file.

    Raises:
        ModelError: another package is missing.
        UnsupportedError: see :func:`plain_class`.
    """
    try:
        return transformers.AutoProcessor.from_pretrained(source, **kwargs)
    except ImportError as error:
        if "orchvision" not in str(error) or torchvision_is_there():
            reason = " ".join(str(error).split())
            raise ModelError(
                f"the model's processor needs a package: {reason}", hint="install it and try again"
            ) from error
    said = logging.getLogger("transformers.processing_utils")
    said.addFilter(_not_ours)
    try:
        return processor_class(model_type, plain_class(model_type)).from_pretrained(source, **kwargs)
    finally:
        said.removeFilter(_not_ours)


def _not_ours(record: logging.LogRecord) -> bool:
    """Keep everything but transformers' notice to authors of processors that name the class of a part, as ours must."""
    return "video_processor_class" not in record.getMessage()
