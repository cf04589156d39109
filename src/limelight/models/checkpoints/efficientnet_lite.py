"""EfficientNet-Lite (the image classifier, without its head) as a vision tower.

Tan and Le, EfficientNet (arXiv 1905.11946); the Lite variants have no squeeze-and-excitation, ReLU6 for swish, and a stem
and head that do not grow (TensorFlow's tpu/models/official/efficientnet/lite). Weights under the names of the PyTorch port
``efficientnet_lite_pytorch``; ``timm/tf_efficientnet_lite2.in1k`` on the Hub holds the same weights under timm's names.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from limelight.compat import BaseModelOutput

STRIDE = 32  # pixels between positions
WIDTH = 1280
MEAN, STD = 127 / 255, 128 / 255
SIZES = {"lite0": (1.0, 1.0), "lite1": (1.0, 1.1), "lite2": (1.1, 1.2), "lite3": (1.2, 1.4), "lite4": (1.4, 1.8)}
# repeats, kernel, stride, expansion, input, output
_STAGES = (
    (1, 3, 1, 1, 32, 16), (2, 3, 2, 6, 16, 24), (2, 5, 2, 6, 24, 40), (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112), (4, 5, 2, 6, 112, 192), (1, 3, 1, 6, 192, 320),
)  # fmt: skip


class SameConv(nn.Conv2d):
    """A convolution with TensorFlow's padding ``SAME``: what an odd pixel more is needed for goes right and below."""

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(nn.functional.pad(x, pads) if any(pads) else x)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    """Inverted bottleneck: expand, depthwise, project; added to its input where the shapes agree."""

    def __init__(self, source: int, target: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = source * expansion
        if expansion != 1:
            self._expand_conv = SameConv(source, wide, 1, bias=False)
            self._bn0 = _norm(wide)
        self._depthwise_conv = SameConv(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = _norm(wide)
        self._project_conv = SameConv(wide, target, 1, bias=False)
        self._bn2 = _norm(target)
        self.act = nn.ReLU6()
        self.adds = stride == 1 and source == target

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self._bn0(self._expand_conv(x))) if hasattr(self, "_expand_conv") else x
        out = self.act(self._bn1(self._depthwise_conv(out)))
        projected: Tensor = self._bn2(self._project_conv(out))
        return x + projected if self.adds else projected


class EfficientNetLite(nn.Module):
    """Pixels ``[B, 3, H, W]`` -> positions ``[B, H/32 * W/32, 1280]``, each in 0..6, row by row.

    Args:
        size: ``lite0`` to ``lite4``.
    """

    def __init__(self, size: str = "lite2") -> None:
        super().__init__()
        wide, deep = SIZES[size]
        self._conv_stem = SameConv(3, 32, 3, 2, bias=False)
        self._bn0 = _norm(32)
        blocks: list[Block] = []
        last = 32
        for number, (repeats, kernel, stride, expansion, _, target) in enumerate(_STAGES):
            ends = number in (0, len(_STAGES) - 1)
            target = _eighths(target * wide)
            for repeat in range(repeats if ends else math.ceil(repeats * deep)):
                blocks.append(Block(last, target, kernel, 1 if repeat else stride, expansion))
                last = target
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv(last, WIDTH, 1, bias=False)
        self._bn1 = _norm(WIDTH)
        self.act = nn.ReLU6()

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutput:
        x = self.act(self._bn0(self._conv_stem(pixel_values.to(self._conv_stem.weight.dtype))))
        for block in self._blocks:
            x = block(x)
        x = self.act(self._bn1(self._conv_head(x))).flatten(2).transpose(1, 2)
        return BaseModelOutput(last_hidden_state=x, hidden_states=(x,))


def _eighths(channels: float) -> int:
    """The nearest multiple of 8, at most a tenth below."""
    found = max(8, int(channels + 4) // 8 * 8)
    return found + 8 if found < 0.9 * channels else found
