"""Operations on blocks of rows: the quick slope of a gated product is the rule's."""

from __future__ import annotations

import torch
from torch.nn import functional

from limelight.relevance.blocks import _quick_slope
from limelight.relevance.rules import EPS, slope
from tests.relevance.layers.helpers import noise


def test_quick_slope_is_slope() -> None:
    z = torch.cat([noise(1, 50), torch.tensor([0.0, -EPS, 1e-12, -1e-12], dtype=torch.float64)])
    value = functional.silu(z)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        got = _quick_slope(z.to(dtype), value.to(dtype))
        assert torch.equal(got, slope(z.to(dtype), value.to(dtype)).to(dtype))
    assert torch.isfinite(_quick_slope(torch.zeros(2, dtype=torch.float16), torch.zeros(2, dtype=torch.float16))).all()
