"""Attribution of long prompts keeps no [T, T] tensor and no more than the plain gradient does; its numbers do not change."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from limelight.errors import UnsupportedError
from limelight.models.adapter import Adapter
from limelight.relevance import attribute as module
from limelight.relevance.attribute import attribute, attribute_generated
from limelight.relevance.composites import ATTN_LRP, COMPOSITES, Composite
from tests.relevance.forward.test_stream import RAISES
from tests.tiny import built, fresh, llava
from tests.zoo import ZOO
from tests.zoo.parts import IMAGE

T = 512


class Largest(TorchDispatchMode):
    """Operations whose result has T * T entries or more, views of smaller tensors included."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        large = [x for x in tree_leaves(out) if isinstance(x, Tensor) and x.numel() >= T * T]
        self.found += [(str(func), tuple(x.shape)) for x in large]
        return out


def long(adapter: Adapter) -> dict[str, Tensor]:
    """A prompt of T positions, 16 of them a picture's."""
    words = torch.randint(31, 120, (T - 16,), generator=torch.Generator().manual_seed(0))
    ids = torch.cat([words[:5], torch.full((16,), IMAGE), words[5:]])[None]
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)).to(adapter.model.dtype)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


@pytest.mark.parametrize("composite", list(COMPOSITES.values()), ids=lambda c: c.name)
def test_no_tensor_is_quadratic_in_the_prompt(composite: Composite) -> None:
    adapter = Adapter(llava(torch.float32, max_position_embeddings=2 * T))
    inputs = long(adapter)
    attribute(adapter, inputs, composite=composite)
    with Largest() as largest:
        attribute(adapter, inputs, composite=composite)
        attribute_generated(adapter, inputs, [40, 41, 42], composite=composite)
    assert not largest.found


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen2_audio", "kimi_k25", "qwen3_vl_moe", "qwen3_5"])
def test_nor_in_other_families(name: str) -> None:
    """M-RoPE, latent attention, experts, gated attention: by the kernel alone, also where its hook watches (first run)."""
    adapter = fresh(name)
    inputs = ZOO[name].inputs(adapter.model)
    length = adapter.capture(inputs).length

    class Softmaxes(Largest):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            shapes = [tuple(x.shape) for x in tree_leaves(out) if isinstance(x, Tensor)]
            self.found += [(str(func), s) for s in shapes if "softmax" in str(func) and s[-2:] == (length, length)]
            return out

    for _ in range(2):
        with Softmaxes() as largest:
            attribute(adapter, inputs)
        assert not largest.found


@pytest.mark.parametrize("name", [n for n in ZOO if n not in RAISES or RAISES[n][0] is UnsupportedError])
def test_every_family_as_by_the_eager_computation(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relevance, target and reported logit, up to the order of sums; the second call gives what the first gave."""
    adapter = built(name)
    inputs = ZOO[name].inputs(adapter.model)
    got, again = attribute(adapter, inputs), attribute(adapter, inputs)
    assert torch.equal(got.scores, again.scores)
    assert got.logit == again.logit
    monkeypatch.setattr(module, "fused_attention", contextlib.nullcontext)
    want = attribute(adapter, inputs)
    size = float(want.scores.abs().max())
    torch.testing.assert_close(got.scores, want.scores, atol=2e-5 * size, rtol=0)
    assert got.target == want.target
    assert got.logit == pytest.approx(want.logit, abs=1e-5)


def test_the_reported_logit_is_the_models_own() -> None:
    """Under transformers' own sdpa, and under eager up to the order of sums."""
    adapter = fresh("llava_gqa")
    inputs = ZOO["llava_gqa"].inputs(adapter.model)
    got = attribute(adapter, inputs)
    for implementation in ("sdpa", "eager"):
        adapter.model.set_attn_implementation(implementation)
        with torch.no_grad():
            logits = adapter.model(**inputs).logits[0, -1]
        assert got.target == int(logits.argmax())
        assert got.logit == pytest.approx(float(logits[got.target]), abs=1e-5)


def saved(run: Any) -> int:
    """Bytes that the graph keeps, every storage once."""
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        run()
    return sum(kept.values())


def test_the_graph_keeps_no_more_than_the_plain_gradients() -> None:
    adapter = Adapter(llava(torch.float32, max_position_embeddings=2 * T))
    inputs = long(adapter)
    attribute(adapter, inputs)
    ours = saved(lambda: attribute(adapter, inputs, composite=ATTN_LRP))
    adapter.model.set_attn_implementation("sdpa")
    call = adapter.capture(inputs)

    def plain() -> None:
        embeds = call.embeds.clone().requires_grad_(True)
        hidden = adapter.decoder(**call.arguments(embeds), use_cache=False).last_hidden_state
        torch.autograd.grad(adapter.model.lm_head(hidden[:, -1:])[0, 0, 7], embeds)

    with adapter.frozen():
        theirs = saved(plain)
    assert ours <= theirs
