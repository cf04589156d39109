"""Every option of transformers' generate is honoured or refused, never dropped."""

from __future__ import annotations

import contextlib
import itertools
import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CompileConfig, GenerationConfig, TextIteratorStreamer
from transformers.generation import stopping_criteria

import limelight
from limelight.decoding import generation_options as options
from limelight.decoding.loop import custom_generate
from limelight.decoding.methods.opera_search import Beam, Search, SearchSettings
from limelight.decoding.sampler import TokenSampler
from limelight.decoding.strategy import GenerationContext
from limelight.errors import PromptError, SettingError, UnsupportedError
from limelight.types import Prompt
from tests.decoding.test_continuing import MORE, inputs_of, made, same, strategy_of
from tests.decoding.test_loop_failures import Sink
from tests.tiny import built, fresh, tokenizer, vision_processor

REFUSED: dict[str, Any] = {
    "penalty_alpha": 0.6,
    "dola_layers": "low",
    "force_words_ids": [[7]],
    "constraints": [object()],
    "prompt_lookup_num_tokens": 3,
    "assistant_early_exit": 1,
    "use_mtp": True,
    "is_assistant": True,
    "token_healing": True,
    "compile_config": CompileConfig(),
    "output_attentions": True,
    "output_hidden_states": True,
}


def prompt_of(adapter: Any, name: str = "llava") -> Prompt:
    inputs = inputs_of(name, adapter)
    return Prompt(inputs, adapter.words(inputs), adapter.spans(inputs))


def test_somebody_has_decided_on_every_field_of_the_installed_release() -> None:
    fields = set(GenerationConfig().to_dict()) | set(vars(GenerationConfig()))
    assert not fields - set(options.FIELDS), (
        "decide: honour, refuse, or idle? See limelight.decoding.generation_options"
    )
    refused = {n for n, what in options.FIELDS.items() if what == options.REFUSED}
    assert refused == set(REFUSED) == set(options._INSTEAD)


@pytest.mark.parametrize("field", REFUSED)
def test_other_modes_are_refused_wherever_they_are_set(field: str) -> None:
    adapter = fresh("llava")
    model, inputs = adapter.model, inputs_of("llava", adapter)
    errors: Any = (UnsupportedError, ValueError) if field == "token_healing" else UnsupportedError  # generate's own
    common: dict[str, Any] = {"max_new_tokens": 3, "return_dict_in_generate": True, "pad_token_id": 0}
    for strategy in ("greedy", "lime", "vcd"):
        fn = custom_generate(strategy_of(strategy), tensors=inputs)
        with pytest.raises(errors, match="token" if field == "token_healing" else field) as caught:
            model.generate(**inputs, custom_generate=fn, **common, **{field: REFUSED[field]})
        assert field == "token_healing" or getattr(caught.value, "hint", None)
    with pytest.raises(errors):
        given = GenerationConfig(**common, **{field: REFUSED[field]})
        model.generate(**inputs, custom_generate=custom_generate(limelight.greedy()), generation_config=given)
    for ask in (
        lambda **more: limelight.generate(adapter, None, prompt_of(adapter), **more),
        lambda **more: limelight.generate_many(adapter, None, [prompt_of(adapter)], **more),
    ):
        with pytest.raises(UnsupportedError, match=field):
            ask(**{field: REFUSED[field]}, max_new_tokens=2)
        with pytest.raises(UnsupportedError, match=field):
            ask(generation_config=GenerationConfig(**common, **{field: REFUSED[field]}))
        setattr(model.generation_config, field, REFUSED[field])
        try:
            with pytest.raises(UnsupportedError, match=field):
                ask(max_new_tokens=2)
        finally:
            setattr(model.generation_config, field, None)
    made(adapter, inputs, limelight.greedy())


SWALLOWED: dict[str, Any] = {
    "assistant_model": object(), "assistant_tokenizer": object(), "synced_gpus": True, "trust_remote_code": True,
    "custom_generate": "somebody/decoding", "cache_implementation": "paged", "num_return_sequences": 2,
}  # fmt: skip


