"""The example notebook is fresh: run again it prints what is stored, and its outputs are small."""

from __future__ import annotations

import sys

import pytest

from tests.running import finished

pytest.importorskip("nbclient", reason="nbclient is not installed (pip install nbclient ipykernel)")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")

AGAIN = """
import json, nbformat
from tools.notebook import NOTEBOOK, executed, printed
again = executed()
print(json.dumps([printed(nbformat.read(NOTEBOOK, as_version=4)), printed(again),
                  [any("text/html" in o.get("data", {}) for o in c.outputs) for c in again.cells if c.cell_type == "code"]]))
"""


def test_it_runs_and_prints_what_is_stored() -> None:
    import json

    from tools.notebook import NOTEBOOK

    done = finished([sys.executable, "-W", "ignore", "-c", AGAIN], cwd=NOTEBOOK.parents[1])
    assert done.returncode == 0, done.stderr[-3000:]
    stored, again, shown = json.loads(done.stdout.splitlines()[-1])
    assert any(stored)
    assert stored == again, "run python -m tools.notebook"
    assert shown.count(True) == 2  # the answer and the relevance show themselves
    assert NOTEBOOK.stat().st_size < 200_000
