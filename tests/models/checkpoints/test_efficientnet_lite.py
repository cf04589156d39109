"""EfficientNet-Lite: TensorFlow's padding, the published sizes, positions row by row."""

from __future__ import annotations

import pytest
import torch

from limelight.models.checkpoints.efficientnet_lite import STRIDE, WIDTH, EfficientNetLite, SameConv


@pytest.mark.parametrize(("size", "kernel", "stride"), [(7, 3, 2), (8, 3, 2), (9, 5, 2), (6, 5, 1), (5, 1, 1)])
def test_padding_is_that_of_tensorflow(size: int, kernel: int, stride: int) -> None:
    """Slow twin in float64: output i sums over inputs ``i * stride - before + k``, where before is half of the padding."""
    torch.manual_seed(0)
    layer = SameConv(2, 3, kernel, stride, bias=False).double()
    x = torch.randn(1, 2, size, size + 1, dtype=torch.float64)
    got = layer(x)
    height, width = -(-size // stride), -(-(size + 1) // stride)
    assert got.shape == (1, 3, height, width)
    before = [max((n_out - 1) * stride + kernel - n, 0) // 2 for n, n_out in ((size, height), (size + 1, width))]
    want = torch.zeros_like(got)
    for i in range(height):
        for j in range(width):
            for a in range(kernel):
                for b in range(kernel):
                    y, z = i * stride - before[0] + a, j * stride - before[1] + b
                    if 0 <= y < size and 0 <= z <= size:
                        want[0, :, i, j] += layer.weight[:, :, a, b] @ x[0, :, y, z]
    assert torch.allclose(got, want)


@pytest.mark.parametrize(("size", "millions"), [("lite0", 4.65), ("lite2", 6.09), ("lite4", 13.01)])
def test_sizes_are_the_published_ones(size: str, millions: float) -> None:
    """The papers' and TensorFlow's counts, with the classifier of 1281 x 1000 weights that is left out here."""
    count = sum(p.numel() for p in EfficientNetLite(size).parameters()) + 1281 * 1000
    assert count / 1e6 == pytest.approx(millions, abs=0.01)


def test_positions_are_row_by_row_and_in_range() -> None:
    torch.manual_seed(0)
    model = EfficientNetLite("lite0").eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    maps: list[torch.Tensor] = []
    model.act.register_forward_hook(lambda _, __, out: maps.append(out))
    with torch.no_grad():
        found = model(torch.randn(1, 3, 3 * STRIDE, 5 * STRIDE))
    values, last = found.last_hidden_state, maps[-1]
    assert values.shape == (1, 15, WIDTH) and found.hidden_states[-1] is values and last.shape == (1, WIDTH, 3, 5)
    assert float(values.min()) >= 0 and float(values.max()) <= 6 and float(values.std()) > 0.01
    for row in range(3):
        for column in range(5):
            assert torch.equal(values[0, 5 * row + column], last[0, :, row, column])
