"""What the cached methods say of a token: shares, candidates, flags; the stream they stand on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from limelight.calibration import Calibration
from limelight.decoding.dual import captured, check_composite, explainer, kinds, open_stream, split_channels
from limelight.decoding.methods.meter import Meter
from limelight.decoding.sampler import TokenSampler
from limelight.decoding.strategy import GenerationContext
from limelight.errors import SettingError
from limelight.grounding.score import z_score
from limelight.grounding.token_measures import TOP
from limelight.models.adapter import Adapter
from limelight.types import EARLIER_ANSWERS
from tests.tiny import built, llava, llava_inputs
from tests.zoo import ZOO


def a_run(modality_ids: Tensor, adapter: Any = None, mask: Tensor | None = None, **more: Any) -> GenerationContext:
    ids = torch.ones_like(modality_ids)
    mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    return GenerationContext(adapter, ids, {}, modality_ids, mask, TokenSampler(None, sample=False), **more)


IMAGE_ONLY = torch.tensor([[0, 1, 1, 0], [0, 0, 3, 0]])
LOGITS = torch.tensor([[3.0, 2.5, 2.0, 1.0, 0.5, 0.0, -1.0], [0.0, 4.0, 1.0, 1.0, 3.9, -2.0, 2.0]])


def test_shares_are_group_shares_under_the_rows_own_modality() -> None:
    phi = torch.tensor([[1.0, -2.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 5.0, 0.0, 0.0]])
    explain = explainer(a_run(IMAGE_ONLY), LOGITS, phi)
    assert explain(0, 0).contributions == pytest.approx({"image": 1 / 3, "text": 2 / 3})
    assert explain(0, 1).contributions == pytest.approx({"image": 2 / 6.5, "text": 4.5 / 6.5})
    assert explain(1, 4).contributions == pytest.approx({"audio": 5 / 6.1, "text": 1.1 / 6.1})
    assert explain(1, 0).contributions == {"audio": 0.0, "text": 1.0}  # logit and Phi both zero


def test_several_modalities_have_shares_of_their_own() -> None:
    run = a_run(torch.tensor([[0, 2, 2, 0, 3, 0]]))
    assert kinds(run, 0) == [2, 3]
    split = {"video": torch.full((1, 7), 1.0), "audio": torch.full((1, 7), -0.5)}
    explain = explainer(run, LOGITS[:1], torch.full((1, 7), 0.5), split=split)
    total = 1 + 0.5 + 2.5
    assert explain(0, 0).contributions == pytest.approx({"video": 1 / total, "audio": 0.5 / total, "text": 2.5 / total})
    channels = split_channels(run, run.mask)
    assert [c.name for c in channels] == ["video", "audio"]
    assert [c.prompt[0].tolist() for c in channels] == [[0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0]]
    assert split_channels(a_run(IMAGE_ONLY), torch.ones(2, 4, dtype=torch.bool)) == []
    longer = split_channels(run, torch.ones(1, 9, dtype=torch.bool))  # words said since are nobody's
    assert [c.prompt.shape for c in longer] == [(1, 9), (1, 9)] and not longer[0].prompt[0, 6:].any()


def test_answers_of_earlier_turns_are_a_group() -> None:
    run = a_run(torch.tensor([[0, 1, 0, 0], [0, 0, 0, 1]]), earlier=[((2, 4),), ()])
    (channel,) = split_channels(run, torch.ones(2, 6, dtype=torch.bool), front=1)
    assert channel.name == EARLIER_ANSWERS
    assert channel.prompt.tolist() == [[0, 0, 0, 1, 1, 0], [0] * 6]
    split = {EARLIER_ANSWERS: torch.full((2, 7), -0.25)}
    explain = explainer(run, LOGITS, torch.full((2, 7), 0.5), split=split)
    total = 0.5 + 0.25 + 2.75
    want = {"image": 0.5 / total, EARLIER_ANSWERS: 0.25 / total, "text": 2.75 / total}
    assert explain(0, 0).contributions == pytest.approx(want)
    assert set(explain(0, 0).grounding_by_modality) == {"image"}
    assert set(explain(1, 1).contributions) == {"image", "text"}  # a row without any


def test_candidates_are_the_top_with_logit_and_phi() -> None:
    phi = torch.arange(14.0).reshape(2, 7)
    detail = explainer(a_run(IMAGE_ONLY), LOGITS, phi)(1, 4)
    assert detail.candidates[:3] == ((1, 4.0, 8.0), (4, pytest.approx(3.9), 11.0), (6, 2.0, 13.0))
    assert len(detail.candidates) == TOP
    assert detail.plain == 1 and not detail.intervened and detail.losses == {}


@pytest.mark.parametrize("shift", [0.0, 7.0, -7.0])
@pytest.mark.parametrize(
    ("chosen", "rival", "flagged"),
    [
        (0.0, 5.0, True),  # the media do not support the choice, but a rival
        (0.0, 0.1, False),  # neither
        (5.0, 0.0, False),  # the choice
        (5.0, 6.0, False),  # the choice, and the rival more
    ],
)
def test_flags(chosen: float, rival: float, flagged: bool, shift: float) -> None:
    """What Phi adds to every token decides nothing; a rival that the model finds impossible is no reason to flag."""
    phi = torch.zeros(1, 200)
    logits = torch.linspace(1, 0, 200)[None].clone()
    phi[0, 2:] = torch.linspace(-1, 1, 198)
    phi[0, 0], phi[0, 1] = chosen, rival
    explain = explainer(a_run(IMAGE_ONLY[:1]), logits, phi + shift)
    assert explain(0, 0).flagged == flagged
    logits[0, 1] = -20.0
    assert not explain(0, 0).flagged


def test_grounding_is_the_z_score_of_each_modality_and_of_all() -> None:
    run = a_run(torch.tensor([[0, 2, 2, 0, 3, 0]]))
    split = {"video": torch.randn(1, 7), "audio": torch.randn(1, 7)}
    phi = split["video"] + split["audio"]
    detail = explainer(run, LOGITS[:1], phi, split=split)(0, 4)
    assert detail.grounding == pytest.approx(float(z_score(phi)[0, 4]))
    want = {k: pytest.approx(float(z_score(p)[0, 4])) for k, p in split.items()}
    assert detail.grounding_by_modality == want
    alone = explainer(a_run(IMAGE_ONLY), LOGITS, phi.repeat(2, 1))
    assert alone(0, 4).grounding_by_modality == {"image": pytest.approx(alone(0, 4).grounding)}
    assert list(alone(1, 4).grounding_by_modality) == ["audio"]


def test_without_media_there_is_no_grounding() -> None:
    detail = explainer(a_run(torch.zeros(1, 4).long()), LOGITS[:1], torch.zeros(1, 7))(0, 3)
    assert detail.grounding is None and detail.grounding_by_modality == {} and not detail.flagged


def test_a_calibration_sets_the_flag_and_the_probability() -> None:
    """Only where the meter measures as the calibration's did."""
    made = Calibration("x", 1.5, (0.0, 4.0), (0.0, 1.0), needs_rival=False)
    phi, logits = torch.linspace(-3, 1, 200)[None].clone(), torch.zeros(1, 200)
    z = z_score(phi)[0]
    run = a_run(IMAGE_ONLY[:1], type("Model", (), {"calibration": made, "tokenizer": None}))
    for token in (0, 150, 199):
        detail = explainer(run, logits, phi)(0, token)
        assert detail.flagged == bool(z[token] < 1.5)
        assert detail.p_supported == pytest.approx(min(max(float(z[token]) / 4, 0.0), 1.0))
    other = explainer(run, logits, phi, composite="cp-lrp")(0, 0)
    assert other.p_supported is None and not other.flagged and other.grounding is not None


