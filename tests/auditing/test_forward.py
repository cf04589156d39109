"""One teacher-forced forward says of a finished answer what the meter says of every token while it is generated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

import limelight
from limelight.auditing import forward
from limelight.auditing.forward import AnsweredPrompt, measure
from limelight.calibration import Calibration
from limelight.decoding.answer import prompt_of
from limelight.errors import LimelightError, PromptError, SettingError, UnsupportedError
from limelight.models.adapter import Adapter
from limelight.types import EARLIER_ANSWERS, Prompt, Step
from tests.decoding.methods.test_meter import WORKING
from tests.relevance.forward.test_stream import RAISES
from tests.tiny import built, llava, llava_inputs, snapshot
from tests.zoo import ZOO


def close(got: Sequence[Step], want: Sequence[Step], slack: float = 2e-3) -> None:
    """Equal to the rounding of float32, in which one way pads and the other appends."""
    assert [s.token for s in got] == [s.token for s in want] and len(got) > 0
    for one, other in zip(got, want, strict=True):
        assert (one.text, one.plain) == (other.text, other.plain)
        assert one.logprob == pytest.approx(other.logprob, abs=slack)
        assert (one.grounding is None) == (other.grounding is None)
        if one.grounding is not None and one.rival_grounding is not None:
            assert one.grounding == pytest.approx(other.grounding, abs=slack, rel=slack)
            assert one.rival_grounding == pytest.approx(other.rival_grounding, abs=slack, rel=slack)
        assert one.grounding_by_modality == pytest.approx(other.grounding_by_modality, abs=slack, rel=slack)
        assert dict(one.contributions) == pytest.approx(dict(other.contributions), abs=slack)
        for a, b in zip(one.candidates, other.candidates, strict=True):
            assert a[2:] == pytest.approx(b[2:], abs=slack, rel=slack)
    assert [s.flagged for s in got] == [s.flagged for s in want]


def generated(adapter: Adapter, prompt: Prompt, tokens: int = 5, **more: Any) -> limelight.Generation:
    return limelight.generate(
        adapter, messages=prompt, strategy="meter", max_new_tokens=tokens, relevance=False, **more
    )


@pytest.mark.parametrize("name", WORKING)
def test_every_family_scores_as_the_meter_does(name: str) -> None:
    adapter = built(name)
    prompt = prompt_of(adapter, ZOO[name].inputs(adapter.model))
    want = generated(adapter, prompt)
    before = snapshot(adapter.model)
    (got,) = measure(adapter, [AnsweredPrompt(prompt, want.token_ids)])
    close(got, want.steps)
    assert snapshot(adapter.model) == before


# Their pixels are packed along another axis than the first, which no batch of prompts knows (generate_many neither).
PACKED = ("minicpmv4_6", "minicpmv4_7", "minicpm_ocr")


@pytest.mark.parametrize("name", [n for n in WORKING if ZOO[n].batch is not None and n not in PACKED])
def test_a_batch_gives_each_row_what_it_gets_alone(name: str) -> None:
    """Prompts and answers of unequal length, left and right padding."""
    adapter = built(name)
    prompt = prompt_of(adapter, ZOO[name].inputs(adapter.model))
    shorter = cut(prompt, 1)
    rows = [
        AnsweredPrompt(prompt, (9, 11, 12)),
        AnsweredPrompt(shorter, (13,)),
        AnsweredPrompt(prompt, (14, 15, 16, 17, 18, 19)),
    ]
    try:
        together = measure(adapter, rows)
    except UnsupportedError as error:
        assert "run the prompts one by one" in str(error) and name in ("mllama",)
        return
    for row, got in zip(rows, together, strict=True):
        close(got, measure(adapter, [row])[0])


def cut(prompt: Prompt, count: int) -> Prompt:
    """The prompt without its last words."""
    length = len(prompt.tokens)
    tensors = {
        k: v[:, :-count] if not v.is_floating_point() and v.ndim > 1 and v.shape[1] == length else v
        for k, v in prompt.tensors.items()
    }
    assert prompt.spans[-1].modality == "text" and len(prompt.spans[-1]) > count
    spans = (*prompt.spans[:-1], replace(prompt.spans[-1], stop=length - count))
    return Prompt(tensors, prompt.tokens[:-count], spans)


def test_pieces_of_the_vocabulary_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = Adapter(llava(torch.float32))
    said = AnsweredPrompt(prompt_of(adapter, llava_inputs(adapter.model)), tuple(range(9, 16)))
    (want,) = measure(adapter, [said])
    seen: list[int] = []
    own = forward.DualStream.heads

    def heads(self: Any, output: Any) -> Any:
        seen.append(output.hidden.shape[1])
        return own(self, output)

    monkeypatch.setattr(forward, "CHUNK", 3 * 2 * adapter.traits.vocab)
    monkeypatch.setattr(forward.DualStream, "heads", heads)
    close(measure(adapter, [said])[0], want, 1e-6)
    assert seen == [3, 3, 1]  # never logits of the prompt, never more than three positions at once


def test_without_media_there_is_no_grounding() -> None:
    adapter = Adapter(llava(torch.float32))
    ids = torch.tensor([[1, 31, 32, 41, 42]])
    prompt = prompt_of(adapter, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    (steps,) = measure(adapter, [AnsweredPrompt(prompt, (9, 11))])
    assert all(s.grounding is None and not s.flagged and s.contributions == {"text": 1.0} for s in steps)
    assert all(s.logprob < 0 for s in steps)
    media = AnsweredPrompt(prompt_of(adapter, llava_inputs(adapter.model)), (9, 11))
    mixed = measure(adapter, [media, AnsweredPrompt(prompt, (9, 11))])
    close(mixed[1], steps)
    assert all(s.grounding is not None for s in mixed[0])


def test_earlier_answers_are_a_group_of_their_own() -> None:
    """Phi of their positions, by the backward route; the media's scores do not change."""
    adapter = Adapter(llava(torch.float64))
    prompt = prompt_of(adapter, llava_inputs(adapter.model))
    answer = (9, 11, 12)
    (plain,) = measure(adapter, [AnsweredPrompt(prompt, answer)])
    (told,) = measure(adapter, [AnsweredPrompt(prompt, answer, ((1, 2), (20, 22)))])
    backward = limelight.attribute_generated(adapter, prompt.tensors, answer)
    for step, without, relevance in zip(told, plain, backward, strict=True):
        assert step.grounding == pytest.approx(without.grounding, abs=1e-9)
        early = float(relevance.scores[[1, 20, 21]].sum())
        image = relevance.total("image")
        parts = {"image": abs(image), EARLIER_ANSWERS: abs(early), "text": abs(relevance.logit - image - early)}
        want = {k: v / sum(parts.values()) for k, v in parts.items()}
        assert dict(step.contributions) == pytest.approx(want, abs=1e-6)
        assert EARLIER_ANSWERS not in without.contributions
    both = measure(adapter, [AnsweredPrompt(prompt, answer, ((1, 2), (20, 22))), AnsweredPrompt(prompt, answer)])
    assert [EARLIER_ANSWERS in s.contributions for s in (*both[0], *both[1])] == [True] * 3 + [False] * 3
    close(both[0], told, 1e-6)


