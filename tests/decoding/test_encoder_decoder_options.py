"""Encoder-decoders under generate()'s options: beams, static caches, markers, chunked prefills."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import limelight
from limelight.decoding.registry import strategy
from limelight.errors import HookError, UnsupportedError
from tests.models.test_encoder_decoder import WORKING, built, families, fresh, generated, given
from tests.zoo.encoder_decoder import PAIRED

SETTINGS: dict[str, dict[str, Any]] = {"m3id": {"without": "zero"}}


def made(chosen: str) -> Any:
    return strategy(chosen, **SETTINGS.get(chosen, {}))


@families
@pytest.mark.parametrize("chosen", ["greedy", "meter", "relevance-contrastive", "vcd", "m3id", "deco"])
def test_beams_of_a_batch_are_those_of_its_rows(name: str, chosen: str) -> None:
    adapter, row = built(name), PAIRED[name]
    search: dict[str, Any] = {
        "num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 4, "output_scores": True, "return_dict_in_generate": True,
    }  # fmt: skip

    def found(inputs: Any) -> Any:
        method = limelight.custom_generate(made(chosen), tensors=inputs)
        return generated(adapter, inputs, custom_generate=method, **search)

    alone = [found(given(name, adapter, r)) for r in (0, 1)]
    together = found(row.batch(adapter.model)).sequences[:, -4:].tolist()
    assert together == [ids for out in alone for ids in out.sequences[:, -4:].tolist()]
    if chosen in ("greedy", "meter"):
        want: Any = generated(adapter, given(name, adapter), **search)
        assert torch.equal(alone[0].sequences, want.sequences)
        torch.testing.assert_close(alone[0].sequences_scores, want.sequences_scores, atol=1e-5, rtol=1e-5)


@families
def test_the_steps_of_a_beam_have_relevance(name: str) -> None:
    adapter = built(name)
    said = limelight.generate(adapter, messages=given(name, adapter), relevance=True, num_beams=2, max_new_tokens=3)
    for step, relevance in zip(
        said.steps, limelight.attribute_generated(adapter, given(name, adapter), said.token_ids), strict=True
    ):
        assert step.relevance is not None and step.relevance.target == relevance.target
        assert step.shares == pytest.approx(relevance.shares(), abs=1e-4)


@families
@pytest.mark.parametrize("chosen", ["vcd", "m3id", "relevance-contrastive", "lime-cached", "lime", "dola", "lrp-beam"])
def test_after_a_marker_the_answer_goes_on_as_from_a_longer_prompt(name: str, chosen: str) -> None:
    adapter = built(name)
    inputs = given(name, adapter)
    first = limelight.generate(adapter, messages=inputs, relevance=False, max_new_tokens=1).token_ids
    ids = torch.cat([inputs["decoder_input_ids"], torch.tensor([first])], dim=1)
    wanted = limelight.generate(
        adapter, messages={**inputs, "decoder_input_ids": ids}, strategy=made(chosen), relevance=False, max_new_tokens=2
    )
    got = limelight.generate(
        adapter, messages=inputs, strategy=limelight.after(first[0], made(chosen)), relevance=False, max_new_tokens=3
    )
    assert got.token_ids == (*first, *wanted.token_ids)


@pytest.mark.parametrize(
    "name", [n for n in WORKING if n != "pp_formulanet"]
)  # its static cache differs in transformers
@pytest.mark.parametrize("chosen", ["vcd", "m3id"])
def test_a_second_prompt_gets_a_static_cache_too(name: str, chosen: str) -> None:
    adapter, inputs = fresh(name), given(name, built(name))
    plain, static = (
        limelight.generate(adapter, messages=inputs, strategy=made(chosen), max_new_tokens=4, **more).token_ids
        for more in ({}, {"cache_implementation": "static"})
    )
    assert plain == static


def test_a_chunked_prefill_is_refused() -> None:
    for name, row in PAIRED.items():
        if row.missing:
            continue
        adapter = built(name)
        with pytest.raises(UnsupportedError, match="prefill_chunk_size=2: the prompt of"):
            limelight.generate(
                adapter, messages=given(name, adapter), relevance=False, max_new_tokens=2, prefill_chunk_size=2
            )


def test_exact_lime_says_that_it_reaches_no_attention() -> None:
    adapter = built("trocr")
    with pytest.raises(HookError, match="never called them"):
        limelight.generate(
            adapter, messages=given("trocr", adapter), strategy="lime", relevance=False, max_new_tokens=2
        )
