"""Speech recognition: word error rate, and words invented on audio without speech."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from limelight.benchmarks.data import Folder, Needed, Row, column, text
from limelight.benchmarks.scorers.detection import detection, spoken_words
from limelight.benchmarks.scorers.grounding import reliance
from limelight.benchmarks.scorers.measure import Block, records_by_split
from limelight.benchmarks.scorers.wer import PARSERS, invented_words, quiet, speech
from limelight.benchmarks.task import HubTable, Scoring, Task
from limelight.errors import DataError
from limelight.types import Record, Sample

SPLITS = ("test-clean", "test-other", "dev-clean", "dev-other", "manifest")
LIBRISPEECH = "https://www.openslr.org/12 (LibriSpeech)"
OWN = "you: a file with the columns audio, text (empty for silence and noise) and, if known, kind and seconds"
PROMPT = "Transcribe the speech. Answer with the words that are spoken and nothing else."


def _needed(split: str) -> Needed:
    if split == "manifest":
        return Needed(("manifest.tsv", "manifest.csv", "manifest.jsonl", "manifest.json"), OWN)
    return Needed((f"{split}/", f"LibriSpeech/{split}/"), LIBRISPEECH)


def load(folder: Folder, split: str) -> Iterator[Sample]:
    """Load LibriSpeech's layout, or a manifest: rows without text are silence or noise, as given by ``kind``."""
    if split == "manifest":
        yield from _manifest(folder, split)
        return
    base = folder.find(_needed(split))
    transcripts = sorted(base.rglob("*.trans.txt"))
    if not transcripts:
        raise DataError(f"no *.trans.txt under {base}", hint=f"unpack {split}.tar.gz from {LIBRISPEECH}")
    for path in transcripts:
        name = path.relative_to(folder.root).as_posix()
        for number, line in enumerate(folder.text(Needed((name,), LIBRISPEECH)).splitlines(), 1):
            utterance, _, words = line.strip().partition(" ")
            if not utterance:
                continue
            with folder.rejected.row(f"{path}, line {number}"):
                if not words.strip():
                    raise DataError(f"{utterance} has no transcript", hint="expected 'utterance WORDS'")
                meta = {"split": split, "kind": "speech", "cluster": utterance.split("-")[0]}
                yield Sample(
                    f"{split}/{utterance}", PROMPT, {"audio": [path.parent / f"{utterance}.flac"]}, words, meta
                )


def _manifest(folder: Folder, split: str) -> Iterator[Sample]:
    where = _needed(split).names[0]

    def sample(row: Row) -> Sample:
        file, words = text(where, row, "audio", "path"), column(where, row, "text", "sentence")
        if not isinstance(words, str):
            raise DataError(f"the text is {words!r}", hint='use "" where there is no speech')
        meta: dict[str, Any] = {"split": split, "kind": row.get("kind") or ("speech" if words.strip() else "silence")}
        if row.get("seconds"):
            meta["seconds"] = float(row["seconds"])
            if not 0 < meta["seconds"] < math.inf:
                raise DataError(f"the audio lasts {meta['seconds']} seconds", hint="correct the row")
        return Sample(f"{split}/{row.number}/{file}", PROMPT, {"audio": [folder.root / file]}, words, meta)

    yield from folder.samples(_needed(split), sample)


def score(records: Sequence[Record], scoring: Scoring) -> list[Block]:
    """Score speech by split and non-speech by kind. A reference that is empty once normalised counts as non-speech."""
    norm = PARSERS[scoring.parser]
    spoken = [r for r in records if norm(str(r.target))]
    silent = [r for r in records if not norm(str(r.target))]
    blocks = [speech(s, rows, scoring.parser) for s, rows in records_by_split(spoken, SPLITS).items()]
    for kind in sorted({str(r.meta["kind"]) for r in silent}):
        blocks.append(quiet(kind, [r for r in silent if r.meta["kind"] == kind], scoring.parser))
    words = [u for r in records for u in spoken_words(r, invented_words, norm)]
    return [*blocks, *reliance("", records, "audio"), *detection("words", words)]


def _hub(split: str) -> HubTable:
    config, part = split.split("-")[1], split.split("-")[0]

    def convert(row: Mapping[str, Any], number: int) -> Sample | None:
        meta = {"split": split, "kind": "speech", "cluster": str(row["id"]).split("-")[0]}
        words = text("LibriSpeech", row, "text")
        return Sample(f"{split}/{row['id']}", PROMPT, {"audio": [row["audio"]]}, words, meta)

    return HubTable("openslr/librispeech_asr", "validation" if part == "dev" else part, convert, config)


TASK = Task(
    name="asr",
    version="1",
    paper="Panayotov et al., Librispeech, ICASSP 2015; words invented on silence: Koenecke et al., FAccT 2024",
    about="word error rate by jiwer, and words invented on silence and noise",
    modality="audio",
    splits=SPLITS,
    files=lambda split: [_needed(split)],
    load=load,
    score=score,
    parsers=("basic", "raw"),
    media="the folder of the manifest, or LibriSpeech",
    headline=("*/WER", "*/insertions", "*/invented words per clip", "*/clips with invented words", "audio reliance"),
    max_new_tokens=256,
    hub={split: _hub(split) for split in SPLITS[:4]},
    goal=("*/WER",),
)
