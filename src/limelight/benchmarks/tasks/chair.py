"""CHAIR: hallucinated objects in image descriptions."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence

from limelight.benchmarks.data import Folder, Needed, Row, text
from limelight.benchmarks.scorers.chair import Lexicon, chair
from limelight.benchmarks.scorers.detection import carries, detection, first_mentions
from limelight.benchmarks.scorers.grounding import reliance
from limelight.benchmarks.scorers.measure import Block
from limelight.benchmarks.task import Scoring, Task
from limelight.benchmarks.tasks.pope import COCO
from limelight.errors import DataError, SettingError
from limelight.types import Record, Sample

_ANNOTATIONS = "http://images.cocodataset.org/annotations/annotations_trainval2014.zip"
INSTANCES = Needed(("annotations/instances_val2014.json", "instances_val2014.json"), _ANNOTATIONS)
CAPTIONS = Needed(("annotations/captions_val2014.json", "captions_val2014.json"), _ANNOTATIONS)
SYNONYMS = Needed(
    ("synonyms.txt", "chair/synonyms.txt"), "https://github.com/LisaAnne/Hallucination, data/synonyms.txt"
)
IMAGES = Needed(
    ("chair_images.jsonl", "chair/chair_images.jsonl"), 'you: lines {"image_id": ...}, such as a caption log', False
)
PROMPT = "Please describe this image in detail."
COUNT = 500


def load(folder: Folder, split: str) -> Iterator[Sample]:
    """Yield 500 images of val2014: those of ``chair_images.jsonl`` where it exists, else a sample with a fixed seed.

    Papers use different samples; scores on two samples differ by about two points.
    """
    instances = folder.json(INSTANCES)
    names = {c["id"]: c["name"] for c in instances["categories"]}
    files = {i["id"]: i["file_name"] for i in instances["images"]}
    if folder.locate(IMAGES):
        listed = [(row.where, row) for row in folder.rows(IMAGES)]
    else:
        drawn = random.Random(0).sample(sorted(files), min(COUNT, len(files)))
        listed = [(f"image {i} of {INSTANCES.names[0]}", Row(image_id=i)) for i in drawn]
    objects: dict[int, set[str]] = defaultdict(set)
    for a in instances["annotations"]:
        objects[a["image_id"]].add(names[a["category_id"]])
    references: dict[int, list[str]] = defaultdict(list)
    for a in folder.json(CAPTIONS)["annotations"]:
        references[a["image_id"]].append(a["caption"])
    done: set[int] = set()  # a caption log may name an image several times
    for where, row in listed:
        with folder.rejected.row(where):
            i = int(text(where, row, "image_id"))
            if i not in files:
                raise DataError(f"image {i} is not in val2014", hint=f"check {IMAGES.names[0]}")
            if i not in done:
                done.add(i)
                target = {"objects": sorted(objects[i]), "captions": references[i]}
                picture = folder.media(COCO, files[i])
                yield Sample(f"{split}/{i}", PROMPT, {"image": [picture]}, target, {"split": split})


def score(records: Sequence[Record], scoring: Scoring) -> list[Block]:
    if scoring.assets is None:
        raise SettingError("CHAIR needs synonyms.txt", hint="score the folder of a run, which has a copy")
    lexicon = Lexicon.parse(
        (scoring.assets / "synonyms.txt").read_text(encoding="utf-8"),
        "official" if scoring.parser == "official" else "lvlm",
    )
    truth = {r.id: lexicon.truth(r.target["objects"], r.target["captions"]) for r in records if carries([r])}
    units = [u for r in records if r.id in truth for u in first_mentions(r, lexicon.located, truth[r.id])]
    return [chair(records, lexicon), *reliance("", records, "image"), *detection("mentions", units)]


TASK = Task(
    name="chair",
    version="1",
    paper="Rohrbach et al., Object Hallucination in Image Captioning, EMNLP 2018 (arXiv 1809.02156)",
    about="hallucinated objects in detailed descriptions; lower CHAIR is better, compare recall and length too",
    modality="image",
    splits=("val2014",),
    files=lambda split: [INSTANCES, CAPTIONS, SYNONYMS],
    load=load,
    score=score,
    parsers=("lvlm", "official"),
    media="MSCOCO val2014 (https://cocodataset.org, folder val2014)",
    max_new_tokens=512,
    assets=(SYNONYMS,),
    goal=("CHAIR_s", "recall"),
)
