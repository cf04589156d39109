"""Scenes of test as files for ``limelight bench labelled``: ``python -m recipes.real_vision.labelled OUT --sight clear``.

The pictures hold cut-outs under the GPL: they are made on the machine that needs them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from recipes.real_vision.nouns import CANDIDATES
from recipes.real_vision.questions import HINTS, SIGHTS, captions, questions


def write(out: Path, *, split: str = "test", sight: str = "clear", hint: str = "none", count: int = 300) -> Path:
    """Captions of ``count`` scenes and a question about each; pictures, labelled.jsonl, objects.txt."""
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for caption in captions(split, hint, count, sight) if hint in ("none", "E-wrong") else ():
        name = f"{caption.picture.id}.png"
        caption.picture.image.save(out / name)
        rows.append({"id": caption.id, "image": name, "cluster": caption.picture.id, "prompt": caption.text,
                     "objects": list(caption.picture.nouns)})  # fmt: skip
    for asked in questions(split, f"{hint}/{sight}", count):
        name = f"{asked.picture.id}.png"
        asked.picture.image.save(out / name)
        rows.append({"id": asked.id, "image": name, "cluster": asked.picture.id, "prompt": asked.text,
                     "answer": "yes" if asked.present else "no"})  # fmt: skip
    (out / "labelled.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    (out / "objects.txt").write_text("".join(f"{n}, {n}s\n" for n in sorted(CANDIDATES)), encoding="utf-8")
    return out


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.real_vision.labelled", description=(__doc__ or "").split(":")[0]
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    parser.add_argument("--sight", choices=SIGHTS, default="clear")
    parser.add_argument("--hint", choices=HINTS, default="none")
    parser.add_argument("--count", type=int, default=300)
    args = parser.parse_args(argv)
    print(write(args.out, split=args.split, sight=args.sight, hint=args.hint, count=args.count))


if __name__ == "__main__":
    main()
