"""Turns without a picture or sound, and models that know neither: all is text, and nothing breaks."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

import limelight
from limelight.decoding.registry import strategies
from limelight.errors import NotMultimodalError, PromptError, SettingError, UnsupportedError
from limelight.models import detect
from limelight.models.adapter import Adapter
from limelight.models.detect import MODALITY_IDS
from limelight.relevance.attribute import attribute, attribute_generated
from limelight.relevance.composites import CP_LRP
from limelight.types import Clip, Prompt, Span
from tests.models.films import FILMS
from tests.tiny import built, snapshot, tokenizer
from tests.zoo import FOUNDATION, ZOO
from tests.zoo.base import enliven
from tests.zoo.parts import TEXT

IDS = torch.tensor([[1, 31, 32, 41, 42, 43], [1, 41, 32, 31, 42, 33]])
INPUTS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
FREE = ("greedy", "meter", "dola", "deco", "flb", "iat", "kvsmooth")  # strategies that need no media
MORE = ("llava_next", "qwen3_vl", "gemma3n", "idefics3", "phi4_multimodal", "internvl")


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = enliven(LlamaForCausalLM(LlamaConfig(**TEXT)), seed=0).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


@pytest.fixture(scope="module")
def demo() -> Adapter:
    return limelight.load("demo-vision")


def decoded(model: Any, inputs: dict[str, Any], strategy: Any, n: int = 3, **bound: Any) -> Any:
    fn = limelight.custom_generate(strategy, details=True, **bound)
    return model.generate(
        **inputs,
        custom_generate=fn,
        max_new_tokens=n,
        do_sample=False,
        return_dict_in_generate=True,
        disable_compile=True,
    )


@pytest.mark.parametrize("name", [n for n in (*FOUNDATION, *MORE) if n not in ("blip2", "kosmos2", "instructblip")])
def test_text_on_every_family_is_the_models_own_and_all_text(name: str) -> None:
    adapter = built(name)
    before = snapshot(adapter.model)
    want = adapter.model.generate(**INPUTS, max_new_tokens=3, do_sample=False, disable_compile=True)
    relevance = attribute(adapter, INPUTS, row=1)
    assert relevance.shares() == {"text": 1.0}
    assert len(relevance.scores) == 6
    for strategy in ("greedy", "meter"):
        got = decoded(adapter.model, INPUTS, limelight.strategy(strategy), parent_model=adapter)
        assert torch.equal(got.sequences, want), strategy
        for step in (s for row in got.steps for s in row):
            assert step.shares == {"text": 1.0}
            assert not step.flagged
        if strategy == "meter":
            assert all(s.contributions == {"text": 1.0} for row in got.steps for s in row)
    assert snapshot(adapter.model) == before


def test_a_decoder_that_reads_pictures_by_cross_attention() -> None:
    adapter = built("mllama")
    assert attribute(adapter, INPUTS).shares() == {"text": 1.0}
    assert attribute(adapter, ZOO["mllama"].inputs(adapter.model)).share("image") > 0


def test_a_text_only_model(llama: LlamaForCausalLM) -> None:
    adapter = limelight.wrap(llama, tokenizer())
    assert "placeholders={none}" in repr(adapter)
    want = llama.generate(**INPUTS, max_new_tokens=3, do_sample=False, disable_compile=True)
    for name in FREE:
        got = decoded(llama, INPUTS, limelight.strategy(name))
        assert {tuple(s.shares.items()) for row in got.steps for s in row} == {(("text", 1.0),)}
        if name in ("greedy", "meter"):
            assert torch.equal(got.sequences, want)
    relevance = attribute_generated(adapter, INPUTS, want[0, 6:])[-1]
    assert relevance.shares() == {"text": 1.0}
    # gradient x input of the embeddings themselves
    embeds = llama.get_input_embeddings()(IDS[:1]).detach().requires_grad_(True)
    logits = llama(inputs_embeds=embeds).logits[0, -1]
    (grad,) = torch.autograd.grad(logits.max(), embeds)
    plain = attribute(adapter, {"input_ids": IDS[:1]}, composite="gradient-input")
    torch.testing.assert_close(plain.scores, (grad * embeds).sum(-1)[0].detach(), atol=1e-5, rtol=1e-4)


def test_a_text_only_model_answers_messages(llama: LlamaForCausalLM) -> None:
    words = tokenizer()
    adapter = limelight.wrap(llama, words)
    said = limelight.generate(adapter, messages="what is in the picture ?", max_new_tokens=2)
    assert len(said.token_ids) == 2
    assert said.shares() == {"text": 1.0}
    assert said.prompt.spans == (Span(0, len(said.prompt.tokens), "text"),)
    words.chat_template = "{% for m in messages %}{{ m['role'] }} {{ m['content'] | trim }} {% endfor %}"
    chat = [{"role": "user", "content": [{"type": "text", "text": "what"}, {"type": "text", "text": "is here ?"}]}]
    tokens = adapter.prepare(chat).tokens
    assert "type" not in "".join(tokens)
    assert limelight.generate(adapter, "what is here ?", max_new_tokens=1).token_ids


@pytest.mark.parametrize("name", sorted(strategies()))
def test_every_strategy_decodes_text_or_names_what_it_needs(name: str) -> None:
    adapter = built("llava")
    before = snapshot(adapter.model)
    if name in FREE:
        assert decoded(adapter.model, INPUTS, limelight.strategy(name)).sequences.shape == (2, 9)
    else:
        with pytest.raises(PromptError, match=f"{name} requires an image, audio or video") as caught:
            decoded(adapter.model, INPUTS, limelight.strategy(name))
        assert "greedy() or meter()" in caught.value.hint
        assert MODALITY_IDS in caught.value.hint
    assert snapshot(adapter.model) == before


@pytest.mark.parametrize("name", ["greedy", "lime"])
def test_wrapped_strategies_need_what_the_inner_one_needs(name: str) -> None:
    adapter = built("llava")
    for outer in (limelight.after(9, limelight.strategy(name)), limelight.meter(limelight.strategy(name))):
        if name == "greedy":
            assert decoded(adapter.model, INPUTS, outer).sequences.shape == (2, 9)
        else:
            with pytest.raises(PromptError):
                decoded(adapter.model, INPUTS, outer)


def test_a_chat_with_and_without_pictures(demo: Adapter) -> None:
    seen = limelight.generate(
        demo, messages="Is there a cup?", media=Image.new("RGB", (112, 112), "red"), max_new_tokens=2
    )
    bare = limelight.generate(demo, messages="Is there a cup?", meter=True, relevance=True, max_new_tokens=2)
    assert all(s.contributions == {"text": 1.0} for s in bare.steps)
    assert seen.shares()["image"] > 0
    assert bare.shares() == {"text": 1.0}
    assert bare.prompt.media == {}
    assert bare.steps[0].candidates
    assert "100" in bare._repr_html_()


REQUESTS = ("Is there a cup in the picture?", "Describe the picture.", "There is a dog. Is there a dog in the picture?")


@pytest.mark.parametrize("name", ["greedy", "meter"])
@pytest.mark.parametrize("bare", [(1,), (0, 2), (0,), (0, 1, 2)])
def test_batches_mix_rows_with_and_without_pictures(demo: Adapter, name: str, bare: tuple[int, ...]) -> None:
    colours = ("white", "red", "green")
    prompts = [
        demo.prepare(words, None if k in bare else Image.new("RGB", (112, 112), colours[k]))
        for k, words in enumerate(REQUESTS)
    ]
    together = limelight.generate_many(demo, requests=prompts, strategy=name, relevance=True, max_new_tokens=4)
    for k, prompt in enumerate(prompts):
        alone = limelight.generate(demo, messages=prompt, strategy=name, relevance=True, max_new_tokens=4)
        assert together[k].token_ids == alone.token_ids
        for mixed, one in zip(together[k].steps, alone.steps, strict=True):
            assert mixed.shares == pytest.approx(one.shares, abs=1e-4)
            assert mixed.contributions == pytest.approx(one.contributions, abs=1e-4)
        assert (together[k].shares() == {"text": 1.0}) == (k in bare)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "qwen2_audio"])
def test_mixed_batches_of_tensors(name: str) -> None:
    from limelight.decoding.collate import collate

    adapter = built(name)
    inputs = adapter.complete(ZOO[name].inputs(adapter.model))
    text = adapter.complete({k: v[:1] for k, v in INPUTS.items()})
    rows = [Prompt(x, adapter.words(x), adapter.spans(x)) for x in (text, inputs)]
    tensors, pads = collate(rows)
    want = [
        adapter.model.generate(**p.tensors, max_new_tokens=3, do_sample=False, disable_compile=True)[0, -3:]
        for p in rows
    ]
    got = decoded(adapter.model, tensors, limelight.greedy(), tensors=tensors).sequences[:, -3:]
    assert torch.equal(got, torch.stack(want))
    assert pads == [len(rows[1].tokens) - 6, 0]


def test_a_mixed_batch_is_refused_by_what_needs_a_picture_in_every_row(demo: Adapter) -> None:
    prompts = [demo.prepare("Is there a cup?", Image.new("RGB", (112, 112))), demo.prepare("Is there a cup?")]
    with pytest.raises(PromptError, match="row 1 has none"):
        limelight.generate_many(demo, requests=prompts, strategy="lime", max_new_tokens=1)


def test_tensors_that_count_prompts_cannot_be_mixed() -> None:
    from limelight.decoding.collate import collate

    adapter = built("mllama")
    inputs = ZOO["mllama"].inputs(adapter.model)
    length = inputs["input_ids"].shape[1]
    rows = [Prompt(inputs, ("a",) * length, ()), Prompt({k: v[:1] for k, v in INPUTS.items()}, ("a",) * 6, ())]
    with pytest.raises(UnsupportedError, match="run the prompts one by one"):
        collate(rows)


def test_embeddings_alone() -> None:
    adapter = built("llava")
    inputs = ZOO["llava"].inputs(adapter.model)
    want = attribute(adapter, inputs)
    merged = adapter.capture(inputs).embeds.detach()
    got = attribute(adapter, {"inputs_embeds": merged, "modality_ids": adapter.modality_ids(inputs)})
    assert got.target == want.target
    assert torch.equal(got.scores, want.scores)
    assert got.shares() == want.shares()
    assert [s.modality for s in got.spans] == [s.modality for s in want.spans]
    text = attribute(
        adapter, {"inputs_embeds": merged, "modality_ids": torch.zeros(merged.shape[:2], dtype=torch.long)}
    )
    assert text.shares() == {"text": 1.0}
    generated = attribute_generated(
        adapter, {"inputs_embeds": merged, "modality_ids": adapter.modality_ids(inputs)}, [51, 52]
    )
    assert torch.equal(generated[1].scores, attribute_generated(adapter, inputs, [51, 52])[1].scores)


def test_the_hint_about_modality_ids_can_be_followed() -> None:
    """A model whose placeholders nothing names: the errors say what to pass, and with it everything works."""
    adapter = built("llava")
    inputs = ZOO["llava"].inputs(adapter.model)
    where, want = adapter.modality_ids(inputs), attribute(adapter, inputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detect, "_named_ids", lambda source: {})
        with pytest.raises(NotMultimodalError) as caught:
            attribute(adapter, inputs)
        assert MODALITY_IDS in caught.value.hint
        with pytest.raises(NotMultimodalError):
            decoded(adapter.model, inputs, limelight.lime(steps=1))
        followed = attribute(adapter, {**inputs, "modality_ids": where})
        assert torch.equal(followed.scores, want.scores)
        assert followed.shares() == want.shares()
        for strategy in (limelight.greedy(), limelight.lime(steps=1), limelight.meter(), limelight.strategy("vcd")):
            got = decoded(adapter.model, inputs, strategy, modality_ids=where, tensors=inputs)
            assert got.steps[0][0].shares["image"] > 0
        said = limelight.generate(adapter, messages={**inputs, "modality_ids": where}, max_new_tokens=2)
        assert said.shares()["image"] > 0


def test_embeddings_that_may_hold_anything_are_not_taken_for_text(llama: LlamaForCausalLM) -> None:
    embeds = llama.get_input_embeddings()(IDS).detach()
    with pytest.raises(PromptError) as caught:
        attribute(llama, {"inputs_embeds": embeds})
    assert "modality_ids" in caught.value.hint
    assert attribute(llama, {"inputs_embeds": embeds, "modality_ids": torch.zeros_like(IDS)}).shares() == {"text": 1.0}
    with pytest.raises(NotMultimodalError, match="inputs_embeds"):
        decoded(llama, {"input_ids": IDS, "inputs_embeds": embeds}, limelight.greedy())
    got = decoded(
        llama, {"input_ids": IDS, "inputs_embeds": embeds}, limelight.greedy(), modality_ids=torch.zeros_like(IDS)
    )
    assert torch.equal(got.sequences, llama.generate(input_ids=IDS, max_new_tokens=3, do_sample=False))


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_media_that_went_nowhere_are_still_an_error(name: str) -> None:
    adapter = built(name)
    pixels = {k: v for k, v in ZOO[name].inputs(adapter.model).items() if "pixel" in k or "grid" in k}
    with pytest.raises(PromptError, match="pixel_values"):
        attribute(adapter, {"input_ids": IDS[:1], **pixels})


def test_media_in_messages_and_as_arguments(demo: Adapter) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (112, 112, 3), dtype=np.uint8))
    want = demo.prepare("Is there a cup?", {"image": picture})
    part = {"type": "text", "text": "Is there a cup?"}
    ways: list[tuple[Any, Any]] = [
        ("Is there a cup?", picture), ("Is there a cup?", [picture]), ("Is there a cup?", np.asarray(picture)),
        ([{"role": "user", "content": [{"type": "image"}, part]}], picture),
        ([{"role": "user", "content": [{"type": "image", "image": picture}, part]}], None),
        ({"role": "user", "content": [{"type": "image", "image": picture}, part]}, None),
        ([{"role": "user", "content": [picture, "Is there a cup?"]}], None),
        ([{"role": "user", "content": [{"image": picture}, {"text": "Is there a cup?"}]}], None),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": data_url(picture)}}, part]}], None),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": data_url(picture)}, part]}], None),
        ([{"role": "user", "content": [{"type": "input_image", "image_url": data_url(picture)}, {**part, "type": "input_text"}]}], None),
        ([{"role": "user", "content": [{"type": "image", "base64": data_url(picture).partition(",")[2]}, part]}], None),
    ]  # fmt: skip
    for messages, media in ways:
        got = demo.prepare(messages, media)
        assert got.tokens == want.tokens, messages
        assert torch.equal(got.tensors["pixel_values"], want.tensors["pixel_values"]), messages
    answer = limelight.generate(demo, messages=want, max_new_tokens=2)
    for said in (
        limelight.generate(demo, "Is there a cup?", media=picture, max_new_tokens=2),
        limelight.generate(demo, None, want, max_new_tokens=2),
        limelight.generate(demo, messages=want.tensors, max_new_tokens=2),
    ):
        assert said.token_ids == answer.token_ids
        assert said.shares() == pytest.approx(answer.shares(), abs=1e-6)


def data_url(picture: Image.Image) -> str:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def test_attribution_of_a_prompt_or_of_messages(demo: Adapter) -> None:
    picture = Image.new("RGB", (112, 112), "red")
    prompt = demo.prepare("Is there a cup?", picture)
    want = attribute(demo, prompt.tensors)
    for got in (
        attribute(demo, prompt), attribute(demo, messages=prompt), attribute(demo, messages="Is there a cup?", media=picture),
        attribute(demo, "Is there a cup?", media=picture), attribute(demo, prompt, composite="AttnLRP"),
    ):  # fmt: skip
        assert torch.equal(got.scores, want.scores)
        assert got.on_grid().shape == want.on_grid().shape
    cp = attribute(demo, prompt, composite=CP_LRP)
    for name in ("cp-lrp", "cp_lrp", "CP-LRP"):
        assert torch.equal(attribute(demo, prompt, composite=name).scores, cp.scores)
    assert torch.equal(
        attribute_generated(demo, prompt, [5], composite="cp-lrp")[0].scores.isfinite(), cp.scores.isfinite()
    )
    with pytest.raises(SettingError) as caught:
        attribute(demo, prompt, composite="lrp")
    assert "attnlrp, cp-lrp, " in caught.value.hint
    for wrong in ({}, {"inputs": prompt, "messages": "a"}, {"inputs": prompt, "media": picture},
                  {"inputs": prompt.tensors, "media": picture}):  # fmt: skip
        with pytest.raises(SettingError) as caught:
            attribute(demo, **wrong)
        assert caught.value.hint


@pytest.mark.parametrize("several", [["a ?", "b ?"], ["a ?"], [[{"role": "user", "content": "a ?"}]], "prompts"])
def test_several_requests_are_referred_to_generate_many(demo: Adapter, several: Any) -> None:
    asked = [demo.prepare("a ?")] * 2 if several == "prompts" else several
    for call in (lambda: limelight.generate(demo, messages=asked), lambda: attribute(demo, messages=asked)):
        with pytest.raises(PromptError) as caught:
            call()
        assert "generate_many" in caught.value.hint
    with pytest.raises(PromptError) as caught:
        limelight.generate(demo, messages=INPUTS)
    assert "generate_many" in caught.value.hint


def test_a_processor_that_is_none(demo: Adapter) -> None:
    with pytest.raises(SettingError, match="expected a processor"):
        limelight.generate(demo, "what ?", "what ?")


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl"])
def test_a_film_of_one_frame(name: str) -> None:
    make, modality, _ = FILMS[name]
    adapter = Adapter(ZOO[name].build(), make())
    frame = Image.new("RGB", (48, 32), "red")
    for film in (Clip((frame,), (0.0,)), [frame], {"video": [frame]}, {"video": Clip((frame,), (0.5,), 4.0, 3.0)}):
        prompt = adapter.prepare("what is here ?", film if isinstance(film, dict) else {"video": film})
        assert any(s.modality == modality for s in prompt.spans)
        own = adapter.model.generate(**prompt.tensors, max_new_tokens=2, do_sample=False)
        said = limelight.generate(adapter, messages=prompt, max_new_tokens=2)
        assert said.token_ids == tuple(own[0, -2:].tolist())
        assert said.shares()[modality] > 0
