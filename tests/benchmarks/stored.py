"""What a finished run has written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_results(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))