def test_cp_lrp_is_another_measure() -> None:
    adapter = Adapter(llava(torch.float32))
    prompt = prompt_of(adapter, llava_inputs(adapter.model))
    want = limelight.generate(
        adapter, messages=prompt, strategy=limelight.meter(composite="cp-lrp"), max_new_tokens=4, relevance=False
    )
    (got,) = measure(adapter, [AnsweredPrompt(prompt, want.token_ids)], composite="cp-lrp")
    close(got, want.steps)
    assert got[0].grounding != measure(adapter, [AnsweredPrompt(prompt, want.token_ids)])[0][0].grounding
    with pytest.raises(SettingError, match="no forward mode"):
        measure(adapter, [AnsweredPrompt(prompt, want.token_ids)], composite="gradient")


def test_the_flag_follows_the_models_calibration() -> None:
    adapter = Adapter(llava(torch.float32))
    prompt = prompt_of(adapter, llava_inputs(adapter.model))
    for threshold, needs_rival in ((-1e9, True), (1e9, False), (0.5, True)):
        adapter.calibration = Calibration("x", threshold, (-1.0, 2.0), (0.1, 0.9), needs_rival)
        want = generated(adapter, prompt)
        (got,) = measure(adapter, [AnsweredPrompt(prompt, want.token_ids)])
        close(got, want.steps)
        assert [s.p_supported for s in got] == pytest.approx([s.p_supported for s in want.steps], abs=1e-3)
        if threshold != 0.5:
            assert {s.flagged for s in got} == {threshold > 0}
    (other,) = measure(adapter, [AnsweredPrompt(prompt, want.token_ids)], composite="cp-lrp")
    assert all(s.p_supported is None for s in other)  # it was fitted on another composite's scores


@pytest.mark.parametrize("name", [n for n in RAISES if n != "idefics"])
def test_a_family_without_a_forward_mode_is_refused(name: str) -> None:
    kind, word = RAISES[name]
    adapter = built(name)
    with pytest.raises(kind, match=word):
        measure(adapter, [AnsweredPrompt(prompt_of(adapter, ZOO[name].inputs(adapter.model)), (9, 11))])


def test_bad_answers_are_refused_and_leave_the_model_as_it_was() -> None:
    adapter = Adapter(llava(torch.float32))
    prompt = prompt_of(adapter, llava_inputs(adapter.model))
    before = snapshot(adapter.model)
    with pytest.raises(PromptError, match="no tokens"):
        measure(adapter, [AnsweredPrompt(prompt, ())])
    with pytest.raises(SettingError, match="token id 4000 is outside"):
        measure(adapter, [AnsweredPrompt(prompt, (3, 4000))])
    with torch.no_grad():
        adapter.model.lm_head.weight[5, 0] = float("nan")
    with pytest.raises(LimelightError, match="NaN"):
        measure(adapter, [AnsweredPrompt(prompt, (3, 4))])
    with torch.no_grad():
        adapter.model.lm_head.weight[5, 0] = 0.0
    after = snapshot(adapter.model)
    assert {k: v for k, v in after.items() if "lm_head" not in k} == {
        k: v for k, v in before.items() if "lm_head" not in k
    }
