"""Spatial grounding on MSCOCO: is the relevance inside the boxes of the object that the question is about?"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

from limelight.benchmarks.data import Folder, Needed, column
from limelight.benchmarks.scorers.grounding import Sign, box_coverage, grounding_block, image_relevance, reliance
from limelight.benchmarks.scorers.measure import Block, block, count
from limelight.benchmarks.scorers.yes_no import yes_no
from limelight.benchmarks.task import Scoring, Task
from limelight.benchmarks.tasks.chair import INSTANCES
from limelight.benchmarks.tasks.pope import COCO, ORIGIN
from limelight.types import Record, Sample

QUESTIONS = Needed(
    ("coco/coco_pope_popular.json", "coco_pope_popular.json", "pope/coco/coco_pope_popular.json"), ORIGIN
)


def load(folder: Folder, split: str) -> Iterator[Sample]:
    """POPE's questions whose answer is yes, with the object's boxes (left, top, right, bottom) in fractions.

    The boxes lie in the picture as it is; a processor that crops or pads must be accounted for by who attributes.
    """
    instances = folder.json(INSTANCES)
    names = {c["id"]: c["name"] for c in instances["categories"]}
    pictures = {i["file_name"]: i for i in instances["images"]}
    boxes: dict[tuple[int, str], list[list[float]]] = defaultdict(list)
    for a in instances["annotations"]:
        if not a.get("iscrowd"):
            boxes[a["image_id"], names[a["category_id"]]].append(a["bbox"])
    for row in folder.rows(QUESTIONS):
        text, image = column(QUESTIONS.names[0], row, "text"), column(QUESTIONS.names[0], row, "image")
        asked = re.fullmatch(r"Is there an? (.+) in the (?:image|imange)\?", text)
        picture = pictures.get(image)
        found = boxes.get((picture["id"], asked[1]), []) if asked and picture else []
        if row["label"] != "yes" or not picture or not found:
            continue
        w, h = float(picture["width"]), float(picture["height"])
        target = [
            [x / w, y / h, min(1.0, (x + bw) / w), min(1.0, (y + bh) / h)] for x, y, bw, bh in found if bw * bh > 0
        ]
        meta = {"split": split, "cluster": image, "object": asked[1] if asked else "", "gold": "yes"}
        yield Sample(f"{split}/{row['question_id']}", text, {"image": [folder.media(COCO, image)]}, target, meta)


def score(records: Sequence[Record], scoring: Scoring) -> list[Block]:
    """Spatial grounding, and how many of these objects the model sees. Answers without ``image_relevance`` are counted."""
    sign: Sign = scoring.options.get("sign", "abs")
    rows = []
    for r in records:
        if (grid := image_relevance(r)) is not None:
            rows.append(
                (r, grid, box_coverage((grid.shape[0], grid.shape[1]), [(a, b, c, d) for a, b, c, d in r.target]))
            )
    lost = block("", [(r.id, {"lost": float(image_relevance(r) is None)}) for r in records], [_LOST], (), ("lost",))
    seen = [Record(r.id, r.answer, r.meta["gold"], r.meta) for r in records]
    answers = [yes_no("seen", seen, scoring.parser)] if seen else []
    return [grounding_block("spatial", rows, sign), lost, *answers, *reliance("", records, "image")]


_LOST = count("answers without relevance", "lost")

TASK = Task(
    name="coco_grounding",
    version="1",
    paper="boxes: Lin et al., Microsoft COCO, ECCV 2014; questions: POPE (arXiv 2305.10355)",
    about="spatial grounding: relevance inside the object's boxes over all relevance on the picture",
    modality="image",
    splits=("val2014",),
    files=lambda split: [QUESTIONS, INSTANCES],
    load=load,
    score=score,
    parsers=("official", "strict"),
    media="MSCOCO val2014 (https://cocodataset.org, folder val2014)",
    headline=("spatial/*", "seen/accuracy", "image reliance"),
    max_new_tokens=8,
    wants=frozenset({"image_relevance"}),
)
