"""Small data folders in each benchmark's official format, and the answers that score best on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks import official_newer
from tests.benchmarks.official_newer import touch

SYNONYMS = "\n".join(
    [
        "person, man, woman, people, child, rider",
        "dog, puppy",
        "bus, minibus",
        "tie, bow, bow tie",
        "wine glass",
        "hot dog",
        "train, locomotive",
        "toilet, lavatory",
        "chair, seat",
        "cup",
    ]
)


def put(path: Path, value: Any) -> None:
    """JSON, JSON lines for a list when the name ends in l, text as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(value, str):
        path.write_text(value, encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in value), encoding="utf-8")
    else:
        path.write_text(json.dumps(value), encoding="utf-8")


def pope(root: Path) -> dict[str, str]:
    answers = {}
    for sampling in ("random", "popular", "adversarial"):
        rows = [
            {
                "question_id": k + 1,
                "image": f"COCO_val2014_{k // 2:012d}.jpg",
                "text": f"Is there a {'dog' if k % 2 else 'cup'} in the image?",
                "label": "no" if k % 2 else "yes",
            }
            for k in range(6)
        ]
        lines = "".join(json.dumps(r) + "\n" for r in rows)
        put(root / "coco" / f"coco_pope_{sampling}.json", lines)
        put(root / "aokvqa" / f"aokvqa_pope_seem_{sampling}.json", rows)
        touch(*(root / "val2014" / str(r["image"]) for r in rows))
        gqa = [{**r, "image": f"{r['image'][-8:]}"} for r in rows]
        put(root / "gqa" / f"gqa_pope_seem_{sampling}.json", gqa)
        touch(*(root / "gqa/images" / str(r["image"]) for r in gqa))
        for pictures in ("coco", "aokvqa", "gqa"):
            answers |= {f"{pictures}/{sampling}/{r['question_id']}": str(r["label"]) for r in rows}
    return answers


def coco(root: Path) -> None:
    put(root / "synonyms.txt", SYNONYMS)
    images = [{"id": k, "file_name": f"COCO_val2014_{k:012d}.jpg", "width": 200, "height": 100} for k in range(4)]
    categories = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cup"}]
    drawn = {"bbox": [0, 0, 100, 50], "segmentation": [[0, 0, 100, 0, 100, 50, 0, 50]], "iscrowd": 0}
    boxes = [{"image_id": k, "category_id": c, **drawn} for k in range(4) for c in (1, 2)]
    put(root / "annotations/instances_val2014.json", {"images": images, "categories": categories, "annotations": boxes})
    captions = [{"image_id": k, "caption": f"A woman with a bus, take {n}."} for k in range(4) for n in range(5)]
    put(root / "annotations/captions_val2014.json", {"images": images, "annotations": captions})
    touch(*(root / "val2014" / str(i["file_name"]) for i in images))


def chair(root: Path) -> dict[str, str]:
    coco(root)
    return {f"val2014/{k}": "A person, a dog, a cup and a bus." for k in range(4)}


def coco_grounding(root: Path) -> dict[str, str]:
    coco(root)
    rows = [
        {
            "question_id": k,
            "image": f"COCO_val2014_{k:012d}.jpg",
            "text": f"Is there a {name} in the image?",
            "label": label,
        }
        for k, (name, label) in enumerate([("dog", "yes"), ("cup", "yes"), ("train", "no"), ("dog", "yes")])
    ]
    put(root / "coco" / "coco_pope_popular.json", "".join(json.dumps(r) + "\n" for r in rows))
    return {f"val2014/{k}": "yes" for k in (0, 1, 3)}


def amber(root: Path) -> dict[str, str]:
    kinds = [
        ("generative", {"truth": ["sky", "dog"], "hallu": ["cloud", "cat"]}),
        ("generative", {"truth": ["person"], "hallu": ["dog"]}),
        ("discriminative-hallucination", {"truth": "no"}),
        ("discriminative-attribute-state", {"truth": "yes"}),
        ("discriminative-attribute-number", {"truth": "no"}),
        ("relation", {"truth": "no"}),
        ("discriminative-relation", {"truth": "yes"}),
    ]
    put(root / "annotations.json", [{"id": k + 1, "type": t, **rest} for k, (t, rest) in enumerate(kinds)])
    query = [{"id": k + 1, "image": f"AMBER_{k + 1}.jpg", "query": f"Question {k + 1}?"} for k in range(len(kinds))]
    put(root / "query_all.json", query)
    put(root / "relation.json", {"sky": [], "dog": ["puppy"], "cloud": [], "cat": [], "person": ["man"], "light": []})
    put(root / "safe_words.txt", "light\nline")
    touch(*(root / "image" / str(q["image"]) for q in query))
    return {
        "generative/1": "Two puppies under the sky.",
        "generative/2": "A man.",
        "existence/3": "No",
        "attribute/4": "Yes",
        "attribute/5": "No",
        "relation/6": "No",
        "relation/7": "Yes",
    }


def hallusionbench(root: Path) -> dict[str, str]:
    rows, answers = [], {}
    for figure in ("0", "1"):
        for question in ("0", "1"):
            without = figure == "0"
            rows.append(
                {
                    "category": "VS",
                    "subcategory": "chart",
                    "visual_input": "0" if without else "2",
                    "set_id": "0",
                    "figure_id": figure,
                    "question_id": question,
                    "question": f"Is it {question}?",
                    "gt_answer": question,
                    "filename": None if without else f"./VS/chart/0_{figure}.png",
                }
            )
            answers[f"VS/chart/0/{figure}/{question}"] = "Yes." if question == "1" else "No, it is not."
    put(root / "HallusionBench.json", rows)
    touch(root / "hallusion_bench/VS/chart/0_1.png")
    return answers


