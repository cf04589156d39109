"""The one attention function: eager's own values, hooks that see and change, a context per thread."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.models.llama.modeling_llama import eager_attention_forward

from limelight.errors import HookError, UnsupportedError
from limelight.models.runtime.attention import (
    NAME,
    AttentionCall,
    AttentionHook,
    attention,
    attention_hooks,
    check_bound,
    fit_mask,
    no_attention_hooks,
    register,
    repeat_heads,
    softmax_with_sinks,
    switched,
)
from limelight.models.runtime.fused import additive_mask
from tests.tiny import built, fresh, snapshot
from tests.zoo import ZOO


class Module(nn.Module):
    def __init__(self, groups: int = 2, layer: int = 0) -> None:
        super().__init__()
        self.num_key_value_groups, self.layer_idx = groups, layer


def tensors(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q, k, v = (torch.randn(2, h, 5, 8).to(dtype) for h in (4, 2, 2))
    mask = torch.full((2, 1, 5, 5), torch.finfo(dtype).min, dtype=dtype).triu(1)
    return q, k, v, mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [True, False])
def test_equals_transformers_eager_bit_for_bit(dtype: torch.dtype, masked: bool) -> None:
    q, k, v, mask = tensors(dtype)
    module = Module().eval()
    given = mask if masked else None
    want = eager_attention_forward(module, q, k, v, given, scaling=0.3)
    got = attention(module, q, k, v, given, scaling=0.3)
    assert torch.equal(got[0], want[0])
    assert got[1] is not None
    assert torch.equal(got[1], want[1])
    assert got[0].shape == (2, 5, 4, 8)


def test_scaling_defaults_to_the_root_of_the_head_size() -> None:
    q, k, v, mask = tensors()
    module = Module().eval()
    assert torch.equal(attention(module, q, k, v, mask)[0], attention(module, q, k, v, mask, scaling=8**-0.5)[0])


def test_learned_sinks_take_a_share() -> None:
    scores = torch.randn(1, 2, 3, 4)
    sinks = torch.tensor([0.5, -1.0])
    got = softmax_with_sinks(scores, sinks, torch.float32)
    column = sinks.reshape(1, 2, 1, 1).expand(1, 2, 3, 1)
    want = torch.softmax(torch.cat([scores, column], -1), -1)[..., :-1]
    torch.testing.assert_close(got, want)
    assert bool((got.sum(-1) < 1).all())
    torch.testing.assert_close(softmax_with_sinks(scores, None, torch.float32).sum(-1), torch.ones(1, 2, 3))


def test_a_soft_cap_bounds_the_scores_before_the_mask() -> None:
    seen: list[Tensor] = []

    class Look(AttentionHook):
        def softcap(self, layer: int, scores: Tensor, value: Tensor) -> Tensor:
            seen.append(value)
            assert torch.equal(value, torch.tanh(scores / 2.0) * 2.0)
            return value

    q, k, v, mask = tensors()
    with attention_hooks(Look()):
        _, weights = attention(Module().eval(), q * 50, k, v, mask, scaling=1.0, softcap=2.0)
    assert float(seen[0].abs().max()) <= 2.0
    assert weights is not None
    assert float(weights[..., 0, 1:].abs().max()) == 0.0


def test_heads_are_repeated_in_place_and_masks_cut() -> None:
    x = torch.arange(4.0).reshape(1, 2, 2, 1)
    assert repeat_heads(x, 2)[0, :, 0, 0].tolist() == [0.0, 0.0, 2.0, 2.0]
    assert repeat_heads(x, 1) is x
    mask = torch.zeros(1, 1, 2, 6)
    cut = fit_mask(mask, 4)
    assert cut is not None
    assert cut.shape == (1, 1, 2, 4)
    assert fit_mask(None, 4) is None


def test_every_hook_changes_its_own_part() -> None:
    q, k, v, mask = tensors()
    module = Module().eval()
    plain = attention(module, q, k, v, mask)[0]

    class Shift(AttentionHook):
        def __init__(self, where: str) -> None:
            self.where = where

        def qkv(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return (q, k, v + 1) if self.where == "qkv" else (q, k, v)

        def raw_scores(self, layer: int, scores: Tensor, q: Tensor) -> Tensor:
            return scores * 2 if self.where == "raw" else scores

        def scores(self, layer: int, scores: Tensor) -> Tensor:
            return scores * 2 if self.where == "scores" else scores

        def out(self, layer: int, out: Tensor, weights: Tensor) -> Tensor:
            return out + 1 if self.where == "out" else out

        def attend(self, call: AttentionCall) -> tuple[Tensor, Tensor | None] | None:
            return (torch.zeros(2, 5, 4, 8), None) if self.where == "attend" else None

    for where in ("qkv", "raw", "scores", "out", "attend"):
        with attention_hooks(Shift(where)):
            got = attention(module, q, k, v, mask)[0]
        if where in ("qkv", "out"):  # rows of weights sum to one
            torch.testing.assert_close(got, plain + 1)
        elif where == "attend":
            assert not got.any()
        else:
            assert not torch.allclose(got, plain)
    assert torch.equal(attention(module, q, k, v, mask)[0], plain)


def test_contexts_nest_report_and_can_be_left() -> None:
    order: list[str] = []

    class Say(AttentionHook):
        def __init__(self, name: str) -> None:
            self.name = name

        def scores(self, layer: int, scores: Tensor) -> Tensor:
            order.append(self.name)
            return scores

    q, k, v, mask = tensors()
    with attention_hooks(Say("outer")) as outer:
        with attention_hooks(Say("inner")) as inner:
            attention(Module(layer=3).eval(), q, k, v, mask)
            with no_attention_hooks():
                attention(Module(layer=4).eval(), q, k, v, mask)
        attention(Module(layer=5).eval(), q, k, v, mask)
    assert order == ["outer", "inner", "outer"]
    assert inner == {3}
    assert outer == {3, 5}


def test_a_context_is_left_after_an_exception() -> None:
    class Bad(AttentionHook):
        def scores(self, layer: int, scores: Tensor) -> Tensor:
            raise ZeroDivisionError

    q, k, v, mask = tensors()
    with pytest.raises(ZeroDivisionError), attention_hooks(Bad()):
        attention(Module().eval(), q, k, v, mask)
    attention(Module().eval(), q, k, v, mask)


def test_threads_never_see_each_others_hooks() -> None:
    q, k, v, mask = tensors()
    plain = attention(Module().eval(), q, k, v, mask)[0]
    inside, done, results = threading.Event(), threading.Event(), []

    def other() -> None:
        inside.wait(60)
        results.append(attention(Module().eval(), q, k, v, mask)[0])
        done.set()

    class Zero(AttentionHook):
        def out(self, layer: int, out: Tensor, weights: Tensor) -> Tensor:
            inside.set()
            assert done.wait(60)
            return out * 0

    thread = threading.Thread(target=other)
    thread.start()
    with attention_hooks(Zero()):
        mine = attention(Module().eval(), q, k, v, mask)[0]
    thread.join(60)
    assert not mine.any()
    assert torch.equal(results[0], plain)


def test_dropout_in_training_is_refused() -> None:
    q, k, v, mask = tensors()
    with pytest.raises(UnsupportedError) as caught:
        attention(Module().train(), q, k, v, mask, dropout=0.1)
    assert caught.value.hint
    attention(Module().eval(), q, k, v, mask, dropout=0.1)


def test_layers_that_never_called_are_named() -> None:
    check_bound({0, 1, 2}, {0, 1})
    with pytest.raises(HookError) as caught:
        check_bound({0}, {0, 1, 2})
    assert "layers [1, 2]" in str(caught.value)
    assert caught.value.hint


def test_it_is_registered_with_its_mask_and_replaces_nothing() -> None:
    before = {n: AttentionInterface()[n] for n in ("sdpa", "flash_attention_2")}
    register()
    register()
    assert AttentionInterface()[NAME] is attention
    assert AttentionMaskInterface()[NAME] is additive_mask
    assert {n: AttentionInterface()[n] for n in before} == before


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_switching_puts_back_the_implementation_of_every_config(implementation: str) -> None:
    adapter = fresh("llava")
    adapter.model.set_attn_implementation(implementation)
    before = snapshot(adapter.model)
    with pytest.raises(ZeroDivisionError), switched(adapter.decoder):
        assert adapter.decoder.config._attn_implementation == NAME
        assert adapter.model.model.vision_tower.config._attn_implementation == implementation
        raise ZeroDivisionError
    assert snapshot(adapter.model) == before
    assert adapter.decoder.config._attn_implementation == implementation


def test_a_module_without_a_config_cannot_be_switched() -> None:
    with pytest.raises(HookError) as caught, switched(nn.Linear(2, 2)):
        pass
    assert caught.value.hint


@torch.no_grad()
def test_the_mask_is_causal_inside() -> None:
    """A name registered without a mask function would see the future, silently."""
    adapter = built("llava")
    call = adapter.capture(ZOO["llava"].inputs(adapter.model))
    want = adapter.hidden(call)
    changed = call.embeds.clone()
    changed[:, -1] += 1
    got = adapter.hidden(call, changed)
    assert torch.equal(got[:, :-1], want[:, :-1])
    assert not torch.allclose(got[:, -1], want[:, -1])


def test_indices_of_sparse_attention_are_a_mask() -> None:
    """Each query sees the keys it names and no others, as in transformers' eager path; an earlier mask stays."""
    from limelight.models.runtime.attention import attention

    module = nn.Module().eval()
    q, k, v = (torch.randn(2, 3, 5, 4, dtype=torch.float64) for _ in range(3))
    chosen = torch.stack([torch.stack([torch.randperm(5)[:2] for _ in range(5)]) for _ in range(2)]).int()
    causal = torch.full((1, 1, 5, 5), torch.finfo(q.dtype).min, dtype=q.dtype).triu(1)
    for mask in (None, causal):
        out, weights = attention(module, q, k, v, mask, scaling=0.5, indices=chosen)
        seen = torch.zeros(2, 5, 5, dtype=torch.bool).scatter(-1, chosen.long(), True)[:, None].expand(2, 3, 5, 5)
        allowed = seen if mask is None else seen & (mask == 0)
        some = allowed.any(-1, keepdim=True).expand_as(allowed)
        scores = (q @ k.mT * 0.5).masked_fill(~allowed, float("-inf"))
        want = torch.softmax(scores, -1)
        torch.testing.assert_close(weights[some], want[some])
        assert out.shape == (2, 5, 3, 4)
