"""Every localiser on the vision miniature: shapes, rows of a batch, and the quantity it claims to be."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import limelight
from limelight.decoding.collate import batch_of, shift_spans
from limelight.decoding.looking.decision import Decision, decide, spellings
from limelight.decoding.looking.glance import Glance
from limelight.decoding.looking.localisers import localisers
from limelight.decoding.looking.localisers.relevance import block_numbers
from limelight.demo.canvases import canvas_questions
from limelight.errors import SettingError
from limelight.models.adapter import Adapter
from limelight.types import Prompt, Span

NAMES = sorted(localisers())
OPTIONS = {"generic": "Describe the picture.", "channels": 49, "seed": 0, "target": None}


@cache
def adapter() -> Adapter:
    return limelight.load("demo-vision", calibration=None)


@cache
def prompts() -> tuple[Prompt, ...]:
    asked = canvas_questions("dev", "2x2/2", 2)
    texts = (asked[0].text, "There is a dog. " + asked[1].text)  # of unequal length
    return tuple(adapter().prepare(t, {"image": q.canvas.image()}) for t, q in zip(texts, asked, strict=True))


def glance(given: tuple[Prompt, ...], **options: Any) -> Glance:
    tensors, pads = batch_of(adapter(), given)
    call = adapter().capture(tensors)
    with torch.no_grad():
        logits = adapter().logits(adapter().hidden(call)[:, -1])
    media = adapter().modality_ids(tensors) > 0
    spans = tuple(shift_spans(p.spans, pad) for p, pad in zip(given, pads, strict=True))
    return Glance(
        adapter(), call, media, decide(logits, "yes-no", adapter().tokenizer), spans, given, 0, {**OPTIONS, **options}
    )


def on_media(found: Tensor, seen: Glance, row: int) -> Tensor:
    (span,) = seen.own(row)
    return found[row, span.start : span.stop].double()


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_a_batch_are_scored_as_alone(name: str) -> None:
    before = {k: v.clone() for k, v in adapter().model.state_dict().items()}
    together = glance(prompts())
    found = localisers()[name].scores(together)
    assert found.shape == together.media.shape and not found.requires_grad
    for row, prompt in enumerate(prompts()):
        alone = glance((prompt,))
        own = on_media(localisers()[name].scores(alone), alone, 0)
        assert own.numel() == 49 and bool(own.any())
        torch.testing.assert_close(on_media(found, together, row), own, rtol=1e-3, atol=1e-4 * float(own.abs().max()))
    assert all(torch.equal(v, before[k]) for k, v in adapter().model.state_dict().items())
    assert all(p.requires_grad for p in adapter().model.parameters())


def test_relevance_is_that_of_the_difference_of_two_logits() -> None:
    seen = glance(prompts()[:1])
    yes, no = int(seen.decision.chosen[0]), int(seen.decision.other[0])
    for name in ("attnlrp", "cp-lrp"):
        one, other = (limelight.attribute(adapter(), prompts()[0], t, composite=name) for t in (yes, no))
        torch.testing.assert_close(localisers()[name].scores(seen)[0], one.scores - other.scores, rtol=1e-3, atol=1e-4)
    signed = localisers()["attnlrp"].scores(seen)
    assert torch.equal(localisers()["attnlrp-absolute"].scores(seen), signed.abs())
    assert torch.equal(localisers()["attnlrp-positive"].scores(seen), signed.clamp_min(0))


def test_forward_mode_sums_relevance_over_blocks() -> None:
    """Of a channel for every position it is the relevance itself; of larger blocks its mean."""
    seen = glance(prompts()[:1])
    relevance = on_media(localisers()["attnlrp"].scores(seen), seen, 0)
    own = on_media(localisers()["phi"].scores(seen), seen, 0)
    torch.testing.assert_close(own, relevance, rtol=1e-2, atol=1e-3)
    coarse = on_media(localisers()["phi"].scores(glance(prompts()[:1], channels=4)), seen, 0)
    blocks = block_numbers(seen.own(0)[0], 4)
    for b in range(4):
        want = relevance[blocks == b].mean().expand(int((blocks == b).sum()))
        torch.testing.assert_close(coarse[blocks == b], want, rtol=1e-2, atol=1e-3)


def test_blocks_are_square_on_a_grid_and_runs_elsewhere() -> None:
    found = block_numbers(Span(0, 16, "image", (4, 4)), 4).reshape(4, 4)
    assert found.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    assert block_numbers(Span(0, 6, "audio"), 3).tolist() == [0, 0, 1, 1, 2, 2]
    assert block_numbers(Span(0, 2, "audio"), 16).tolist() == [0, 1]


def test_the_gradient_is_the_decisions() -> None:
    """By a finite difference along the gradient itself."""
    seen = glance(prompts()[:1])
    (span,) = seen.own(0)
    norm = on_media(localisers()["gradient"].scores(seen), seen, 0)
    at = span.start + int(norm.argmax())
    embeds = seen.call.embeds.clone().requires_grad_(True)
    with torch.enable_grad():
        margin = seen.objective(adapter().hidden(seen.call, embeds)).sum()
        (slope,) = torch.autograd.grad(margin, embeds)
    direction = torch.zeros_like(slope)
    direction[0, at] = slope[0, at] / slope[0, at].norm()
    with torch.no_grad():
        up, down = (float(seen.objective(adapter().hidden(seen.call, embeds + s * 1e-2 * direction))) for s in (1, -1))
    assert (up - down) / 2e-2 == pytest.approx(float(norm.max()), rel=0.02)


def test_attention_is_a_distribution() -> None:
    seen = glance(prompts()[:1])
    mean = localisers()["attention"].scores(seen)
    assert float(mean.sum()) == pytest.approx(1.0, abs=1e-4)
    assert bool((localisers()["attention-head"].scores(seen) >= mean - 1e-6).all())


def test_relative_attention_is_one_for_the_generic_question_itself() -> None:
    picture = canvas_questions("dev", "2x2/2", 1)[0].canvas.image()
    prompt = adapter().prepare("Describe the picture.", {"image": picture})
    seen = glance((prompt,))
    found = on_media(localisers()["relative-attention"].scores(seen), seen, 0)
    torch.testing.assert_close(found, torch.ones_like(found), rtol=1e-4, atol=1e-4)


def test_value_similarity_follows_its_target() -> None:
    asked = canvas_questions("dev", "2x2/2", 1)[0]
    own = localisers()["value-similarity"]
    one = own.scores(glance(prompts()[:1], target=asked.object))
    assert not torch.equal(one, own.scores(glance(prompts()[:1])))
    with pytest.raises(SettingError, match="zebra"):
        own.scores(glance(prompts()[:1], target="zebra"))


def test_noise_depends_on_seed_and_picture_alone() -> None:
    own = localisers()["random"]
    seen, other = glance(prompts()[:1]), glance(prompts()[:1], seed=1)
    assert torch.equal(own.scores(seen), own.scores(seen)) and not torch.equal(own.scores(seen), own.scores(other))


def test_a_phrase_is_explained_behind_the_prompt() -> None:
    ids = adapter().tokenizer(" pig", add_special_tokens=False)["input_ids"]
    seen = glance(prompts()[:1])
    decision = Decision(seen.decision.chosen, seen.decision.other, tuple(ids))
    named = Glance(adapter(), seen.call, seen.media, decision, seen.spans, seen.prompts, 0, OPTIONS)
    want = limelight.attribute(adapter(), prompts()[0], ids[0]).scores
    assert len(ids) == 1
    torch.testing.assert_close(localisers()["attnlrp"].scores(named)[0], want, rtol=1e-3, atol=1e-4)
    with pytest.raises(SettingError, match="phrase"):
        localisers()["phi"].scores(named)


def test_which_decision() -> None:
    yes, no = spellings(adapter().tokenizer)
    assert yes and no and not set(yes) & set(no)
    logits = torch.zeros(2, adapter().traits.vocab)
    logits[0, 40], logits[0, 41], logits[0, yes[0]], logits[0, no[0]] = 9, 8, 7, 6  # all among the likeliest
    logits[1, 40], logits[1, 41], logits[1, 42], logits[1, 43], logits[1, yes[0]], logits[1, no[0]] = 9, 8, 7, 6, 5, 4
    found = decide(logits, "auto", adapter().tokenizer)
    assert found.chosen.tolist() == [yes[0], 40] and found.other.tolist() == [no[0], 41]
    assert found.margin(logits).tolist() == [1.0, 1.0]
    assert decide(logits, "yes-no", adapter().tokenizer).chosen.tolist() == [yes[0], yes[0]]
    assert decide(logits, "top", None).chosen.tolist() == [40, 40]
    with pytest.raises(SettingError, match="spells yes"):
        decide(logits, "yes-no", None)


def test_the_localiser_of_the_how_to_finds_what_the_margin_rests_on() -> None:
    """docs/extend.md's example on a batch: each position's score is the fall of that row's margin without it."""
    page = (Path(__file__).parents[3] / "docs" / "extend.md").read_text()
    code = next(b for b in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "def occlusion" in b)
    names: dict[str, Any] = {}
    exec(code, names)
    seen = glance(prompts())
    found = names["LOCALISERS"]["occlusion"].scores(seen)
    embeds = seen.call.embeds
    with torch.no_grad():
        plain = seen.objective(adapter().hidden(seen.call, embeds))
        for row, at in ((0, 3), (1, 20)):
            (span,) = seen.own(row)
            hidden = embeds.clone()
            hidden[row, span.start + at] = embeds[row, span.start : span.stop].mean(0)
            margin = seen.objective(adapter().hidden(seen.call, hidden))
            torch.testing.assert_close(found[row, span.start + at], (plain - margin)[row])
    assert not found[~seen.media].any()
