"""Mixers without keys and values: relevance against slow twins, tangents, states, second order; what is unlike them raises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from limelight.decoding.methods.lime_cached import LimeCached
from limelight.errors import UnknownKindError, UnsupportedError
from limelight.models.adapter import Adapter
from limelight.relevance.attribute import attribute
from limelight.relevance.classify import classify_modules
from limelight.relevance.composites import ATTN_LRP, CP_LRP, Composite
from limelight.relevance.forward.cache import DualCache
from limelight.relevance.kind import ModuleMatch
from limelight.relevance.layers import gated_delta, mamba2, short_convolution
from limelight.relevance.layers._mixer import Mixer
from limelight.relevance.mode import Mode
from tests.decoding.cached import check_against_twin
from tests.relevance.forward.helpers import after, backward_sums, close, prefilled, stream
from tests.relevance.layers.helpers import backward, ruled
from tests.slow_twins import mixers as slow
from tests.tiny import fresh
from tests.wide import prompt, wide, widen
from tests.zoo import ZOO

TWINS = {"qwen3_5": slow.delta_net, "lfm2_vl": slow.short_conv, "nemotron_h_omni": slow.mamba}
SHARES = {"attnlrp": (0.25, 0.25, 0.5), "cp-lrp": (0.0, 0.0, 1.0)}
each = pytest.mark.parametrize("name", TWINS)
both = pytest.mark.parametrize("composite", [ATTN_LRP, CP_LRP], ids=lambda c: c.name)


MIXERS = {"gated_delta": gated_delta, "mamba2": mamba2, "short_convolution": short_convolution}


def recognised(name: str, module: Any) -> list[ModuleMatch]:
    return [match for file in MIXERS.values() for match in file.KIND.recognise(name, module)]


def mixer(name: str) -> tuple[ModuleMatch, Mixer]:
    """A family's mixer in float64, and what computes it."""
    adapter = fresh(name, torch.float64)
    for inner, module in adapter.decoder.layers.named_modules():
        for match in recognised(inner, module):
            module.double()
            return match, match.spec
    raise AssertionError(name)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@each
@both
def test_relevance_is_that_of_the_slow_twin(name: str, composite: Composite) -> None:
    match, spec = mixer(name)
    for seed in range(2):
        h, relevance = noise(1, 7, spec.width, seed=seed), noise(7, spec.width, seed=seed + 10)
        want, down = TWINS[name](match.module, h[0], relevance, SHARES[composite.name])
        x = h.clone().requires_grad_(True)
        out = ruled(match, match.kind, backward(composite.attention))(x)
        close(out[0].detach(), want.detach(), 1e-5)  # transformers' own recurrences compute in float32
        (gradient,) = torch.autograd.grad(out, x, (relevance / want)[None].detach())
        close((gradient * x)[0], down.detach(), 1e-8)


