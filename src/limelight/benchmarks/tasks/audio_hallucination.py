"""Audio-Hallucination-QA: "Is there a sound of X in the audio?" "No" is the positive class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from limelight.benchmarks.data import Folder, Needed, column, text
from limelight.benchmarks.scorers.grounding import reliance
from limelight.benchmarks.scorers.measure import Block, mean_block, records_by_split
from limelight.benchmarks.scorers.yes_no import COMMON, label, yes_no
from limelight.benchmarks.task import Scoring, Task
from limelight.types import Record, Sample

SPLITS = ("random", "popular", "adversarial")
ORIGIN = "https://huggingface.co/datasets/kuanhuggingface/AudioHallucination_AudioCaps-{}-v2"
SOUNDS = Needed(("audiocaps/", "audio/", "test/", "wav/", "./"), "AudioCaps test split")


def _file(split: str) -> Needed:
    stem = f"AudioHallucination_AudioCaps-{split.capitalize()}"
    names = [f"{s}{end}" for s in (split, f"{stem}-v2", stem, f"test-{split}") for end in (".tsv", ".csv", ".jsonl")]
    return Needed(tuple(names), ORIGIN.format(split.capitalize()))


def load(folder: Folder, split: str) -> Iterator[Sample]:
    """Load rows of entry_id, audio_index, prompt_text, object, attribute, label, sampling; the audio is {audio_index}.wav."""
    name = _file(split).names[0]

    def sample(row: Mapping[str, Any]) -> Sample:
        sound = text(name, row, "audio_index")
        meta = {"split": split, "cluster": sound, "object": row.get("object", "")}
        return Sample(
            f"{split}/{text(name, row, 'entry_id')}",
            text(name, row, "prompt_text"),
            {"audio": [folder.media(SOUNDS, sound if sound.endswith(".wav") else f"{sound}.wav")]},
            label(column(name, row, "label")),
            meta,
        )

    yield from folder.samples(_file(split), sample)


def score(records: Sequence[Record], scoring: Scoring) -> list[Block]:
    by_split = records_by_split(records, SPLITS)
    blocks = [yes_no(s, rows, scoring.parser, positive="no") for s, rows in by_split.items()]
    mean = [mean_block("mean", blocks)] if len(blocks) > 1 else []
    return [*blocks, *mean, *reliance("", records, "audio")]


TASK = Task(
    name="audio_hallucination",
    version="1",
    paper="Kuan et al., Understanding Sounds, Missing the Questions, Interspeech 2024 (arXiv 2406.08402)",
    about="yes/no questions about sounds; NO is the positive class",
    modality="audio",
    splits=SPLITS,
    files=lambda split: [_file(split)],
    load=load,
    score=score,
    parsers=("cascade", "strict", "official", *COMMON),
    media="AudioCaps' test split (https://audiocaps.github.io, YouTube clips), folder audiocaps, {audio_index}.wav",
    headline=("*/accuracy", "*/F1", "*/yes ratio", "audio reliance"),
    max_new_tokens=64,
    goal=("*/accuracy",),
)
