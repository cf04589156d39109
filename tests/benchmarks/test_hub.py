"""``--data hub`` of every task that has a copy there: a local folder with the copy's columns, read by ``datasets``."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limelight.benchmarks.loading import load
from limelight.benchmarks.task import task, tasks
from limelight.cli.answering import _item

datasets = pytest.importorskip("datasets", reason="datasets is not installed (pip install 'limelight[bench]')")
soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed (pip install 'limelight[audio]')")


def sound() -> dict[str, Any]:
    out = io.BytesIO()
    soundfile.write(out, np.zeros(800, dtype=np.float32), 16000, format="WAV")
    return {"bytes": out.getvalue(), "path": "a.wav"}


def picture() -> Any:
    from PIL import Image

    return Image.new("RGB", (4, 4), "red")


FIGURE = {"category": "VD", "subcategory": "chart", "set_id": "0", "question_id": "0", "visual_input": "1"}
CHOICES = {"choice_a": "yes", "choice_b": "no", "choice_c": None, "choice_d": None, "answer_gt": "no"}
# task -> split, configuration, split of the copy, its rows without media, (id, target) of every sample
COPIES: dict[str, tuple[str, str | None, str, list[dict[str, Any]], list[tuple[str, Any]]]] = {
    "mme": (
        "count", None, "test",
        [{"question_id": "count/1.jpg", "question": "Is it?", "answer": a, "category": c} for c, a in
         [("count", "Yes"), ("color", "No"), ("count", "No")]],
        [("count/1.jpg/0", "yes"), ("count/1.jpg/2", "no")],
    ),
    "hallusionbench": (
        "all", None, "image",
        [{**FIGURE, "figure_id": k, "question": "Is it?", "gt_answer": k} for k in ("0", "1")],
        [("VD/chart/0/0/0", "no"), ("VD/chart/0/1/0", "yes")],
    ),
    "air_bench": (
        "music", "Foundation", "music",
        [{"task_name": "Music_AQA", "dataset_name": "set", "question": "Is it?", "uniq_id": k, **CHOICES} for k in (4, 5)],
        [("music/Music_AQA_set/4", "no"), ("music/Music_AQA_set/5", "no")],
    ),
    "asr": (
        "dev-clean", "clean", "validation",
        [{"id": f"12-3-000{k}", "text": "HELLO WORLD"} for k in range(2)],
        [("dev-clean/12-3-0000", "HELLO WORLD"), ("dev-clean/12-3-0001", "HELLO WORLD")],
    ),
    "repope": (
        "popular", None, "train",
        [{"image_id": "000000000001", "question": "Is there a cup?", "answer": a, "category": c} for c, a in
         [("popular", "yes"), ("random", "no"), ("popular", "no")]],
        [("popular/0", {"RePOPE": "yes"}), ("popular/2", {"RePOPE": "no"})],
    ),
    "dash_b": (
        "test", None, "test",
        [{"dataset": "spurious_imagenet", "object": "dam", "question": "Can you see a dam in this image?", "answer": a,
          "image_path": "a.jpg", "img_id": "a", "question_id": k} for k, a in enumerate(["no", "yes"])],
        [("0", "no"), ("1", "yes")],
    ),
    "textvqa": (
        "val", None, "validation",
        [{"image_id": "0a1", "question_id": 34602, "question": "what does it say?", "answers": ["stop"] * 10}],
        [("val/34602", ["stop"] * 10)],
    ),
}  # fmt: skip


def test_every_copy_has_its_rows_here() -> None:
    assert {name for name, t in tasks().items() if t.hub} == {*COPIES, "pope"}


@pytest.mark.parametrize("name", sorted(COPIES))
def test_a_copy(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split, configuration, part, rows, expected = COPIES[name]
    modality = task(name).modality
    media = [{**row, modality: picture() if modality == "image" else sound()} for row in rows]
    table = datasets.Dataset.from_list(media if modality == "audio" else rows)
    if modality == "audio":
        table = table.cast_column("audio", datasets.Audio())
    else:
        features = datasets.Features({**table.features, "image": datasets.Image()})
        table = datasets.Dataset.from_list(media, features=features)
    folder = tmp_path / "copy"
    (folder / (configuration or "data")).mkdir(parents=True)
    file = f"{configuration or 'data'}/{part}.parquet"
    table.to_parquet(folder / file)
    (folder / "README.md").write_text(
        "---\nconfigs:\n"
        f"- config_name: {configuration or 'default'}\n  data_files:\n  - split: {part}\n    path: {file}\n---\n"
    )
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    loaded = load(task(name), f"hub:{folder}", splits=[split])
    assert [(s.id, s.target) for s in loaded.samples] == expected
    (fact,) = loaded.facts.values()
    assert fact["rows"] == len(rows)
    item = _item(modality, loaded.samples[0].media[modality][0])
    if modality == "image":
        assert item.size == (4, 4)
    else:
        assert (item[1], len(item[0])) == (16000, 800)
    assert all(s.meta["seed"] >= 0 for s in loaded.samples)
