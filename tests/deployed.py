"""One model in two deployments must give the same: what is compared, and how."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import limelight
from limelight.decoding.loop import custom_generate

STRATEGIES: dict[str, Any] = {
    "greedy": limelight.greedy(),
    "meter": limelight.meter(),
    "relevance-contrastive": limelight.relevance_contrastive(beta=0.0),
    "cached": limelight.lime_cached(lr=1e-2, updates=2),
    "cached adam": limelight.lime_cached(lr=1e-2, rule="adam", gradient="surrogate"),
    "exact": limelight.lime(steps=3, lr=1e-2),
}
ALL = ("attribution", *STRATEGIES)


def result(model: Any, inputs: Mapping[str, Any], what: str) -> Tensor:
    """Relevance of each position; or logits, contributions and Phi of three tokens' candidates. Float64, flat."""
    if what == "attribution":
        return limelight.attribute(model, inputs).scores.double()
    out = model.generate(
        **inputs, custom_generate=custom_generate(STRATEGIES[what]), max_new_tokens=3, do_sample=False,
        disable_compile=True, return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    told = [x for s in out.steps[0] for x in (*s.contributions.values(), *(n for c in s.candidates for n in c[2:]))]
    return torch.cat([torch.cat(out.logits).double().flatten(), torch.tensor(told, dtype=torch.float64)])


def results(model: Any, inputs: Mapping[str, Any], what: tuple[str, ...] = ALL) -> dict[str, Tensor]:
    return {name: result(model, inputs, name) for name in what}


def check_equal(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], tolerance: float = 0.0) -> None:
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert bool(torch.isfinite(value).all())
        torch.testing.assert_close(
            found[name], value, atol=tolerance, rtol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@contextmanager
def chatter() -> Iterator[None]:
    """Other libraries warn of their own futures while a model is being prepared."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
