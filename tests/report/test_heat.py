"""Colours: red supports, blue speaks against, clear at zero; smooth and within range."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from limelight.report import heat
from tests.report.examples import picture, prompt, relevance


def test_signs_and_opacity() -> None:
    colours = heat.rgba(np.array([[-2.0, -1.0, 0.0, 1.0, 2.0]], np.float32), 2.0)[0]
    assert [tuple(c[:3]) for c in colours[[0, 4]]] == [heat.AGAINST, heat.SUPPORTS]
    assert list(colours[:, 3]) == pytest.approx(
        [255 * heat.OPACITY, 127 * heat.OPACITY, 0, 127 * heat.OPACITY, 255 * heat.OPACITY], abs=1
    )
    assert heat.rgba(np.array([9.0], np.float32), 1.0)[0, 3] == int(255 * heat.OPACITY)


def test_smooth_keeps_place_and_range() -> None:
    grid = np.zeros((4, 4), np.float32)
    grid[1, 2] = 3.0
    up = heat.smooth(grid, (40, 80))
    assert up.shape == (80, 40)
    assert up.min() >= 0
    assert up.max() <= 3.0
    y, x = np.unravel_index(up.argmax(), up.shape)
    assert (y // 20, x // 10) == (1, 2)


def test_limit_is_not_led_by_one_outlier() -> None:
    values = np.ones(1000, np.float32)
    values[0] = 1000
    assert heat.limit(values) == 1.0
    assert heat.limit(np.array([0.0, 0.0, 5.0], np.float32)) > 4
    assert heat.limit(np.zeros(3, np.float32)) == 1.0
    assert heat.limit(np.zeros(0, np.float32)) == 1.0


def test_sinks_are_left_out() -> None:
    found = relevance(prompt(("image", 4, (2, 2), None)), 1, "x").without_sinks((0, 5))
    values = heat.scores(found)
    assert values[0] == values[5] == 0
    assert values[6] == found.scores[6]
    assert heat.array(torch.ones(2, requires_grad=True, dtype=torch.bfloat16).float()).dtype == np.float32


def test_blend_puts_heat_where_the_model_looked() -> None:
    grid = np.zeros((2, 2), np.float32)
    grid[0, 1] = 1.0
    base = np.asarray(
        heat.blend(picture(200, 100), [(np.zeros((2, 2), np.float32), (0.25, 0, 0.75, 1))], 1.0), np.int32
    )
    warm = np.asarray(heat.blend(picture(200, 100), [(grid, (0.25, 0, 0.75, 1))], 1.0), np.int32)
    change = np.abs(warm - base).sum(-1)
    y, x = np.unravel_index(change.argmax(), change.shape)
    assert y < 50
    assert 100 <= x < 150
    assert change[:, :50].max() == 0
    plain = np.asarray(heat.blend(picture(200, 100), [(grid * 0, (0, 0, 1, 1))], 1.0), np.int32)
    assert base[50, 10].sum() < plain[50, 10].sum()  # darker where the model did not look
