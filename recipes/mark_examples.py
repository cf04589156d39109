"""Mark the examples that `limelight demo` shows first, and add its caption: python -m recipes.mark_examples [image audio video]

Of E-wrong and of C-wrong the first that relevance-contrastive decoding (preset=questions) answers correctly, and the first of
the last kind (adversarial images; of the recordings C-wrong; of the films order-E-wrong) that it does not. The caption is the first
of the split 'demo' without a hint in whose greedy answer an absent object occurs.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import soundfile

import limelight
from limelight.demo import film_questions, questions, sound_questions
from limelight.demo.films import RATE as FRAME_RATE
from limelight.demo.outcome import HOMES, MODELS, curated
from limelight.demo.run import VOCABULARY
from limelight.demo.synthesis import RATE
from limelight.report.words import words

RULE = " Marked as shown: the first of {} and of {} that relevance-contrastive decoding (preset=questions) answers correctly, and the first of {}, which it does not."
CAPTION_RULE = (
    "The first caption request of the split 'demo' without a hint in whose greedy answer an absent object occurs."
)


def marked(kind: str, kinds: tuple[str, str, str]) -> dict[str, Any]:
    """The listing of a miniature's examples with the three shown ones marked: cells of ``kinds`` answered correctly, correctly and
    wrongly."""
    folder = HOMES[kind] / "examples"
    adapter = limelight.load(MODELS[kind])
    listing: dict[str, Any] = json.loads((folder / "examples.json").read_text(encoding="utf-8"))
    chosen = limelight.relevance_contrastive(preset="questions")
    right = {}
    for row in curated(folder)[0]:
        said = limelight.generate(
            adapter, messages=row.text, media={kind: str(row.file)}, strategy=chosen, relevance=False, max_new_tokens=4
        )
        right[row.id] = said.text == row.label
    rows = listing["examples"]
    wanted = zip(kinds, (True, True, False), strict=True)
    shown = [next(r["id"] for r in rows if r["cell"].startswith(c) and right[r["id"]] == able) for c, able in wanted]
    for row in rows:
        row.pop("shown", None)
        if row["id"] in shown:
            row["shown"] = True
    listing["rule"] = listing["rule"].split(" Marked as shown")[0] + RULE.format(*kinds)
    return listing


def described(
    kind: str, requests: Any, truth: Any, tokens: int = 24, written: Callable[[Any], Path] | None = None
) -> tuple[int, Any, str]:
    """The first request whose greedy caption mentions what is not there: its number, the request, the caption.

    Args:
        written: writes the medium of a request to a lossy file, which is what the caption is of.
    """
    adapter = limelight.load(MODELS[kind])
    for number, request in enumerate(requests):
        asked = {"messages": request.messages}
        if written is not None:
            asked = {"messages": request.text, "media": {kind: str(written(request))}}
        said = limelight.generate(adapter, **asked, relevance=False, max_new_tokens=tokens)
        if any(w.text in VOCABULARY[kind] and w.text not in truth(request) for w in words(said)):
            return number, request, said.text
    raise SystemExit("greedy decoding invents nothing in these captions")


def written(
    kind: str, listing: dict[str, Any], one: Any, said: str, name: str, objects: dict[str, list[float]]
) -> None:
    """Add the caption to a listing, and write it."""
    listing["caption"] = {
        "rule": CAPTION_RULE, "id": one.id, kind: name, "text": one.text, "said": said, "objects": objects,
    }  # fmt: skip
    (HOMES[kind] / "examples" / "examples.json").write_text(json.dumps(listing, indent=1) + "\n")


def images() -> None:
    listing = marked("image", ("E-wrong", "C-wrong", "adversarial"))
    number, one, said = described("image", questions.captions("demo", "none", 200), lambda c: c.objects)
    name = f"caption-{number:03d}.png"
    one.scene.image().save(HOMES["image"] / "examples" / name, optimize=True)
    written("image", listing, one, said, name, {key: list(box) for key, box in one.scene.boxes.items()})


def recordings() -> None:
    listing = marked("audio", ("E-wrong", "C-wrong", "C-wrong"))
    number, one, said = described("audio", sound_questions.captions("demo", "none", 200), lambda c: c.truth)
    name = f"caption-{number:03d}.flac"
    soundfile.write(HOMES["audio"] / "examples" / name, one.recording.samples(), RATE, subtype="PCM_16")
    written("audio", listing, one, said, name, {key: list(span) for key, span in one.recording.spans.items()})


def films() -> None:
    from recipes.demo_video.ship import write_film

    listing = marked("video", ("what-E-wrong", "what-C-wrong", "order-E-wrong"))
    with tempfile.TemporaryDirectory() as folder:

        def coded(request: Any) -> Path:
            path = Path(folder) / "caption.mp4"
            write_film(request.film, path)
            return path

        requests = film_questions.captions("demo", "none", 200)
        number, one, said = described("video", requests, lambda c: c.film.names, 48, coded)
    name = f"caption-{number:03d}.mp4"
    write_film(one.film, HOMES["video"] / "examples" / name)
    spans = {a.name: [a.start / FRAME_RATE, a.stop / FRAME_RATE] for a in one.film.appearances}
    written("video", listing, one, said, name, spans)


def main() -> None:
    every = {"image": images, "audio": recordings, "video": films}
    for kind in sys.argv[1:] or every:
        every[kind]()


if __name__ == "__main__":
    main()
