"""Logits processors that keep state: once per emitted token, in every strategy, with plain generate's answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    SynthIDTextWatermarkingConfig,
    WatermarkingConfig,
)
from transformers.generation import logits_process

import limelight
from limelight.decoding import processors
from limelight.decoding.processors import stateless
from limelight.decoding.registry import strategies
from limelight.decoding.sampler import TokenSampler
from limelight.errors import UnsupportedError
from tests.decoding.loops import inputs_of, run
from tests.decoding.test_continuing import MORE, made, same
from tests.decoding.test_continuing import inputs_of as rows_of
from tests.tiny import built

SYNTH = SynthIDTextWatermarkingConfig(
    keys=[654, 400, 836], ngram_len=3, sampling_table_size=64, context_history_size=16
)
STATEFUL: dict[str, dict[str, Any]] = {
    "guidance": {"guidance_scale": 1.7},
    "guidance without a cache": {"guidance_scale": 1.7, "negative_prompt_ids": torch.tensor([[60, 61, 62]])},
    "synthid": {"watermarking_config": SYNTH},
    "watermark": {"watermarking_config": WatermarkingConfig(bias=4.0)},
    "selfhash": {"watermarking_config": WatermarkingConfig(bias=4.0, seeding_scheme="selfhash")},
}


class Counter(LogitsProcessor):
    """Keeps what it was called with, and turns the argmax away from the token that was best the last time."""

    def __init__(self) -> None:
        self.seen: list[list[list[int]]] = []
        self.before: Tensor | None = None

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        self.seen.append(ids.tolist())
        if self.before is not None:
            scores = scores.scatter(1, self.before[:, None], float("-inf"))
        self.before = scores.argmax(-1)
        return scores


SEARCHES = ("lrp-beam", "opera", "reconsider")  # they find the whole answer before the first token


def strategy_of(name: str) -> Any:
    return limelight.strategy(name, **MORE.get(name, {}))


@pytest.mark.parametrize("name", sorted(set(strategies()) - {"look-again"}))  # it needs the original media
def test_a_processor_of_ones_own_is_called_once_per_emitted_token(name: str) -> None:
    audio = name == "aad"
    family = "qwen2_audio" if audio else "llava"
    adapter = built(family)
    chosen = limelight.strategy("aad", silence=-1.5) if audio else strategy_of(name)
    for rows in (1, 2):
        counter = Counter()
        inputs = rows_of(family, adapter, rows)
        given = {"logits_processor": LogitsProcessorList([counter])}
        if name in SEARCHES:  # their search would have to call it for every hypothesis
            with pytest.raises(UnsupportedError, match="Counter") as caught:
                made(adapter, inputs, chosen, {"tensors": inputs}, **given)
            assert "stateless" in str(caught.value.hint)
            continue
        out = made(adapter, inputs, chosen, {"tensors": inputs}, **given)
        length = inputs["input_ids"].shape[1]
        assert counter.seen == [out.sequences[:, : length + i].tolist() for i in range(4)]
        after = made(adapter, inputs, limelight.after(66, chosen), {"tensors": inputs}, **given)
        assert len(counter.seen) == 8 and after.sequences.shape == out.sequences.shape


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen2_audio"])
@pytest.mark.parametrize("settings", STATEFUL.values(), ids=STATEFUL)
def test_stateful_processors_give_plain_generates_tokens(settings: dict[str, Any], name: str, rows: int) -> None:
    adapter = built(name)
    inputs = rows_of(name, adapter, rows)
    given = {k: v.repeat(rows, 1) if isinstance(v, Tensor) else v for k, v in settings.items()}
    more = {"output_scores": True, "max_new_tokens": 6, **given}
    if "guidance_scale" in settings and name == "qwen2_5_vl":  # transformers' own does not work on this family
        with pytest.raises(RuntimeError):
            made(adapter, inputs, **more)
        for strategy in (limelight.greedy(), limelight.lime(steps=2)):
            with pytest.raises(UnsupportedError, match="guidance_scale"):
                made(adapter, inputs, strategy, **more)
        return
    want = made(adapter, inputs, **more)
    for strategy in (
        limelight.greedy(),
        limelight.meter(),
        limelight.lime(steps=1),
        limelight.after(66, limelight.meter()),
    ):
        got = made(adapter, inputs, strategy, **more)
        same(got, want)
        for a, b in zip(got.scores, want.scores, strict=True):
            torch.testing.assert_close(a, b, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("settings", STATEFUL.values(), ids=STATEFUL)
@pytest.mark.parametrize("strategy", ["lime", "lime-cached", "relevance-contrastive", "vcd", "dola"])
def test_stateful_processors_act_once_on_what_a_strategy_emits(settings: dict[str, Any], strategy: str) -> None:
    """The emitted tokens are those of new processors on the raw logits that the strategy gave, one token after the
    other."""
    adapter = built("llava")
    inputs = inputs_of(adapter)
    out = made(adapter, inputs, strategy_of(strategy), {"tensors": inputs}, output_scores=True, **settings)
    config = adapter.model._prepare_generation_config(None, **{k: v for k, v in settings.items() if "ids" not in k})[0]
    adapter.model._prepare_special_tokens(config)
    again = adapter.model._get_logits_processor(
        config, inputs["input_ids"].shape[1], inputs["input_ids"], None, [], "cpu", {},
        negative_prompt_ids=settings.get("negative_prompt_ids"),
    )  # fmt: skip
    length = inputs["input_ids"].shape[1]
    for i, (raw, scores) in enumerate(zip(out.logits, out.scores, strict=True)):
        with torch.no_grad():
            want = again(out.sequences[:, : length + i], raw.clone())
        torch.testing.assert_close(scores, want, atol=1e-5, rtol=1e-5)
        assert int(out.sequences[0, length + i]) == int(want.argmax())


@pytest.mark.parametrize("strategy", ["lime", "lime-cached"])
def test_limes_target_is_the_guided_token(strategy: str) -> None:
    """With guidance the target of the updates is what would be emitted, not the unguided favourite."""
    adapter = built("llava")
    inputs = inputs_of(adapter)
    ids = inputs["input_ids"]
    sampler = TokenSampler([guidance(adapter.model)], sample=False)
    with torch.no_grad():
        raw = adapter.model(**inputs).logits[:, -1].float()
        preview = sampler.preview(ids)
        first, second = preview(raw), preview(raw)
        final = sampler.scores(ids, raw)
        plain = guidance(adapter.model)(ids, raw.clone())
    assert torch.equal(first, second) and torch.equal(first, final) and torch.equal(final, plain)
    assert not torch.allclose(final.softmax(-1), raw.softmax(-1))
    made(adapter, inputs, strategy_of(strategy))  # forward mode is checked once per model
    forwards: list[int] = []
    handle = adapter.decoder.register_forward_pre_hook(lambda *_: forwards.append(1))
    made(adapter, inputs, strategy_of(strategy))
    without = len(forwards)
    forwards.clear()
    made(adapter, inputs, strategy_of(strategy), guidance_scale=1.7)
    handle.remove()
    assert len(forwards) == without + 4  # one unconditional forward per emitted token


def guidance(model: Any) -> Any:
    return logits_process.UnbatchedClassifierFreeGuidanceLogitsProcessor(1.7, model)


def test_previews_within_a_step_have_no_side_effects() -> None:
    config = SYNTH
    used, fresh = (config.construct_processor(128, "cpu") for _ in range(2))
    ids, logits = torch.tensor([[5, 6, 7]]), torch.randn(1, 128, generator=torch.Generator().manual_seed(0))
    for step in range(4):
        preview = processors.preview([used], ids)
        seen = [preview(logits) for _ in range(3)]
        want = fresh(ids, logits.clone())
        assert all(torch.equal(s, want) for s in seen), step
        assert torch.equal(used(ids, logits.clone()), want)
        ids = torch.cat([ids, want.argmax(-1, keepdim=True)], dim=1)


@pytest.mark.parametrize("settings", ["guidance", "synthid"])
def test_opera_refuses_what_keeps_state(settings: str) -> None:
    adapter = built("llava")
    with pytest.raises(UnsupportedError, match="once per emitted token") as caught:
        made(adapter, inputs_of(adapter), strategy_of("opera"), **STATEFUL[settings])
    assert caught.value.hint


class Bars(LogitsProcessor):
    stateless = True

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        return scores.index_fill(1, torch.tensor(self.tokens), float("-inf"))


def test_opera_accepts_custom_processors_declared_stateless() -> None:
    adapter = built("llava")
    inputs = inputs_of(adapter)
    free = made(adapter, inputs, strategy_of("opera"))
    first = int(free.sequences[0, -4])
    given = {"logits_processor": LogitsProcessorList([Bars([first])])}
    barred = made(adapter, inputs, strategy_of("opera"), **given)
    builtin = made(adapter, inputs, strategy_of("opera"), bad_words_ids=[[first]])
    assert first not in barred.sequences[0, -4:].tolist()
    assert torch.equal(barred.sequences, builtin.sequences)


PENALTIES: dict[str, dict[str, Any]] = {
    "repetition": {"repetition_penalty": 1.8},
    "encoder repetition": {"encoder_repetition_penalty": 2.5},
    "both": {"encoder_repetition_penalty": 0.4, "repetition_penalty": 1.3},
    "ngrams": {"no_repeat_ngram_size": 1},
    "encoder ngrams": {"encoder_no_repeat_ngram_size": 1},
    "decay": {"exponential_decay_length_penalty": (1, 1.5), "eos_token_id": 66, "pad_token_id": 0},
    "normalised": {"renormalize_logits": True, "remove_invalid_values": True, "suppress_tokens": list(range(40))},
    "shortest": {"min_new_tokens": 3, "eos_token_id": list(range(60)), "pad_token_id": 0},
    "watermark": {"watermarking_config": WatermarkingConfig(bias=6.0)},
}


# every penalty where rows are handled differently, every strategy with two penalties at once
ROWS = [
    (strategy, name)
    for strategy in sorted(set(strategies()) - {"aad", "reconsider", "look-again"})
    for name in PENALTIES
    if name == "both" or strategy in ("greedy", "lime-cached", "opera", "vcd")
]


@pytest.mark.parametrize(("strategy", "penalty"), ROWS)
def test_penalties_in_a_batch_are_those_of_each_row_alone(strategy: str, penalty: str) -> None:
    """What a processor holds for a row (its padding, its prompt) stays with it, in opera's beams too."""
    settings = PENALTIES[penalty]
    adapter = built("llava")
    chosen = strategy_of(strategy)
    tiny = inputs_of(adapter)
    batch = rows_of("llava", adapter, 2)
    both = made(adapter, batch, chosen, {"tensors": batch}, **settings)
    row = made(adapter, tiny, chosen, {"tensors": tiny}, **settings)
    length, n = batch["input_ids"].shape[1], row.sequences.shape[1] - tiny["input_ids"].shape[1]
    assert both.sequences[0, length : length + n].tolist() == row.sequences[0, -n:].tolist()
    from tests.zoo import ZOO

    other = ZOO["llava"].inputs(adapter.model, row=1)
    second = made(adapter, other, chosen, {"tensors": other}, **settings)
    n = second.sequences.shape[1] - other["input_ids"].shape[1]
    assert both.sequences[1, length : length + n].tolist() == second.sequences[0, -n:].tolist()
    if strategy == "greedy":
        assert torch.equal(both.sequences, made(adapter, batch, **settings).sequences)


