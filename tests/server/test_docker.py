"""The Dockerfile says nothing that is not so: what it copies exists, what it runs exists, and it keeps no secret."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

from typer.main import get_command

from limelight.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
TEXT = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
STEPS = [(line.split()[0], line.split(maxsplit=1)[1].strip()) for line in TEXT.splitlines() if line.strip()]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def steps(name: str) -> list[str]:
    return [value for step, value in STEPS if step == name]


def test_every_step_is_one_that_docker_knows() -> None:
    known = {
        "ARG",
        "FROM",
        "ENV",
        "RUN",
        "WORKDIR",
        "COPY",
        "USER",
        "EXPOSE",
        "STOPSIGNAL",
        "HEALTHCHECK",
        "ENTRYPOINT",
        "CMD",
    }
    assert {name for name, _ in STEPS} <= known
    assert len(steps("FROM")) == 2
    assert steps("FROM")[0].endswith("AS build")


def test_what_it_copies_exists_and_is_not_ignored() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [c.split()[:-1] for c in steps("COPY") if not c.startswith("--from")]
    files = {name for names in copied for name in names}
    assert files
    assert all((ROOT / name).exists() for name in files)
    assert files == kept
    assert "*" in (ROOT / ".dockerignore").read_text().splitlines()
    for needed in (PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml"):
        assert needed in files


def test_what_it_runs_exists() -> None:
    assert json.loads(steps("ENTRYPOINT")[0]) == ["limelight"]
    assert "limelight" in PROJECT["scripts"]
    command = json.loads(steps("CMD")[0])
    commands = get_command(app).commands  # type: ignore[attr-defined]
    options = {o for p in commands[command[0]].params for o in p.opts}
    assert {c for c in command if c.startswith("--")} <= options
    (extras,) = (a.partition("=")[2] for a in steps("ARG") if a.startswith("EXTRAS="))
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    minimum = PROJECT["requires-python"].removeprefix(">=")
    (python,) = (a.partition("=")[2] for a in steps("ARG") if a.startswith("PYTHON="))
    assert tuple(map(int, python.split("."))) >= tuple(map(int, minimum.split(".")))


def test_the_container_runs_unprivileged_with_a_health_check() -> None:
    user = steps("USER")[-1]
    assert user not in ("root", "0")
    assert any("useradd" in r and user in r for r in steps("RUN"))
    assert [n for n, _ in STEPS].index("USER") < [n for n, _ in STEPS].index("ENTRYPOINT")
    (health,) = steps("HEALTHCHECK")
    probe = json.loads(health.partition("CMD")[2])
    compile(probe[2], "probe", "exec")
    assert f":{steps('EXPOSE')[0]}/health" in probe[2]
    assert steps("STOPSIGNAL") == ["SIGTERM"]


def test_no_secret_is_in_it() -> None:
    for name, value in STEPS:
        if name in ("ARG", "ENV", "RUN", "COPY"):
            assert not re.search(r"key|token\b|secret|password", value, re.IGNORECASE), value
