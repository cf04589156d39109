"""Recorded runs: the authors' code (where it is at hand) and our own twin's (always)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from limelight import golden
from limelight.decoding.methods import lime
from limelight.errors import DataError
from limelight.golden import QUANTITIES, TOLERANCE, compare, floor_of, main, runs_in
from limelight.relevance import composites
from limelight.relevance.composites import ATTN_LRP, GRADIENT_INPUT, RELEASED_AUDIO

OWN = Path(__file__).parent / "fixtures" / "golden"
FAMILIES = ("llava", "qwen2_5_vl", "qwen2_audio")
RUNS = ("default", "released_default", "nopatch_default", "lr3e-3")


def floors(root: Path) -> Any:
    return json.loads((root / "noise_floor.json").read_text())


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_authors_runs_are_reproduced(golden_dir: Path, family: str, run: str) -> None:
    result = compare(golden_dir / family, run, floors(golden_dir))
    assert result.passed, golden.render(result)
    assert set(result.worst) == set(QUANTITIES)
    assert len(result.ids) == (2 if run == "nopatch_default" else 6)
    assert all(result.multiple(q) <= TOLERANCE for q in QUANTITIES)


@pytest.mark.parametrize("run", ["attnlrp", "gradient_input"])
def test_our_own_recorded_runs_are_reproduced(run: str) -> None:
    result = compare(OWN / "llava", run, floors(OWN))
    assert result.passed, golden.render(result)
    assert set(result.worst) == set(QUANTITIES)
    assert result.count["logits_raw"] == 8
    assert result.count["delta_max_over_lr"] == 8 * 4 + 8  # a maximum a layer and half, and what is recorded whole


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    root = tmp_path / "golden"
    shutil.copytree(OWN, root)
    (root / "llava" / "golden_gradient_input.json").unlink()
    return root


def test_the_command_prints_every_quantity_and_exits_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(OWN), "--family", "llava", "--run", "attnlrp"]) == 0
    out = capsys.readouterr().out
    assert all(q in out for q in QUANTITIES)
    assert "1 of 1 recorded runs reproduced" in out
    assert "x floor" in out


def _shifted(root: Path, name: str, by: float) -> None:
    path = root / "llava" / "golden_attnlrp.safetensors"
    tensors = load_file(path)
    save_file({k: v + by if k.endswith(name) else v for k, v in tensors.items()}, path)


def _rewritten(root: Path, change: Any) -> None:
    path = root / "llava" / "golden_attnlrp.json"
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))


@pytest.mark.parametrize("name", ["logits_raw", "relevance", "grad_k", "delta_v_after"])
def test_a_tensor_that_is_off_fails(copied: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    _shifted(copied, name, 1e-3)
    assert main([str(copied)]) == 1
    assert "BEYOND TOLERANCE" in capsys.readouterr().out


@pytest.mark.parametrize("key", ["target_logit", "kl_loss", "relevance_loss", "loss", "grad_norm_k", "delta_absmax_v"])
def test_a_number_that_is_off_fails(copied: Path, key: str) -> None:
    def change(meta: Any) -> None:
        value = meta["steps"][2][key]
        meta["steps"][2][key] = [v + 1e-3 for v in value] if isinstance(value, list) else value + 1e-3

    _rewritten(copied, change)
    assert main([str(copied)]) == 1


def test_another_token_fails(copied: Path) -> None:
    _rewritten(copied, lambda meta: meta.update(generated_ids=[meta["generated_ids"][0] + 1, 3]))
    assert main([str(copied)]) == 1


def test_another_target_fails(copied: Path) -> None:
    _rewritten(copied, lambda meta: meta["steps"][1].update(next_id=meta["steps"][1]["next_id"] + 1))
    assert main([str(copied)]) == 1


def _reversed_kl(reference: Tensor, logits: Tensor) -> Tensor:
    logp = torch.log_softmax(logits, dim=-1)
    return (logp.exp() * (logp - reference)).sum(-1)


def test_the_other_direction_of_the_kl_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lime, "kl", _reversed_kl)
    assert not compare(OWN / "llava", "attnlrp", floors(OWN)).passed


def test_the_other_direction_of_the_kl_fails_on_the_authors_runs(
    monkeypatch: pytest.MonkeyPatch, golden_dir: Path
) -> None:
    monkeypatch.setattr(lime, "kl", _reversed_kl)
    assert not compare(golden_dir / "llava", "lr3e-3", floors(golden_dir)).passed


def test_other_divisors_in_attention_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = composites.Composite("attnlrp", ATTN_LRP.rules, (2, 2, 2))
    monkeypatch.setattr(golden, "ATTN_LRP", wrong)
    assert not compare(OWN / "llava", "attnlrp", floors(OWN)).passed


def test_which_rules_a_run_had() -> None:
    def status(attention: str, norm: str) -> dict[str, str]:
        return {"eager_attention_forward": attention, "norm_forward": norm}

    assert golden.composite_of(status("lxt.efficient", "lxt.efficient")) is ATTN_LRP
    assert golden.composite_of(status("transformers", "lxt.efficient")) is RELEASED_AUDIO
    assert golden.composite_of(status("transformers", "transformers")) is GRADIENT_INPUT


def test_a_run_without_a_floor_takes_the_largest_of_its_family() -> None:
    known = {"a/x": {"loss": 1.0, "ids_equal": True}, "a/y": {"loss": 3.0, "relevance": 2.0}, "b/x": {"loss": 9.0}}
    assert floor_of(known, "a", "x")["loss"] == 1.0
    assert floor_of(known, "a", "x")["relevance"] == 2.0
    assert floor_of(known, "a", "z")["loss"] == 3.0
    assert floor_of(known, "c", "x")["loss"] == 0.0


def test_missing_files_are_named(tmp_path: Path, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none")]) == 2
    assert "noise_floor.json" in capsys.readouterr().err
    assert main([str(copied), "--family", "nobody"]) == 2
    assert "no recorded run" in capsys.readouterr().err
    with pytest.raises(DataError) as caught:
        runs_in(copied, run="nothing")
    assert caught.value.hint
    shutil.rmtree(copied / "llava" / "model")
    assert main([str(copied)]) == 2
    assert "model" in capsys.readouterr().err


def test_a_tensor_of_another_shape_is_reported(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copied / "llava" / "golden_attnlrp.safetensors"
    tensors = load_file(path)
    save_file({k: v[:-1].clone() if k.endswith("logits_raw") else v for k, v in tensors.items()}, path)
    assert main([str(copied)]) == 2
    assert "shape" in capsys.readouterr().err
