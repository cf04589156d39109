"""Puts the committed results into README and docs, between markers; a test keeps them in step.

python -m bench.tables          rewrite the blocks
python -m bench.tables --check  exit 1 where a block differs from bench/results
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import (
    attribution,
    big_table,
    detection,
    faithfulness,
    free_text_table,
    gpu_table,
    look_again_table,
    one_token,
    quality_audio_table,
    quality_smol,
    quality_table,
    quality_video,
    readme_tables,
    smol_vision,
    speed,
    start,
    whisper_table,
)

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
PAGES = (
    ROOT / "README.md",
    *(
        ROOT / "docs" / f"{name}.md"
        for name in (
            "speed",
            "quality",
            "quality-audio",
            "quality-video",
            "free-text",
            "benchmarks",
            "detection",
            "look-again",
            "smol-vision",
            "transcripts",
        )
    ),
)


def _speed() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / "speed.json").read_text())
    return found


def _whisper() -> dict[str, Any]:
    path = RESULTS / "whisper.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"models": {}}
    return found


def _quality() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / "quality.json").read_text())
    return found


def _optional(name: str, render: Callable[[dict[str, Any]], str]) -> Callable[[], str]:
    """A table of a file that may not be there, such as one of real weights, which not every machine can measure."""
    path = RESULTS / f"{name}.json"
    return lambda: render(json.loads(path.read_text())) if path.exists() else "Not measured yet."


BLOCKS: dict[str, Callable[[], str]] = {
    "attribution": lambda: attribution.table(json.loads(attribution.RESULTS.read_text())["rows"]),
    "free-text": lambda: free_text_table.render(json.loads((RESULTS / "free_text.json").read_text())),
    "detection": lambda: detection.table(json.loads(detection.RESULTS.read_text())),
    "look-again": lambda: look_again_table.committed(),
    "faithfulness": lambda: faithfulness.table(json.loads(faithfulness.RESULTS.read_text())),
    "what-helps": readme_tables.helps,
    "cost-short": readme_tables.costs,
    "gpu": lambda: gpu_table.table(json.loads((RESULTS / "gpu.json").read_text())),
    "one-token": _optional("one_token", lambda found: one_token.table(found["rows"])),
    "big": _optional("big", big_table.table),
    "start": _optional("start", lambda found: start.table(found["rows"])),
    "whisper": lambda: whisper_table.filters_table(_whisper()),
    "whisper-kinds": lambda: whisper_table.kinds_table(_whisper()),
    "whisper-segments": lambda: whisper_table.segments_table(_whisper()),
    "whisper-words": lambda: whisper_table.words_table(_whisper()),
    "speed": lambda: speed.table(_speed()["rows"]),
    "quality": lambda: quality_table.render(_quality()),
    "quality-audio": lambda: quality_audio_table.render(json.loads((RESULTS / "quality_audio.json").read_text())),
    "quality-video": lambda: quality_video.render(json.loads((RESULTS / "quality_video.json").read_text())),
    "smol-vision": _optional("smol_vision", smol_vision.table),
    "smol-captions": _optional("smol_free_text", free_text_table.render),
    "smol-short": _optional("smol_free_text", lambda found: free_text_table.short(found["smol-vision"])),
    "smol-questions": _optional("quality_smol", quality_smol.render),
    "smol-detection": _optional("smol_detection", detection.table),
    "quality-short": lambda: quality_table.short(_quality()),
}
_MARK = re.compile(r"(<!-- table:(?P<name>[a-z-]+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def filled(text: str) -> str:
    """The page with every marked block replaced by its table."""
    return _MARK.sub(lambda m: f"{m[1]}{BLOCKS[m['name']]()}\n{m[3]}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    stale = [p for p in PAGES if p.exists() and filled(p.read_text()) != p.read_text()]
    for page in stale:
        if not args.check:
            page.write_text(filled(page.read_text()))
        print(f"{page.relative_to(ROOT)}: {'stale' if args.check else 'rewritten'}")
    if args.check and stale:
        sys.exit(1)


if __name__ == "__main__":
    main()
