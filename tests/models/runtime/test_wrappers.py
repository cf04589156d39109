"""LoRA, compiled and data-parallel wrappers: the model inside is found, runs as written, and is left as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn

import limelight
from limelight.errors import UnsupportedError
from limelight.models.adapter import Adapter
from limelight.models.detect import find_decoder
from limelight.models.runtime.wrappers import uncompiled, unwrapped
from limelight.types import Prompt
from tests.deployed import STRATEGIES, chatter, check_equal, result, results
from tests.tiny import llava, llava_inputs
from tests.zoo import ZOO


@pytest.fixture(scope="module")
def plain() -> Any:
    return llava(torch.float32)


@pytest.fixture(scope="module")
def inputs(plain: Any) -> dict[str, Tensor]:
    return llava_inputs(plain)


@pytest.fixture(scope="module")
def wanted(plain: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return results(plain, inputs)


def adapted(model: Any, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "r": 2, "target_modules": r".*language_model.*(q_proj|v_proj|gate_proj|down_proj)", "init_lora_weights": False,
        **changes,
    }  # fmt: skip
    with chatter():
        return get_peft_model(copy.deepcopy(model), LoraConfig(**settings)).eval()


LORA: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "DoRA": {"use_dora": True},
    "the head too": {"target_modules": r".*(language_model.*v_proj|lm_head)"},
    "a head of its own": {"modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("kind", LORA)
def test_lora_equals_the_merged_model(plain: Any, inputs: dict[str, Tensor], kind: str) -> None:
    model = adapted(plain, **LORA[kind])
    with chatter():
        merged = copy.deepcopy(model).merge_and_unload().eval()
    want = results(merged, inputs)
    assert float((want["greedy"] - result(plain, inputs, "greedy")).abs().max()) > 0.1, "the adapter does nothing"
    check_equal(results(model, inputs), want, 1e-4)


def test_lora_merged_in_place_switched_off_and_on_again() -> None:
    """In float64, where the roundings that merging and unmerging leave in the weights do not hide a mistake."""
    plain = llava(torch.float64)
    inputs, what = llava_inputs(plain), ("attribution", "cached")
    model = adapted(plain)
    unmerged, own = results(model, inputs, what), results(plain, inputs, what)
    model.merge_adapter()
    check_equal(results(model, inputs, what), unmerged, 1e-10)
    model.unmerge_adapter()
    with model.disable_adapter():
        check_equal(results(model, inputs, what), own, 1e-10)
    check_equal(results(model, inputs, what), unmerged, 1e-10)


def test_wrapped_models_are_distinguished_by_the_inner_model() -> None:
    """Qwen2.5-VL needs token types that its own forward names and the wrapper's does not."""
    base = ZOO["qwen2_5_vl"].build()
    with chatter():
        model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)).eval()
    adapter = limelight.wrap(model)
    assert adapter.model is base
    assert adapter.decoder is find_decoder(model) is find_decoder(base)
    tensors = {k: v for k, v in ZOO["qwen2_5_vl"].inputs(base).items() if k != "mm_token_type_ids"}
    assert "mm_token_type_ids" in adapter.complete(tensors)
    prompt = Prompt(adapter.complete(tensors), adapter.words(tensors), adapter.spans(tensors))
    answer = limelight.generate(model, None, prompt, strategy="lime-cached", max_new_tokens=2)
    direct = limelight.generate(base, None, prompt, strategy="lime-cached", max_new_tokens=2)
    assert answer.token_ids == direct.token_ids
    assert len(answer.token_ids) == 2


def test_adapters_in_front_of_the_model_are_refused(plain: Any) -> None:
    with chatter():
        tuned = get_peft_model(
            copy.deepcopy(plain),
            PromptTuningConfig(
                task_type="CAUSAL_LM", num_virtual_tokens=2, token_dim=32, num_transformer_submodules=1,
                num_attention_heads=4, num_layers=2,
            ),
        )  # fmt: skip
    with pytest.raises(UnsupportedError, match="virtual tokens") as caught:
        limelight.wrap(tuned)
    assert "LoRA" in caught.value.hint


