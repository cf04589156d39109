"""Few rows by a tall matrix: the same numbers and gradient, and only where the layer is a plain linear layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from limelight.relevance.layers import linear
from limelight.relevance.layers.linear import FEW, linear_jvp, plain, product
from limelight.relevance.mode import Mode
from tests.relevance.layers.helpers import CHANNELS, B, D, check, check_in, graphs, layouts, ruled


@pytest.mark.parametrize("shape", [(40, 6), (6, 40), (9, 9)])
@pytest.mark.parametrize("rows", [(1,), (2,), (2, 1), (FEW, 1), (2, FEW), (FEW + 1,)])
def test_equal_in_value_and_gradient(shape: tuple[int, int], rows: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    x = torch.randn(*rows, shape[1], dtype=torch.float64, requires_grad=True)
    got, want = product(x, weight), torch.nn.functional.linear(x, weight)
    assert got.shape == want.shape
    torch.testing.assert_close(got, want, atol=1e-12, rtol=0)
    for a, b in zip(*(torch.autograd.grad(y.sin().sum(), x) for y in (got, want)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(product(x, weight), want, atol=1e-12, rtol=0)


def test_the_other_order_serves_few_rows_of_tall_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    real = torch.nn.functional.linear
    monkeypatch.setattr(linear.functional, "linear", lambda x, w: taken.append(len(x)) or real(x, w))
    for rows, shape, dtype in (
        (2, (8, 6), torch.float32),
        (FEW, (8, 8), torch.float64),
        (1, (8, 6), torch.float32),
        (FEW + 1, (8, 6), torch.float32),
        (3, (6, 8), torch.float32),
        (2, (8, 6), torch.bfloat16),
    ):
        product(torch.ones(rows, shape[1], dtype=dtype), torch.ones(shape, dtype=dtype))
    assert taken == [1, FEW + 1, 3, 2]
    taken.clear()
    asking = torch.ones(2, 6, requires_grad=True)
    product(asking, torch.ones(8, 6))
    product(asking, torch.ones(12, 6))
    assert taken == [2]


def test_one_block_is_the_module_itself() -> None:
    module = nn.Linear(6, 40, bias=False)
    x = torch.randn(2, 1, 6)
    assert torch.equal(linear_jvp(module, Mode(batch=2))(x), module(x))


def test_only_plain_layers_are_plain() -> None:
    assert plain(nn.Linear(6, 4))
    wrapped = nn.Linear(6, 4)
    wrapped.forward = lambda x: x  # type: ignore[method-assign]
    assert not plain(wrapped)
    assert not plain(parametrizations.weight_norm(nn.Linear(6, 4)))

    class Adapted(nn.Linear):
        pass

    assert not plain(Adapted(6, 4))
    frozen = nn.Linear(6, 4, bias=False)
    del frozen.weight
    frozen.register_buffer("weight", torch.ones(4, 6))
    assert not plain(frozen)
    assert plain(nn.Linear(6, 4, bias=False))


@graphs
@layouts
def test_linear_with_a_bias(graph: str, flat: bool) -> None:
    module = nn.Linear(D, 7, dtype=torch.float64)
    check_in(graph, flat, lambda mode: ruled(module, "linear", mode), module, module)


@graphs
@layouts
def test_linear_without_a_bias(graph: str, flat: bool) -> None:
    module = nn.Linear(D, 7, bias=False, dtype=torch.float64)
    check_in(graph, flat, lambda mode: ruled(module, "linear", mode), module, module)


def test_a_linear_that_something_wraps_keeps_its_wrapper() -> None:
    """accelerate puts a forward of its own on the instance: it must still run."""
    module = nn.Linear(D, 7, dtype=torch.float64)
    calls: list[int] = []
    original = module.forward

    def hooked(x: Tensor) -> Tensor:
        calls.append(len(x))
        return original(x)

    module.forward = hooked  # type: ignore[method-assign]
    check(ruled(module, "linear", Mode(batch=B, channels=CHANNELS)), module, original)
    assert calls[0] == CHANNELS * B
