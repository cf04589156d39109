"""One thread, the same seed for every test, no network, and transformers' chatter about tiny models kept off."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

# for this process and all that tests start
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault(  # see the fixture `fetched_weights`
    "LIMELIGHT_FETCHED",
    os.path.expanduser(
        os.path.join(
            os.environ.get("LIMELIGHT_CACHE")
            or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "limelight"),
            "weights",
        )
    ),
)
os.environ["LIMELIGHT_CACHE"] = os.devnull  # a developer's own calibrations stay out of the tests

import hypothesis
import pytest
import torch
from PIL import ImageFile

# examples that do not depend on chance (on the modules that are loaded they do), no clock, no memory of former runs
hypothesis.settings.register_profile("limelight", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("limelight")

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("LIMELIGHT_SHARED", ROOT.parent / "shared"))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.getLogger("transformers.generation.utils").setLevel(logging.ERROR)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _whole_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some packages (lmms-eval) tell Pillow to accept pictures that are cut short, for the whole process."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Recorded runs of the authors' code; they are not part of the repository."""
    folder = SHARED / "golden"
    if not folder.is_dir():
        pytest.skip(f"no recorded runs at {folder} (set LIMELIGHT_SHARED)")
    return folder


@pytest.fixture
def fetched_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the weights that `make real` has fetched (it may be missing), in a cache without anything else."""
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "weights").symlink_to(os.environ["LIMELIGHT_FETCHED"])
    monkeypatch.setenv("LIMELIGHT_CACHE", str(cache))
    return cache / "weights"
