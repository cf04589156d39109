"""AIR-Bench, foundation part: multiple choice about speech, sound and music."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from limelight.benchmarks.data import Folder, Needed, text
from limelight.benchmarks.scorers.choice import choice
from limelight.benchmarks.scorers.grounding import reliance
from limelight.benchmarks.scorers.measure import Block, mean_block, records_by_split
from limelight.benchmarks.task import HubTable, Scoring, Task
from limelight.errors import DataError
from limelight.types import Record, Sample

SPLITS = ("speech", "sound", "music")
ORIGIN = "https://huggingface.co/datasets/qyang1021/AIR-Bench-Dataset"
META = Needed(("Foundation_meta.json", "Foundation/Foundation_meta.json"), f"{ORIGIN}, Foundation")
SOUNDS = Needed(("Foundation/", "./"), ORIGIN)
_ASK = (
    "Choose the most suitable answer from options A, B, C, and D to respond the question in next line, "
    "you may only choose A or B or C or D."
)


def part(task_name: str) -> str:
    """Return the part (speech, sound or music) of an AIR-Bench task."""
    name = task_name.lower()
    if name.startswith("music"):
        return "music"
    return "speech" if name.startswith(("speech", "speaker", "spoken", "synthesized")) else "sound"


def _sample(row: Mapping[str, Any], split: str, media: Sequence[Any]) -> Sample:
    where = META.names[0]
    choices = [row.get(f"choice_{letter}") for letter in "abcd"]
    answer = text(where, row, "answer_gt")
    if answer not in choices:
        raise DataError(f"the answer {answer!r} is not one of the choices {choices}", hint="correct the row")
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCD", choices, strict=True))
    name = f"{text(where, row, 'task_name')}_{text(where, row, 'dataset_name')}"
    return Sample(
        f"{split}/{name}/{text(where, row, 'uniq_id')}",
        f"{_ASK}\n{text(where, row, 'question')}\n{listed}",
        {"audio": media},
        answer,
        {"split": split, "task": name, "choices": [c for c in choices if c is not None]},
    )


def load(folder: Folder, split: str) -> Iterator[Sample]:
    """Yield questions with the official prompt, which lists the missing choices of two-way questions as "C. None"."""

    def sample(row: Mapping[str, Any]) -> Sample | None:
        task_name = text(META.names[0], row, "task_name")
        if part(task_name) != split:
            return None
        file = f"{task_name}_{text(META.names[0], row, 'dataset_name')}/{text(META.names[0], row, 'path')}"
        if task_name == "Audio_Grounding":  # its metadata says wav, its files are flac
            file = f"{file[:-3]}flac"
        return _sample(row, split, [folder.media(SOUNDS, file)])

    yield from folder.samples(META, sample)


def score(records: Sequence[Record], scoring: Scoring) -> list[Block]:
    """Score each part: accuracy over its questions, and the mean over its tasks."""
    blocks = []
    for split, rows in records_by_split(records, SPLITS).items():
        names = sorted({str(r.meta["task"]) for r in rows})
        each = [choice(f"{split}/{n}", [r for r in rows if r.meta["task"] == n], scoring.parser) for n in names]
        blocks += [choice(split, rows, scoring.parser), mean_block(f"{split}/mean of tasks", each), *each]
    return [*blocks, *reliance("", records, "audio")]


def _hub(split: str) -> HubTable:
    def convert(row: Mapping[str, Any], number: int) -> Sample:
        return _sample(row, split, [row["audio"]])

    return HubTable("lmms-lab/AIR_Bench", split, convert, "Foundation")


TASK = Task(
    name="air_bench",
    version="1",
    paper="Yang et al., AIR-Bench: Benchmarking Large Audio-Language Models, ACL 2024 (arXiv 2402.07729)",
    about="multiple choice; answers without a letter are excluded, as in the official script, and counted",
    modality="audio",
    splits=SPLITS,
    files=lambda split: [META],
    load=load,
    score=score,
    parsers=("official", "strict"),
    media=f"{ORIGIN}, folder Foundation",
    headline=("speech/accuracy", "sound/accuracy", "music/accuracy", "*/mean of tasks/accuracy", "audio reliance"),
    max_new_tokens=32,
    hub={split: _hub(split) for split in SPLITS},
    goal=("*/accuracy over all",),
)
