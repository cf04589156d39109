"""transformers' beam search over a strategy's logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList

import limelight
from limelight.decoding.beam_search import GroundedBeamOutput
from limelight.decoding.methods.aad import aad
from limelight.decoding.methods.agla import agla
from limelight.decoding.methods.avisc import avisc
from limelight.decoding.methods.deco import deco
from limelight.decoding.methods.dola import dola
from limelight.decoding.methods.flb import flb
from limelight.decoding.methods.greedy import greedy
from limelight.decoding.methods.iat import iat
from limelight.decoding.methods.icd import icd
from limelight.decoding.methods.ilvad import ilvad
from limelight.decoding.methods.kvsmooth import kvsmooth
from limelight.decoding.methods.m3id import m3id
from limelight.decoding.methods.memvr import memvr
from limelight.decoding.methods.meter import meter
from limelight.decoding.methods.pai import pai
from limelight.decoding.methods.relevance_contrastive import relevance_contrastive
from limelight.decoding.methods.rudder import rudder
from limelight.decoding.methods.vaf import vaf
from limelight.decoding.methods.vcd import vcd
from limelight.decoding.methods.vista import vista
from limelight.decoding.registry import strategies
from limelight.decoding.strategy import Strategy, capabilities_of
from limelight.errors import NotFiniteError, UnsupportedError
from limelight.models.adapter import Adapter
from tests.decoding.peers import double, emitted, inputs_of, media_places, run
from tests.slow_twins import beam_search as twin
from tests.slow_twins import m3id as m3id_twin
from tests.slow_twins.full import last_logits
from tests.tiny import snapshot
from tests.zoo import ZOO

WORDS = (60, 61, 62)
LENGTH = 4
SEARCHED: dict[str, Strategy] = {
    "greedy": greedy(), "meter": meter(), "vcd": vcd(alpha=0.7), "icd": icd(instruction=WORDS), "m3id": m3id(decay=0.3),
    "m3id released": m3id(decay=0.3, variant="released"), "pai": pai(alpha=0.5), "avisc": avisc(),
    "relevance-contrastive": relevance_contrastive(alpha=2.0), "dola": dola(layers=(0, 1)), "deco": deco(layers=(0, 1)),
    "memvr": memvr(ratio=0.5, threshold=0.0), "flb": flb(gamma=3.0, decay=1.0), "iat": iat(alpha=2.0),
    "vaf": vaf(enhance=2.0), "rudder": rudder(alpha=2.0), "kvsmooth": kvsmooth(strength=0.5, window=3), "vista": vista(),
    "ilvad": ilvad(tau=1.0), "agla": agla(kept=0.5), "vcd metered": meter(vcd(alpha=0.7)),
}  # fmt: skip
every = pytest.mark.parametrize("strategy", [pytest.param(s, id=n) for n, s in SEARCHED.items()])


class Forced(LogitsProcessor):  # type: ignore[misc]
    """Only the given tokens are allowed."""

    stateless = True

    def __init__(self, start: int, tokens: tuple[int, ...]) -> None:
        self.start, self.tokens = start, tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        at = input_ids.shape[1] - self.start
        if at >= len(self.tokens):
            return scores
        return torch.zeros_like(scores).fill_(float("-inf")).index_fill(1, torch.tensor([self.tokens[at]]), 0.0)


def logits_of(adapter: Adapter, inputs: Any, strategy: Strategy) -> Callable[[tuple[int, ...]], Tensor]:
    """The strategy's logits after any tokens, from a run of one row that is made to say them."""

    @cache
    def found(tokens: tuple[int, ...]) -> Tensor:
        force = LogitsProcessorList([Forced(inputs["input_ids"].shape[1], tokens)])
        out = run(adapter, inputs, strategy, n=len(tokens) + 1, logits_processor=force)
        assert out.logits is not None
        return out.logits[len(tokens)][0]

    return found


def searched(adapter: Adapter, inputs: Any, strategy: Strategy, **kwargs: Any) -> Any:
    return run(adapter, inputs, strategy, **{"n": LENGTH, "num_beams": 3, **kwargs})


