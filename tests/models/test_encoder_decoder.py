"""Encoder-decoders: properties that hold for every family, on one tiny random model each."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationMixin

import limelight
from limelight.decoding.registry import strategy
from limelight.errors import HookError, SettingError, UnsupportedError
from limelight.models.adapter import Adapter
from limelight.models.runtime.attention import AttentionHook, attention_hooks
from limelight.relevance.attachment import attached
from limelight.relevance.attribute import attribute, attribute_generated
from limelight.relevance.composites import ATTN_LRP, CP_LRP, GRADIENT_INPUT, Composite
from limelight.relevance.forward.stream import Channel, DualStream, modality_channel, text_channel
from tests.slow_twins.balance import sheet
from tests.tiny import snapshot
from tests.zoo.encoder_decoder import PAIRED, START

RAISES: dict[str, tuple[type[Exception], str]] = {  # unsupported families: the error, and a part of its message
    "speech_to_text": (UnsupportedError, "takes token ids alone"),
    "trocr": (HookError, "never called them"),
}
WORKING = [name for name in PAIRED if name not in RAISES and not PAIRED[name].missing]
REFUSING = "m3id icd pai opera avisc memvr iat vaf rudder kvsmooth ilvad agla vista"
families = pytest.mark.parametrize("name", WORKING)
rules = pytest.mark.parametrize("composite", [ATTN_LRP, CP_LRP], ids=lambda c: c.name)


@lru_cache(maxsize=4)
def built(name: str, dtype: torch.dtype = torch.float32) -> Adapter:
    return fresh(name, dtype)


def fresh(name: str, dtype: torch.dtype = torch.float32) -> Adapter:
    model = PAIRED[name].build().to(dtype)
    model.set_attn_implementation("eager")
    return Adapter(model)


def given(name: str, adapter: Adapter, row: int = 0) -> dict[str, Tensor]:
    return PAIRED[name].inputs(adapter.model, row)


def generated(adapter: Adapter, inputs: Any, **kwargs: Any) -> Tensor:
    """What transformers' plain generate says."""
    found: Tensor = GenerationMixin.generate(adapter.model, **inputs, do_sample=False, **kwargs)
    return found


