"""Conversion of decoded video frames for display: rotation, square pixels, background, HDR to SDR."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from limelight.media.pixels import WHITE, rgb

_TURNS = {  # signs of the display matrix (a, b, c, d): x' = ax + cy, y' = bx + dy -> transpose that makes the frame upright
    (0, 1, -1, 0): Image.Transpose.ROTATE_270, (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90, (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM, (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}  # fmt: skip
STRETCH = 4.0  # pixel aspect ratios beyond this are errors in the file
PQ, HLG = 16, 18  # transfer characteristics of ITU-T H.273
WHITE_NITS, PEAK_NITS = 203.0, 1000.0  # ITU-R BT.2408: diffuse white, and the nominal peak of a programme
_BT2020_TO_709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], dtype=np.float32
)  # ITU-R BT.2087


def picture(frame: Any, aspect: float = 1.0, background: Any = WHITE) -> Image.Image:
    """Convert a PyAV frame to an upright RGB image.

    Args:
        aspect: width of a pixel divided by its height.
    """
    if int(frame.color_trc or 0) in (PQ, HLG):
        wide = frame.reformat(format="rgb48le").to_ndarray()
        made = Image.fromarray(tone_mapped(wide, int(frame.color_trc)))
    elif any(c.is_alpha for c in frame.format.components) or frame.format.name == "pal8":
        made = rgb(Image.fromarray(frame.reformat(format="rgba").to_ndarray()), background)
    else:
        made = frame.to_image()
    size = displayed(made.width, made.height, aspect)
    if size != made.size:
        made = made.resize(size, Image.Resampling.BICUBIC)
    return _upright(made, frame)


def displayed(width: int, height: int, aspect: float) -> tuple[int, int]:
    """Return width and height with square pixels; neither is reduced."""
    if not 1 / STRETCH <= aspect <= STRETCH or aspect == 1:
        return width, height
    return (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))


def _upright(made: Image.Image, frame: Any) -> Image.Image:
    matrix = next((bytes(s) for s in frame.side_data if s.type.name == "DISPLAYMATRIX"), b"")
    if len(matrix) >= 36:
        a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
        most = max(map(abs, (a, b, c, d))) or 1
        turn = _TURNS.get(tuple(round(v / most) for v in (a, b, c, d)))
        if turn is not None:
            return made.transpose(turn)
    return made


def tone_mapped(wide: npt.NDArray[np.uint16], transfer: int) -> npt.NDArray[np.uint8]:
    """Tone-map HDR in BT.2020 primaries, ``[H, W, 3]`` in 16 bits, to sRGB in 8 bits.

    Light follows ITU-R BT.2100's PQ or HLG (system gamma 1.2 at 1000 cd/m²), in units of diffuse white (203 cd/m², BT.2408);
    the brightest channel is compressed by the extended Reinhard curve, which preserves hue; primaries follow BT.2087.
    """
    signal = wide.astype(np.float32) / np.float32(65535)
    if transfer == PQ:
        root = signal ** np.float32(1 / 78.84375)
        light = (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** np.float32(1 / 0.1593017578125)
        light *= 10_000.0 / WHITE_NITS
    else:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
        luminance = scene @ np.array([0.2627, 0.678, 0.0593], np.float32)
        light = scene * np.maximum(luminance, 1e-6)[..., None] ** 0.2 * (PEAK_NITS / WHITE_NITS)
    brightest = light.max(axis=-1, keepdims=True)
    peak = PEAK_NITS / WHITE_NITS
    light *= (1 + brightest / peak**2) / (1 + brightest)
    linear = np.clip(light @ _BT2020_TO_709.T, 0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    out: npt.NDArray[np.uint8] = np.rint(srgb * 255).astype(np.uint8)
    return out