@pytest.mark.parametrize("strategy", ["greedy", "opera", "lime", "lime-cached", "vcd"])
def test_the_prefix_function_gets_the_current_row(strategy: str) -> None:
    adapter = built("llava")
    batch = rows_of("llava", adapter, 2)
    allowed = {0: [70, 71, 72], 1: [80, 81, 82]}
    asked: list[tuple[int, list[int]]] = []

    def prefix(row: int, ids: Tensor) -> list[int]:
        asked.append((row, ids[: batch["input_ids"].shape[1]].tolist()))
        return allowed[row]

    out = made(adapter, batch, strategy_of(strategy), {"tensors": batch}, prefix_allowed_tokens_fn=prefix)
    for row in (0, 1):
        assert set(out.sequences[row, -4:].tolist()) <= set(allowed[row])
    if strategy != "opera":  # opera's hypotheses of a row stand in every place of a batch, and its own is read
        assert all(ids == batch["input_ids"][row].tolist() for row, ids in asked)
    if strategy == "greedy":
        assert torch.equal(out.sequences, made(adapter, batch, prefix_allowed_tokens_fn=prefix).sequences)


def test_the_prefix_function_and_several_answers() -> None:
    """transformers counts the rows that it decodes: three answers to one prompt are rows 0, 1 and 2."""
    adapter = built("llava")
    inputs = inputs_of(adapter)
    given = {"prefix_allowed_tokens_fn": lambda row, ids: [70 + row], "num_return_sequences": 3, "do_sample": True}
    want = made(adapter, inputs, **given)
    for strategy in ("greedy", "lime", "meter"):
        got = made(adapter, inputs, strategy_of(strategy), **given)
        assert torch.equal(got.sequences, want.sequences)
        assert [row[-1] for row in got.sequences.tolist()] == [70, 71, 72]


