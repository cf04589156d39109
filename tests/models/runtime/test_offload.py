"""Models dispatched by accelerate: what is computed is that of the model in one place."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

import limelight
from limelight.errors import UnsupportedError
from limelight.models.adapter import Adapter
from limelight.models.loading import check_finite
from limelight.models.runtime.offload import device_of, offloading, weight_of
from limelight.relevance.layers.norm import probe_norm
from tests.deployed import chatter, check_equal, results
from tests.tiny import llava, llava_inputs, snapshot
from tests.zoo import ZOO

CPU = torch.device("cpu")
MAP = {
    "model.vision_tower": "cpu", "model.multi_modal_projector": "disk", "model.language_model.embed_tokens": "cpu",
    "model.language_model.layers.0": "cpu", "model.language_model.layers.1": "disk", "model.language_model.norm": "disk",
    "model.language_model.rotary_emb": "cpu", "lm_head": "disk",
}  # fmt: skip


@pytest.fixture(scope="module")
def plain() -> Any:
    return llava(torch.float32)


@pytest.fixture(scope="module")
def inputs(plain: Any) -> dict[str, Tensor]:
    return llava_inputs(plain)


@pytest.fixture(scope="module")
def wanted(plain: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return results(plain, inputs)


def offloaded(plain: Any, tmp_path: Path, where: str) -> Any:
    model = copy.deepcopy(plain)
    with chatter():
        if where == "cpu":
            return cpu_offload(model, execution_device=CPU)
        disk_offload(model, str(tmp_path), execution_device=CPU)
    return model


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_an_offloaded_model_gives_what_the_model_gives(
    plain: Any, inputs: dict[str, Tensor], wanted: dict[str, Tensor], tmp_path: Path, where: str
) -> None:
    model = offloaded(plain, tmp_path, where)
    assert all(p.device.type == "meta" for p in model.parameters())
    before = {n: (vars(m).get("forward"), dict(m._forward_pre_hooks)) for n, m in model.named_modules()}
    check_equal(results(model, inputs), wanted, 1e-5)
    after = {n: (vars(m).get("forward"), dict(m._forward_pre_hooks)) for n, m in model.named_modules()}
    assert after == before
    assert all(p.device.type == "meta" for p in model.parameters()), "weights stayed in memory"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    model = ZOO["llava"].build()
    with chatter():
        model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_device_map_with_some_layers_on_disk(checkpoint: Path, tmp_path: Path) -> None:
    with chatter():
        one = LlavaForConditionalGeneration.from_pretrained(checkpoint, attn_implementation="eager").eval()
        spread = LlavaForConditionalGeneration.from_pretrained(
            checkpoint, attn_implementation="eager", device_map=MAP, offload_folder=str(tmp_path / "disk")
        ).eval()
    assert set(spread.hf_device_map.values()) == {"cpu", "disk"}
    tensors = ZOO["llava"].inputs(one)
    check_equal(results(spread, tensors), results(one, tensors), 1e-5)
    check_finite(spread)
    assert Adapter(spread).device == CPU


@pytest.mark.parametrize("name", ["qwen2_5_vl", "cohere2_vision", "gemma3", "qwen3_vl_moe"])
def test_biases_scales_and_centred_norms_are_read_where_they_are_kept(name: str, tmp_path: Path) -> None:
    plain = ZOO[name].build()
    plain.set_attn_implementation("eager")
    plain.generation_config.eos_token_id = None
    tensors = ZOO[name].inputs(plain)
    what = ("attribution", "cached", "exact")
    want = results(plain, tensors, what)
    check_equal(results(offloaded(plain, tmp_path, "cpu"), tensors, what), want, 1e-4)  # a bias is taken off again


def test_where_a_module_computes_and_what_its_weights_are(plain: Any, tmp_path: Path) -> None:
    for where in ("cpu", "disk"):
        model = offloaded(plain, tmp_path / where, where)
        norm, own = model.get_decoder().norm, plain.get_decoder().norm
        assert norm.weight.device.type == "meta"
        assert device_of(norm) == device_of(model) == CPU
        found = weight_of(norm, "weight")
        assert found is not None
        assert torch.equal(found, own.weight)
        assert weight_of(norm, "bias") is None
        assert offloading(own) is None
        assert weight_of(own, "weight") is own.weight
        spec = probe_norm(norm)
        assert spec is not None
        assert torch.equal(spec.gain, own.weight)  # type: ignore[arg-type]
    assert device_of(nn.Identity()) == CPU


def test_offloaded_weights_without_a_hook(plain: Any, inputs: dict[str, Tensor]) -> None:
    empty = copy.deepcopy(plain)
    empty.get_decoder().norm.to("meta")
    before = snapshot(plain)
    with pytest.raises(UnsupportedError, match="meta") as caught:
        limelight.attribute(empty, inputs)
    assert caught.value.hint
    assert snapshot(plain) == before


@pytest.mark.parametrize("name", ["qwen3_5", "lfm3_vl", "nemotron_h_omni"])  # delta net, short convolution, Mamba-2
def test_mixers_refuse_and_greedy_works(name: str, tmp_path: Path) -> None:
    plain = ZOO[name].build()
    plain.set_attn_implementation("eager")
    plain.generation_config.eos_token_id = None
    tensors = ZOO[name].inputs(plain)
    want = results(plain, tensors, ("greedy",))
    model = offloaded(plain, tmp_path, "cpu")
    check_equal(results(model, tensors, ("greedy",)), want, 1e-5)
    before = {n: (vars(m).get("forward"), dict(m._forward_pre_hooks)) for n, m in model.named_modules()}
    for what in ("attribution", "meter", "cached", "exact"):
        with pytest.raises(UnsupportedError, match="offloaded") as caught:
            results(model, tensors, (what,))
        assert "device_map" in (caught.value.hint or "")
    after = {n: (vars(m).get("forward"), dict(m._forward_pre_hooks)) for n, m in model.named_modules()}
    assert after == before
    check_equal(results(model, tensors, ("greedy",)), want, 1e-5)


@pytest.mark.parametrize(
    "name", ["gemma4", "glm4v", "glm4v_moe", "lfm2_vl", "minicpmv4_6", "mllama", "phi4_multimodal"]
)
def test_families_that_fail_by_themselves_when_every_module_is_offloaded(name: str, tmp_path: Path) -> None:
    """docs/deployments.md names them; one that no longer fails belongs among the tested."""
    plain = ZOO[name].build()
    tensors = ZOO[name].inputs(plain)
    model = offloaded(plain, tmp_path, "cpu")
    with torch.no_grad():
        plain(**tensors)
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            model(**tensors)
