"""A strategy kept back until the thinking part is over."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import limelight
from limelight.decoding.after import After, after, ending_with, extended
from limelight.decoding.loop import GroundedOutput, custom_generate
from limelight.decoding.registry import strategies
from limelight.decoding.strategy import GenerationContext
from limelight.errors import SettingError, UnsupportedError
from limelight.models.adapter import Adapter
from limelight.models.inputs.axes import following
from tests.decoding.loops import FAMILIES, batch_of, inputs_of
from tests.tiny import built, llava, llava_inputs, tokenizer
from tests.zoo import ZOO

SETTINGS: dict[str, dict[str, Any]] = {
    "lime": {"steps": 3, "lr": 1e-2}, "lime-cached": {"lr": 1e-2}, "pai": {"start": 0}, "icd": {},
    "memvr": {"start": -1, "stop": 1, "threshold": 0.0}, "opera": {"beams": 2, "candidates": 2}, "aad": {},
}  # fmt: skip
TOKENS = 5


def decoded(model: Any, inputs: dict[str, Tensor], strategy: Any, n: int = TOKENS, **bound: Any) -> GroundedOutput:
    fn = custom_generate(strategy, tensors=inputs, **bound)
    out: GroundedOutput = model.generate(
        **inputs, custom_generate=fn, max_new_tokens=n, do_sample=False, return_dict_in_generate=True, output_logits=True,
        disable_compile=True,
    )  # fmt: skip
    return out


def logits(out: GroundedOutput) -> Tensor:
    """[tokens, B, V]."""
    return torch.stack(out.logits)  # type: ignore[arg-type]


def read(inputs: dict[str, Tensor], said: Tensor) -> dict[str, Tensor]:
    """The prompt as if ``said`` [B, n] had been part of it (LLaVA: nothing else counts positions)."""
    ids = torch.cat([inputs["input_ids"], said], dim=1)
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, said.shape[1]), value=1)
    return {**inputs, "input_ids": ids, "attention_mask": mask}


def thoughts(model: Any, inputs: dict[str, Tensor], n: int = TOKENS) -> Tensor:
    return decoded(model, inputs, limelight.greedy(), n).sequences[:, inputs["input_ids"].shape[1] :]


# those need a processor, sound, or the original media
OFFERED = sorted(set(strategies()) - {"icd", "aad", "reconsider", "look-again"})


@pytest.mark.parametrize("name", OFFERED)
def test_plain_until_the_marker_then_the_strategy_on_prompt_and_thoughts(name: str) -> None:
    model = llava(torch.float32)
    inputs = llava_inputs(model)
    plain = logits(decoded(model, inputs, limelight.greedy()))
    said = thoughts(model, inputs)
    marker = int(said[0, 1])
    assert marker not in said[0, :1].tolist()
    strategy = limelight.strategy(name, **SETTINGS.get(name, {}))
    got = decoded(model, inputs, after(marker, strategy))
    torch.testing.assert_close(logits(got)[:2], plain[:2])
    want = decoded(model, read(inputs, said[:, :2]), strategy, TOKENS - 2)
    torch.testing.assert_close(logits(got)[2:], logits(want), atol=1e-4, rtol=1e-4)
    steps, theirs = got.steps[0], want.steps[0]  # type: ignore[index]
    assert [s.token for s in steps[2:]] == [s.token for s in theirs]
    assert not any(s.intervened for s in steps[:2])
    assert [s.intervened for s in steps[2:]] == [s.intervened for s in theirs]
    assert [s.contributions for s in steps[2:]] == [pytest.approx(s.contributions, abs=1e-4) for s in theirs]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_continues_unchanged_before_the_marker(name: str) -> None:
    """The second session starts on prompt and thoughts: positions, types and masks must go on as the model's do."""
    adapter = built(name)
    inputs = batch_of(adapter, name)
    plain = decoded(adapter.model, inputs, limelight.greedy())
    said = plain.sequences[:, inputs["input_ids"].shape[1] :]
    marker = int(said[0, 1])
    if name == "paligemma2":
        with pytest.raises(UnsupportedError, match="bidirectionally"):
            decoded(adapter.model, inputs, after(marker, limelight.greedy()))
        return
    for inner in (limelight.greedy(), limelight.relevance_contrastive(alpha=0.0)):
        got = decoded(adapter.model, inputs, after(marker, inner))
        torch.testing.assert_close(logits(got), logits(plain), atol=2e-4, rtol=2e-4)


def test_rows_pass_the_marker_each_in_its_own_time() -> None:
    model = llava(torch.float32)
    one, two = llava_inputs(model, 1), llava_inputs(model, 7)
    two["input_ids"] = two["input_ids"].clone()
    two["input_ids"][0, -1] = 47
    both = {k: torch.cat([one[k], two[k]]) for k in one}
    said = thoughts(model, both)
    marker = int(said[0, 0])
    places = (said[1] == marker).nonzero()[:, 0].tolist()
    strategy = after(marker, limelight.lime_cached(lr=3e-2))
    got = decoded(model, both, strategy, details=True)
    for row, inputs in enumerate((one, two)):
        alone = decoded(model, inputs, strategy, details=True)
        torch.testing.assert_close(logits(got)[:, row], logits(alone)[:, 0], atol=1e-4, rtol=1e-4)
    opened = [[s.intervened for s in steps] for steps in got.steps]  # type: ignore[union-attr]
    assert opened[0] == [False, True, True, True, True]
    assert opened[1] != opened[0] or places[:1] == [0]
    assert all(s.shares for steps in got.steps for s in steps)  # type: ignore[union-attr]