@pytest.mark.parametrize("name", SWALLOWED)
def test_what_generate_would_swallow_is_refused_where_it_can_be_seen(name: str) -> None:
    adapter = built("llava")
    for ask in (
        lambda **more: limelight.generate(adapter, None, prompt_of(adapter), **more),
        lambda **more: limelight.generate_many(adapter, None, [prompt_of(adapter)], **more),
    ):
        with pytest.raises(UnsupportedError) as caught:
            ask(**{name: SWALLOWED[name]})
        assert caught.value.hint


SAMPLED: dict[str, dict[str, Any]] = {
    "top_h": {"top_h": 0.4}, "min_p": {"min_p": 0.2}, "typical_p": {"typical_p": 0.5}, "epsilon": {"epsilon_cutoff": 0.01},
    "eta": {"eta_cutoff": 0.01}, "temperature": {"temperature": 0.3}, "top_p": {"top_p": 0.4}, "top_k": {"top_k": 3},
    "all": {"top_k": 20, "top_p": 0.9, "temperature": 1.4, "repetition_penalty": 1.2, "renormalize_logits": True},
}  # fmt: skip


@pytest.mark.parametrize("settings", SAMPLED.values(), ids=SAMPLED)
def test_warpers_draw_as_in_generate(settings: dict[str, Any]) -> None:
    adapter = built("llava")
    batch = inputs_of("llava", adapter, 2)
    for strategy in ("greedy", "meter"):
        torch.manual_seed(3)
        want = made(adapter, batch, do_sample=True, **settings)
        torch.manual_seed(3)
        assert torch.equal(
            made(adapter, batch, strategy_of(strategy), do_sample=True, **settings).sequences, want.sequences
        )


LENGTHS: dict[str, dict[str, Any]] = {
    "max_length": {"max_length": 25, "max_new_tokens": None}, "max_time": {"max_time": 0.0},
    "min_length": {"min_length": 25, "eos_token_id": list(range(100)), "pad_token_id": 0},
    "forced_eos": {"forced_eos_token_id": 9}, "begin_suppress": {"begin_suppress_tokens": list(range(90))},
    "sequence_bias": {"sequence_bias": [[[11], 30.0]]},
}  # fmt: skip


@pytest.mark.parametrize("settings", LENGTHS.values(), ids=LENGTHS)
def test_lengths_and_biases(settings: dict[str, Any]) -> None:
    adapter = built("llava")
    batch = inputs_of("llava", adapter, 2)
    want = made(adapter, batch, **settings)
    for strategy in ("greedy", "meter"):
        assert torch.equal(made(adapter, batch, strategy_of(strategy), **settings).sequences, want.sequences)


# use_cache=False, prefill_chunk_size: who honours them
UNCACHED = ("greedy", "lime", "vcd", "icd", "m3id", "dola", "deco", "flb")
CHUNKED = ("greedy", "dola", "deco", "flb")


@pytest.mark.parametrize("strategy", MORE)
def test_no_cache(strategy: str) -> None:
    adapter = built("llava")
    inputs = inputs_of("llava", adapter)
    given = {"use_cache": False, "max_new_tokens": 3}
    if strategy not in UNCACHED:
        with pytest.raises(UnsupportedError, match="use_cache"):
            made(adapter, inputs, strategy_of(strategy), {"tensors": inputs}, **given)
        return
    lengths: list[int] = []
    hook = adapter.decoder.register_forward_pre_hook(
        lambda _, a, k: lengths.append(k["inputs_embeds"].shape[1]), with_kwargs=True
    )
    got = made(adapter, inputs, strategy_of(strategy), {"tensors": inputs}, **given)
    hook.remove()
    same(got, made(adapter, inputs, strategy_of(strategy), {"tensors": inputs}, max_new_tokens=3))
    assert min(lengths) >= inputs["input_ids"].shape[1] - 16 and got.past_key_values is None  # m3id drops the picture
    if strategy == "greedy":
        same(got, made(adapter, inputs, **given), 0)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("strategy", MORE)
