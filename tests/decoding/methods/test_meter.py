"""The grounding meter: the unchanged model's answer, and the backward route's numbers without a backward pass."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TextIteratorStreamer

import limelight
from limelight.decoding.loop import custom_generate
from limelight.decoding.methods.greedy import greedy
from limelight.decoding.methods.lime import lime
from limelight.decoding.methods.lime_cached import lime_cached
from limelight.decoding.methods.meter import Meter, Metered, meter
from limelight.decoding.methods.relevance_contrastive import relevance_contrastive
from limelight.decoding.strategy import GenerationContext, StepOutput, Strategy
from limelight.errors import SettingError
from limelight.models.adapter import Adapter
from limelight.relevance.attribute import attribute_generated
from limelight.relevance.composites import COMPOSITES
from tests.relevance.forward.test_stream import RAISES
from tests.tiny import built, llava, llava_inputs
from tests.wide import wide
from tests.zoo import FOUNDATION, ZOO

WORKING = [n for n in ZOO if n not in RAISES]


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    return Adapter(llava())


def run(adapter: Adapter, inputs: dict[str, Tensor], strategy: Strategy | None, tokens: int = 4, **more: Any) -> Any:
    fn = (
        {}
        if strategy is None
        else {
            "custom_generate": custom_generate(
                strategy,
                details=more.pop("details", False),
                parent_model=adapter,
                return_cache=more.pop("return_cache", True),
            )
        }
    )
    return adapter.model.generate(
        **inputs, **fn, max_new_tokens=tokens, do_sample=False, return_dict_in_generate=True, output_logits=True, **more
    )


# every family in a padded batch (alone where it takes none), one of each kind alone as well
ROWS = [
    *((name, 1 if ZOO[name].batch is None else 2) for name in WORKING),
    *((name, 1) for name in FOUNDATION if name in WORKING and ZOO[name].batch is not None),
]


@pytest.mark.parametrize(("name", "rows"), ROWS)
def test_decoding_is_the_models_own(name: str, rows: int) -> None:
    tiny = ZOO[name]
    given = built(name)
    inputs = tiny.inputs(given.model) if rows == 1 else tiny.batch(given.model)  # type: ignore[misc]
    plain, metered = run(given, inputs, None), run(given, inputs, meter())
    assert torch.equal(plain.sequences, metered.sequences)
    for a, b in zip(plain.logits, metered.logits, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)
    assert [len(s) for s in metered.steps] == [4] * rows
    for row, steps in enumerate(metered.steps):
        assert [s.token for s in steps] == metered.sequences[row, -4:].tolist() == [s.plain for s in steps]
        assert not any(s.intervened or s.losses or s.relevance for s in steps)


@pytest.mark.parametrize("composite", ["attnlrp", "cp-lrp"])
@pytest.mark.parametrize("name", ["llava_gqa", "qwen2_5_vl", "gemma3", "paligemma2", "qwen2_audio", "mistral3"])
def test_shares_and_candidates_equal_the_backward_route(name: str, composite: str) -> None:
    """Every token of the answer, every candidate's Phi_M: one backward pass each there, none here."""
    wider = wide(name)
    inputs = ZOO[name].inputs(wider.model)
    output = run(wider, inputs, meter(composite=composite), 3)
    media_mask = (wider.modality_ids(inputs) > 0)[0]
    (kind,) = ZOO[name].modalities
    tolerance = 1e-6 if name == "paligemma2" else 1e-9  # generate() counts its positions from 1: other float32 angles
    for j, step in enumerate(output.steps[0]):
        said = output.sequences[0, inputs["input_ids"].shape[1] :][: j + 1].tolist()
        for token, spelled, logit, phi in step.candidates:
            relevance = attribute_generated(
                wider, inputs, [*said[:-1], token], composite=COMPOSITES[composite], last_only=True
            )[0]
            want = float(relevance.scores[: len(media_mask)][media_mask].sum())
            assert phi == pytest.approx(want, abs=tolerance)
            assert logit == pytest.approx(relevance.logit, abs=tolerance)
            assert spelled == f"<{token}>"
            if token == step.token:
                share = abs(want) / (abs(want) + abs(relevance.logit - want))
                assert step.contributions == pytest.approx({kind: share, "text": 1 - share}, abs=tolerance)
        assert step.candidates[0][0] == step.token