@every
def test_equals_the_search_written_out(strategy: Strategy) -> None:
    adapter, inputs = double("qwen2_5_vl"), inputs_of("qwen2_5_vl")
    out = searched(adapter, inputs, strategy, num_return_sequences=2, output_scores=True)
    wanted = twin.search(logits_of(adapter, inputs, strategy), 3, LENGTH)[:2]
    assert [tuple(row) for row in emitted(out, inputs).tolist()] == [tokens for _, tokens in wanted]
    assert out.sequences_scores.tolist() == pytest.approx([score for score, _ in wanted], abs=1e-4)
    for steps, (score, tokens) in zip(out.steps, wanted, strict=True):
        assert tuple(s.token for s in steps) == tokens
        assert sum(s.logprob for s in steps) / LENGTH == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize(
    "settings", [{}, {"length_penalty": -1.0}, {"early_stopping": True}, {"num_beams": 4}], ids=str
)
def test_m3id_with_end_tokens_equals_both_twins(settings: dict[str, Any]) -> None:
    """No run of ours in the comparison: uncached logits, and the search written out."""
    adapter, inputs = double("llava"), inputs_of("llava")
    places = media_places(adapter, inputs)

    def logits(tokens: tuple[int, ...]) -> Tensor:
        said = torch.tensor([list(tokens)], dtype=torch.long)
        values = m3id_twin.m3id(adapter.model, inputs, places, said, 0.4, gate=1.0, beta=0.0)
        return values[0]

    first = int(logits(()).topk(2).indices[1])
    second = int(logits((int(logits(()).argmax()),)).argmax())
    ends = (first, second)
    strategy = m3id(decay=0.4, gate=1.0, beta=0.0)
    out = searched(adapter, inputs, strategy, eos_token_id=list(ends), pad_token_id=0, **settings)
    wanted = twin.search(
        logits, settings.get("num_beams", 3), LENGTH, ends=ends, penalty=settings.get("length_penalty", 1.0),
        early=settings.get("early_stopping", False),
    )[0][1]  # fmt: skip
    assert tuple(s.token for s in out.steps[0]) == wanted
    assert tuple(emitted(out, inputs)[0].tolist()[: len(wanted)]) == wanted


NEUTRAL: dict[str, Strategy] = {
    "greedy": greedy(), "vcd": vcd(alpha=0), "icd": icd(alpha=0, instruction=WORDS), "m3id": m3id(decay=0),
    "pai": pai(alpha=0, gamma=1), "avisc": avisc(alpha=0), "relevance-contrastive": relevance_contrastive(alpha=0),
    "meter": meter(), "flb": flb(gamma=0), "kvsmooth": kvsmooth(strength=0, radius=0), "rudder": rudder(alpha=0),
}  # fmt: skip


@pytest.mark.parametrize("strategy", [pytest.param(s, id=n) for n, s in NEUTRAL.items()])
@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 3},
        {"num_beams": 2, "num_return_sequences": 2, "length_penalty": 0.3, "early_stopping": True},
        {"num_beams": 4, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "early_stopping": "never"},
        {"num_beams": 2, "min_new_tokens": 3, "eos_token_id": [7, 8, 9], "pad_token_id": 0},
    ],
    ids=str,
)
def test_a_neutral_setting_is_transformers_own_search(strategy: Strategy, settings: dict[str, Any]) -> None:
    adapter, inputs = double("llava"), inputs_of("llava", "batch")
    out = searched(adapter, inputs, strategy, **settings)
    own = adapter.model.generate(**inputs, max_new_tokens=LENGTH, do_sample=False, disable_compile=True, **settings)
    assert torch.equal(out.sequences, own)


@every
@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2_audio"])
def test_a_row_alone_and_in_a_batch(name: str, strategy: Strategy) -> None:
    adapter = double(name)
    batch = emitted(searched(adapter, inputs_of(name, "batch"), strategy), inputs_of(name, "batch"))
    for row, kind in enumerate(("single", "other")):
        inputs = inputs_of(name, kind)
        assert torch.equal(batch[row], emitted(searched(adapter, inputs, strategy), inputs)[0])


def test_audio_and_encoder_decoders() -> None:
    adapter, inputs = double("qwen2_audio"), inputs_of("qwen2_audio")
    strategy = aad(silence=-1.5)
    wanted = twin.search(logits_of(adapter, inputs, strategy), 2, 3)[0][1]
    assert tuple(emitted(searched(adapter, inputs, strategy, n=3, num_beams=2), inputs)[0].tolist()) == wanted


