"""The start-up bench: what it times runs, what fails is named, and neither torch nor transformers is imported for help."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bench import start


def test_processor_time_is_that_of_the_process() -> None:
    """Sleeping is free; work is counted."""
    idle = start.seconds(["-c", "import time; time.sleep(0.5)"])
    busy = start.seconds(["-c", "import time\nt = time.process_time()\nwhile time.process_time() < t + 0.5: pass"])
    assert idle < 0.5 <= busy


def test_a_command_that_fails_is_named() -> None:
    with pytest.raises(SystemExit, match="exit status 3: python -c"):
        start.seconds(["-c", "raise SystemExit(3)"])


def test_the_table_has_median_and_range() -> None:
    told = start.table([{"name": "x", "seconds": [1.0, 2.04, 9.0]}])
    assert told.splitlines()[-1] == "| x | 2.0 | 1.00, 9.00 |"


def test_help_imports_neither_torch_nor_transformers() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "limelight", "--help"], capture_output=True, text=True, check=True
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "limelight.cli.main" in imported
    assert not {"torch", "transformers"} & imported


def test_the_commands_run() -> None:
    assert start.seconds(start.COMMANDS["`limelight generate --help`"]) > 0
    assert start.seconds(start.COMMANDS["the miniature's first answer, with relevance"]) > 0
