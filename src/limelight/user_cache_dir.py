"""The user's cache folder: converted checkpoints, fetched weights, calibrations. It may be deleted at any time."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "LIMELIGHT_CACHE"


def user_cache_dir() -> Path:
    """Return ``$LIMELIGHT_CACHE``, else ``limelight`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    own = os.environ.get(VARIABLE)
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "limelight"
