"""Opening files with libav, isolated from all other files and URLs."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def contained(av: Any, file: Path | io.BytesIO, container: str | None = None) -> Iterator[Any]:
    """Open a file with libav with no protocols allowed, so that a playlist cannot open other files or URLs."""
    logging.getLogger("libav").setLevel(logging.CRITICAL)  # problems are reported by the exception
    handle = file.open("rb") if isinstance(file, Path) else file
    handle.seek(0)
    try:
        with av.open(handle, format=container, options={"protocol_whitelist": "none"}) as opened_:
            yield opened_
    finally:
        if isinstance(file, Path):
            handle.close()
