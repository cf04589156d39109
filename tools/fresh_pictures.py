"""python -m tools.fresh_pictures: redraw the pictures of README and docs whose sources changed since they were drawn.

``docs/images/sources.json`` holds a hash of what each group was made from: the drawing code, the models and examples. --all redraws
everything, --check exits with 1 where something is out of date.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LISTING = ROOT / "docs" / "images" / "sources.json"
DRAWING = (
    "src/limelight/report/heat.py",
    "src/limelight/report/figure.py",
    "src/limelight/demo/vision/model.safetensors",
)
# module that draws -> its further sources
GROUPS: dict[str, tuple[str, ...]] = {
    "tools.readme_picture": (),
    "tools.pictures": (),
    "recipes.doc_pictures": (
        "src/limelight/report/overlay.py", "src/limelight/report/waveform.py", "src/limelight/report/frames.py",
        "src/limelight/demo/audio/model.safetensors", "src/limelight/demo/video/model.safetensors",
    ),
}  # fmt: skip


def state(module: str) -> str:
    """A hash of everything that a group's pictures are made from."""
    digest = hashlib.sha256()
    for name in (f"{module.replace('.', '/')}.py", *DRAWING, *GROUPS[module]):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()[:16]


def stale() -> list[str]:
    """The groups whose sources changed."""
    known = json.loads(LISTING.read_text(encoding="utf-8")) if LISTING.exists() else {}
    return [module for module in GROUPS if known.get(module) != state(module)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    found = list(GROUPS) if args.all else stale()
    if args.check:
        if found:
            print("out of date: " + ", ".join(found))
        sys.exit(bool(found))
    for module in found:
        print(f"drawing {module}", flush=True)
        importlib.import_module(module).main()
    LISTING.write_text(json.dumps({module: state(module) for module in GROUPS}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
