"""PhD: yes/no questions about MSCOCO images, alone, after a specious context, after a wrong one; and about odd images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from limelight.benchmarks.data import Folder, Needed, Row, column, text
from limelight.benchmarks.scorers.grounding import reliance
from limelight.benchmarks.scorers.measure import Block, block, records_by_split, share
from limelight.benchmarks.scorers.recalls import recalls
from limelight.benchmarks.scorers.yes_no import COMMON, PARSERS, yes_no
from limelight.benchmarks.task import Scoring, Task
from limelight.errors import DataError
from limelight.types import Record, Sample

ORIGIN = "https://github.com/jiazhen-code/PhD (also https://huggingface.co/datasets/AIMClab-RUC/PhD)"
FILE = Needed(("data.json", "phd/data.json", "PhD/data.json"), ORIGIN)
PICTURES = Needed(("images/", "phd/images/", "PhD/images/", "./"), "MSCOCO 2014, and PhD's CCS_images")
SPLITS = ("base", "iac", "icc", "ccs")
INSTRUCTION = (
    " In case there is an inconsistency between the context and the image content, you should follow the image. "
)


def load(folder: Folder, split: str) -> Iterator[Sample]:
    """Yield the question answered yes and the one answered no of every row; ``iac`` and ``icc`` put the row's inaccurate
    (specious) or incorrect (wrong) context and the official instruction before the question."""
    odd = split == "ccs"

    def sample(row: Row, gold: str) -> Sample | None:
        if ("ccs_description" in row) is not odd:
            return None
        question = text(FILE.names[0], row, f"{gold}_question")
        image = _image(folder, row, odd)
        meta = {
            "split": split, "cluster": image[0], "task": str(row.get("task") or ""),
            "hitem": str(row.get("hitem") or ""), "question": f"{row.number}/{gold}",
        }  # fmt: skip
        prompt = question if split in ("base", "ccs") else _context(row, split) + INSTRUCTION + question
        return Sample(f"{split}/{row.number}/{gold}", prompt, {"image": [image[1]]}, gold, meta)

    for row in folder.each(FILE):
        for gold in ("yes", "no"):
            with folder.rejected.row(f"{row.where}, {gold}_question"):
                if (made := sample(row, gold)) is not None:
                    yield made


def _context(row: Row, split: str) -> str:
    contexts = column(FILE.names[0], row, "context")
    if not isinstance(contexts, dict):
        raise DataError(f"expected a context with iac and icc, got {contexts!r}", hint=f"get the file from {ORIGIN}")
    return text("context", contexts, split)


def _image(folder: Folder, row: Row, odd: bool) -> tuple[str, Any]:
    if "image_path" in row:  # the first release named the file of an odd image
        name = text(FILE.names[0], row, "image_path").removeprefix("images/")
        return name, folder.media(PICTURES, name)
    number = text(FILE.names[0], row, "image_id")
    if odd:
        return f"CCS_images/{number}", folder.media(PICTURES, f"CCS_images/{number}.png")
    found = [folder.media(PICTURES, f"{part}/COCO_{part}_{number.zfill(12)}.jpg") for part in ("train2014", "val2014")]
    return number, next((path for path in found if path.is_file()), found[0])


def score(records: Sequence[Record], scoring: Scoring) -> list[Block]:
    """For every mode: accuracy, yes ratio and the PhD index (harmonic mean of the recalls), overall and for each task; and how
    often a context misleads: the share of the questions answered correctly without it that are wrong with it."""
    blocks: list[Block] = []
    by_split = records_by_split(records, SPLITS)
    names = ("recall of yes", "recall of no", "PhD index")
    for split, rows in by_split.items():
        blocks += [yes_no(split, rows, scoring.parser), recalls(split, rows, scoring.parser, names)]
        for task in sorted({str(r.meta["task"]) for r in rows if r.meta["task"]}):
            mine = [r for r in rows if r.meta["task"] == task]
            blocks.append(recalls(f"{split}/{task}", mine, scoring.parser, ("", "", "PhD index")))
    blocks += [
        _misled(split, by_split["base"], by_split[split], scoring.parser)
        for split in ("iac", "icc")
        if "base" in by_split and split in by_split
    ]
    return [*blocks, *reliance("", records, "image")]


def _misled(split: str, alone: Sequence[Record], after: Sequence[Record], parser_name: str) -> Block:
    parse = PARSERS[parser_name]
    right: dict[str, dict[str, bool]] = defaultdict(dict)
    for which, asked in (("alone", alone), ("after", after)):
        for r in asked:
            right[str(r.meta["question"])][which] = parse(r.answer, r.target) == r.target
    cluster = {str(r.meta["question"]): str(r.meta["cluster"]) for r in after}
    rows = [
        (f"{split}/{q}", {
            "right": float(x["alone"]), "misled": float(x["alone"] and not x["after"]),
            "wrong": float(not x["alone"]), "helped": float(x["after"] and not x["alone"]),
        })
        for q, x in right.items() if len(x) == 2
    ]  # fmt: skip
    measures = [
        share("misled", "misled", "right", higher_is_better=False),
        share("helped", "helped", "wrong", higher_is_better=None),
    ]
    clusters = [cluster[i.partition("/")[2]] for i, _ in rows]
    return block(split, rows, measures, clusters, ("right", "misled", "wrong", "helped"))


TASK = Task(
    name="phd",
    version="1",
    paper="Liu et al., PhD: A ChatGPT-Prompted Visual Hallucination Evaluation Dataset, CVPR 2025 (arXiv 2403.11116)",
    about="yes/no questions alone (base), after a specious (iac) or wrong context (icc), and on odd images (ccs)",
    modality="image",
    splits=SPLITS,
    files=lambda split: [FILE],
    load=load,
    score=score,
    parsers=("strict", "official", *COMMON),
    media="MSCOCO train2014 and val2014 (https://cocodataset.org), folder images; CCS_images: see PhD's README",
    headline=("*/PhD index", "*/accuracy", "*/yes ratio", "*/misled", "image reliance"),
    max_new_tokens=16,
    goal=("*/PhD index",),
)
