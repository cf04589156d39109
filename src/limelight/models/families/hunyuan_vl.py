"""Hunyuan-VL: position ids number the images through the whole batch."""

from limelight.models.families import Family

FAMILY = Family(
    "hunyuan-vl",
    ("hunyuan_vl",),
    no_batch="its position ids number the images through the batch, so a row depends on the rows before it",
)
