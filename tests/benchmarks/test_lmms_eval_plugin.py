"""The plugin inside the real lmms-eval, on a tiny local task; and its pieces."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

from limelight.benchmarks import lmms_eval_plugin as plugin
from limelight.errors import MissingExtraError
from tests.running import finished

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("asked", "settings", "stops"),
    [
        ({"until": ["\n\n"], "do_sample": False}, {"do_sample": False, "max_new_tokens": 1024}, ["\n\n"]),
        ({"temperature": 0, "top_p": 0.9, "max_new_tokens": 16}, {"do_sample": False, "max_new_tokens": 16}, []),
        ({"temperature": 0.7, "top_p": 0.9, "until": "x"}, {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 1024}, ["x"]),
        ({"num_beams": 1, "top_p": None, "until": None}, {"do_sample": False, "num_beams": 1, "max_new_tokens": 1024}, []),
    ],
)  # fmt: skip
def test_generation_settings(asked: dict[str, object], settings: dict[str, object], stops: list[str]) -> None:
    assert plugin.generation_settings(asked) == (settings, stops)


def test_text_before_a_stop_string() -> None:
    assert plugin.until_stop("a\n\nb", ["\n\n"]) == "a"
    assert plugin.until_stop("abc", ["c", "b", ""]) == "a"
    assert plugin.until_stop("abc", []) == "abc"


def test_without_lmms_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    monkeypatch.delitem(sys.modules, "lmms_eval.models.registry_v2", raising=False)
    with pytest.raises(MissingExtraError, match=r"limelight\[lmms-eval\]"):
        plugin.manifest()
    with pytest.raises(AttributeError, match="Lemon"):
        plugin.Lemon  # noqa: B018


TASK = """
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
task: limelight_tiny
test_split: test
output_type: generate_until
doc_to_visual: !function utils.doc_to_visual
doc_to_text: !function utils.doc_to_text
doc_to_target: label
process_results: !function utils.process_results
generation_kwargs: {{max_new_tokens: 4, temperature: 0, do_sample: false, until: ["\\n\\n"]}}
metric_list:
  - metric: accuracy
    aggregation: mean
    higher_is_better: true
metadata:
  - version: 0.0
"""

UTILS = """
from PIL import Image

def doc_to_visual(doc):
    return [Image.new("RGB", (56, 56), doc["colour"])]

def doc_to_text(doc, lmms_eval_specific_kwargs=None):
    return doc["text"]

def process_results(doc, results):
    return {"accuracy": float(isinstance(results[0], str))}
"""


NEEDED = ("lmms_eval", "evaluate", "loguru", "pytablewriter", "sacrebleu", "tenacity")


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(m) is None for m in NEEDED), reason="no lmms-eval (docs/benchmarks.md says how)"
)
def test_in_the_real_harness(tmp_path: Path) -> None:
    found = {e.name: e.value for e in importlib.metadata.entry_points(group="lmms_eval.models")}
    assert found["limelight"] == "limelight.benchmarks.lmms_eval_plugin:manifest"
    rows = [{"text": f"Is it {c}?", "colour": c, "label": "yes"} for c in ("red", "green", "blue")]
    (tmp_path / "task").mkdir()
    (tmp_path / "task/rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "task/tiny.yaml").write_text(TASK.format(data=tmp_path / "task/rows.jsonl"))
    (tmp_path / "task/utils.py").write_text(UTILS)
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "src"),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hub"),
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable, "-m", "lmms_eval", "--model", "limelight",
        "--model_args", "pretrained=demo-vision,strategy=lime,lr=1e-2,steps=2,seed=1",
        "--include_path", str(tmp_path / "task"), "--tasks", "limelight_tiny",
        "--output_path", str(tmp_path / "out"), "--log_samples",
    ]  # fmt: skip
    done = finished(command, cwd=tmp_path, env=env)
    said = done.stdout[-3000:] + done.stderr[-3000:]
    assert done.returncode == 0, said
    assert list((tmp_path / "out").rglob("*_results.json")), said  # it exits with 0 after an error, too
    (results,) = (tmp_path / "out").rglob("*_results.json")
    found = json.loads(results.read_text())
    assert found["results"]["limelight_tiny"]["accuracy,none"] == 1.0
    (samples,) = (tmp_path / "out").rglob("*samples_limelight_tiny.jsonl")
    answers = [json.loads(line)["filtered_resps"] for line in samples.read_text().splitlines()]
    assert len(answers) == 3
    assert set(answers) <= {"yes", "no"}
