"""Scores of an answer's tokens: the forward ones are the backward ones, and against the vocabulary they are what they say."""

from __future__ import annotations

import math

import pytest
import torch

from limelight.errors import SettingError
from limelight.grounding.baselines.scores import BASELINES
from limelight.grounding.evidence import against_vocabulary, evidence_of, forward_relevance, region
from limelight.models.adapter import Adapter
from limelight.relevance.attribute import attribute_generated
from limelight.types import Prompt, Span
from tests.tiny import fresh, llava, llava_inputs, snapshot
from tests.zoo import ZOO
from tests.zoo.encoder_decoder import PAIRED

TOKENS = [61, 44, 90]


def prompt_of(adapter: Adapter) -> Prompt:
    inputs = llava_inputs(adapter.model)
    return Prompt(inputs, adapter.words(inputs), adapter.spans(inputs))


def test_every_score_has_a_number_for_each_token() -> None:
    adapter = Adapter(llava())
    prompt = prompt_of(adapter)
    before = snapshot(adapter.model)
    found = evidence_of(adapter, prompt, TOKENS)
    assert snapshot(adapter.model) == before
    assert set(BASELINES) | {"z", "Phi", "centred", "rank", "margin", "contribution", "cp-lrp z"} <= set(found)
    assert all(len(v) == 3 for v in found.values())
    assert all(math.isnan(v) for v in found.pop("PMI"))
    assert all(math.isfinite(v) for values in found.values() for v in values)


@pytest.mark.parametrize("name", ["attnlrp", "cp-lrp"])
def test_forward_and_backward_agree(name: str) -> None:
    adapter = Adapter(llava())
    prompt = prompt_of(adapter)
    found = evidence_of(adapter, prompt, TOKENS)
    forward = found["Phi" if name == "attnlrp" else f"{name} Phi"]
    rows = attribute_generated(adapter, prompt, TOKENS, composite=name)
    assert forward == pytest.approx([r.total("image") for r in rows], rel=1e-9)
    assert found[f"{name} share"] == pytest.approx([r.share("image") for r in rows], rel=1e-6)


def test_scores_against_the_vocabulary_by_hand() -> None:
    phi = torch.tensor([[1.0, 3.0, 5.0, -1.0]], dtype=torch.float64)
    logits = torch.tensor([[2.0, 9.0, 4.0, 0.0]], dtype=torch.float64)
    found = against_vocabulary(logits, phi, [2])
    assert found["centred"] == pytest.approx([3.0])
    assert found["z"] == pytest.approx([3.0 / math.sqrt(5.0)])
    assert found["margin"] == pytest.approx([2.0])  # over token 1, the likeliest other
    assert found["contribution"] == pytest.approx([5.0 / (5.0 + 1.0)])
    assert against_vocabulary(logits, phi, [2], known=3)["centred"] == pytest.approx([2.0])  # row 3 is padding


def test_relevance_of_an_answer_in_forward_mode() -> None:
    adapter = Adapter(llava())
    logits, phi = forward_relevance(adapter, llava_inputs(adapter.model), TOKENS)
    assert logits.shape == phi.shape == (3, adapter.traits.vocab)


def test_the_densest_region() -> None:
    heat = torch.zeros(6, 6)
    heat[2:4, 2:4] = 2.0
    heat[0, 0] = -4.0
    scores = torch.cat([torch.tensor([1.0]), heat.flatten(), torch.tensor([-3.0])])
    text = (Span(0, 1, "text"), Span(37, 38, "text"))
    picture = region(scores, (*text, Span(1, 37, "image", grid=(6, 6))))
    assert picture == pytest.approx(8.0 / 16.0)  # a 2 x 2 square is a sixth of 6 x 6, about
    assert region(scores, (*text, Span(1, 37, "audio"))) == pytest.approx(4.0 / 16.0)  # six positions in a row


def test_no_answer() -> None:
    adapter = Adapter(llava())
    with pytest.raises(SettingError):
        evidence_of(adapter, prompt_of(adapter), [])


@pytest.mark.parametrize("name", ["qwen2_audio", "mllama", "gemma3n"])
def test_other_ways_of_reading_media(name: str) -> None:
    """Sound; states read by cross-attention, whose positions have no hidden states; several residual streams."""
    adapter = fresh(name)
    inputs = ZOO[name].inputs(adapter.model)
    prompt = Prompt(inputs, adapter.words(inputs), adapter.spans(inputs))
    found = evidence_of(adapter, prompt, [17, 23], composites=("attnlrp", "reslrp", "pa-lrp"))
    assert all(math.isfinite(v) for v in found["z"])
    assert ("log-probability" in found) is (name != "gemma3n")
    assert ("reslrp Phi" in found) is (name != "gemma3n")
    assert ("pa-lrp Phi" in found) is (name != "mllama")
    if name == "mllama":
        assert all(math.isnan(v) for v in found["logit lens"])


def test_an_encoder_decoder() -> None:
    row = PAIRED["whisper"]
    model = row.build()
    adapter, inputs = Adapter(model), row.inputs(model)
    prompt = Prompt(inputs, adapter.words(inputs), adapter.spans(inputs))
    found = evidence_of(adapter, prompt, [17, 23], composites=("attnlrp", "reslrp"))
    rows = attribute_generated(adapter, prompt, [17, 23])
    assert found["Phi"] == pytest.approx([r.total("audio") for r in rows], rel=1e-4)
    assert found["attnlrp share"] == pytest.approx([r.share("audio") for r in rows], rel=1e-4)