def test_data_parallel_wrappers(plain: Any) -> None:
    assert unwrapped(nn.DataParallel(plain)) is plain
    assert unwrapped(plain) is plain
    assert unwrapped("no model") == "no model"
    assert limelight.wrap(nn.DataParallel(plain)).model is plain


def compiled_whole(model: Any) -> Any:
    return torch.compile(model, backend="eager")


def compiled_layers(model: Any) -> Any:
    layers = model.get_decoder().layers
    for i in range(len(layers)):
        layers[i] = torch.compile(layers[i], backend="eager")
    return model


def compiled_parts(model: Any) -> Any:
    for layer in model.get_decoder().layers:
        layer.mlp = torch.compile(layer.mlp, backend="eager")
        layer.self_attn.compile(backend="eager")
        layer.input_layernorm.forward = torch.compile(layer.input_layernorm.forward, backend="eager")
        layer.self_attn.o_proj = torch.compile(layer.self_attn.o_proj, backend="eager")
    model.get_decoder().norm = torch.compile(model.get_decoder().norm, backend="eager")
    model.get_decoder().embed_tokens = torch.compile(model.get_decoder().embed_tokens, backend="eager")
    return model


def compiled_decoder(model: Any) -> Any:
    model.model.language_model = torch.compile(model.model.language_model, backend="eager")
    return model


def compiled_in_place(model: Any) -> Any:
    model.compile(backend="eager")
    return model


WAYS = {
    f.__name__.removeprefix("compiled_"): f
    for f in (compiled_whole, compiled_layers, compiled_parts, compiled_decoder, compiled_in_place)
}


@pytest.mark.parametrize("way", WAYS)
def test_a_compiled_model_gives_what_the_model_gives(
    plain: Any, inputs: dict[str, Tensor], wanted: dict[str, Tensor], way: str
) -> None:
    model = WAYS[way](copy.deepcopy(plain))
    check_equal(results(model, inputs), wanted)
    assert Adapter(model).decoder is find_decoder(model)
    assert "_orig_mod" not in Adapter(model).decoder._modules


@pytest.mark.parametrize("name", ["dola", "memvr", "pai", "avisc", "m3id", "vcd", "rudder", "vista", "ilvad"])
def test_hooks_act_inside_compiled_layers(plain: Any, inputs: dict[str, Tensor], name: str) -> None:
    """Some versions of the compiler do not look at hooks that come after the compilation."""
    more: dict[str, Any] = {"m3id": {"variant": "released"}, "memvr": {"threshold": 0.0}, "ilvad": {"tau": 1.0}}.get(
        name, {}
    )
    strategy = limelight.strategy(name, **more)

    def answer(model: Any) -> Tensor:
        fn = limelight.custom_generate(strategy, tensors=inputs)
        out = model.generate(
            **inputs, custom_generate=fn, max_new_tokens=3, do_sample=False, return_dict_in_generate=True,
            output_logits=True, disable_compile=True,
        )  # fmt: skip
        return torch.cat(out.logits)

    for way in ("layers", "parts"):
        model = WAYS[way](copy.deepcopy(plain))
        with torch.no_grad():
            model(**inputs)  # compiled before the hooks come
        assert torch.equal(answer(model), answer(plain))


class Counting:
    """A compiler backend that counts how often its graphs run."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, graph: Any, example: Any) -> Any:
        def run(*args: Any) -> Any:
            self.runs += 1
            return graph(*args)

        return run


def test_a_compiled_model_stays_compiled_outside(plain: Any, inputs: dict[str, Tensor]) -> None:
    counter = Counting()
    model = copy.deepcopy(plain)
    for layer in model.get_decoder().layers:
        layer.compile(backend=counter)
    model.get_decoder().norm = torch.compile(model.get_decoder().norm, backend=counter)
    with torch.no_grad():
        model(**inputs)
        first = counter.runs
        assert first > 0
        for name in STRATEGIES:
            result(model, inputs, name)
        assert counter.runs == first, "limelight ran a compiled graph"
        with pytest.raises(ZeroDivisionError), uncompiled(model):
            model(**inputs)
            raise ZeroDivisionError
        assert counter.runs == first
        model(**inputs)
    assert counter.runs > first
