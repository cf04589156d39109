"""Groups of options that ``limelight bench``, ``tune`` and ``audit`` share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from limelight.benchmarks.engine import Engine, Local
from limelight.benchmarks.ray_engine import RayEngine
from limelight.benchmarks.runner import shard_from_environment
from limelight.benchmarks.scorers.judge import RUBRIC, ChatJudge, check_template
from limelight.benchmarks.task import AnswerMany, Reply
from limelight.errors import SettingError
from limelight.types import Sample

Model = Annotated[str, typer.Option(help="Checkpoint folder, Hub name, or a shipped miniature.")]


@dataclass(frozen=True)
class Questions:
    """Which questions are asked, how, and how their answers are parsed."""

    data: Annotated[str | None, typer.Option(help="Data folder, or 'hub' / 'hub:REPO' for the copy on the Hub.")] = None
    split: Annotated[
        list[str] | None, typer.Option(help="Split; repeat for several. By default all whose files exist.")
    ] = None
    suffix: Annotated[str, typer.Option(help="Appended to every prompt.")] = ""
    max_new_tokens: Annotated[int | None, typer.Option(help="Maximum length of answers; the task's by default.")] = None
    frames: Annotated[int | None, typer.Option(min=1, help="Evenly spaced frames of a video; 8 by default.")] = None
    parser: Annotated[str, typer.Option(help="Name of the answer parser; the task's first by default.")] = ""


@dataclass(frozen=True)
class Judging:
    """The model that rates answers."""

    judge_url: Annotated[str | None, typer.Option(help="OpenAI-compatible endpoint that rates answers.")] = None
    judge_model: Annotated[str, typer.Option(help="Model at that endpoint.")] = ""
    judge_key: Annotated[
        str | None, typer.Option(help="API key of that endpoint.", envvar="LIMELIGHT_JUDGE_KEY", show_envvar=True)
    ] = None
    judge_template: Annotated[
        Path | None, typer.Option(help="Prompt template file with {contents} {question} {reference} {answer}.")
    ] = None

    def judge(self, rubric: str = RUBRIC) -> ChatJudge | None:
        """Create the judge, or return None. ``rubric``: the task's prompt, used without a template."""
        if self.judge_url is None:
            return None
        if not self.judge_model:
            raise SettingError("--judge-url needs --judge-model", hint="the judge's model name at the endpoint")
        file = self.judge_template
        text = check_template(file.read_text(encoding="utf-8")) if file else rubric
        return ChatJudge(self.judge_url, self.judge_model, self.judge_key, text)


@dataclass(frozen=True)
class Execution:
    """Where rows are processed."""

    shard: Annotated[
        str, typer.Option(help="i/n: every n-th row starting from the i-th; 'auto' reads RANK and WORLD_SIZE.")
    ] = "0/1"
    engine: Annotated[str, typer.Option(help="local or ray.")] = "local"
    workers: Annotated[int, typer.Option(help="Ray workers, each with its own model.")] = 1
    gpus: Annotated[float, typer.Option(help="GPUs per Ray worker.")] = 0.0
    address: Annotated[str | None, typer.Option(help="Address of a running Ray cluster.")] = None

    @property
    def part(self) -> tuple[int, int]:
        """The shard as (i, n)."""
        return shard_from_environment() if self.shard == "auto" else parse_shard(self.shard)

    def engine_for(self, answer: Callable[[Sample], Reply], many: AnswerMany, batch_size: int) -> Engine:
        """Return the engine that calls ``many``, here or in workers."""
        if self.engine not in ("local", "ray"):
            raise SettingError(f"unknown engine {self.engine!r}", hint="local or ray")
        make = partial(Local, answer, many, batch_size)
        if self.engine == "local":
            return make()
        return RayEngine(make, workers=self.workers, batch_size=batch_size, gpus=self.gpus, address=self.address)


@dataclass(frozen=True)
class Handling:
    """How rows are grouped, what happens with those that cannot be used, and what is shown."""

    batch_size: Annotated[
        int, typer.Option("--batch", "--batch-size", help="Rows processed in one left-padded batch.")
    ] = 1
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Skip and count rows that cannot be used or scored.")
    ] = False
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False


def parse_shard(text: str) -> tuple[int, int]:
    """Parse ``"1/4"`` to (1, 4)."""
    try:
        i, n = (int(x) for x in text.split("/"))
    except ValueError as error:
        raise SettingError(f"--shard {text!r} is not i/n", hint="for example 0/4, or auto under torchrun") from error
    return i, n
