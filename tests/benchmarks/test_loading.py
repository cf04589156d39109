from __future__ import annotations

from pathlib import Path

import pytest

from limelight.benchmarks.loading import load, row_seed
from limelight.benchmarks.task import task
from limelight.errors import DataError, SettingError
from tests.benchmarks.official import WRITERS, put


@pytest.fixture
def pope(tmp_path: Path) -> Path:
    WRITERS["pope"](tmp_path)
    return tmp_path


def test_splits_limit_suffix_and_places(pope: Path) -> None:
    loaded = load(task("pope"), pope, splits=["coco/popular", "coco/random"], limit=2, suffix=" Please.")
    assert loaded.splits == ("coco/random", "coco/popular")  # in the task's order
    assert [s.id for s in loaded.samples] == ["coco/random/1", "coco/random/2", "coco/popular/1", "coco/popular/2"]
    assert loaded.places == ((0, 0), (0, 1), (1, 0), (1, 1))
    assert all(s.prompt.endswith("image? Please.") for s in loaded.samples)
    everything = load(task("pope"), pope)
    assert len(everything.samples) == 54
    assert len(everything.splits) == 9
    assert set(zip(loaded.places, [s.id for s in loaded.samples], strict=True)) <= set(
        zip(everything.places, [s.id for s in everything.samples], strict=True)
    )
    assert {f["rows"] for f in everything.facts.values()} == {6}


def test_seeds_depend_on_the_id_and_the_run_alone(pope: Path) -> None:
    few = {s.id: s.meta["seed"] for s in load(task("pope"), pope, limit=2).samples}
    all_of = {s.id: s.meta["seed"] for s in load(task("pope"), pope).samples}
    assert few.items() <= all_of.items()
    assert len(set(all_of.values())) == len(all_of)
    other = {s.id: s.meta["seed"] for s in load(task("pope"), pope, seed=1).samples}
    assert all(other[i] != s for i, s in all_of.items())
    assert row_seed(0, "a") == 2649998842


def test_unknown_splits_and_limits(pope: Path) -> None:
    with pytest.raises(SettingError, match="coco/rare"):
        load(task("pope"), pope, splits=["coco/rare"])
    with pytest.raises(SettingError, match="limit"):
        load(task("pope"), pope, limit=0)
    (pope / "gqa/gqa_pope_seem_random.json").unlink()
    with pytest.raises(DataError, match="gqa_pope_seem_random"):
        load(task("pope"), pope, splits=["coco/random", "gqa/random"])


def test_repeated_rows_and_empty_files(pope: Path) -> None:
    row = {"question_id": 1, "image": "COCO_val2014_000000000000.jpg", "text": "?", "label": "no"}
    put(pope / "coco/coco_pope_random.json", [row, row])
    with pytest.raises(DataError, match="repeats the id"):
        load(task("pope"), pope, splits=["coco/random"])
    put(pope / "coco/coco_pope_random.json", "")
    with pytest.raises(DataError, match="no rows"):
        load(task("pope"), pope, splits=["coco/random"])


@pytest.fixture
def hub_copy(tmp_path: Path) -> Path:
    """A folder that `datasets` reads like a repository of the Hub, with pictures inside."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed (pip install 'limelight[bench]')")
    from PIL import Image

    image = Image.new("RGB", (4, 4), "red")
    rows = [
        {
            "question_id": str(k),
            "question": "Is there a dog?",
            "answer": "yes",
            "image_source": "a",
            "image": image,
            "category": c,
        }
        for k, c in enumerate(["random", "popular", "random"])
    ]
    features = datasets.Features(
        {k: datasets.Value("string") for k in rows[0] if k != "image"} | {"image": datasets.Image()}
    )
    data = datasets.Dataset.from_list(rows, features=features)
    (tmp_path / "copy").mkdir()
    data.to_parquet(tmp_path / "copy" / "test-00000-of-00001.parquet")
    return tmp_path / "copy"


def test_a_copy_on_the_hub(hub_copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    loaded = load(task("pope"), f"hub:{hub_copy}", splits=["coco/random"])
    assert [s.id for s in loaded.samples] == ["coco/random/0", "coco/random/2"]
    assert loaded.samples[0].media["image"][0].size == (4, 4)
    (fact,) = loaded.facts.values()
    assert fact["rows"] == 3
    assert fact["fingerprint"]
    everything = load(task("pope"), f"hub:{hub_copy}", splits=["coco/random", "coco/popular"], limit=1)
    assert [s.id for s in everything.samples] == ["coco/random/0", "coco/popular/1"]


def test_tasks_without_a_copy_on_the_hub() -> None:
    with pytest.raises(SettingError, match="no complete copy on the Hub"):
        load(task("chair"), "hub")
    with pytest.raises(SettingError, match="gqa/random has no complete copy"):
        load(task("pope"), "hub", splits=["gqa/random"])


def test_a_hub_that_cannot_be_read(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="datasets is not installed (pip install 'limelight[bench]')")
    with pytest.raises(DataError, match="could not read"):
        load(task("pope"), f"hub:{tmp_path / 'nothing'}")
