"""MiniCPM-V and MiniCPM-OCR: the patches of all images are concatenated along the last axis of the pixels."""

from limelight.models.families import Family
from limelight.models.inputs.axes import Axes

_PATCHES = (Axes("one channel height picture", media=True, features=True),)

FAMILY = Family(
    "minicpm",
    ("minicpmv4_6", "minicpmv4_7", "minicpm_ocr"),
    arguments={"pixel_values": _PATCHES, "pixel_values_videos": _PATCHES},
)