def test_no_marker_no_intervention_and_no_second_session() -> None:
    model = llava(torch.float32)
    inputs = llava_inputs(model)

    class Never:
        name = "never"

        def settings(self) -> dict[str, Any]:
            return {}

        def session(self, context: GenerationContext) -> Any:
            raise AssertionError("opened")

    got = decoded(model, inputs, after(127, Never()))
    assert 127 not in thoughts(model, inputs)
    assert torch.equal(logits(got), logits(decoded(model, inputs, limelight.greedy())))


def test_a_prompt_that_ends_with_the_marker_has_been_thought() -> None:
    model = llava(torch.float32)
    inputs = llava_inputs(model)
    strategy = limelight.lime_cached(lr=1e-2)
    want = logits(decoded(model, inputs, strategy))
    assert torch.equal(logits(decoded(model, inputs, after(43, strategy))), want)
    words = type("Processor", (), {"tokenizer": tokenizer()})()
    assert torch.equal(logits(decoded(model, inputs, after("w43", strategy), processor=words)), want)
    elsewhere = after(31, strategy)  # in the prompt, but not at its end
    assert not torch.equal(logits(decoded(model, inputs, elsewhere))[0], want[0])


class Letters:
    """Decodes ids to letters: a marker may be spread over several tokens, or share one with other words."""

    pieces = ("<", "/thi", "nk>", "nk>\n\nYes", " ", "\n", "no", "</think>")

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(self.pieces[i] for i in ids)


@pytest.mark.parametrize(
    ("ids", "loose", "ends"),
    [
        ([0, 1, 2], False, True), ([0, 1], False, False), ([0, 1, 3], False, True), ([0, 1, 2, 4], False, False),
        ([6, 6, 7], False, True), ([7, 6, 7], False, True), ([7, 6], False, False), ([], False, False),
        ([6, 7, 5, 5], True, True), ([7, 6], True, False), ([6], True, False),
    ],
)  # fmt: skip
def test_a_marker_of_text(ids: list[int], loose: bool, ends: bool) -> None:
    assert ending_with("</think>", Letters())(ids, loose) is ends


def test_a_marker_of_an_id() -> None:
    for words in (None, Letters()):
        ends = ending_with(7, words)
        assert ends([6, 7], False)
        assert ends([6, 7], True)
        assert not ends([7, 6], False)
        assert not ends([7, 6], True)
        assert not ends([], True)
    assert ending_with(7, Letters())([7, 5, 4], True)


def test_by_name_with_settings_and_back() -> None:
    for name in strategies():
        settings = SETTINGS.get(name, {})
        made = limelight.strategy(name, after="</think>", **settings)
        assert isinstance(made, After)
        assert made.name == name
        assert made.settings() == {**limelight.strategy(name, **settings).settings(), "after": "</think>"}
        assert limelight.strategy(made.name, **made.settings()) == made
    assert limelight.after("</think>", limelight.lime()) == limelight.strategy("lime", after="</think>")
    assert limelight.strategy("lime", after=None) == limelight.lime()


@pytest.mark.parametrize("wrong", ["", "  ", -1, True, 1.5])
def test_markers_that_are_none(wrong: Any) -> None:
    with pytest.raises(SettingError, match="after") as caught:
        limelight.strategy("lime", after=wrong)
    assert caught.value.hint


def test_a_text_needs_the_tokenizer() -> None:
    model = llava(torch.float32)
    with pytest.raises(SettingError, match="tokenizer"):
        decoded(model, llava_inputs(model), after("</think>", limelight.lime()))


def test_the_meter_runs_from_the_start_with_a_strategy_after_a_marker() -> None:
    model = llava(torch.float32)
    inputs = llava_inputs(model)
    marker = int(thoughts(model, inputs)[0, 1])
    out = decoded(model, inputs, limelight.meter(after(marker, limelight.lime_cached(lr=1e-2))))
    steps = out.steps[0]  # type: ignore[index]
    assert all(s.contributions and s.candidates for s in steps)
    assert [s.intervened for s in steps] == [False, False, True, True, True]


def test_positions_go_on_by_the_rule_of_single_words() -> None:
    """As many words as you like at once, or one after another."""
    adapter = built("qwen2_5_vl")
    inputs = ZOO["qwen2_5_vl"].inputs(adapter.model)
    call = adapter.capture({k: v[:, :12] if v.shape[-1] == 18 else v for k, v in inputs.items()})  # ends in a picture
    want = call.kwargs["position_ids"]
    ids, kinds = inputs["input_ids"][:, :12], torch.zeros(1, 12, dtype=torch.long)
    context = GenerationContext(adapter, ids, {"position_ids": want}, kinds, kinds.bool(), None)  # type: ignore[arg-type]
    for _ in range(3):
        want = torch.cat([want, following(want[..., -1:])], dim=-1)
    assert torch.equal(extended(context, [[9, 10, 11]]).kwargs["position_ids"], want)


def test_inputs_that_cannot_be_extended() -> None:
    adapter = Adapter(llava(torch.float32))
    inputs = inputs_of(adapter, "llava")
    ids = inputs["input_ids"]
    zeros = torch.zeros_like(ids)
    context = GenerationContext(adapter, ids, {"odd_ids": zeros}, zeros, zeros.bool(), None)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="odd_ids"):
        extended(context, [[1, 2]])
    several = GenerationContext(adapter, ids.repeat(2, 1), {}, zeros, zeros.bool(), None, tensors=inputs)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="got 2 rows for 1 prompts"):
        extended(several, [[1], [2]])
