"""A checkpoint on disk, pictures, and the command line called in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from limelight.cli.main import app
from tests.cli import tiny_audio, tiny_film
from tests.cli.tiny_llava import save_checkpoint
from tests.report.examples import picture

Run = Callable[..., Result]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA with its processor; read only."""
    return save_checkpoint(tmp_path_factory.mktemp("tiny-llava"))


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    picture(40, 30).save(path)
    return path


@pytest.fixture(scope="session")
def listener(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2-Audio with its processor, which hears two seconds at once; read only."""
    return tiny_audio.save_checkpoint(tmp_path_factory.mktemp("tiny-audio"))


@pytest.fixture(scope="session")
def watcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2.5-VL with its processor; read only."""
    return tiny_film.save_checkpoint(tmp_path_factory.mktemp("tiny-film"))


@pytest.fixture
def run() -> Run:
    def call(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(a) for a in arguments])

    return call
