"""What a module is, told by probing it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limelight.errors import LimelightError, NotDifferentiableError, NotFiniteError, UnknownKindError
from limelight.relevance.attachment import matches_of
from limelight.relevance.attribute import attribute
from limelight.relevance.classify import classify_modules
from limelight.relevance.composites import ATTN_LRP, GRADIENT_INPUT
from limelight.relevance.differentiable import check_differentiable
from limelight.relevance.layers.norm import NormSpec
from limelight.relevance.probing import is_linear
from tests.relevance.layers.test_norm import LargestNorm
from tests.tiny import built, fresh, llava
from tests.zoo import FOUNDATION, ZOO


@pytest.mark.parametrize("name", FOUNDATION)
def test_classification_finds_every_part_of_every_layer(name: str) -> None:
    adapter = built(name)
    sites = classify_modules(adapter.decoder)
    layers = len(adapter.decoder.layers)
    count = Counter(s.kind for s in sites)
    norms = sum(1 for n, m in adapter.decoder.named_modules() if "norm" in n.rsplit(".", 1)[-1])
    assert count["attention"] == layers
    assert count["gated_mlp"] == count["activation"] == layers
    assert count["norm"] == norms > 2 * layers
    one = ZOO[name].traits & {"rmsnorm_1p"}
    assert all(s.spec.plus_one == bool(one) for s in sites if isinstance(s.spec, NormSpec))
    assert all(not s.spec.center for s in sites if isinstance(s.spec, NormSpec))


def test_layernorms_and_shared_inputs_are_found() -> None:
    adapter = built("cohere2_vision")
    specs = [s.spec for s in classify_modules(adapter.decoder) if isinstance(s.spec, NormSpec)]
    assert specs
    assert all(s.center for s in specs)


def _with(change: Any) -> Any:
    adapter = fresh("llava")
    change(adapter.decoder)
    return adapter


class Loose(nn.Module):
    """Stacked experts: matrices that belong to no linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.Parameter(torch.randn(2, 32, 32))
        self.act_fn = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act_fn(x @ self.experts[0])


class Twisted(nn.Module):
    """A parameterless module that is not elementwise."""

    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(-1)


ODD: dict[str, Any] = {
    "final norm": lambda d: setattr(d, "norm", LargestNorm32()),
    "convolution": lambda d: setattr(d.layers[0], "mlp", nn.Sequential(nn.Conv1d(7, 7, 1))),
    "experts": lambda d: setattr(d.layers[1], "mlp", Loose()),
    "activation": lambda d: setattr(d.layers[0].mlp, "act_fn", Twisted()),
    "gated attention": lambda d: setattr(d.layers[0].self_attn, "gate_proj", nn.Linear(32, 48)),
    "query of another width": lambda d: setattr(d.layers[0].self_attn, "q_proj", nn.Linear(32, 96)),
    "bilinear": lambda d: setattr(d.layers[0], "mlp", nn.Bilinear(32, 32, 32)),
}


class LargestNorm32(LargestNorm):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(32))


@pytest.mark.parametrize("part", sorted(ODD))
def test_what_is_of_no_known_kind_raises(part: str) -> None:
    adapter = _with(ODD[part])
    with pytest.raises(UnknownKindError) as caught:
        classify_modules(adapter.decoder)
    assert caught.value.hint
    with pytest.raises(LimelightError):
        attribute(adapter, ZOO["llava"].inputs(adapter.model), composite=ATTN_LRP)


def test_classification_is_made_again_when_modules_are_exchanged() -> None:
    adapter = fresh("llava")
    first = matches_of(adapter)
    assert matches_of(adapter) is first
    layer = adapter.decoder.layers[0]
    layer.mlp = type(layer.mlp)(adapter.decoder.config)
    second = matches_of(adapter)
    assert second is not first
    assert any(s.module is layer.mlp for s in second)
    adapter.decoder.norm = LargestNorm32()
    with pytest.raises(UnknownKindError):
        matches_of(adapter)


def quantised() -> Any:
    """transformers' own class with PyTorch's dynamic int8 linears in its text stack."""
    import warnings

    model = llava(torch.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.ao.quantization is deprecated", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*quantized tensor creation functions", category=UserWarning)
        torch.ao.quantization.quantize_dynamic(model.get_decoder(), {nn.Linear}, dtype=torch.qint8, inplace=True)
    return model


@pytest.mark.parametrize("composite", [ATTN_LRP, GRADIENT_INPUT], ids=lambda c: c.name)
def test_quantised_linears_that_pass_no_gradient_raise(composite: Any) -> None:
    import limelight
    from tests.tiny import llava_inputs

    model = quantised()
    inputs = llava_inputs(llava(torch.float32))
    with pytest.raises(NotDifferentiableError) as caught:
        attribute(model, inputs, composite=composite)
    assert "layers.0" in str(caught.value)
    assert caught.value.hint
    with pytest.raises(NotDifferentiableError):
        model.generate(
            **inputs, custom_generate=limelight.custom_generate(limelight.lime(composite=composite.name)),
            max_new_tokens=1,
        )  # fmt: skip
    plain = model.generate(
        **inputs, custom_generate=limelight.custom_generate(limelight.greedy()), max_new_tokens=2, do_sample=False
    )
    assert plain.shape[1] == 24  # decoding alone needs no gradient


def test_a_head_without_a_gradient_raises() -> None:
    class Deaf(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.detach()).detach()

    adapter = fresh("llava")
    adapter.model.lm_head = Deaf(32, 128)
    with pytest.raises(NotDifferentiableError) as caught:
        attribute(adapter.model, ZOO["llava"].inputs(adapter.model))
    assert "head" in str(caught.value)


def test_weights_made_under_inference_mode_raise() -> None:
    with torch.inference_mode():
        model = llava(torch.float32)
    with pytest.raises(NotDifferentiableError) as caught:
        attribute(model, {k: v.clone() for k, v in ZOO["llava"].inputs(built("llava").model).items()})
    assert "inference" in str(caught.value).lower()


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("llava", "layers.0.mlp.down_proj"), ("llava", "layers.1.input_layernorm"), ("llava", "norm"),
        ("glm4v_moe", "layers.1.mlp.experts"), ("qwen3_5", "layers.0.linear_attn.in_proj_z"),
    ],
)  # fmt: skip
def test_a_module_whose_weights_are_nan_is_of_no_kind(name: str, part: str) -> None:
    adapter = fresh(name)
    weight = next(adapter.decoder.get_submodule(part).parameters())
    with torch.no_grad():
        weight.fill_(float("nan"))
    with pytest.raises(NotFiniteError) as caught:
        classify_modules(adapter.decoder)
    assert caught.value.hint


def test_linears_are_recognised_by_their_features() -> None:
    assert is_linear(nn.Linear(2, 3))
    assert not is_linear(nn.Embedding(2, 3))

    class Wrapped(nn.Module):
        in_features, out_features = 2, 3

    assert is_linear(Wrapped())
    check_differentiable([("a", nn.Linear(2, 3)), ("b", nn.Embedding(2, 3))])
