"""A file that libav reads, and can open nothing beside."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def contained(av: Any, file: Path | io.BytesIO, container: str | None = None) -> Iterator[Any]:
    """A file opened by libav, which can open nothing beside it: with no protocol at all, a playlist leads nowhere."""
    logging.getLogger("libav").setLevel(logging.CRITICAL)  # what is wrong with a file is told by the error
    handle = file.open("rb") if isinstance(file, Path) else file
    handle.seek(0)
    try:
        with av.open(handle, format=container, options={"protocol_whitelist": "none"}) as opened_:
            yield opened_
    finally:
        if isinstance(file, Path):
            handle.close()
