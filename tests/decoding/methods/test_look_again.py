"""Looking again on the miniatures: what is gained, what it costs nothing, rows of a batch, and clear errors."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import limelight
from limelight.decoding.collate import batch_of
from limelight.decoding.looking.fields import Field, Part
from limelight.decoding.looking.session import LookAgainSession
from limelight.decoding.methods.look_again import LookAgain
from limelight.demo.canvases import CanvasQuestion, canvas_questions
from limelight.demo.questions import questions
from limelight.demo.synthesis import RATE, background, make
from limelight.errors import MediaError, SettingError, UnsupportedError
from limelight.models.adapter import Adapter
from limelight.types import Generation, Prompt
from tests.zoo.encoder_decoder import PAIRED


@cache
def adapter() -> Adapter:
    return limelight.load("demo-vision", calibration=None)


@cache
def asked(cell: str = "plain/3", count: int = 6) -> tuple[tuple[CanvasQuestion, Prompt], ...]:
    found = canvas_questions("dev", cell, count)
    return tuple((q, adapter().prepare(q.text, {"image": q.canvas.image()})) for q in found)


def answers(strategy: Any, cell: str = "plain/3", count: int = 6, **more: Any) -> list[Generation]:
    prompts = [p for _, p in asked(cell, count)]
    return limelight.generate_many(adapter(), requests=prompts, strategy=strategy, max_new_tokens=2, **more)


def right(found: list[Generation], cell: str = "plain/3", count: int = 6) -> int:
    return sum((g.text == "yes") == q.label for g, (q, _) in zip(found, asked(cell, count), strict=True))


def test_a_second_look_finds_what_the_first_one_misses() -> None:
    plain = answers(None, count=12)
    found = answers(limelight.look_again(when="always", where="gradient", sizes=(1.0,), context=0.0), count=12)
    assert right(found, count=12) >= 11 > right(plain, count=12)
    changed = [g for g, p in zip(found, plain, strict=True) if g.text != p.text]
    assert changed and all(g.steps[0].intervened and g.steps[0].plain is not None for g in changed)


def test_the_views_are_reported() -> None:
    (found,) = answers(limelight.look_again(3, when="always"), count=1)
    whole, *crops = found.steps[0].views
    assert whole.box is None and len(crops) == 2 and not found.steps[1].views
    assert sum(v.weight for v in found.steps[0].views) == pytest.approx(1.0)
    for view in crops:
        left, top, right_, bottom = view.box or (0, 0, 0, 0)
        assert 0 <= left < right_ <= 336 and 0 <= top < bottom <= 336
        assert {t.strip() for t in view.between} == {"yes", "no"} and view.evidence is not None
    used = max(found.steps[0].views, key=lambda v: v.weight)
    assert used.answer.strip() == found.text and used.weight == 1.0


def test_the_answer_is_that_of_the_crop_alone() -> None:
    """With weights 0 and 1 the joined logits are those of the question about the crop."""
    question, prompt = asked()[0]
    (found,) = answers(limelight.look_again(when="always", join="crops"), count=1, top_logprobs=3)
    box = found.steps[0].views[1].box
    assert box is not None
    crop = prompt.media["image"][0].crop(tuple(round(x) for x in box))
    alone = limelight.generate(
        adapter(), messages=question.text, media={"image": crop}, max_new_tokens=2, top_logprobs=3
    )
    assert alone.token_ids == found.token_ids
    for one, other in zip(alone.steps, found.steps, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert [t for t, _ in one.top_logprobs] == [t for t, _ in other.top_logprobs]


def test_the_mean_is_of_all_views() -> None:
    (found,) = answers(limelight.look_again(3, when="always", join="mean"), count=1)
    views = found.steps[0].views
    assert [v.weight for v in views] == pytest.approx([1 / 3] * 3)
    yes, no = (next(iter(adapter().tokenizer(t, add_special_tokens=False)["input_ids"])) for t in views[0].between)
    prompt = asked()[0][1]
    strategy = limelight.look_again(3, when="always", join="mean")
    fn = limelight.custom_generate(strategy, processor=adapter().processor, prompts=[prompt])
    out = adapter().model.generate(
        **prompt.tensors, custom_generate=fn, max_new_tokens=1, do_sample=False, return_dict_in_generate=True,
        output_logits=True,
    )  # fmt: skip
    got = float(out.logits[0][0, yes] - out.logits[0][0, no])
    assert got == pytest.approx(sum(v.margin for v in views) / 3, abs=1e-3)


def test_any_view_that_is_surest_of_yes_decides() -> None:
    found = answers(limelight.look_again(5, when="always", join="any"), "3x3/3")
    for generation in found:
        views = generation.steps[0].views
        surest = max(views, key=lambda v: v.margin if v.between[0].strip() == "yes" else -v.margin)
        assert surest.weight == 1.0 and surest.answer.strip() == generation.text


@pytest.mark.parametrize("settings", [{"search": "windows"}, {"search": "quarters"}, {"where": "phi"}], ids=str)
def test_rows_of_a_batch_are_answered_as_alone(settings: dict[str, Any]) -> None:
    strategy = limelight.look_again(3, **settings)
    together = answers(strategy, "2x2/2", 3, top_logprobs=2)
    for (_, prompt), row in zip(asked("2x2/2", 3), together, strict=True):
        alone = limelight.generate(
            adapter(), messages=prompt, strategy=strategy, max_new_tokens=2, top_logprobs=2, relevance=False
        )
        assert alone.token_ids == row.token_ids
        assert [v.box for v in alone.steps[0].views] == [v.box for v in row.steps[0].views]
        assert [x for _, x in alone.steps[0].top_logprobs] == pytest.approx(
            [x for _, x in row.steps[0].top_logprobs], abs=1e-3
        )


def test_longer_answers_go_on_with_the_joined_views() -> None:
    """Every token: against views that are asked anew behind the answer so far."""
    question, prompt = asked("plain/3", 1)[0]
    described = adapter().prepare("Describe the picture.", {"image": prompt.media["image"][0]})
    strategy = limelight.look_again(
        when="always", where="given", boxes=(question.canvas.box_of(question.object),), join="crops"
    )
    found = limelight.generate(adapter(), messages=described, strategy=strategy, max_new_tokens=10, relevance=False)
    assert question.object in found.text
    box = found.steps[0].views[1].box
    crop = prompt.media["image"][0].crop(tuple(round(x) for x in box or ()))
    alone = limelight.generate(adapter(), messages="Describe the picture.", media={"image": crop}, max_new_tokens=10)
    assert alone.token_ids == found.token_ids


def test_it_acts_at_the_first_uncertain_word() -> None:
    _, prompt = asked("plain/3", 1)[0]
    described = adapter().prepare("Describe the picture.", {"image": prompt.media["image"][0]})
    found = limelight.generate(
        adapter(), messages=described, strategy=limelight.look_again(threshold=0.8), max_new_tokens=10, relevance=False
    )
    looked = [i for i, s in enumerate(found.steps) if s.views]
    assert len(looked) == 1 and looked[0] > 1  # not at "A picture of a"


def test_gates_stay_closed() -> None:
    plain = answers(None)
    unsure = limelight.look_again(when="uncertain", threshold=0.0)
    for strategy in (unsure, limelight.look_again(when="ungrounded", threshold=-99.0)):
        found = answers(strategy)
        assert [g.token_ids for g in found] == [g.token_ids for g in plain]
        assert not any(s.views or s.intervened for g in found for s in g.steps)
    opened = answers(limelight.look_again(when="ungrounded", threshold=99.0), count=2)
    assert all(g.steps[0].views for g in opened)


def test_questions_with_yes_or_no_are_looked_at_however_sure() -> None:
    found = answers(limelight.look_again(threshold=0.0))
    assert all(g.steps[0].views and not g.steps[1].views for g in found)
    _, prompt = asked("plain/3", 1)[0]
    described = adapter().prepare("Describe the picture.", {"image": prompt.media["image"][0]})
    caption = limelight.generate(
        adapter(), messages=described, strategy=limelight.look_again(threshold=0.0), max_new_tokens=4, relevance=False
    )
    assert not any(s.views for s in caption.steps)


def test_pictures_in_full_detail_are_left_alone() -> None:
    prompts = [adapter().prepare(q.text, {"image": q.scene.image()}) for q in questions("dev", "none/poor", 4)]
    plain = limelight.generate_many(adapter(), requests=prompts, max_new_tokens=2)
    found = limelight.generate_many(
        adapter(), requests=prompts, strategy=limelight.look_again(when="always"), max_new_tokens=2
    )
    assert [g.token_ids for g in found] == [g.token_ids for g in plain] and not any(g.steps[0].views for g in found)
    seen = limelight.generate_many(
        adapter(), requests=prompts[:1], strategy=limelight.look_again(when="always", least_gain=0.0), max_new_tokens=2
    )
    assert seen[0].steps[0].views


def test_a_second_picture_in_the_prompt() -> None:
    (found,) = answers(limelight.look_again(3, when="always", join="second-picture"), count=1)
    views = found.steps[0].views
    assert [v.weight for v in views] == pytest.approx([0.0, 0.5, 0.5])
    prompt = asked()[0][1]
    crops = [prompt.media["image"][0].crop(tuple(round(x) for x in v.box or ())) for v in views[1:]]
    turns = [{"role": "user", "content": [*({"type": "image"},) * 3, {"type": "text", "text": asked()[0][0].text}]}]
    joint = adapter().prepare(turns, {"image": [prompt.media["image"][0], *crops]})
    alone = limelight.generate(adapter(), messages=joint, max_new_tokens=2)
    assert alone.token_ids == found.token_ids
    assert alone.steps[0].logprob == pytest.approx(found.steps[0].logprob, abs=1e-4)


def test_inside_generate_with_the_originals_and_not_without() -> None:
    prompt = asked()[0][1]
    strategy = limelight.look_again(when="always")
    want = limelight.generate(adapter(), messages=prompt, strategy=strategy, max_new_tokens=2, relevance=False)

    def run(**given: Any) -> Any:
        fn = limelight.custom_generate(strategy, processor=adapter().processor, **given)
        return adapter().model.generate(**prompt.tensors, custom_generate=fn, max_new_tokens=2, do_sample=False)

    assert run(prompts=[prompt])[0, -2:].tolist() == list(want.token_ids)
    with pytest.raises(SettingError, match="original media") as missing:
        run(tensors=prompt.tensors)
    assert "prompts=" in missing.value.hint
    with pytest.raises(SettingError, match="another batch"):
        run(
            prompts=[asked("2x2/2", 1)[0][1]] if asked("2x2/2", 1)[0][0].text != asked()[0][0].text else [asked()[1][1]]
        )
    with pytest.raises(SettingError, match="original media"):
        limelight.generate(adapter(), messages=dict(prompt.tensors), strategy=strategy, max_new_tokens=2)


def test_several_answers_per_prompt() -> None:
    tensors, _ = batch_of(adapter(), [p for _, p in asked("2x2/2", 2)])
    fn = limelight.custom_generate(
        limelight.look_again(when="always"),
        processor=adapter().processor,
        prompts=[p for _, p in asked("2x2/2", 2)],
        seed=0,
    )
    out = adapter().model.generate(
        **tensors,
        custom_generate=fn,
        max_new_tokens=2,
        do_sample=True,
        num_return_sequences=2,
        return_dict_in_generate=True,
    )
    assert [bool(s[0].views) for s in out.steps] == [True] * 4
    assert out.steps[0][0].views == out.steps[1][0].views != out.steps[2][0].views


def test_the_model_is_left_as_it_was() -> None:
    before = {k: v.clone() for k, v in adapter().model.state_dict().items()}
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in adapter().model.modules())
    answers(limelight.look_again(3, when="always"), count=2)
    with pytest.raises(UnsupportedError):
        answers(limelight.look_again(when="always"), count=1, prefill_chunk_size=4)
    assert all(torch.equal(v, before[k]) for k, v in adapter().model.state_dict().items())
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in adapter().model.modules()) == hooks


def long_sound() -> np.ndarray[Any, Any]:
    found = background(np.random.default_rng(0), "pink", 12 * RATE) * 0.01
    found[8 * RATE : 8 * RATE + 12000] += make("siren", np.random.default_rng([1, 7]), 12000) * 0.1
    return found.astype(np.float32)


def test_long_audio_is_read_to_its_end() -> None:
    own = limelight.load("demo-audio", calibration=None)
    media = {"audio": (long_sound(), RATE)}
    with pytest.raises(MediaError, match="cuts off its end"):
        limelight.generate(own, messages="Can you hear a siren?", media=media, max_new_tokens=2)
    found = limelight.generate(
        own,
        messages="Can you hear a siren?",
        media=media,
        strategy=limelight.look_again(6, when="always"),
        max_new_tokens=2,
    )
    views = found.steps[0].views
    assert found.text == "yes"
    assert views[0].interval == (0.0, 4.0) and max((v.interval or (0, 0))[1] for v in views) == pytest.approx(12.0)
    used = next(v for v in views if v.weight)
    assert (used.interval or (0, 0))[0] <= 8.4 and (used.interval or (0, 0))[1] >= 8.3
    assert len(found.prompt.media["audio"][0][0]) == 12 * RATE  # the original is kept


def test_short_audio_gets_a_second_view() -> None:
    own = limelight.load("demo-audio", calibration=None)
    media = {"audio": (long_sound()[6 * RATE : 10 * RATE], RATE)}
    found = limelight.generate(
        own, messages="Can you hear a siren?", media=media, strategy=limelight.look_again(when="always"), max_new_tokens=2,
        relevance=False,
    )  # fmt: skip
    start, stop = found.steps[0].views[1].interval or (0.0, 0.0)
    assert 0 <= start < stop <= 4 and found.text == "yes"


@pytest.mark.parametrize(
    "settings",
    [
        {"views": 1}, {"views": True}, {"where": "elsewhere"}, {"when": "never"}, {"threshold": float("nan")},
        {"when": "always", "threshold": 0.5}, {"sizes": ()}, {"sizes": (0.0,)}, {"context": -1.0}, {"where": "given"},
        {"boxes": ((0, 0, 1, 1),)}, {"where": "given", "boxes": ((0.5, 0, 0.2, 1),)}, {"where": "given", "boxes": 3},
        {"where": "given", "boxes": ((0, 0, 0.5, 1), (0.5, 0, 1, 1))},
        {"where": "given", "boxes": (((0, 0, 1, 1),), ((0, 0, 0.5, 1), (0.5, 0, 1, 1)))},
        {"target": "cup"}, {"generic": "What?"}, {"join": "sum"}, {"search": "depth-first"}, {"decision": "maybe"},
    ],
    ids=str,
)  # fmt: skip
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError) as refused:
        LookAgain(**settings)
    assert refused.value.hint


def test_every_box_is_a_view_of_its_row() -> None:
    rows = (((0, 0, 0.5, 0.5), (0.5, 0.5, 1, 1)), ((0.5, 0, 1, 0.5),))
    found = answers(limelight.look_again(3, when="always", where="given", boxes=rows), count=2)
    assert [[v.box for v in g.steps[0].views[1:]] for g in found] == [
        [(0.0, 0.0, 168.0, 168.0), (168.0, 168.0, 336.0, 336.0)], [(168.0, 0.0, 336.0, 168.0)]
    ]  # fmt: skip
    with pytest.raises(SettingError, match="2 lists for 3 rows"):
        answers(limelight.look_again(3, when="always", where="given", boxes=rows), count=3)


def test_boxes_beside_a_long_sound_are_those_of_the_first_medium() -> None:
    part = Part(np.ones((2, 2)), (0.0, 0.0, 200.0, 100.0))
    picture = Field("image", 0, (200.0, 100.0), (part,), part.box)
    sound = Field("audio", 0, (4.0, 1.0), (Part(np.ones((1, 4)), (0.0, 0.0, 4.0, 1.0)),), (0.0, 0.0, 4.0, 1.0))
    prompt = SimpleNamespace(tensors={}, media={"image": [Image.new("RGB", (200, 100))]})
    session: Any = SimpleNamespace(
        strategy=LookAgain(where="given", boxes=((0.5, 0, 1, 1),)), prompts=[prompt], adapter=None,
        _long=lambda _: (0, 20.0, 4.0),
    )  # fmt: skip
    for fields, box in (([picture, sound], (100.0, 0.0, 200.0, 100.0)), ([sound], (10.0, 0.0, 20.0, 1.0))):
        search = LookAgainSession._search(session, 0, fields, torch.zeros(3), None, None)  # type: ignore[arg-type]
        assert [p.box for p in search.given or ()] == [box]


def test_settings_make_the_strategy_again() -> None:
    strategy = limelight.look_again(4, where="given", boxes=[[0, 0, 0.5, 0.5]], sizes=[1, 2])
    assert limelight.strategy("look-again", **strategy.settings()) == strategy
    assert strategy.capabilities.originals and not strategy.capabilities.gradients
    assert limelight.look_again().capabilities.gradients


def test_a_resampler_has_no_places() -> None:
    """Positions that attend anywhere: an error that says so, and not a guess."""
    prompt = asked()[0][1]
    unknown = replace(prompt, spans=tuple(replace(s, region=None) for s in prompt.spans))
    with pytest.raises(UnsupportedError, match="resampler"):
        limelight.generate(adapter(), messages=unknown, strategy=limelight.look_again(when="always"), max_new_tokens=2)


def test_encoder_decoders_are_refused() -> None:
    model = PAIRED["whisper"].build()
    own = Adapter(model)
    with pytest.raises(UnsupportedError, match="encoder"):
        limelight.generate(
            own, messages=PAIRED["whisper"].inputs(model), strategy=limelight.look_again(), max_new_tokens=2
        )