class Recorder(AttentionHook):
    """Queries and keys that each number's attention saw."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[int, int]] = {}

    def qkv(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.seen[layer] = (q.shape[2], k.shape[2])
        return q, k, v


@families
@torch.no_grad()
def test_self_and_cross_attention_of_a_layer_have_numbers_of_their_own(name: str) -> None:
    adapter, row = built(name), PAIRED[name]
    recorder, layers = Recorder(), len(adapter.decoder.layers)
    with attention_hooks(recorder):
        adapter.hidden(adapter.capture(given(name, adapter)))
    words = len(row.prompt)
    own = {n: s for n, s in recorder.seen.items() if n >= 0}
    assert own == {
        **dict.fromkeys(range(layers), (words, words)),
        **dict.fromkeys(range(layers, 2 * layers), (words, row.states)),
    }
    assert sorted(adapter.attention_layers) == sorted(own) and adapter.traits.layers == layers
    for n, module in adapter.attention_layers.items():
        assert module.layer_idx == n % layers
    assert len(set(map(id, adapter.attention_layers.values()))) == 2 * layers


@families
@torch.no_grad()
def test_logits_are_the_models_own_bit_for_bit(name: str) -> None:
    adapter = built(name)
    inputs = given(name, adapter)
    want = adapter.model(**inputs).logits
    call = adapter.capture(inputs)
    assert (call.front, call.length) == (PAIRED[name].states, PAIRED[name].states + len(PAIRED[name].prompt))
    assert torch.equal(adapter.logits(adapter.hidden(call))[:, call.front :], want)


@families
@torch.no_grad()
def test_growing_a_captured_prompt_equals_capturing_the_longer_one(name: str) -> None:
    adapter = built(name)
    inputs = given(name, adapter)
    call = adapter.capture(inputs)
    for token in (51, 52):
        call = call.appended(adapter.embed(torch.tensor([[token]])))
    longer = torch.cat([inputs["decoder_input_ids"], torch.tensor([[51, 52]])], dim=1)
    want = adapter.model(**{**inputs, "decoder_input_ids": longer}).logits[:, -1]
    torch.testing.assert_close(adapter.logits(adapter.hidden(call)[:, -1:])[:, 0], want, atol=2e-5, rtol=2e-5)


@families
def test_encoded_media_give_the_same(name: str) -> None:
    adapter = built(name)
    inputs = given(name, adapter)
    encoder = adapter.encoder
    assert encoder is not None and encoder.kind == PAIRED[name].modality
    of_encoder = {k: v for k, v in inputs.items() if k in (encoder.media, "attention_mask")}
    with torch.no_grad():
        outputs = adapter.model.get_encoder()(**of_encoder)
    rest = {k: v for k, v in inputs.items() if k != encoder.media}
    one, other = attribute(adapter, inputs), attribute(adapter, {**rest, "encoder_outputs": outputs})
    assert torch.equal(one.scores, other.scores) and one.target == other.target


@families
def test_without_ids_the_prompt_is_the_start_token(name: str) -> None:
    adapter = built(name)
    inputs = {k: v for k, v in given(name, adapter).items() if k != "decoder_input_ids"}
    assert adapter.complete(inputs)["decoder_input_ids"].tolist() == [[START]]
    assert len(attribute(adapter, inputs).scores) == PAIRED[name].states + 1
    with pytest.raises(limelight.LimelightError, match="or encoder_outputs"):
        adapter.complete({"decoder_input_ids": torch.tensor([[START]])})


@families
@rules
def test_relevance_is_conserved(name: str, composite: Composite) -> None:
    adapter = built(name, torch.float64)
    got = sheet(adapter, given(name, adapter), composite)
    logit = got.pop("logit")
    assert sum(got.values()) == pytest.approx(logit, abs=3e-6 * (1 + abs(logit)))
    relevance = attribute(adapter, given(name, adapter), composite=composite)
    assert float(relevance.scores.sum()) == pytest.approx(got["relevance"], abs=1e-9)
    assert [s.modality for s in relevance.spans] == [PAIRED[name].modality, "text"]
    assert [s.stop for s in relevance.spans] == [PAIRED[name].states, PAIRED[name].states + len(PAIRED[name].prompt)]
    assert all(abs(relevance.total(m)) > 0 for m in (PAIRED[name].modality, "text"))


@families
@rules
@torch.no_grad()
def test_forward_relevance_is_the_backward_one_cached_or_not(name: str, composite: Composite) -> None:
    adapter = built(name, torch.float64)
    inputs = given(name, adapter)
    call = adapter.capture(inputs)
    media = (call.modality(adapter.modality_ids(inputs)) > 0) & call.mask
    odd = torch.rand(call.mask.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64) - 0.5
    channels = [modality_channel(media, call.mask), text_channel(media, call.mask), Channel("odd", odd, 0.7)]
    stream = DualStream(adapter, call, channels, composite)
    output, ids = stream.prefill(), inputs["decoder_input_ids"]
    for token in (33, 7, None):
        logits, phi = stream.heads(output)
        for target in (int(logits[0].argmax()), 17):
            got = attribute(adapter, {**inputs, "decoder_input_ids": ids}, target=target, composite=composite)
            said = torch.full((len(got.scores) - call.length,), 0.7, dtype=torch.float64)
            weights = torch.cat([odd[0], said])
            want = [got.scores[: call.front].sum(), got.scores[call.front :].sum(), (got.scores * weights).sum()]
            torch.testing.assert_close(phi[:, 0, target], torch.stack(want), atol=1e-8, rtol=1e-6)
            assert float(logits[0, target]) == pytest.approx(got.logit, abs=1e-9)
        if token is not None:
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
            stream.append(torch.tensor([token]))
            output = stream.current()


@families
def test_greedy_and_methods_without_effect_choose_the_tokens_of_generate(name: str) -> None:
    adapter = built(name)
    inputs = given(name, adapter)
    want = generated(adapter, inputs, max_new_tokens=4)
    for chosen in (
        limelight.greedy(),
        limelight.lime(steps=1),
        limelight.relevance_contrastive(alpha=0.0),
        limelight.meter(),
    ):
        method = limelight.custom_generate(chosen)
        assert torch.equal(generated(adapter, inputs, max_new_tokens=4, custom_generate=method), want)
        said = limelight.generate(adapter, messages=inputs, strategy=chosen, max_new_tokens=4)
        assert list(said.token_ids) == want[0, len(PAIRED[name].prompt) :].tolist()


@families
def test_relevance_of_every_token_is_that_of_attribute_generated(name: str) -> None:
    adapter = built(name, torch.float64)
    inputs = given(name, adapter)
    said = limelight.generate(adapter, messages=inputs, relevance=True, max_new_tokens=3)
    whole = attribute_generated(adapter, inputs, said.token_ids)
    for step, relevance in zip(said.steps, whole, strict=True):
        seen = step.relevance
        assert seen is not None and seen.target == relevance.target
        torch.testing.assert_close(seen.scores, relevance.scores[: len(seen.scores)], atol=1e-6, rtol=1e-6)
        assert not relevance.scores[len(seen.scores) :].any()


@families
def test_the_meter_reports_the_media(name: str) -> None:
    adapter = built(name, torch.float64)
    kind = PAIRED[name].modality
    said = limelight.generate(adapter, messages=given(name, adapter), strategy="meter", max_new_tokens=3)
    whole = attribute_generated(adapter, given(name, adapter), said.token_ids)
    for step, relevance in zip(said.steps, whole, strict=True):
        assert set(step.contributions) == {kind, "text"}
        support = next(phi for token, _, _, phi in step.candidates if token == step.token)
        assert support == pytest.approx(relevance.total(kind), abs=1e-6)
        assert step.grounding is not None and list(step.grounding_by_modality) == [kind]


@families
def test_exact_lime_moves_keys_and_values_of_both_attentions(name: str) -> None:
    from limelight.decoding.methods.lime import optimise
    from limelight.models.families import PaperSettings

    adapter = built(name)
    call = adapter.capture(given(name, adapter))
    media = (call.modality(torch.zeros(1, call.length - call.front, dtype=torch.long)) > 0) & call.mask
    settings = PaperSettings(lr=1e-3, steps=4)
    result = optimise(adapter, call, media, lambda logits: logits.argmax(-1), settings)
    layers, words = adapter.traits.layers, call.length - call.front
    assert {n: d.shape[2] for n, d in result.deltas.keys.items()} == {
        n: words if n < layers else call.front for n in range(2 * layers)
    }
    assert all(bool(d.abs().max() > 0) for d in result.deltas.values.values())
    losses = [float(v) for v in result.losses["relevance"]]
    assert losses[-1] < losses[0]


@families
def test_cached_lime_lowers_its_loss(name: str) -> None:
    adapter = built(name)
    chosen = strategy("lime-cached", lr=1e-2, updates=3, kl_weight=0.0)
    said = limelight.generate(adapter, messages=given(name, adapter), strategy=chosen, max_new_tokens=2)
    for step in said.steps:
        assert step.intervened and step.losses["relevance"][-1] < step.losses["relevance"][0]


@families
def test_a_batch_is_its_rows(name: str) -> None:
    adapter, row = built(name), PAIRED[name]
    batch = row.batch(adapter.model)
    names = ["greedy", "meter", "relevance-contrastive", "lime", "lime-cached"]
    for chosen in names:
        method = limelight.custom_generate(strategy(chosen))
        together = generated(adapter, batch, max_new_tokens=3, custom_generate=method)[:, -3:].tolist()
        each = [
            list(
                limelight.generate(
                    adapter, messages=given(name, adapter, r), strategy=chosen, max_new_tokens=3
                ).token_ids
            )
            for r in (0, 1)
        ]
        assert together == each, chosen
        many = limelight.generate_many(
            adapter, requests=[given(name, adapter, r) for r in (0, 1)], strategy=chosen, max_new_tokens=3
        )
        assert [list(g.token_ids) for g in many] == each, chosen


@families
def test_sampling_draws_what_it_draws_alone(name: str) -> None:
    adapter = built(name)
    requests = [given(name, adapter, r) for r in (0, 1)]
    many = limelight.generate_many(adapter, requests=requests, seeds=[5, 9], do_sample=True, max_new_tokens=5)
    alone = [
        limelight.generate(adapter, messages=r, seed=s, do_sample=True, max_new_tokens=5)
        for r, s in zip(requests, (5, 9), strict=True)
    ]
    assert [g.token_ids for g in many] == [g.token_ids for g in alone]


@families
def test_a_streamer_receives_every_token(name: str) -> None:
    class Heard:
        next_tokens_are_prompt = True

        def __init__(self) -> None:
            self.tokens: list[list[int]] = []
            self.ended = 0

        def put(self, value: Tensor) -> None:
            self.tokens.append(value.flatten().tolist())

        def end(self) -> None:
            self.ended += 1

    adapter, heard = built(name), Heard()
    said = limelight.generate(adapter, messages=given(name, adapter), streamer=heard, max_new_tokens=3)
    assert [t for t in heard.tokens if len(t) == 1][-3:] == [[t] for t in said.token_ids] and heard.ended == 1


@families
def test_contrasts_disturb_the_media(name: str) -> None:
    adapter = built(name)
    inputs = given(name, adapter)
    plain = generated(adapter, inputs, max_new_tokens=1, output_logits=True, return_dict_in_generate=True).logits[0]
    ways = [strategy("vcd", alpha=1.0, beta=0.0), strategy("m3id", without="zero", gate=1.0, decay=0.5, beta=0.0)]
    if PAIRED[name].modality == "audio":
        ways.append(strategy("aad", silence=0.0, beta=0.0))
    for way in ways:
        method = limelight.custom_generate(way, tensors=inputs)
        out = generated(
            adapter, inputs, max_new_tokens=2, output_logits=True, return_dict_in_generate=True, custom_generate=method
        )
        assert not torch.allclose(out.logits[0], plain, atol=1e-5), way.name
        said = limelight.generate(adapter, messages=inputs, strategy=way, max_new_tokens=2)
        assert list(said.token_ids) == out.sequences[0, -2:].tolist()
    with pytest.raises(SettingError, match="the encoder's states only"):
        generated(adapter, inputs, max_new_tokens=1, custom_generate=limelight.custom_generate(ways[0]))


@families
@pytest.mark.parametrize("method", REFUSING.split())
def test_methods_that_make_no_sense_refuse(name: str, method: str) -> None:
    adapter = built(name)
    with pytest.raises(UnsupportedError) as told:
        limelight.generate(adapter, messages=given(name, adapter), strategy=method, max_new_tokens=2)
    assert "vcd()" in str(told.value.hint)


@families
@pytest.mark.parametrize("method", ["dola", "deco"])
def test_methods_of_layers_run(name: str, method: str) -> None:
    adapter = built(name)
    inputs = given(name, adapter)
    said = limelight.generate(adapter, messages=inputs, strategy=method, max_new_tokens=2)
    out = generated(adapter, inputs, max_new_tokens=2, custom_generate=limelight.custom_generate(strategy(method)))
    assert list(said.token_ids) == out[0, -2:].tolist()


@families
def test_the_model_is_left_as_it_was(name: str) -> None:
    adapter = fresh(name)
    inputs = given(name, adapter)
    before = snapshot(adapter.model)
    with torch.no_grad():
        want = adapter.model(**inputs).logits
    for composite in (ATTN_LRP, CP_LRP, GRADIENT_INPUT):
        attribute(adapter, inputs, composite=composite)
    limelight.generate(adapter, messages=inputs, strategy="lime-cached", max_new_tokens=2)
    with pytest.raises(ZeroDivisionError), attached(adapter, ATTN_LRP, Recorder()):
        adapter.hidden(adapter.capture(inputs))
        raise ZeroDivisionError
    assert snapshot(adapter.model) == before
    with torch.no_grad():
        assert torch.equal(adapter.model(**inputs).logits, want)


@families
def test_an_answer_that_is_too_long_is_refused(name: str) -> None:
    adapter = built(name)
    encoder = adapter.encoder
    assert encoder is not None and encoder.most is not None
    with pytest.raises(SettingError, match=f"exceeds the {encoder.most} positions"):
        limelight.generate(adapter, messages=given(name, adapter), max_new_tokens=encoder.most)


def test_prompts_of_unequal_length_need_positions() -> None:
    name = next(n for n in WORKING if not PAIRED[n].unequal)
    adapter = built(name)
    inputs = given(name, adapter)
    short = {**inputs, "decoder_input_ids": inputs["decoder_input_ids"][:, :2]}
    with pytest.raises(UnsupportedError, match="takes no position ids"):
        limelight.generate_many(adapter, requests=[inputs, short], max_new_tokens=2)


def test_a_filled_cache_is_refused() -> None:
    adapter = built(WORKING[0])
    inputs = given(WORKING[0], adapter)
    with torch.no_grad():
        cache = adapter.model(**inputs, use_cache=True).past_key_values
    longer = torch.cat([inputs["decoder_input_ids"], torch.tensor([[9]])], dim=1)
    with pytest.raises(UnsupportedError, match="filled cache"):
        generated(
            adapter, {**inputs, "decoder_input_ids": longer}, past_key_values=cache, max_new_tokens=1,
            custom_generate=limelight.custom_generate(limelight.greedy()),
        )  # fmt: skip


@pytest.mark.parametrize("name", [n for n in RAISES if not PAIRED[n].missing])
def test_unsupported_methods_are_refused_and_plain_decoding_works(name: str) -> None:
    adapter = built(name)
    inputs = given(name, adapter)
    error, message = RAISES[name]
    with pytest.raises(error, match=message):
        attribute(adapter, inputs)
    want = generated(adapter, inputs, max_new_tokens=3)[0, -3:].tolist()
    assert list(limelight.generate(adapter, messages=inputs, relevance=False, max_new_tokens=3).token_ids) == want
