"""Small data folders in the official format of the benchmarks of 2024 to 2026, and the answers that score best on them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def put(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def repope(root: Path) -> dict[str, str]:
    """In every sampling: question 2 has another label, question 4 was removed; questions are numbered anew in RePOPE."""
    answers = {}
    for sampling in ("random", "popular", "adversarial"):
        old = [
            {
                "question_id": k + 1,
                "image": f"COCO_val2014_{k // 2:012d}.jpg",
                "text": f"Is there a {'dog' if k % 2 else 'cup'} in the image?",
                "label": "no" if k % 2 else "yes",
            }
            for k in range(6)
        ]
        new = [{**r, "label": "yes"} if r["question_id"] == 2 else r for r in old if r["question_id"] != 4]
        new = [{**r, "question_id": k} for k, r in enumerate(new)]
        put(root / "coco" / f"coco_pope_{sampling}.json", "".join(json.dumps(r) + "\n" for r in old))
        put(root / "annotations" / f"coco_repope_{sampling}.json", "".join(json.dumps(r) + "\n" for r in new))
        touch(*(root / "val2014" / str(r["image"]) for r in old))
        answers |= {f"{sampling}/{r['question_id']}": "yes" if r["question_id"] == 2 else str(r["label"]) for r in old}
    return answers


def dash_b(root: Path) -> dict[str, str]:
    answers = {}
    for kind, gold in (("neg", "no"), ("pos", "yes")):
        listed = {"openimages": {"Fire hydrant": ["1.jpg", "2.jpg"]}, "spurious_imagenet": {"dam": ["3.jpg"]}}
        put(root / "images" / f"dash_benchmark_{kind}.json", listed)
        for dataset, objects in listed.items():
            for thing, names in objects.items():
                for name in names:
                    touch(root / "images" / kind / dataset / thing / name)
                    answers[f"{kind}/{dataset}/{thing}/{name}"] = f"{gold.capitalize()}."
    return answers


def phd(root: Path) -> dict[str, str]:
    rows: list[dict[str, Any]] = [
        {
            "image_id": str(100 + k),
            "task": "counting" if k else "object recognition",
            "yes_question": "Are there two dogs?",
            "no_question": "Are there three dogs?",
            "hitem": "three",
            "gt": "two",
            "subject": "dog",
            "context": {"iac": "Dogs often come in threes.", "icc": "There are three dogs in the picture."},
        }
        for k in range(2)
    ]
    odd = {"image_id": "0", "ccs_description": "A sausage in a peel.", "task": "object recognition"}
    rows.append({**odd, "yes_question": "Is there a sausage?", "no_question": "Is there a banana?"})
    put(root / "data.json", rows)
    touch(
        root / "images/train2014/COCO_train2014_000000000100.jpg", root / "images/val2014/COCO_val2014_000000000101.jpg"
    )
    touch(root / "images/CCS_images/0.png")
    return {
        f"{split}/{k}/{gold}": gold
        for split, numbers in (("base", (0, 1)), ("iac", (0, 1)), ("icc", (0, 1)), ("ccs", (2,)))
        for k in numbers
        for gold in ("yes", "no")
    }


def eventhallusion(root: Path) -> dict[str, str]:
    answers = {}
    for kind in ("entire", "interleave", "misleading"):
        rows = []
        for k in (1, 2):
            event = {"object": ["dog"], "scene": "A yard.", "caption": "A dog barks.", "unexpected": "It falls."}
            asked = [
                {"type": "hallucination", "question": "Is the dog sleeping in the video?", "answer": "No."},
                {"type": "hallucination", "question": "Does the dog bark?", "answer": "Yes."},
            ]
            name = f"{kind}_{k:03d}"
            rows.append(
                {"id": name, "category": "pet&animal", "length": "00:02", "event_info": event, "questions": asked}
            )
            answers |= {f"{kind}/{name}/0": "No, it is not.", f"{kind}/{name}/1": "Yes."}
            answers[f"{kind}/descriptions/{name}"] = "A dog barks and falls."
            touch(root / "videos" / kind / f"{name}.mp4")
        put(root / "questions" / f"{kind}_questions.json", rows)
    return answers


def videohallucer(root: Path) -> dict[str, str]:
    answers = {}
    for split in (
        "object_relation",
        "temporal",
        "semantic_detail",
        "external_factual",
        "external_nonfactual",
        "fact_detect",
    ):
        rows = []
        for k in range(2):
            other = "b" if split == "semantic_detail" else "a"  # there, the two questions are about two videos
            basic = {"video": f"v{k}_a.mp4", "question": "Is there a cat?", "answer": "yes"}
            false = {"video": f"v{k}_{other}.mp4", "question": "Is there a dog?", "answer": "no"}
            rows.append({"basic": basic, "hallucination": false, "type": split})
            answers |= {f"{split}/{k}/basic": "Yes. There is.", f"{split}/{k}/hallucination": "no"}
            touch(root / split / "videos" / f"v{k}_a.mp4", root / split / "videos" / f"v{k}_{other}.mp4")
        put(root / split / f"{split}.json", rows)
    return answers


def cmm(root: Path) -> dict[str, str]:
    kinds = {
        "language-dominance": ("overrely_language_ignore_visual", "visual", True, False),
        "visual-dominance": ("overrely_visual_ignore_audio", "visual+audio", True, True),
        "audio-dominance": ("overrely_audio_ignore_visual", "visual+audio", True, True),
        "visual-language": ("visual-language", "visual", True, False),
        "audio-language": ("audio-language", "audio", False, True),
        "visual-audio-language": ("visual-audio-language", "visual+audio", True, True),
    }
    rows, answers = [], {}
    for split, (sub, modality, seen, heard) in kinds.items():
        for gold in ("yes", "no"):
            answers[f"{split}/{len(rows)}"] = f"{gold.capitalize()}, it is."
            base = f"./reorg_raw_files/{sub}/1"
            rows.append(
                {
                    "category": "over-reliance_unimodal_priors",
                    "sub_category": sub,
                    "modality": modality,
                    "granularity": "object-level" if gold == "yes" else "event-level",
                    "correlation_type": None,
                    "video_path": f"{base}.mp4" if seen else None,
                    "audio_path": f"{base}.wav" if heard else None,
                    "question": "Did you see a cup in the video?",
                    "answer": gold,
                }
            )
            touch(*(root / f"{base}.{end}" for end, there in (("mp4", seen), ("wav", heard)) if there))
    put(root / "all_data_final_reorg.json", rows)
    return answers


def haloquest(root: Path) -> dict[str, str]:
    header = ["", "image_name", "url", "image type", "hallucination type", "question", "groundtruth responses", "split"]
    kinds = (("generated", "false premises"), ("real", "visually challenging"), ("real", "insufficient context"))
    for split in ("eval", "train"):
        out = io.StringIO()
        writer = csv.writer(out)
        writer.writerow(header)
        for k, (image, kind) in enumerate(kinds):
            address = f"https://example.org/{k}.png"
            writer.writerow(
                [
                    k,
                    f"{k}.png",
                    address,
                    image,
                    kind,
                    "What is in the cat's paw, if anything?",
                    "Nothing; There is no cat.",
                    split,
                ]
            )
        put(root / f"haloquest-{split}.csv", out.getvalue())
    touch(*(root / "images" / f"{k}.png" for k in range(3)))
    return {f"{split}/{k}": "There is no cat." for split in ("eval", "train") for k in range(3)}


def vstar(root: Path) -> dict[str, str]:
    ask = "\nAnswer with the option's letter from the given choices directly."
    rows = [
        {
            "question_id": 0,
            "image": "direct_attributes/sa_1.jpg",
            "text": f"What colour is the cup?\n(A) red\n(B) blue\n(C) green\n(D) white{ask}",
            "category": "direct_attributes",
            "label": "C",
        },
        {
            "question_id": 1,
            "image": "relative_position/sa_2.jpg",
            "text": f"Is the cup left or right of the dog?\n(A) right\n(B) left{ask}",
            "category": "relative_position",
            "label": "B",
        },
    ]
    put(root / "test_questions.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
    touch(*(root / str(r["image"]) for r in rows))
    return {"direct_attributes/0": "C", "relative_position/1": "(B) left"}


def textvqa(root: Path) -> dict[str, str]:
    rows = [
        {
            "question": "what does the sign say?",
            "image_id": "0a1",
            "image_classes": ["Sign"],
            "question_id": 34602 + k,
            "question_tokens": ["what", "does", "the", "sign", "say"],
            "answers": ["stop"] * 8 + ["halt", "the stop sign"],
            "set_name": "val",
        }
        for k in range(2)
    ]
    put(root / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "dataset_name": "textvqa", "data": rows})
    touch(root / "train_images/0a1.jpg")
    return {f"val/{34602 + k}": "Stop." for k in range(2)}


WRITERS: dict[str, Callable[[Path], dict[str, str]]] = {
    f.__name__: f for f in (repope, dash_b, phd, eventhallusion, videohallucer, cmm, haloquest, vstar, textvqa)
}
