"""``limelight models``, ``limelight strategies`` and the self-test: it passes on a sound model and tells a broken one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import limelight
from limelight.cli.check import Check, detected, probe_media, self_test, snapshot
from limelight.decoding.registry import strategies
from limelight.models.adapter import Adapter
from tests.cli.conftest import Run


@pytest.fixture
def adapter(checkpoint: Path) -> Adapter:
    return limelight.load(checkpoint)


def results(adapter: Adapter) -> dict[str, Check]:
    return {c.name: c for c in self_test(adapter, strategies=False)}


def test_families(run: Run) -> None:
    assert "qwen2_audio" in run("models").stdout
    document = json.loads(run("models", "--json").stdout)
    assert document["families"]["llava"]["lime"]["lr"] == 3e-4
    assert "generic" in document["families"]


def test_check(run: Run, checkpoint: Path) -> None:
    result = run("models", "--check", checkpoint, "--quick")
    assert result.exit_code == 0, result.output
    assert "LlavaForConditionalGeneration" in result.stdout
    assert "image 3–19 (4 x 4)" in result.stdout
    assert "failed" not in result.stdout
    document = json.loads(run("models", "--check", checkpoint, "--json").stdout)
    checks = {c["name"]: c["ok"] for c in document["checks"]}
    assert {f"strategy {n}" for n in strategies()} <= set(checks)
    assert all(ok for name, ok in checks.items() if not name.startswith("strategy"))
    assert checks["strategy greedy"] is checks["strategy lime"] is True
    assert checks["strategy aad"] is None  # it needs sound
    assert document["ok"] is (False not in checks.values())
    assert document["detected"]["decoder"] == "model.language_model (LlamaModel)"


def test_a_sound_model_passes(adapter: Adapter) -> None:
    found = results(adapter)
    assert [c for c in found.values() if c.ok is not True] == []
    assert list(found)[-1] == "model untouched"


def test_wrong_logits_are_reported(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Adapter.logits
    monkeypatch.setattr(Adapter, "logits", lambda self, hidden: plain(self, hidden) * 1.01)
    found = results(adapter)
    assert found["logits are the model's own"].ok is False
    assert "largest difference" in found["logits are the model's own"].detail


def test_a_remaining_change_is_reported(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    import limelight.relevance.attribute as relevance

    plain = relevance.attribute

    def careless(model: Any, *args: Any, **kwargs: Any) -> Any:
        found = plain(model, *args, **kwargs)
        with torch.no_grad():
            model.head.weight.add_(1e-3)
        return found

    monkeypatch.setattr(relevance, "attribute", careless)
    last = results(adapter)["model untouched"]
    assert last.ok is False
    assert "parameters" in last.detail
    assert "logits" in last.detail


def test_hooks_that_do_not_bind_are_reported(
    adapter: Adapter, run: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contextlib import nullcontext

    monkeypatch.setattr(Adapter, "routed", lambda self: nullcontext())
    found = results(adapter)
    assert found["hooks bind"].ok is False
    assert "did not bind" in found["hooks bind"].detail
    assert run("models", "--check", checkpoint, "--quick").exit_code == 1


def test_an_error_of_the_model_is_a_result(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such kernel\nmore")

    monkeypatch.setattr(adapter.model, "forward", refuse)
    found = results(adapter)
    assert found["the model runs"].detail == "RuntimeError: no such kernel"
    assert "relevance" not in found


def test_detected_and_snapshot(adapter: Adapter) -> None:
    assert detected(adapter)["layers, heads, kv heads, head size"] == "2, 4, 4, 8"
    before = snapshot(adapter)
    assert snapshot(adapter) == before
    adapter.model.lm_head.register_forward_hook(lambda *_: None)
    assert snapshot(adapter)["hooks"] != before["hooks"]


@pytest.mark.parametrize(
    ("name", "sizes", "told"),
    [
        ("gemma4_moe", "2, 4, 2, 8 in 1 layers; 4, 1, 16 in 1 layers", "2 experts"),
        ("gemma4", "4, 4, 2, 8 in 2 layers; 4, 2, 16 in 2 layers", "features enter by per_layer_inputs"),
        ("mllama", "3, 4, 2, 8", "20 states outside the prompt (cross_attention_states)"),
        ("glm4v_moe", "2, 4, 2, 16", "router"),
    ],
)
def test_experts_side_inputs_and_differing_layers_are_listed(name: str, sizes: str, told: str) -> None:
    from limelight.cli.check import _hooks
    from tests.tiny import built
    from tests.zoo import ZOO

    tiny = built(name)
    assert detected(tiny)["layers, heads, kv heads, head size"] == sizes
    ok, detail = _hooks(tiny, ZOO[name].inputs(tiny.model))
    assert ok and told in detail


def test_probe_media() -> None:
    assert probe_media("image").size == (224, 224)
    assert len(probe_media("video")) == 4
    samples, rate = probe_media("audio")
    assert samples.shape == (rate,)


def test_strategies(run: Run) -> None:
    told = run("strategies").stdout
    document = json.loads(run("strategies", "--json").stdout)
    assert set(document) == set(strategies())
    assert "lr=none" in told
    assert document["lime"]["settings"]["objective"] == "paper"
    assert all(row["about"] for row in document.values())


def test_a_model_of_text_alone_is_checked_on_text() -> None:
    """No media, no silence: the checks run on a prompt of words."""
    adapter = limelight.load("demo-vision")
    inner = Adapter(adapter.model, adapter.processor)
    inner.placeholders = {}
    results = list(self_test(inner, strategies=False))
    assert results[0].name == "prompt with text" and results[-1].name == "model untouched"
