"""Prefill attention in one pass: the plain sums of it, the masks it takes, and (on a GPU) the kernel itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from limelight.relevance.composites import ATTN_LRP, CP_LRP, Composite
from limelight.relevance.forward import flash
from tests.relevance.forward.helpers import close, stream
from tests.tiny import built
from tests.wide import prompt

CAUSAL = ("llava", "llava_onevision", "qwen2_5_vl", "qwen2_audio", "internvl")  # grouped heads among them


def plainly(q: Tensor, k: Tensor, v: Tensor, start: Tensor, channels: int, *numbers: float) -> Tensor:
    split = [x.reshape(channels, -1, *x.shape[1:]) for x in (q, k, v)]
    return flash.reference(*split, start, *numbers).reshape(q.shape[:-1] + v.shape[-1:]).transpose(1, 2)


@pytest.mark.parametrize("composite", [ATTN_LRP, CP_LRP], ids=lambda c: c.name)
@pytest.mark.parametrize("row", [0, None], ids=["one row", "padded batch"])
@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_one_pass_is_the_ordinary_prefill(
    name: str, row: int | None, composite: Composite, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = built(name, torch.float64)
    _, call, media_mask = prompt(name, adapter, row)
    dual = stream(adapter, call, media_mask, composite)
    ordinary = dual.heads(dual.prefill())
    calls: list[int] = []

    def attend(*args: object) -> Tensor:
        calls.append(1)
        return plainly(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(flash, "trusted", lambda *_: True)
    monkeypatch.setattr(flash, "attend", attend)
    again = stream(adapter, call, media_mask, composite)
    mine = again.heads(again.prefill())
    assert len(calls) == adapter.traits.layers
    for a, b in zip(mine, ordinary, strict=True):
        close(a, b)


def additive(seen: Tensor) -> Tensor:
    return torch.zeros_like(seen, dtype=torch.float32).masked_fill(~seen, torch.finfo(torch.float32).min)


def test_causal_masks_are_distinguished_from_others() -> None:
    causal = torch.ones(6, 6, dtype=torch.bool).tril()
    padded = causal.clone()
    padded[:, :2] = False
    both = additive(torch.stack([causal, padded])[:, None])
    starts = flash.causal_starts(both, 6)
    assert starts is not None
    assert starts.tolist() == [0, 2]
    window = causal & torch.ones(6, 6, dtype=torch.bool).triu(-2)
    prefix = causal.clone()
    prefix[:3, :3] = True
    hole = causal.clone()
    hole[4:, 3] = False
    for odd in (window, prefix, hole):
        assert flash.causal_starts(additive(odd[None, None]), 6) is None
    assert flash.causal_starts(both[..., :1, :], 6) is None


def test_no_kernel_is_used_on_a_processor() -> None:
    assert not flash.trusted(torch.float32, 64, torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dim", flash.HEADS)
def test_the_kernel_on_a_gpu(dtype: torch.dtype, dim: int) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    assert flash.trusted(dtype, dim, torch.device("cuda", 0))
