"""Beams whose words owe most to the media: against a slow twin, its corners, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import limelight
from limelight.decoding.loop import custom_generate
from limelight.decoding.methods.lrp_beam import LrpBeam, lrp_beam, media_mass
from limelight.errors import SettingError, UnsupportedError
from limelight.models.adapter import Adapter
from limelight.types import Relevance, Span
from tests.slow_twins import lrp_beam as twin
from tests.tiny import built, llava, llava_inputs
from tests.wide import wide
from tests.zoo import ZOO


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    return Adapter(llava())


def run(
    adapter: Adapter,
    inputs: dict[str, Tensor],
    tokens: int = 5,
    more: dict[str, Any] | None = None,
    details: bool | None = None,
    **settings: Any,
) -> Any:
    fn = custom_generate(lrp_beam(**settings), return_cache=False, details=details)
    return adapter.model.generate(
        **inputs,
        custom_generate=fn,
        max_new_tokens=tokens,
        do_sample=False,
        return_dict_in_generate=True,
        **(more or {}),
    )


@pytest.mark.parametrize("settings", [{}, {"beams": 2, "length": 2}, {"beams": 2, "tau": 1e-3}])
def test_the_answer_is_the_twins(adapter: Adapter, settings: dict[str, Any]) -> None:
    inputs = llava_inputs(adapter.model)
    length = inputs["input_ids"].shape[1]
    output = run(adapter, inputs, 4, **settings)
    end = adapter.model.generation_config.eos_token_id
    asked = {"beams": 3, "length": 25, "tau": 0.1, **settings}
    want = twin.answer(adapter, inputs, most=4, final=-1 if end is None else end, **asked)
    assert output.sequences[0, length:].tolist() == want
    for j, step in enumerate(output.steps[0]):
        assert (step.relevance is not None) == (j < asked["length"])
        assert step.intervened == (step.token != step.plain)
        if step.relevance is not None:
            mask = torch.ones(len(step.relevance.tokens), dtype=torch.bool)
            mass = twin.mass(adapter, inputs, want[: j + 1], asked["tau"])
            assert media_mass(step.relevance, mask, asked["tau"]) == pytest.approx(mass, abs=1e-5)


def test_the_masses_decide() -> None:
    """The chosen answer's words owe at least as much to the media as greedy's do."""
    wider = wide("llava_gqa")
    inputs = ZOO["llava_gqa"].inputs(wider.model)
    length = inputs["input_ids"].shape[1]
    plain = wider.model.generate(**inputs, max_new_tokens=2, do_sample=False)[0, length:].tolist()
    got = run(wider, inputs, 2).sequences[0, length:].tolist()

    def mean(said: list[int]) -> float:
        return sum(twin.mass(wider, inputs, said[: j + 1], 0.1) for j in range(len(said))) / len(said)

    assert mean(got) >= mean(plain)


def test_one_beam_is_greedy(adapter: Adapter) -> None:
    inputs = llava_inputs(adapter.model)
    plain = adapter.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    quiet = run(adapter, inputs, 2, details=False)
    assert not any(s.relevance or s.shares for s in quiet.steps[0])  # told only where it is asked for
    assert torch.equal(run(adapter, inputs, 4, beams=1).sequences, plain)


def test_a_plausibility_cut_leaves_unlikely_candidates_out(adapter: Adapter) -> None:
    inputs = llava_inputs(adapter.model)
    found = [run(adapter, inputs, 4, beta=b).sequences.tolist() for b in (0.0, 1e-9, 1.0)]
    assert found[0] == found[1] == run(adapter, inputs, 4).sequences.tolist()
    assert found[2] == run(adapter, inputs, 4, beams=1).sequences.tolist()  # only the likeliest word is left: greedy


def test_rows_of_a_batch_are_searched_alone() -> None:
    given = built("llava")
    inputs = ZOO["llava"].batch(given.model)  # type: ignore[misc]
    both = run(given, inputs, 2, beams=2)
    twice = {k: torch.cat([v[:1], v[:1]]) for k, v in inputs.items() if v.shape[0] == 2}
    same = run(given, {**inputs, **twice}, 2, beams=2)
    assert torch.equal(same.sequences[0], same.sequences[1])
    assert torch.equal(same.sequences[0], both.sequences[0])


def test_processors_act_inside_the_search(adapter: Adapter) -> None:
    inputs = llava_inputs(adapter.model)
    first = int(run(adapter, inputs, 1).sequences[0, -1])
    other = run(adapter, inputs, 2, more={"bad_words_ids": [[first]]}).sequences[0, -2:]
    assert first not in other.tolist()


def test_mass_leaves_padding_out() -> None:
    spans = (Span(0, 2, "text"), Span(2, 4, "image"), Span(4, 5, "text"))
    found = Relevance(torch.tensor([9.0, 0.0, 0.1, 0.2, 0.0]), ("a",) * 5, spans, 3)
    weights = [math.exp(x / 0.1) for x in (0.0, 0.1, 0.2, 0.0)]
    mask = torch.tensor([False, True, True, True, True])
    assert media_mass(found, mask, 0.1) == pytest.approx((weights[1] + weights[2]) / sum(weights))


def test_what_it_refuses(adapter: Adapter) -> None:
    with pytest.raises(SettingError, match="beta"):
        lrp_beam(beta=1.5)
    for settings, word in (
        ({"beams": 0}, "beams"), ({"beams": True}, "beams"), ({"length": 1.5}, "length"), ({"tau": 0.0}, "tau"),
        ({"tau": math.nan}, "tau"), ({"composite": "magic"}, "composite"),
    ):  # fmt: skip
        with pytest.raises(SettingError, match=word):
            lrp_beam(**settings)
    with pytest.raises(UnsupportedError, match="cannot sample"):
        adapter.model.generate(
            **llava_inputs(adapter.model), custom_generate=custom_generate(lrp_beam()), do_sample=True, max_new_tokens=1
        )
    own = lrp_beam(beams=2)
    assert LrpBeam(**own.settings()) == own == limelight.strategy("lrp-beam", beams=2)