@pytest.mark.parametrize("name", sorted(set(strategies()) - {"aad", "reconsider", "look-again"}))
def test_stopping_criteria_of_ones_own_see_each_emitted_token_once(name: str) -> None:
    adapter = built("llava")
    batch = rows_of("llava", adapter, 2)
    seen: list[list[int]] = []

    class Rows(StoppingCriteria):
        """One answer a row: the first stops after two tokens, the second after three."""

        def __call__(self, ids: Tensor, scores: Any, **_: Any) -> Tensor:
            seen.append(list(ids.shape))
            count = ids.shape[1] - batch["input_ids"].shape[1]
            return torch.tensor([count >= 2, count >= 3])

    given = {"stopping_criteria": StoppingCriteriaList([Rows()]), "eos_token_id": 127, "pad_token_id": 0}
    out = made(adapter, batch, strategy_of(name), {"tensors": batch}, **given)
    length = batch["input_ids"].shape[1]
    assert seen == [[2, length + i] for i in (1, 2, 3)]
    assert [len(s) for s in out.steps] == [2, 3]
    assert out.sequences[0, -1] == 0


def test_which_processors_of_transformers_keep_state() -> None:
    """A new class in transformers counts as one that keeps state until somebody has read it."""
    found = {
        n
        for n in vars(logits_process)
        if isinstance(getattr(logits_process, n), type) and issubclass(getattr(logits_process, n), LogitsProcessor)
    }
    known = {t.__name__ for t in processors._STATELESS}
    assert known <= found and len(known) == len(processors._NAMES)
    assert not stateless(guidance(None)) and not stateless(SYNTH.construct_processor(64, "cpu"))

    class Mine(logits_process.TopKLogitsWarper):
        """A subclass may do anything."""

    assert stateless(logits_process.TopKLogitsWarper(3)) and not stateless(Mine(3))


def test_scores_of_a_run_are_untouched_by_a_processor_in_place() -> None:
    class InPlace(LogitsProcessor):
        def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
            return scores.mul_(0).index_fill_(1, torch.tensor([7]), 1.0)

    adapter = built("llava")
    keep = {"return_dict_in_generate": True, "output_logits": True}
    free = run(adapter, limelight.greedy(), **keep)
    out = run(adapter, limelight.greedy(), logits_processor=LogitsProcessorList([InPlace()]), **keep)
    assert torch.equal(out.logits[0], free.logits[0]) and out.sequences[0, -4:].tolist() == [7] * 4
