"""Pictures as data URLs, for pages that load nothing."""

from __future__ import annotations

import base64
import io

from PIL import Image


def data_url(picture: Image.Image, longest: int) -> str:
    """Encode an image for the page: PNG if small, else JPEG; no side longer than ``longest``."""
    copy = picture.convert("RGB")
    copy.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return encoded(copy, "png" if copy.width * copy.height <= 160 * 160 else "jpeg")


def encoded(picture: Image.Image, kind: str) -> str:
    """Encode an image as it is."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"optimize": True} if kind == "png" else {"quality": 82}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
