"""Spatial grounding on MSCOCO: share of relevance inside the boxes or masks of the object in question."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from limelight.benchmarks.data import Folder, Needed, column, text
from limelight.benchmarks.scorers.grounding import Sign, grounding_block, reliance
from limelight.benchmarks.scorers.measure import Block
from limelight.benchmarks.scorers.placed import Placed, boxes_over, image_parts, place, polygons_over, seen_block
from limelight.benchmarks.scorers.yes_no import COMMON, label, yes_no
from limelight.benchmarks.task import Scoring, Task
from limelight.benchmarks.tasks.chair import INSTANCES
from limelight.benchmarks.tasks.pope import COCO, ORIGIN
from limelight.errors import DataError
from limelight.types import Record, Sample

QUESTIONS = Needed(
    ("coco/coco_pope_popular.json", "coco_pope_popular.json", "pope/coco/coco_pope_popular.json"), ORIGIN
)


def load(folder: Folder, split: str) -> Iterator[Sample]:
    """Yield POPE's questions with answer yes, with the object's ``boxes`` (left, top, right, bottom) and ``polygons``, in
    fractions.

    They refer to the original image; ``image_boxes`` of a reply gives the part of it that the relevance covers.
    """
    instances = folder.json(INSTANCES)
    names = {c["id"]: c["name"] for c in instances["categories"]}
    pictures = {i["file_name"]: i for i in instances["images"]}
    objects: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
    for a in instances["annotations"]:
        if not a.get("iscrowd"):
            objects[a["image_id"], names[a["category_id"]]].append(a)
    where = QUESTIONS.names[0]

    def sample(row: Mapping[str, Any]) -> Sample | None:
        question, image = text(where, row, "text"), text(where, row, "image")
        match = re.fullmatch(r"Is there an? (.+) in the (?:image|imange)\?", question)
        picture = pictures.get(image)
        found = objects.get((picture["id"], match[1]), []) if match and picture else []
        if label(column(where, row, "label")) != "yes" or not picture or not found:
            return None
        target = _region(found, float(picture["width"]), float(picture["height"]))
        meta = {"split": split, "cluster": image, "object": match[1] if match else "", "gold": "yes"}
        name = f"{split}/{text(where, row, 'question_id')}"
        return Sample(name, question, {"image": [folder.media(COCO, image)]}, target, meta)

    yield from folder.samples(QUESTIONS, sample)


def _region(found: Sequence[Mapping[str, Any]], w: float, h: float) -> dict[str, Any]:
    def inside(x: float, y: float, width: float, height: float) -> list[float]:
        return [min(1.0, max(0.0, v)) for v in (x / w, y / h, (x + width) / w, (y + height) / h)]

    boxes = [box for a in found if (box := inside(*a["bbox"]))[0] < box[2] and box[1] < box[3]]
    if not boxes:
        raise DataError("none of the object's boxes is inside the image", hint=f"check {INSTANCES.names[0]}")
    drawn = [p for a in found for p in (a.get("segmentation") or ()) if isinstance(p, list)]
    valid = [p for p in drawn if len(p) >= 6 and len(p) % 2 == 0]
    return {"boxes": boxes, "polygons": [[x / (h if k % 2 else w) for k, x in enumerate(p)] for p in valid]}


def score(records: Sequence[Record], scoring: Scoring) -> list[Block]:
    """Spatial grounding against boxes (``spatial``) and, where annotated, masks (``masks``); and the accuracy of the
    answers (``seen``).

    Only the part of the image that the processor kept is scored (see :mod:`limelight.benchmarks.scorers.placed`): objects
    that were cropped entirely, and answers without ``image_relevance`` or without its location, are only counted."""
    sign: Sign = scoring.options.get("sign", "abs")
    boxed, masked = [], []
    placed: list[tuple[Record, Placed | None]] = []
    nowhere: list[str] = []
    for r in records:
        parts = image_parts(r)
        if not parts:
            nowhere += [r.id] if parts is not None else []
            placed.append((r, None))
            continue
        found = place(parts, boxes_over([(a, b, c, d) for a, b, c, d in r.target["boxes"]]))
        placed.append((r, found))
        if not found.seen:
            continue
        boxed.append((r, found.relevance, found.coverage))
        if r.target["polygons"]:
            drawn = place(parts, polygons_over(r.target["polygons"]))
            masked.append((r, drawn.relevance, drawn.coverage))
    seen = [replace(r, target=r.meta["gold"]) for r in records]
    answers = [yes_no("seen", seen, scoring.parser)] if seen else []
    masks = [grounding_block("masks", masked, sign)] if masked else []
    visible = seen_block(placed, nowhere)
    return [grounding_block("spatial", boxed, sign), *masks, visible, *answers, *reliance("", records, "image")]


TASK = Task(
    name="coco_grounding",
    version="3",
    paper="boxes: Lin et al., Microsoft COCO, ECCV 2014; questions: POPE (arXiv 2305.10355)",
    about="spatial grounding: relevance inside the object's boxes (or masks) over total relevance on the image",
    modality="image",
    splits=("val2014",),
    files=lambda split: [QUESTIONS, INSTANCES],
    load=load,
    score=score,
    parsers=("official", "strict", *COMMON),
    media="MSCOCO val2014 (https://cocodataset.org, folder val2014)",
    headline=("spatial/*", "masks/*", "region seen", "seen/accuracy", "image reliance"),
    max_new_tokens=8,
    wants=frozenset({"image_relevance"}),
    goal=("spatial/grounding",),
)
