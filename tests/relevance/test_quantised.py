"""Quantised weights: everything equals the model with the same weights written out; what passes no gradient says so."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import limelight
from limelight.errors import NotDifferentiableError, UnknownKindError
from tests.deployed import chatter, check_equal, result, results
from tests.tiny import llava, llava_inputs, snapshot


@pytest.fixture(scope="module")
def plain() -> Any:
    return llava(torch.float32)


@pytest.fixture(scope="module")
def inputs(plain: Any) -> dict[str, Tensor]:
    return llava_inputs(plain)


def torchao(model: Any, config: str) -> Any:
    logging.getLogger("torchao").setLevel(logging.ERROR)
    with chatter():
        from torchao import quantization

        quantization.quantize_(model, getattr(quantization, config)())
    return model


def linears(module: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    return [(m, n, c) for m in list(module.modules()) for n, c in list(m.named_children()) if type(c) is nn.Linear]


def bitsandbytes(module: nn.Module, bits: int) -> nn.Module:
    """As transformers' ``quantization_config`` does it: each linear of the text stack exchanged."""
    with chatter():
        import bitsandbytes as bnb

        for parent, name, linear in linears(module):
            size = (linear.in_features, linear.out_features, linear.bias is not None)
            weight = linear.weight.detach().clone()
            if bits == 4:
                new = bnb.nn.Linear4bit(*size, compute_dtype=torch.float32, quant_type="nf4")
                new.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
            else:
                new = bnb.nn.Linear8bitLt(*size, has_fp16_weights=False)
                new.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
            setattr(parent, name, new.to("cpu"))
    return module


def written_out(linear: Any) -> Tensor:
    """The weights that a quantised linear stands for: what it makes of the unit vectors."""
    with torch.no_grad():
        alone = linear(torch.zeros(1, linear.in_features))
        return (linear(torch.eye(linear.in_features)) - alone).T.contiguous()  # type: ignore[no-any-return]


def twin(plain: Any, quantised: Any) -> Any:
    """The model with the quantised model's weights in ordinary linears."""
    model = copy.deepcopy(plain)
    with torch.no_grad():
        for name, module in model.named_modules():
            if type(module) is nn.Linear:
                module.weight.copy_(written_out(quantised.get_submodule(name)))
    return model


WEIGHT_ONLY: dict[str, Any] = {
    "torchao int8": lambda m: torchao(m, "Int8WeightOnlyConfig"),
    "torchao int8, text stack": lambda m: (torchao(m.get_decoder(), "Int8WeightOnlyConfig"), m)[1],
    "bitsandbytes 4 bit": lambda m: (bitsandbytes(m.get_decoder(), 4), m)[1],
    "bitsandbytes 8 bit": lambda m: (bitsandbytes(m.get_decoder(), 8), m)[1],
}


@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
@pytest.mark.parametrize("kind", WEIGHT_ONLY)
def test_everything_equals_the_same_weights_written_out(plain: Any, inputs: dict[str, Tensor], kind: str) -> None:
    model = WEIGHT_ONLY[kind](copy.deepcopy(plain))
    found, want = results(model, inputs), results(twin(plain, model), inputs)
    assert float((want["greedy"] - result(plain, inputs, "greedy")).abs().max()) > 1e-3, "nothing was quantised"
    check_equal(found, want, 1e-4)
    assert all(not hasattr(m, "forward") or "forward" not in vars(m) for m in model.get_decoder().modules())


def test_int8_in_bfloat16(plain: Any, inputs: dict[str, Tensor]) -> None:
    model = copy.deepcopy(plain).to(torch.bfloat16)
    torchao(model.get_decoder(), "Int8WeightOnlyConfig")
    narrow = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in inputs.items()}
    found = result(model, narrow, "attribution")
    want = result(plain, inputs, "attribution")
    assert float(torch.nn.functional.cosine_similarity(found, want, dim=0)) > 0.95
    assert bool(torch.isfinite(result(model, narrow, "cached")).all())


class OneWay(nn.Module):
    """int8 weights with a scale a row, and no way back: the least that a quantised kernel offers."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("levels", (linear.weight.detach() / scale).round().to(torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.nn.functional.linear(x, self.levels.to(x.dtype) * self.scale)  # type: ignore[operator]


def one_way(plain: Any, part: str = "") -> Any:
    model = copy.deepcopy(plain)
    for parent, name, linear in linears(model.get_decoder()):
        if part in name:
            setattr(parent, name, OneWay(linear))
    return model


def test_meter_and_relevance_contrastive_need_no_gradient(plain: Any, inputs: dict[str, Tensor]) -> None:
    model = one_way(plain)
    what = ("greedy", "meter", "relevance-contrastive")
    check_equal(results(model, inputs, what), results(twin(plain, model), inputs, what), 1e-4)


@pytest.mark.parametrize("part", ["", "down_proj", "o_proj"])
@pytest.mark.parametrize("what", ["attribution", "cached", "cached adam", "exact"])
def test_where_a_gradient_is_needed_and_does_not_pass(
    plain: Any, inputs: dict[str, Tensor], what: str, part: str
) -> None:
    model = one_way(plain, part)
    before = snapshot(model)
    with pytest.raises(NotDifferentiableError, match=f"layers.0.*{part}") as caught:
        result(model, inputs, what)
    assert "weight-only" in caught.value.hint
    assert snapshot(model) == before


def test_quantised_activations_are_refused(plain: Any, inputs: dict[str, Tensor]) -> None:
    """They round each row on its own scale: what rides along as a tangent would be rounded too."""
    model = copy.deepcopy(plain)
    torchao(model.get_decoder(), "Int8DynamicActivationInt8WeightConfig")
    with pytest.raises(UnknownKindError, match="no rule covers") as caught:
        result(model, inputs, "meter")
    assert "weight-only" in caught.value.hint
    with pytest.raises(NotDifferentiableError):
        result(model, inputs, "attribution")
    ids = model.generate(
        **inputs, custom_generate=limelight.custom_generate(limelight.greedy()), max_new_tokens=2, do_sample=False
    )
    assert ids.shape[1] == inputs["input_ids"].shape[1] + 2
