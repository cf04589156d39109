"""One position in one go against the general way: values, weights, and every gradient, of the taps' tensors too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from limelight.models.runtime.attention import AttentionCall
from limelight.relevance.composites import ATTN_LRP, CP_LRP
from limelight.relevance.forward.cache import DualCache
from limelight.relevance.layers.attention import DualAttention
from limelight.relevance.mode import Mode

B, HEADS, KV, D, WIDTH, PREFIX = 2, 4, 2, 6, 5, 7


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def one_position(
    *, fused: bool, channels: int = 3, masked: bool = True, shared_mask: bool = False, write: bool = True, prefix: int = PREFIX,
    dtype: torch.dtype = torch.float64,
) -> tuple[list[Tensor], DualCache]:  # fmt: skip
    """Output, weights, raw scores, and the gradients of a sum of all with respect to q, k, v, raw scores and output."""
    rows = channels * B
    cache = DualCache(2)
    if prefix:
        cache.write(0, noise(1, rows, KV, prefix, D).to(dtype), noise(2, rows, KV, prefix, WIDTH).to(dtype))
        cache.advance(prefix)
    shapes = ((rows, HEADS, 1, D), (rows, KV, 1, D), (rows, KV, 1, WIDTH))
    leaves = [noise(3 + i, *shape).to(dtype).requires_grad_() for i, shape in enumerate(shapes)]
    mask = torch.zeros(1 if shared_mask else rows, 1, 1, prefix + 1, dtype=dtype)
    mask[1:, :, :, : min(2, prefix)] = torch.finfo(dtype).min  # left padding
    mode = Mode(batch=B, channels=channels, graph="true", write=write)
    seen: list[Tensor] = []
    mode.tap = lambda layer, *tensors: seen.extend(tensors)
    hook = DualAttention(mode, cache, ATTN_LRP.attention)
    if not fused:
        hook._fuses = lambda *_: False  # type: ignore[method-assign]
    out, _ = hook.attend(AttentionCall(nn.Module(), 0, *leaves, mask if masked else None, 0.4, None, None))
    raw, weights, queries, attended = seen
    total = (out * noise(9, *out.shape).to(dtype)).sum() + out.square().sum()
    grads = torch.autograd.grad(total, [*leaves, raw, attended])
    return [out, weights, raw, queries, attended, *grads], cache


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize(("masked", "shared_mask"), [(True, False), (True, True), (False, False)])
@pytest.mark.parametrize("prefix", [0, PREFIX])
def test_equal_to_the_general_way(channels: int, masked: bool, shared_mask: bool, prefix: int) -> None:
    kind = {"channels": channels, "masked": masked, "shared_mask": shared_mask, "prefix": prefix}
    got, cache = one_position(fused=True, **kind)  # type: ignore[arg-type]
    want, plain = one_position(fused=False, **kind)  # type: ignore[arg-type]
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-11)
    for a, b in zip(cache.read(0, 1) or (), plain.read(0, 1) or (), strict=True):
        assert torch.equal(a, b)


def test_what_is_not_stored_does_not_count() -> None:
    got, cache = one_position(fused=True, write=False)
    want, _ = one_position(fused=False, write=False)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-11)
    assert cache.length == PREFIX


def test_which_calls_go_in_one_go() -> None:
    cache = DualCache(2)

    def takes(
        graph: str = "true", channels: int = 2, length: int = 1, composite=ATTN_LRP, dtype=torch.float32, **more
    ) -> bool:  # type: ignore[no-untyped-def]
        q, k = torch.zeros(2 * B, HEADS, length, D, dtype=dtype), torch.zeros(2 * B, KV, length, D, dtype=dtype)
        call = AttentionCall(nn.Module(), 0, q, k, k, None, 1.0, more.pop("softcap", None), more.pop("sinks", None))
        return DualAttention(Mode(batch=B, graph=graph, **more), cache, composite.attention)._fuses(call, channels)

    assert takes()
    assert takes(dtype=torch.float64)
    assert not takes("none")
    assert not takes("surrogate")
    assert not takes(channels=1)
    assert not takes(length=2)
    assert not takes(composite=CP_LRP)
    assert not takes(dtype=torch.bfloat16)
    assert not takes(softcap=3.0)
    assert not takes(sinks=torch.zeros(HEADS))
    assert not takes(offsets=object())