def test_a_prefill_in_pieces(strategy: str, name: str) -> None:
    adapter = built(name)
    inputs = inputs_of(name, adapter)
    given = {"prefill_chunk_size": 7}
    if strategy not in CHUNKED:
        with pytest.raises(UnsupportedError, match="prefill_chunk_size"):
            made(adapter, inputs, strategy_of(strategy), {"tensors": inputs}, **given)
        return
    got = made(adapter, inputs, strategy_of(strategy), **given)
    same(got, made(adapter, inputs, strategy_of(strategy)))
    if strategy == "greedy":
        same(got, made(adapter, inputs, **given), 0)


@pytest.mark.parametrize("strategy", ["lime", "meter", "lime-cached", "relevance-contrastive", "opera"])
@pytest.mark.parametrize("kind", ["offloaded", "quantized", "offloaded_static"])
def test_caches_that_a_method_of_its_own_would_ignore(strategy: str, kind: str) -> None:
    adapter = built("llava")
    inputs = inputs_of("llava", adapter)
    context = GenerationContext(  # such caches need a GPU or a package to be prepared
        adapter, inputs["input_ids"], {}, adapter.modality_ids(inputs), inputs["input_ids"] > -1,
        TokenSampler(None, sample=False), GenerationConfig(cache_implementation=kind),
        tensors=inputs,
    )  # fmt: skip
    context.kwargs = {k: v for k, v in inputs.items() if k != "input_ids"}
    with pytest.raises(UnsupportedError, match="cache_implementation"):
        strategy_of(strategy).session(context)


def test_remove_invalid_values() -> None:
    adapter = fresh("llava")
    inputs = inputs_of("llava", adapter)
    with torch.no_grad():
        adapter.head.weight[5] = float("nan")
    want = made(adapter, inputs, remove_invalid_values=True)
    got = made(adapter, inputs, limelight.greedy(), remove_invalid_values=True)
    assert torch.equal(got.sequences, want.sequences)
    with pytest.raises(limelight.errors.NotFiniteError):
        made(adapter, inputs, limelight.greedy())


def test_stop_strings_wherever_they_are_set() -> None:
    adapter = fresh("llava")
    words = tokenizer()
    plain = limelight.generate(adapter, None, prompt_of(adapter), max_new_tokens=4)
    stop = words.decode([plain.token_ids[1]])
    config = GenerationConfig(max_new_tokens=4, do_sample=False, pad_token_id=0, stop_strings=stop)
    ways: list[dict[str, Any]] = [
        {"stop_strings": stop, "tokenizer": words, "max_new_tokens": 4},
        {"generation_config": config, "tokenizer": words},
    ]
    for given in ways:
        assert limelight.generate(adapter, None, prompt_of(adapter), **given).token_ids == plain.token_ids[:2]
        many = limelight.generate_many(adapter, None, [prompt_of(adapter)] * 2, **given)
        assert [m.token_ids for m in many] == [plain.token_ids[:2]] * 2
    adapter.model.generation_config.stop_strings = stop
    again = limelight.generate(adapter, None, prompt_of(adapter), tokenizer=words, max_new_tokens=4)
    assert again.token_ids == plain.token_ids[:2]
    with pytest.raises(SettingError, match="tokenizer"):  # there is none
        limelight.generate(adapter, None, prompt_of(adapter), max_new_tokens=4)
    own = limelight.wrap(adapter.model, vision_processor())
    assert limelight.generate(own, None, prompt_of(own), max_new_tokens=4).token_ids == plain.token_ids[:2]
    assert adapter.model.generation_config.stop_strings == stop


def test_operas_time_limit_ends_the_search_and_not_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = built("llava")
    inputs = inputs_of("llava", adapter)
    clock = itertools.count()
    monkeypatch.setattr(stopping_criteria.time, "time", lambda: float(next(clock)))
    opera = limelight.strategy("opera", beams=2, candidates=2)
    out = made(adapter, inputs, opera, max_new_tokens=12, max_time=3.5)
    said = out.sequences.shape[1] - inputs["input_ids"].shape[1]
    assert 2 <= said <= 5 and len(out.steps[0]) == said


