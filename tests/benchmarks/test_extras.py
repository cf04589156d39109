from __future__ import annotations

import sys
from pathlib import Path

import pytest

from limelight.benchmarks.extras import need
from limelight.errors import MissingExtraError


def test_an_installed_module() -> None:
    assert need("json", "bench").dumps({}) == "{}"


def test_a_missing_one_names_its_extra() -> None:
    with pytest.raises(MissingExtraError, match=r"no_such_thing.*\n.*limelight\[bench\]"):
        need("no_such_thing.part", "bench")


def test_a_module_that_misses_something_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_thing.py").write_text("import no_such_thing_either")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_thing_either") as error:
        need("broken_thing", "bench")
    assert not isinstance(error.value, MissingExtraError)
    sys.modules.pop("broken_thing", None)