def test_ids_that_the_tokenizer_does_not_know_are_no_part_of_the_vocabulary() -> None:
    class Tokens:
        tokenizer = type("Tokenizer", (), {"get_vocab": lambda self: {"a": 0, "b": 4}})()

    phi = torch.randn(1, 7)
    run = a_run(IMAGE_ONLY[:1], Tokens())
    assert run.known_tokens == 5
    want = (phi[0, 2] - phi[0, :5].mean()) / phi[0, :5].std(correction=0)
    assert explainer(run, LOGITS[:1], phi)(0, 2).grounding == pytest.approx(float(want))


def test_losses_and_interventions_are_the_rows_own() -> None:
    losses = {"total": [torch.tensor([1.0, 2.0]), torch.tensor([0.5, 1.5])]}
    phi = torch.ones_like(LOGITS)
    explain = explainer(a_run(IMAGE_ONLY), LOGITS, phi, opened=torch.tensor([False, True]), losses=losses)
    assert explain(0, 0).losses == {} and not explain(0, 0).intervened
    assert explain(1, 1).losses == {"total": (2.0, 1.5)} and explain(1, 1).intervened


def test_a_vocabulary_smaller_than_the_table() -> None:
    explain = explainer(a_run(IMAGE_ONLY[:1]), LOGITS[:1, :3], torch.ones(1, 3))
    assert [t for t, _, _ in explain(0, 0).candidates] == [0, 1, 2]


def test_captured_gives_tensors_that_enter_a_graph() -> None:
    adapter = Adapter(llava())
    with torch.inference_mode():
        inputs = llava_inputs(adapter.model)
        where = adapter.modality_ids(inputs)
        more = {k: v for k, v in inputs.items() if k != "input_ids"}
        context = GenerationContext(
            adapter, inputs["input_ids"], more, where, torch.ones_like(where).bool(), TokenSampler(None, sample=False)
        )
        call, modality = captured(context)
    assert not call.embeds.is_inference() and not modality.is_inference()
    call.embeds.requires_grad_(True)
    assert modality[0].nonzero()[:, 0].tolist() == list(range(3, 19))


def test_a_prompt_without_a_media_has_no_support_from_one() -> None:
    adapter = built("llava")
    words = {"input_ids": torch.tensor([[1, 31, 32]]), "attention_mask": torch.ones(1, 3).long()}
    where = torch.zeros(1, 3, dtype=torch.long)
    context = GenerationContext(
        adapter, words["input_ids"], {}, where, where.bool() | True, TokenSampler(None, sample=False)
    )
    call, modality = captured(context)
    assert call.length == 3
    assert not modality.any()
    session = Meter().session(context)
    assert session.next(None).detail(0, 5).contributions == {"text": 1.0}


@pytest.mark.parametrize(("limit", "reserve"), [(None, 16), (30, 16), (200, 200 - 24), (10**6, 4096)])
def test_the_stream_reserves_room_for_the_answer(limit: int | None, reserve: int) -> None:
    adapter = built("llava")
    inputs = ZOO["llava"].inputs(adapter.model)
    call = adapter.capture(inputs)
    config = None if limit is None else type("Config", (), {"max_length": limit})()
    run = a_run(adapter.modality_ids(inputs), adapter, config=config)
    assert call.length == 24
    assert open_stream(run, call, [], "attnlrp").cache.capacity == call.length + reserve


def test_composites_that_have_a_forward_mode() -> None:
    for name in ("attnlrp", "cp-lrp"):
        check_composite(name)
    with pytest.raises(SettingError, match="no forward mode") as caught:
        check_composite("gradient-input")
    assert "cp-lrp" in caught.value.hint