def test_steps_measure_the_returned_sequence() -> None:
    adapter, inputs = double("llava"), inputs_of("llava", "batch")
    heard: list[tuple[int, int]] = []
    out = searched(
        adapter, inputs, relevance_contrastive(alpha=2.0),
        bind={"on_step": lambda row, step: heard.append((row, step.token)), "details": True, "top_logprobs": 2},
    )  # fmt: skip
    assert isinstance(out, GroundedBeamOutput)
    assert heard == [(r, s.token) for r, steps in enumerate(out.steps) for s in steps]
    alone = inputs_of("llava", "other")
    said = tuple(s.token for s in out.steps[1])
    force = LogitsProcessorList([Forced(alone["input_ids"].shape[1], said)])
    single = run(
        adapter, alone, relevance_contrastive(alpha=2.0), n=LENGTH, logits_processor=force, bind={"details": True}
    )
    for ours, theirs in zip(out.steps[1], (single.steps or ())[0], strict=True):
        assert ours.contributions == pytest.approx(theirs.contributions, abs=1e-4)
        assert ours.relevance is not None
        assert theirs.relevance is not None
        of_row = ours.relevance.scores[-len(theirs.relevance.scores) :]  # behind the padding
        torch.testing.assert_close(of_row, theirs.relevance.scores, atol=1e-5, rtol=1e-4)
        assert len(ours.top_logprobs) == 2


def test_a_cut_that_leaves_only_what_is_excluded() -> None:
    """As in the token loop: the unchanged model's logits are used there."""
    adapter, inputs = double("llava"), inputs_of("llava")
    plain = int(last_logits(adapter.model, inputs, torch.zeros(1, 0, dtype=torch.long)).argmax())
    out = searched(adapter, inputs, vcd(beta=1.0), bad_words_ids=[[plain]])
    assert plain not in emitted(out, inputs)[0].tolist()
    assert all(s.logprob > -1e6 for s in out.steps[0])


def test_the_claims() -> None:
    claimed = {n for n, made in strategies().items() if capabilities_of(made()).beams}
    assert claimed == {s.name for s in SEARCHED.values()} | {"aad"}
    assert capabilities_of(meter(vcd())).beams
    assert not capabilities_of(limelight.after("</think>", vcd())).beams


@pytest.mark.parametrize("name", ["lime", "lime-cached", "opera", "lrp-beam", "reconsider"])
def test_strategies_without_beams_say_so(name: str) -> None:
    with pytest.raises(UnsupportedError, match="num_beams=3 requests beam search") as caught:
        searched(double("llava"), inputs_of("llava"), limelight.strategy(name))
    assert "limelight strategies" in str(caught.value.hint)


class Counting(LogitsProcessor):  # type: ignore[misc]
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores


@pytest.mark.parametrize(
    ("what", "settings"),
    [
        ("beam sampling", {"do_sample": True}),
        ("nothing to stream", {"bind": {"streamer": limelight}}),
        ("a given cache", {"past_key_values": DynamicCache}),
        ("needs the cache", {"use_cache": False}),
        ("once per emitted token", {"logits_processor": LogitsProcessorList([Counting()])}),
    ],
)
def test_what_it_cannot_do(what: str, settings: dict[str, Any]) -> None:
    class Listener:
        ended = 0

        def put(self, value: Tensor) -> None:
            raise AssertionError

        def end(self) -> None:
            self.ended += 1

    listener = Listener()
    given = {k: v() if v is DynamicCache else v for k, v in settings.items()}
    if "bind" in given:
        given["bind"] = {"streamer": listener}
    with pytest.raises(UnsupportedError, match=what):
        searched(double("llava"), inputs_of("llava"), vcd(), **given)
    assert listener.ended == ("bind" in given)


def test_nan_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limelight.decoding.methods.flb.boosted", lambda logits, *_: logits * float("nan"))
    with pytest.raises(NotFiniteError, match="flb produced NaN"):
        searched(double("llava"), inputs_of("llava"), flb())


@pytest.mark.parametrize("name", ["pai", "ilvad", "relevance-contrastive", "rudder"])
def test_the_model_is_left_as_it_was(name: str) -> None:
    adapter = Adapter(ZOO["llava"].build())
    inputs = ZOO["llava"].inputs(adapter.model)
    run(adapter, inputs, greedy(), n=1)
    before = snapshot(adapter.model)
    searched(adapter, inputs, SEARCHED[name])
    assert snapshot(adapter.model) == before


def test_generate_takes_it() -> None:
    adapter = limelight.load("demo-vision")
    media = {"image": "src/limelight/demo/vision/examples/E-wrong-000.png"}
    said = limelight.generate(
        adapter, messages="Describe the picture.", media=media, strategy=vcd(), num_beams=3, max_new_tokens=8
    )
    assert len(said.token_ids) == len(said.steps) > 0
    assert limelight.generate(
        adapter, messages="Describe the picture.", media=media, strategy=vcd(alpha=0), num_beams=1, max_new_tokens=8
    ).token_ids