@pytest.mark.parametrize(
    ("early", "live", "penalty", "done"),
    [
        (True, -0.1, 1.0, True),  # enough have ended
        (False, -0.1, 1.0, False),  # -0.1 / 2 is better than the worst of them
        (False, -0.9, 1.0, True),
        ("never", -0.9, 1.0, False),  # with all 6 tokens -0.9 may become -0.15
        ("never", -9.0, 1.0, True),
        ("never", -0.9, -1.0, True),  # longer is worse
    ],
)
def test_operas_early_stopping_is_that_of_transformers(early: Any, live: float, penalty: float, done: bool) -> None:
    adapter = built("llava")
    ids = inputs_of("llava", adapter)["input_ids"]
    search = object.__new__(Search)
    config = GenerationConfig(early_stopping=early, length_penalty=penalty, max_length=ids.shape[1] + 6)
    search.context = GenerationContext(adapter, ids, {}, ids, ids > -1, TokenSampler(None, sample=False), config)
    search.settings = SearchSettings(2, 5, 50.0, 15, 1.0, 10)
    search.beams = [Beam((1, 2), live, torch.zeros(2))]
    search.ended = [(-0.2, search.beams[0]), (-0.3, search.beams[0])]
    assert search._done() is done
    search.ended.pop()
    assert not search._done()


# streamers


def waited(streamer: TextIteratorStreamer, job: Any) -> str:
    """What a consumer in this thread hears, while ``job`` works (or fails) in another."""

    def work() -> None:
        with contextlib.suppress(Exception):  # a thread's failure is nobody's
            job()

    thread = threading.Thread(target=work)
    thread.start()
    text = "".join(streamer)
    thread.join(60)
    return text


@pytest.mark.parametrize(
    "bad", [{"no_such_option": 1}, {"max_length": 3}, {"num_beams": 2}, {"temperature": -1.0}], ids=str
)
def test_a_bound_streamer_ends_even_if_generate_fails_before_decoding(bad: dict[str, Any]) -> None:
    adapter = fresh("llava")
    inputs = inputs_of("llava", adapter)
    given = {"do_sample": True, **bad}
    streamer = TextIteratorStreamer(tokenizer(), skip_prompt=True, timeout=60)
    assert (
        waited(
            streamer,
            lambda: adapter.model.generate(
                **inputs, custom_generate=custom_generate(limelight.greedy(), streamer=streamer), **given
            ),
        )
        == ""
    )


def test_a_method_that_is_used_twice_ends_its_streamer_twice() -> None:
    adapter = built("llava")
    sink = Sink()
    fn = custom_generate(limelight.greedy(), streamer=sink)
    for count in (1, 2):
        adapter.model.generate(**inputs_of("llava", adapter), custom_generate=fn, max_new_tokens=2)
        assert sink.ends == count
    del fn
    assert sink.ends == 2


def test_generate_many_refuses_a_streamer_and_ends_it() -> None:
    adapter = built("llava")
    streamer = TextIteratorStreamer(tokenizer(), skip_prompt=True, timeout=60)
    with pytest.raises(UnsupportedError, match="streamer"):
        limelight.generate_many(adapter, None, [prompt_of(adapter)], streamer=streamer)
    assert "".join(streamer) == ""


@pytest.mark.parametrize("strategy", MORE)
def test_a_streamer_receives_every_strategy_and_ends(strategy: str) -> None:
    adapter = fresh("llava")
    words = tokenizer()
    plain = limelight.generate(adapter, None, prompt_of(adapter), strategy=strategy_of(strategy), max_new_tokens=4)
    streamer = TextIteratorStreamer(words, skip_prompt=True, timeout=60)
    text = waited(
        streamer,
        lambda: limelight.generate(
            adapter, None, prompt_of(adapter), strategy=strategy_of(strategy), max_new_tokens=4, streamer=streamer
        ),
    )
    assert text == words.decode(list(plain.token_ids))


def test_a_prompt_behind_nothing_is_no_cache() -> None:
    adapter = built("llava")
    inputs = inputs_of("llava", adapter)
    cache = made(adapter, inputs).past_key_values
    empty: dict[str, Tensor] = {k: v[:, :0] for k, v in inputs.items() if k in ("input_ids", "attention_mask")}
    with pytest.raises((PromptError, ValueError, IndexError)):
        made(adapter, empty, limelight.greedy(), past_key_values=cache)
