"""CMM, The Curse of Multi-Modalities: does a model see and hear what is there, and not what another modality suggests?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from limelight.benchmarks.data import Folder, Needed, Row, column, text
from limelight.benchmarks.scorers.grounding import reliance
from limelight.benchmarks.scorers.measure import Block, records_by_split
from limelight.benchmarks.scorers.recalls import recalls
from limelight.benchmarks.scorers.yes_no import COMMON, label, yes_no
from limelight.benchmarks.task import Scoring, Task
from limelight.errors import DataError
from limelight.types import Record, Sample

ORIGIN = "https://huggingface.co/datasets/DAMO-NLP-SG/CMM"
FILE = Needed(("all_data_final_reorg.json", "CMM/all_data_final_reorg.json", "cmm/all_data_final_reorg.json"), ORIGIN)
MEDIA = Needed(("./", "CMM/", "cmm/"), ORIGIN)
SUFFIX = " Answer with yes or no."
# split -> the file's sub_category
SPLITS = {
    "language-dominance": "overrely_language_ignore_visual",
    "visual-dominance": "overrely_visual_ignore_audio",
    "audio-dominance": "overrely_audio_ignore_visual",
    "visual-language": "visual-language",
    "audio-language": "audio-language",
    "visual-audio-language": "visual-audio-language",
}
NAMES = ("PA", "HR", "harmonic mean")


def load(folder: Folder, split: str) -> Iterator[Sample]:
    """Yield the questions of a subcategory, with the row's video, its audio, or both."""

    def sample(row: Row) -> Sample | None:
        if text(FILE.names[0], row, "sub_category") != SPLITS[split]:
            return None
        paths = {m: str(row[f"{m}_path"]).removeprefix("./") for m in ("video", "audio") if row.get(f"{m}_path")}
        if not paths:
            raise DataError("has neither a video_path nor an audio_path", hint=f"get the file from {ORIGIN}")
        question = text(FILE.names[0], row, "question")
        if "answer with yes or no" not in question.lower():
            question = question.rstrip() + SUFFIX
        meta = {"split": split, "cluster": "+".join(paths.values()), "granularity": str(row.get("granularity") or "")}
        media = {m: [folder.media(MEDIA, path)] for m, path in paths.items()}
        return Sample(f"{split}/{row.number}", question, media, label(column(FILE.names[0], row, "answer")), meta)

    yield from folder.samples(FILE, sample)


def score(records: Sequence[Record], scoring: Scoring) -> list[Block]:
    """Perception accuracy (recall of yes) and hallucination resistance (recall of no): overall, for every subcategory, and for
    every subcategory on objects and on events. The official script calls the latter "hallucination severity"."""
    blocks = [yes_no("", records, scoring.parser), recalls("", records, scoring.parser, NAMES)]
    for split, rows in records_by_split(records, SPLITS).items():
        blocks += [yes_no(split, rows, scoring.parser), recalls(split, rows, scoring.parser, NAMES)]
        for level in sorted({str(r.meta["granularity"]) for r in rows if r.meta["granularity"]}):
            mine = [r for r in rows if r.meta["granularity"] == level]
            blocks.append(recalls(f"{split}/{level}", mine, scoring.parser, NAMES))
    return [*blocks, *reliance("", records, "video"), *reliance("", records, "audio")]


TASK = Task(
    name="cmm",
    version="1",
    paper="Leng et al., The Curse of Multi-Modalities, arXiv 2410.12787",
    about="language, visual and audio dominance, spurious correlations; PA: recall of yes, HR: recall of no",
    modality="video",
    splits=tuple(SPLITS),
    files=lambda split: [FILE],
    load=load,
    score=score,
    parsers=("cmm", "strict", "official", *COMMON),
    media=f"{ORIGIN} (reorg_raw_files.zip), unpacked next to the JSON file",
    headline=("PA", "HR", "accuracy", "*dominance/PA", "*dominance/HR", "*language/PA", "*language/HR", "* reliance"),
    max_new_tokens=16,
    goal=("harmonic mean",),
)
