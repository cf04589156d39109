from __future__ import annotations

from typing import Any

import pytest
import torch

from limelight.decoding.methods.vista import Vista, steered, vista
from limelight.errors import SettingError
from tests.decoding.peers import (
    FAMILIES,
    check_alone_and_in_a_batch,
    check_deep_twin,
    double,
    inputs_of,
    run,
)
from tests.slow_twins import vista as twin


@pytest.mark.parametrize(
    ("strength", "alpha", "layers"), [(0.17, 0.3, None), (0.6, 0.0, (1, 2)), (0.0, 0.7, (2, 3)), (0.5, 1.0, (1, 3))]
)
def test_equals_the_slow_twin(strength: float, alpha: float, layers: tuple[int, int] | None) -> None:
    check_deep_twin(
        vista(strength=strength, alpha=alpha, layers=layers),
        lambda model, x, media: twin.vista(model, x, media, strength, alpha, layers or (3, 3)),
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_alone_and_in_a_batch(name: str) -> None:
    check_alone_and_in_a_batch(name, vista(strength=0.5, alpha=0.3))


def test_norms_are_kept_and_neutral_is_neutral() -> None:
    x, v = torch.randn(2, 5, 6, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)
    turned = steered(x, v, 0.4)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(steered(x, v, 0.0), x)
    towards = [torch.cosine_similarity(y, v[:, None], dim=-1) for y in (x, turned)]
    assert bool((towards[1] > towards[0]).all())


def test_layers_the_model_lacks() -> None:
    with pytest.raises(SettingError, match=r"layers \[2\]"):
        run(double("llava"), inputs_of("llava"), vista(layers=(1, 2)))


@pytest.mark.parametrize("wrong", [{"strength": -1}, {"alpha": 2}, {"layers": (3, 2)}, {"layers": (3,)}])
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="vista"):
        Vista(**wrong)
