"""Fit the calibrations shipped with the library: fitted on dev, evaluated on test.

    python -m recipes.calibrations            writes calibration.json beside the weights of all, and prints them
    python -m recipes.calibrations --unlabelled      the same without labels, for comparison: prints, writes nothing

Vision and video: captions of clear and degraded media, without a hint and with a wrong one. Audio: the same, and transcripts of usual
and unusual phrases and of recordings without speech. smol-vision, if its weights were fetched: captions of scenes with clear and
with small or faint objects, without a hint and with a wrong one. The Whispers: the recordings
of `bench.whisper`, half of them held out; `--only whisper-base` fits from the rows that it has measured.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

import limelight
from bench import whisper, whisper_table
from limelight.calibrating.fit import Observed, fit, measured
from limelight.calibrating.labels import INVENTED, SUPPORTED
from limelight.calibration import FILE, Calibration
from limelight.demo import film_questions, films, questions, scenes, sound_questions, sounds
from limelight.errors import DataError
from limelight.models.checkpoints.weights_on_disk import missing_parts
from limelight.models.loading import CALIBRATIONS, packaged

HINTS = ("none", "E-wrong", "C-wrong")
CAPTIONS, TRANSCRIPTS = 60, 36  # a set


def pictures(split: Any, n: int) -> Iterator[dict[str, Any]]:
    """Yield caption requests labelled with the objects that are and are not in the image."""
    for visibility in ("clear", "poor"):
        for hint in HINTS:
            for c in questions.captions(split, hint, n, visibility=visibility):
                image = c.scene.image()
                absent = sorted(set(scenes.OBJECTS) - c.objects)
                yield {"image": image, "prompt": c.text, "supported": sorted(c.objects), "invented": absent}


def recordings(split: Any, n: int) -> Iterator[dict[str, Any]]:
    """Yield caption requests labelled with the sounds that do and do not occur, and transcription requests with references."""
    rate = sounds.RATE
    for clarity in ("clear", "poor"):
        for hint in HINTS:
            for c in sound_questions.captions(split, hint, n, clarity=clarity):
                absent = sorted(set(sounds.EVENTS) - set(c.truth))
                yield {
                    "audio": (c.recording.samples(), rate), "prompt": c.text,
                    "supported": list(c.truth), "invented": absent,
                }  # fmt: skip
    for name in ("usual/clear", "broken/clear", "usual/poor", "broken/poor", *sound_questions.QUIET):
        for t in sound_questions.transcriptions(split, name, n * TRANSCRIPTS // CAPTIONS):
            yield {"audio": (t.recording.samples(), rate), "prompt": t.text, "reference": t.truth}


def watched(split: Any, n: int) -> Iterator[dict[str, Any]]:
    """Yield caption requests labelled with the objects that are and are not in the film."""
    for visibility in ("clear", "poor"):
        for hint in HINTS:
            for c in film_questions.captions(split, hint, n, visibility=visibility):
                absent = sorted(set(films.NAMES) - set(c.film.names))
                yield {"video": c.film.clip(), "prompt": c.text, "supported": list(c.film.names), "invented": absent}


def composed(split: Any, n: int) -> Iterator[dict[str, Any]]:
    """Caption requests about composed scenes, with the nouns that are and are not in each."""
    from recipes.real_vision.nouns import CANDIDATES
    from recipes.real_vision.questions import captions

    for sight in ("clear", "poor"):
        for hint in ("none", "E-wrong"):
            for c in captions(split, hint, n, sight):
                absent = sorted(set(CANDIDATES) - set(c.picture.nouns))
                yield {
                    "image": c.picture.image, "prompt": c.text, "supported": list(c.picture.nouns), "invented": absent,
                }  # fmt: skip


WORLDS: Mapping[str, Callable[[Any, int], Iterator[dict[str, Any]]]] = {
    "demo-vision": pictures,
    "demo-audio": recordings,
    "demo-video": watched,
    "smol-vision": composed,
}


# On audio the score is less informative: a threshold by Youden's index would flag a quarter of the true words.
OBJECTIVES = {
    "demo-vision": "youden",
    "demo-audio": "false-flags=0.05",
    "demo-video": "youden",
    "smol-vision": "youden",
}


def calibrated(name: str, *, n: int = CAPTIONS, labelled: bool = True) -> Calibration:
    """Fit a miniature's calibration."""
    rows = list(WORLDS[name]("dev", n))
    if not labelled:
        kept = ("image", "audio", "video", "prompt")
        rows = [{k: v for k, v in r.items() if k in kept} for r in rows]
    adapter = limelight.load(name, calibration=None)
    held_out = list(WORLDS[name]("test", n))
    return limelight.calibrate(
        adapter,
        rows,
        held_out=held_out,
        name=name,
        objective=OBJECTIVES[name],
        max_new_tokens=40 if name == "demo-video" else 24,
        batch_size=20 if labelled else 10,
    )


def observed(rows: Sequence[Mapping[str, Any]]) -> Observed:
    """Words and segments that `bench.whisper` has measured: words are supported that are said in their place."""
    z: list[float] = []
    rival: list[float] = []
    label: list[int] = []
    segments: list[tuple[float, int]] = []
    for row in rows:
        for group, wrong in whisper_table.judged(row):
            z.append(row["z"][group[0]])
            rival.append(-math.inf if row["rival"][group[0]] is None else row["rival"][group[0]])
            label.append(INVENTED if wrong else SUPPORTED)
        if whisper_table.text_tokens(row) and (row["kind"] != "speech" or whisper_table.half_right(row)):
            told = SUPPORTED if row["kind"] == "speech" else INVENTED
            segments.append((whisper_table.mean(row, "centred"), told))
    part = Observed.of_segments([s for s, _ in segments], [told for _, told in segments])
    return Observed(np.array(z), np.array(rival), np.array(label), part)


def of_whisper(name: str) -> tuple[Calibration, Mapping[str, float]]:
    """A Whisper's calibration, and how it does on the other one's recordings."""
    rows = {m: [r for r in whisper.measured_rows(m) if "strategy" not in r] for m in whisper.MODELS}
    if not all(rows.values()):
        raise DataError("the recordings have not been measured", hint="python -m bench.whisper")
    halves = [[r for r in rows[name] if r["fold"] == fold] for fold in (0, 1)]
    found = fit(
        observed(halves[0]), model=name, objective="false-flags=0.05", labels="a labelled file",
        traits=limelight.load(name, calibration=None).sizes, held_out=observed(halves[1]),
    )  # fmt: skip
    (other,) = (m for m in whisper.MODELS if m != name)
    return found, {f"{other}: {k}": v for k, v in measured(observed(rows[other]), found).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=(*WORLDS, *whisper.MODELS))
    parser.add_argument("--unlabelled", action="store_true", help="fit on the models' own answers; write nothing")
    parser.add_argument("-n", type=int, default=CAPTIONS, help="captions a set")
    args = parser.parse_args()
    if args.only in whisper.MODELS:
        found, elsewhere = of_whisper(args.only)
        print(args.only, found.about(), dict(found.counts), dict(found.measures), dict(elsewhere), sep="\n  ")
        print(found.save(CALIBRATIONS / f"{args.only}.json"))
    for name in WORLDS:
        if args.only is None and missing_parts(name):
            print(f"{name}: left out, its weights were not fetched (make real)")
        elif args.only in (None, name):
            found = calibrated(name, n=args.n, labelled=not args.unlabelled)
            print(name, found.about(), dict(found.counts), dict(found.measures), sep="\n  ")
            if not args.unlabelled:
                print(found.save(packaged(name) / FILE))


if __name__ == "__main__":
    main()