@each
@both
def test_chunks_are_one_sequence(name: str, composite: Composite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values, tangents, states and the second order do not depend on where a sequence is cut."""
    _, spec = mixer(name)
    found = []
    for size in (64, 3, 1):
        monkeypatch.setattr("limelight.relevance.layers._mixer.CHUNK", size)
        x = noise(4, 7, spec.width).requires_grad_(True)
        out, states = spec.compute(Mode(batch=2, channels=2, graph="surrogate", divisors=composite.attention), x, None)
        (second,) = torch.autograd.grad((out[2:] * noise(2, 7, spec.width, seed=1)).sum(), x)
        found.append([out.detach(), second, *(t.detach() for s in states for t in s)])
    for other in found[1:]:
        for a, b in zip(other, found[0], strict=True):
            close(a, b)


@each
@both
@torch.no_grad()
def test_a_step_behind_a_state_is_the_next_position_of_the_sequence(name: str, composite: Composite) -> None:
    """Two rows of values and two tangents; a state after N - 1 positions is a state to go on from."""
    _, spec = mixer(name)
    mode = Mode(batch=2, channels=3, divisors=composite.attention)
    x = noise(6, 6, spec.width)
    whole, (early, late) = spec.compute(mode, x, None)
    part, (_, state) = spec.compute(mode, x[:, :4], None)
    close(part, whole[:, :4])
    for t in (4, 5):
        step, (before, state) = spec.compute(mode, x[:, t : t + 1], state)
        close(step[:, 0], whole[:, t])
    for ours, theirs in ((before, early), (state, late)):
        for a, b in zip(ours, theirs, strict=True):
            close(a, b)
    rest, (before, after) = spec.compute(mode, x[:, 2:], spec.compute(mode, x[:, :2], None)[1][1])
    close(rest, whole[:, 2:])
    for a, b in zip((*before, *after), (*early, *late), strict=True):
        close(a, b)
    alone, (none, first) = spec.compute(mode, x[:, :1], None)
    assert all(float(t.abs().max()) == 0 for t in none)
    close(alone[:, 0], whole[:, 0])
    close(spec.compute(mode, x[:, 1:2], first)[0][:, 0], whole[:, 1])


@each
@both
def test_tangents_are_the_rules_jacobian(name: str, composite: Composite) -> None:
    match, spec = mixer(name)
    x, t, w = noise(2, 5, spec.width), noise(2, 5, spec.width, seed=1), noise(2, 5, spec.width, seed=2)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    leaf = x.clone().requires_grad_(True)
    out = ruled(match, match.kind, backward(composite.attention))(leaf, attention_mask=mask)
    (gradient,) = torch.autograd.grad((out * w).sum(), leaf)
    with torch.no_grad():
        rows, _ = spec.compute(
            Mode(batch=2, channels=2, divisors=composite.attention), torch.cat([x, t]), None, torch.cat([mask, mask])
        )
    close((rows[2:] * w).sum(), (gradient * t).sum())
    assert float(gradient[0, :2].abs().max()) == 0


@each
@both
def test_the_surrogate_is_the_backward_through_the_backward(name: str, composite: Composite) -> None:
    match, spec = mixer(name)
    x, t, w = (noise(1, 5, spec.width, seed=s) for s in range(3))
    leaf = x.clone().requires_grad_(True)
    out = ruled(match, match.kind, backward(composite.attention))(leaf)
    (gradient,) = torch.autograd.grad((out * w).sum(), leaf, create_graph=True)
    (want,) = torch.autograd.grad((gradient * t).sum(), leaf)
    again = x.clone().requires_grad_(True)
    mode = Mode(graph="surrogate", channels=2, divisors=composite.attention)
    rows, _ = spec.compute(mode, torch.cat([again, t]), None)
    (got,) = torch.autograd.grad((rows[1:] * w).sum(), again)
    close(got, want)
    # the last position alone, behind the others' state
    with torch.no_grad():
        _, (_, state) = spec.compute(Mode(channels=2, divisors=composite.attention), torch.cat([x, t])[:, :4], None)
    last = x[:, 4:].clone().requires_grad_(True)
    rows, _ = spec.compute(mode, torch.cat([last, t[:, 4:]]), state)
    (got,) = torch.autograd.grad((rows[1:] * w[:, 4:]).sum(), last)
    leaf = x[:, 4:].clone().requires_grad_(True)
    every = torch.cat([x[:, :4], leaf], dim=1)
    out = ruled(match, match.kind, backward(composite.attention))(every)
    (gradient,) = torch.autograd.grad((out[:, 4:] * w[:, 4:]).sum(), every, create_graph=True)
    (want,) = torch.autograd.grad((gradient * t).sum(), leaf)
    close(got, want)


@each
def test_the_true_gradient_is_that_of_the_value(name: str) -> None:
    _, spec = mixer(name)
    x, t, w, way = (noise(1, 5, spec.width, seed=s) for s in range(4))

    def value(at: Tensor, graph: str) -> Tensor:
        rows, _ = spec.compute(Mode(graph=graph, channels=2, divisors=ATTN_LRP.attention), torch.cat([at, t]), None)
        return (rows[1:] * w).sum()

    leaf = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(value(leaf, "true"), leaf)
    with torch.no_grad():
        step = 1e-6
        slope = (value(x + step * way, "none") - value(x - step * way, "none")) / (2 * step)
    assert float(slope) == pytest.approx(float((gradient * way).sum()), rel=1e-6)


FAMILIES = ("qwen3_5", "minicpmv4_7", "lfm2_vl", "lfm3_vl")


@pytest.mark.parametrize("name", FAMILIES)
def test_token_by_token_in_a_batch_is_one_prefill_of_each_row(name: str) -> None:
    adapter = wide(name)
    _, call, media_mask = prompt(name, adapter, None)
    tokens = [[9, 12], [55, 60], [33, 2]]
    logits, phi = after(stream(adapter, call, media_mask), tokens)
    for row in (0, 1):
        _, call, media_mask = prompt(name, adapter, row)
        for token in tokens:
            call = call.appended(adapter.embed(torch.tensor([[token[row]]])).detach())
        longer = torch.nn.functional.pad(media_mask, (0, len(tokens)))
        want_logits, want = prefilled(adapter, call, longer)
        close(logits[row], want_logits[0])
        close(phi[:, row], want[:, 0])
        own, sums = backward_sums(adapter, call, longer, [5, 80], ATTN_LRP)
        close(logits[row], own)
        close(phi[:, row, [5, 80]], sums)


def behind(name: str) -> Adapter:
    """The family with its mixer behind an attention layer, so that offsets act through the mixer."""
    model = ZOO[name].build()
    adapter = Adapter(model.double())
    layers, config = adapter.decoder.layers, adapter.decoder.config
    adapter.decoder.layers = torch.nn.ModuleList([layers[1], layers[0]])
    config.layer_types = config.layer_types[::-1]
    for index, layer in enumerate(adapter.decoder.layers):
        for module in layer.modules():
            if getattr(module, "layer_idx", None) is not None:
                module.layer_idx = index
    model.set_attn_implementation("eager")
    return widen(Adapter(model))


@both
@pytest.mark.parametrize("name", ["qwen3_5", "lfm2_vl"])
def test_offsets_act_through_a_mixer(name: str, composite: Composite) -> None:
    """Cached LIME, two tokens, against whole sequences without cache or state."""
    adapter = behind(name)
    assert sorted(adapter.attention_layers) == [0]
    strategy = LimeCached(
        updates=2, lr=5e-3, objective="margin", gradient="surrogate", composite=composite.name, kl_weight=0.5
    )
    check_against_twin(adapter, ZOO[name].inputs(adapter.model), strategy, 2, route="backward")


def test_what_looks_like_a_mixer_and_computes_otherwise_raises() -> None:
    adapter = fresh("qwen3_5")
    module = adapter.decoder.layers[0].linear_attn
    own = module.forward
    module.forward = lambda hidden_states, **kwargs: own(hidden_states, **kwargs) * 2
    with pytest.raises(UnknownKindError, match="linear_attn") as caught:
        attribute(adapter, ZOO["qwen3_5"].inputs(adapter.model))
    assert caught.value.hint
    del module.forward
    attribute(adapter, ZOO["qwen3_5"].inputs(adapter.model))


def test_the_fused_norm_of_flash_linear_attention() -> None:
    """It calls its epsilon otherwise; which one a model gets depends on what is installed."""
    adapter = fresh("qwen3_5")
    norm = adapter.decoder.layers[0].linear_attn.norm
    want = attribute(adapter, ZOO["qwen3_5"].inputs(adapter.model)).scores

    class Fused(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps, self.activation = norm.weight, norm.variance_epsilon, norm.activation

        def forward(self, x: Tensor, gate: Tensor) -> Tensor:
            return type(norm).forward(norm, x, gate)

    adapter.decoder.layers[0].linear_attn.norm = Fused()
    torch.testing.assert_close(attribute(adapter, ZOO["qwen3_5"].inputs(adapter.model)).scores, want)


def test_a_module_with_a_convolution_is_not_yet_a_mixer() -> None:
    other = torch.nn.Module()
    other.conv = torch.nn.Conv1d(4, 4, 3, groups=4)
    assert not recognised("other", other)
    other.layer_idx = 0
    assert not recognised("other", other)


@torch.no_grad()
def test_states_follow_the_cache_back_by_one_position() -> None:
    match, spec = mixer("lfm2_vl")
    cache = DualCache(8)
    mode = Mode(channels=2, cache=cache, divisors=ATTN_LRP.attention)
    twin = ruled(match, match.kind, mode)
    x = noise(2, 4, spec.width)
    whole = twin(x)
    cache.advance(4)
    assert cache.bytes() > 0
    cache.rewind(1)
    mode.write = False
    for _ in range(2):  # as often as one likes
        close(twin(x[:, 3:])[:, 0], whole[:, 3])
    cache.advance(1)
    mode.write = True
    following = twin(noise(2, 1, spec.width, seed=1))
    cache.advance(1)
    cache.rewind(1)
    close(twin(noise(2, 1, spec.width, seed=1)), following)
    cache.rewind(1)
    with pytest.raises(UnsupportedError) as caught:
        twin(x[:, 3:])
    assert caught.value.hint


@pytest.mark.parametrize("name", FAMILIES)
def test_only_layers_without_keys_are_mixers(name: str) -> None:
    adapter = fresh(name)
    kinds = adapter.decoder.config.layer_types
    mixing = [s for s in classify_modules(adapter.decoder) if s.kind in MIXERS]
    assert [int(s.module.layer_idx) for s in mixing] == [
        n for n, kind in enumerate(kinds) if kind in ("linear_attention", "conv")
    ]


@pytest.mark.parametrize("name", ["qwen3_5", "lfm2_vl", "nemotron_h_omni"])
def test_bfloat16_is_float32_rounded(name: str) -> None:
    narrow, single = fresh(name, torch.bfloat16), fresh(name)
    for adapter in (narrow, single):
        _, call, media_mask = prompt(name, adapter)
        got = after(stream(adapter, call, media_mask), [[9], [55]])
        if adapter is narrow:
            logits, phi = got
    for a, b in zip((logits, phi), got, strict=True):
        torch.testing.assert_close(a, b, atol=0.04 * float(b.abs().max()), rtol=0)
    inputs = ZOO[name].inputs(single.model)
    want = attribute(single, inputs)
    scores = attribute(narrow, ZOO[name].inputs(narrow.model), want.target).scores
    torch.testing.assert_close(scores, want.scores, atol=0.04 * float(want.scores.abs().max()), rtol=0)