def test_no_backward_pass(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a backward pass")

    monkeypatch.setattr(torch.autograd, "grad", refuse)
    forwards: list[int] = []
    handle = adapter.decoder.register_forward_pre_hook(
        lambda _, args, kwargs: forwards.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    inputs = llava_inputs(adapter.model)
    run(
        adapter, inputs, meter(), 1, return_cache=False
    )  # the capture stops at the decoder's door; the twins are checked once
    forwards.clear()
    run(adapter, inputs, meter(), 4, return_cache=False)
    handle.remove()
    assert forwards[-4:] == [inputs["input_ids"].shape[1], 1, 1, 1] and len(forwards) <= 5


def test_a_film_with_its_sound_has_shares_of_each() -> None:
    """Two modalities in one prompt: the parts are each one's own, and sum to Phi_M."""
    wider = wide("qwen2_5_omni_thinker")
    inputs = ZOO["qwen2_5_omni_thinker"].inputs(wider.model)
    where = wider.modality_ids(inputs)[0]
    present = {limelight.types.MODALITIES[int(k)]: int(k) for k in where.unique() if k}
    assert len(present) > 1
    for strategy in (meter(), relevance_contrastive(alpha=0.0), lime_cached(lr=1e-30, objective="difference")):
        output = run(wider, inputs, strategy, 2)
        for j, step in enumerate(output.steps[0]):
            said = output.sequences[0, inputs["input_ids"].shape[1] :][: j + 1].tolist()
            relevance = attribute_generated(wider, inputs, said, last_only=True)[0]
            parts = {k: float(relevance.scores[: len(where)][where == v].sum()) for k, v in present.items()}
            total = sum(map(abs, parts.values())) + abs(relevance.logit - sum(parts.values()))
            want = {k: abs(v) / total for k, v in parts.items()}
            assert step.contributions == pytest.approx({**want, "text": 1 - sum(want.values())}, abs=1e-7)


def test_with_another_strategy(adapter: Adapter) -> None:
    """Its tokens, its interventions; the unchanged model's shares and candidates for the words it said."""
    inputs = llava_inputs(adapter.model)
    inner = lime(lr=5e-2, steps=3, objective="margin")
    alone, beside = run(adapter, inputs, inner), run(adapter, inputs, meter(inner))
    assert torch.equal(alone.sequences, beside.sequences)
    for a, b, logits in zip(alone.steps[0], beside.steps[0], alone.logits, strict=True):
        assert (a.token, a.intervened, a.losses) == (b.token, b.intervened, b.losses)
        assert not a.candidates and len(b.candidates) == 5
        assert logits.shape == beside.logits[0].shape
    for j, step in enumerate(beside.steps[0]):
        ids = beside.sequences[:, : inputs["input_ids"].shape[1] + j]
        longer = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        own = run(adapter, longer, meter(), 1).steps[0][0]
        assert step.plain == own.token
        assert [c[0] for c in step.candidates] == [c[0] for c in own.candidates]
        media_mask = (adapter.modality_ids(inputs) > 0)[0]
        said = beside.sequences[0, inputs["input_ids"].shape[1] :][: j + 1].tolist()
        relevance = attribute_generated(adapter, inputs, said, last_only=True)[0]
        phi = float(relevance.scores[: len(media_mask)][media_mask].sum())
        share = abs(phi) / (abs(phi) + abs(relevance.logit - phi))
        assert step.contributions["image"] == pytest.approx(share, abs=1e-9)


class Stubborn:
    """Says one token and tells nothing."""

    name = "stubborn"

    def settings(self) -> dict[str, Any]:
        return {}

    def session(self, context: GenerationContext) -> Any:
        return self

    def next(self, tokens: Tensor | None) -> StepOutput:
        logits = torch.zeros(1, 128)
        logits[0, 17] = 9.0
        return StepOutput(logits)


def test_with_a_strategy_without_details(adapter: Adapter) -> None:
    output = run(adapter, llava_inputs(adapter.model), meter(Stubborn()), 2)
    own = run(adapter, llava_inputs(adapter.model), meter(), 1).steps[0][0]
    first = output.steps[0][0]
    assert [s.token for s in output.steps[0]] == [17, 17]
    assert first.plain == own.token != 17
    assert first.candidates == own.candidates and set(first.contributions) == {"image", "text"}


def test_shares_of_the_strategys_own_stay(adapter: Adapter) -> None:
    inputs = llava_inputs(adapter.model)
    alone = run(adapter, inputs, lime(steps=2), 2, details=True)
    beside = run(adapter, inputs, meter(lime(steps=2)), 2, details=True)
    for a, b in zip(alone.steps[0], beside.steps[0], strict=True):
        assert b.relevance is not None and a.shares == pytest.approx(dict(b.shares)) and b.candidates


class Spell:
    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(f"{int(i)} " for i in ids)


def test_steps_come_as_tokens_are_chosen(adapter: Adapter) -> None:
    """Streaming: each word's numbers are there when the word is."""
    inputs = llava_inputs(adapter.model)
    seen: list[Any] = []
    streamer = TextIteratorStreamer(Spell(), skip_prompt=True, timeout=120.0)
    words: list[str] = []
    had: list[int] = []

    class Watching:
        def put(self, value: Tensor) -> None:
            had.append(len(seen))
            streamer.put(value)

        def end(self) -> None:
            streamer.end()

        next_tokens_are_prompt = True

    fn = custom_generate(meter(), streamer=Watching(), on_step=lambda row, step: seen.append((row, step)))
    thread = threading.Thread(
        target=adapter.model.generate,
        kwargs={**inputs, "custom_generate": fn, "max_new_tokens": 4, "do_sample": False},
    )
    thread.start()
    words = list(streamer)
    thread.join(200)
    assert "".join(words).split() == [str(step.token) for _, step in seen]
    assert had == [0, 1, 2, 3, 4]
    assert all(step.contributions for _, step in seen)


def test_generate_takes_a_meter_and_an_answer_carries_it() -> None:
    given = built("llava_gqa")
    inputs = ZOO["llava_gqa"].inputs(given.model)
    prompt = limelight.types.Prompt(inputs, given.words(inputs), given.spans(inputs))
    answer = limelight.generate(given, messages=prompt, strategy=meter(), max_new_tokens=3)
    assert len(answer.steps) == 3 and all(set(s.contributions) == {"image", "text"} for s in answer.steps)
    assert answer.strategy == "meter"


def test_which_meter_is_meant() -> None:
    assert meter() == Meter("attnlrp") == meter(greedy())
    assert meter(composite="cp-lrp") == Meter("cp-lrp") == meter(greedy(), composite="cp-lrp")
    for carrier in (lime_cached(), relevance_contrastive(composite="cp-lrp"), Meter("cp-lrp")):
        assert meter(carrier) is carrier
    assert meter(lime()) == Metered(lime(), "attnlrp")
    assert meter(lime(), composite="cp-lrp").settings() == {**lime().settings(), "meter": "cp-lrp"}
    assert meter(lime()).name == "lime"
    assert Meter("cp-lrp").settings() == {"composite": "cp-lrp"}


def test_settings_that_cannot_be() -> None:
    for make in (
        lambda: Meter("gradient-input"),
        lambda: Metered(lime(), "gradient-input"),
        lambda: meter(composite="x"),
    ):
        with pytest.raises(SettingError, match="no forward mode") as caught:
            make()
        assert caught.value.hint
    for carrier in (lime_cached(), relevance_contrastive(), Meter()):
        with pytest.raises(SettingError, match="was requested") as caught:
            meter(carrier, composite="cp-lrp")
        assert "composite='cp-lrp'" in caught.value.hint
