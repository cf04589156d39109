"""Mark the examples that `limelight demo` shows first, and add its caption: python -m recipes.mark_examples

Of E-wrong and of C-wrong the first that relevance-contrastive decoding (preset=questions) answers correctly, and the first of
the last kind (adversarial images; of the recordings C-wrong) that it does not. The caption is the first of the split 'demo'
without a hint in whose greedy answer an absent object occurs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import soundfile

import limelight
from limelight.demo import questions, sound_questions
from limelight.demo.outcome import AUDIO, VISION, curated
from limelight.demo.scenes import OBJECTS
from limelight.demo.sounds import EVENTS
from limelight.demo.synthesis import RATE
from limelight.report.words import words

RULE = " Marked as shown: the first of E-wrong and of C-wrong that relevance-contrastive decoding (preset=questions) answers correctly, and the first of {}, which it does not."
CAPTION_RULE = (
    "The first caption request of the split 'demo' without a hint in whose greedy answer an absent object occurs."
)


def marked(kind: str, folder: Path, last: str) -> dict[str, Any]:
    """The listing of a folder with the three shown examples marked."""
    adapter = limelight.load(f"demo-{'vision' if kind == 'image' else 'audio'}")
    listing: dict[str, Any] = json.loads((folder / "examples.json").read_text(encoding="utf-8"))
    chosen = limelight.relevance_contrastive(preset="questions")
    right = {}
    for row in curated(folder)[0]:
        said = limelight.generate(
            adapter, messages=row.text, media={kind: str(row.file)}, strategy=chosen, relevance=False, max_new_tokens=4
        )
        right[row.id] = said.text == row.label
    wanted = [("E-wrong", True), ("C-wrong", True), (last, False)]
    rows = listing["examples"]
    shown = [next(r["id"] for r in rows if r["cell"].startswith(c) and right[r["id"]] == able) for c, able in wanted]
    for row in rows:
        row.pop("shown", None)
        if row["id"] in shown:
            row["shown"] = True
    listing["rule"] = listing["rule"].split(" Marked as shown")[0] + RULE.format(last)
    return listing


def described(adapter: Any, requests: Any, vocabulary: tuple[str, ...], truth: Any) -> tuple[int, Any, str]:
    """The first request whose greedy caption mentions what is not there: its number, the request, the caption."""
    for number, request in enumerate(requests):
        said = limelight.generate(adapter, messages=request.messages, relevance=False, max_new_tokens=24)
        if any(w.text in vocabulary and w.text not in truth(request) for w in words(said)):
            return number, request, said.text
    raise SystemExit("greedy decoding invents nothing in these captions")


def main() -> None:
    folder = VISION / "examples"
    listing = marked("image", folder, "adversarial")
    number, one, said = described(
        limelight.load("demo-vision"), questions.captions("demo", "none", 200), OBJECTS, lambda c: c.objects
    )
    name = f"caption-{number:03d}.png"
    one.scene.image().save(folder / name, optimize=True)
    listing["caption"] = {
        "rule": CAPTION_RULE, "id": one.id, "image": name, "text": one.text, "said": said,
        "objects": {key: list(box) for key, box in one.scene.boxes.items()},
    }  # fmt: skip
    (folder / "examples.json").write_text(json.dumps(listing, indent=1) + "\n")
    folder = AUDIO / "examples"
    listing = marked("audio", folder, "C-wrong")
    number, heard, said = described(
        limelight.load("demo-audio"), sound_questions.captions("demo", "none", 200), EVENTS, lambda c: c.truth
    )
    name = f"caption-{number:03d}.flac"
    soundfile.write(folder / name, heard.recording.samples(), RATE, subtype="PCM_16")
    listing["caption"] = {
        "rule": CAPTION_RULE, "id": heard.id, "audio": name, "text": heard.text, "said": said,
        "objects": {key: list(span) for key, span in heard.recording.spans.items()},
    }  # fmt: skip
    (folder / "examples.json").write_text(json.dumps(listing, indent=1) + "\n")


if __name__ == "__main__":
    main()