def mmhal(root: Path) -> dict[str, str]:
    rows = [
        {
            "question_type": "attribute" if k % 2 else "counting",
            "question_topic": "food",
            "image_id": f"id{k}",
            "image_src": f"https://example.org/a/id{k}.jpg",
            "image_content": ["Cup", "Table"],
            "question": "What colour is the cup?",
            "gt_answer": "Red.",
            "model_answer": "",
        }
        for k in range(4)
    ]
    put(root / "response_template.json", rows)
    touch(*(root / "images" / f"id{k}.jpg" for k in range(4)))
    return {f"{k:03d}": "It is red." for k in range(4)}


def mme(root: Path) -> dict[str, str]:
    answers = {}
    for split in ("existence", "count", "position", "color"):
        for picture in ("a", "b"):
            put(root / split / f"{picture}.txt", "Is it? Please answer yes or no.\tYes\nIsn't it?\tNo\n")
            touch(root / split / f"{picture}.jpg")
            answers |= {f"{split}/{picture}/0": "Yes", f"{split}/{picture}/1": "No"}
    return answers


def audio_hallucination(root: Path) -> dict[str, str]:
    answers = {}
    for split in ("random", "popular", "adversarial"):
        lines = ["# comment", "entry_id\taudio_index\tprompt_text\tobject\tattribute\tlabel\tsampling"]
        for k in range(4):
            label = "No" if k % 2 else "Yes"
            lines.append(f"{k}\tY{k // 2}\tIs there a sound of rain in the audio?\train\tx\t{label}\t{split}")
            answers[f"{split}/{k}"] = f"{label}, so it is."
        put(root / f"{split}.tsv", "\n".join(lines) + "\n")
    touch(*(root / "audiocaps" / f"Y{k}.wav" for k in range(2)))
    return answers


def air_bench(root: Path) -> dict[str, str]:
    rows, answers = [], {}
    names = {"speech": "Speaker_Age_Prediction", "sound": "Audio_Grounding", "music": "Music_AQA"}
    for split, name in names.items():
        for k in range(3):
            two_way = {"choice_a": "yes", "choice_b": "no"}
            rows.append(
                {
                    "path": f"{k}.wav",
                    "task_name": name,
                    "dataset_name": "set",
                    "question": "Is it so?",
                    **(two_way if split == "music" else {**two_way, "choice_c": "maybe", "choice_d": "never"}),
                    "answer_gt": "no",
                    "uniq_id": k,
                }
            )
            answers[f"{split}/{name}_set/{k}"] = "B. no" if k else "The answer is B."
            touch(root / "Foundation" / f"{name}_set" / f"{k}.{'flac' if split == 'sound' else 'wav'}")
    put(root / "Foundation_meta.json", rows)
    return answers


def dcase(root: Path) -> dict[str, str]:
    lines = ["filename\tonset\toffset\tevent_label", "a.wav\t1.0\t2.0\tSpeech", "a.wav\t1.5\t3.0\tSpeech"]
    lines += ["a.wav\t0.0\t4.0\tDog", "b.wav\t\t\t", "c.wav\t2.0\t4.0\tAlarm_bell_ringing"]
    put(root / "validation.tsv", "\n".join(lines) + "\n")
    touch(root / "audio/validation/a.wav", root / "audio/validation/c.wav")
    return {f"validation/{i}": "yes" for i in ("a.wav/Speech", "a.wav/Dog", "c.wav/Alarm_bell_ringing")}


def asr(root: Path) -> dict[str, str]:
    put(root / "LibriSpeech/test-clean/1/2/1-2.trans.txt", "1-2-0000 HELLO BIG WORLD\n1-2-0001 GOOD MORNING\n")
    touch(*(root / f"LibriSpeech/test-clean/1/2/1-2-000{k}.flac" for k in range(2)))
    put(
        root / "manifest.tsv",
        "audio\ttext\tkind\tseconds\na.wav\tone two three\tspeech\t2\nb.wav\t\tsilence\t30\nc.wav\t\tnoise\t30\n",
    )
    touch(*(root / f"{k}.wav" for k in "abc"))
    return {
        "test-clean/1-2-0000": "Hello, big world!",
        "test-clean/1-2-0001": "good morning",
        "manifest/0/a.wav": "one two three",
        "manifest/1/b.wav": "",
        "manifest/2/c.wav": "",
    }


def make_media(root: Path) -> None:
    """Real images, and sounds and films of two seconds, in place of the one-byte files."""
    import numpy as np
    import soundfile
    from PIL import Image

    from tests.models.films import film

    rng = np.random.default_rng(0)
    for path in sorted(root.rglob("*")):
        if path.suffix in (".jpg", ".png"):
            Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(path)
        elif path.suffix in (".wav", ".flac"):
            soundfile.write(path, rng.uniform(-0.5, 0.5, 32000).astype(np.float32), 16000)
        elif path.suffix == ".mp4":
            film(path, [0] * 8, lit=(4, 5))


WRITERS: dict[str, Callable[[Path], dict[str, str]]] = {
    f.__name__: f
    for f in (
        pope,
        chair,
        coco_grounding,
        amber,
        hallusionbench,
        mmhal,
        mme,
        audio_hallucination,
        air_bench,
        dcase,
        asr,
    )
} | official_newer.WRITERS
