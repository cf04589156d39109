"""Forward-mode relevance equals the backward route, on every family; token by token, in blocks, in batches, in bfloat16."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from limelight.errors import LimelightError, UnknownKindError, UnsupportedError
from limelight.models.adapter import Adapter
from limelight.relevance.composites import ATTN_LRP, CP_LRP, Composite
from limelight.relevance.forward.stream import Channel, DualStream, contrast_channel, modality_channel, text_channel
from tests.relevance.forward.helpers import after, backward_sums, close, prefilled, stream
from tests.tiny import built, fresh, llava_inputs
from tests.wide import prompt, wide, widen
from tests.zoo import FOUNDATION, ZOO

# Families without tangents so far: what they must say instead of being wrong.
RAISES: dict[str, tuple[type[LimelightError], str]] = {
    "qwen4_exp": (UnknownKindError, "hyper_connection"),
    "minimax_m3_vl": (UnknownKindError, "mlp"),  # act(gate) * up without an activation module
    "unlimited_ocr": (UnsupportedError, "layers of its own cache type"),  # a window that spares the prompt
    "glm5_next": (UnknownKindError, "b_proj"),
    **dict.fromkeys(("dots3_note", "mistral_large4"), (UnsupportedError, "indexer")),  # sparse attention
    **dict.fromkeys(("inkling", "inkling2"), (UnknownKindError, "r_proj")),
    "idefics": (LimelightError, "names no image"),
}  # fmt: skip
FALLBACK = re.compile(r"greedy|GRADIENT_INPUT|exact mode|modality_ids|generate\(\)")
# Their rotary embedding computes in float32: relevance through q and k is rounded in both routes.
FLOAT32_ROTARY = ("cohere2_vision", "aya_vision", "hunyuan_vl", "llama4", "ernie4_5_vl_moe")
# Their projector's norm computes in float32: the embeddings of a batch differ from a row's own.
FLOAT32_EMBEDDINGS = ("paligemma", "paligemma2")

every_row = pytest.mark.parametrize("name", ZOO)
foundation = pytest.mark.parametrize("name", FOUNDATION)
both = pytest.mark.parametrize("composite", [ATTN_LRP, CP_LRP], ids=lambda c: c.name)


@both
@every_row
def test_sums_equal_the_backward_route_or_the_family_is_refused(name: str, composite: Composite) -> None:
    exact = "no_float64" not in ZOO[name].marks
    dtype = torch.float64 if exact else torch.float32
    if name in RAISES:
        kind, word = RAISES[name]
        with pytest.raises(kind, match=re.escape(word)) as caught:
            adapter = Adapter(ZOO[name].build())
            _, call, media_mask = prompt(name, adapter)
            prefilled(adapter, call, media_mask, composite)
        assert FALLBACK.search(caught.value.hint), caught.value.hint
        return
    adapter = built(name, dtype)
    inputs, call, media_mask = prompt(name, adapter)
    logits, phi = prefilled(adapter, call, media_mask, composite)
    with torch.no_grad():
        own = adapter.model(**inputs).logits[0, -1]
    close(logits[0], own, 5e-6)  # transformers' norms and softmax round to float32
    targets = [3, 17, 64, int(own.argmax())]
    want_logits, want = backward_sums(adapter, call, media_mask, targets, composite)
    close(logits[0], want_logits, 5e-6)
    close(phi[:, 0, targets], want, 1e-7 if name in FLOAT32_ROTARY else 1e-10 if exact else 1e-5)
    assert float(want.abs().max()) > 0.05


@foundation
def test_float64_is_float64(name: str) -> None:
    """With norms that compute in float64 the logits, too, are those of the decoder's own forward."""
    adapter = wide(name)
    _, call, media_mask = prompt(name, adapter)
    logits, phi = prefilled(adapter, call, media_mask)
    with torch.no_grad():
        own = adapter.logits(adapter.hidden(call)[:, -1])
    close(logits, own, 1e-11)
    phi_m, phi_t = phi[:, 0]
    leak = (own[0] - phi_m - phi_t).abs().max()  # biases, eps, and the softmax's nonlinearity
    assert 0 < float(leak) < 0.9 * float(own.abs().max()) + 5


@foundation
def test_token_by_token_is_one_prefill(name: str) -> None:
    adapter = wide(name)
    _, call, media_mask = prompt(name, adapter)
    tokens = [[9], [55], [33], [20], [71]]
    logits, phi = after(stream(adapter, call, media_mask), tokens)
    whole = call
    with torch.no_grad():
        for token in tokens:
            whole = whole.appended(adapter.embed(torch.tensor([token])))
    longer = nn.functional.pad(media_mask, (0, len(tokens)))
    want_logits, want = prefilled(adapter, whole, longer)
    close(logits, want_logits)
    close(phi, want)
    own, sums = backward_sums(adapter, whole, longer, [5, 80], ATTN_LRP)
    close(logits[0], own)
    close(phi[:, 0, [5, 80]], sums)


def test_a_window_of_every_layer() -> None:
    """Mistral's text stack with a window shorter than the prompt: rows out of sight stay out of sight."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    from tests.zoo.base import enliven
    from tests.zoo.parts import CLIP, IMAGE, text

    words = text("mistral", num_key_value_heads=2, sliding_window=6)
    config = LlavaConfig(vision_config=dict(CLIP), text_config=words, image_token_index=IMAGE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = enliven(LlavaForConditionalGeneration(config)).double().eval()
    model.set_attn_implementation("eager")
    adapter = widen(Adapter(model))
    inputs = llava_inputs(model)
    call = adapter.capture(inputs).cloned()
    media_mask = adapter.modality_ids(inputs) > 0
    tokens = [[t] for t in (9, 55, 33, 20, 71, 70, 11, 12)]
    logits, phi = after(stream(adapter, call, media_mask), tokens)
    ids = torch.cat([inputs["input_ids"], torch.tensor([[t for (t,) in tokens]])], dim=1)
    with torch.no_grad():
        own = model(**{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits[0, -1]
    close(logits[0], own, 2e-6)
    whole = call
    for token in tokens:
        whole = whole.appended(adapter.embed(torch.tensor([token])).detach())
    _, want = backward_sums(adapter, whole, nn.functional.pad(media_mask, (0, len(tokens))), [5, 80], ATTN_LRP)
    close(phi[:, 0, [5, 80]], want)
    wider = LlavaForConditionalGeneration(
        LlavaConfig(**{**config.to_dict(), "text_config": words | {"sliding_window": 64}})
    )
    wider.load_state_dict(model.state_dict())
    with torch.no_grad():
        unlike = wider.double().eval()(**{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits
    assert float((unlike[0, -1] - own).abs().max()) > 0.05


@foundation
def test_batch_rows_are_their_runs_alone(name: str) -> None:
    adapter = wide(name)
    _, call, media_mask = prompt(name, adapter, None)
    assert not bool(call.mask.all())
    tokens = [[9, 12], [55, 60], [33, 2]]
    together = [prefilled(adapter, call, media_mask), after(stream(adapter, call, media_mask), tokens)]
    for row in (0, 1):
        _, call, media_mask = prompt(name, adapter, row)
        alone = [
            prefilled(adapter, call, media_mask),
            after(stream(adapter, call, media_mask), [[pair[row]] for pair in tokens]),
        ]
        for (logits, phi), (want_logits, want) in zip(together, alone, strict=True):
            tolerance = 2e-6 if name in FLOAT32_EMBEDDINGS else 1e-10
            close(logits[row], want_logits[0], tolerance)
            close(phi[:, row], want[:, 0], tolerance)


@pytest.mark.parametrize("row", [0, None])
@pytest.mark.parametrize("name", ["llava_gqa", "paligemma2", "gemma3", "qwen2_5_vl", "mistral3", "blip2"])
@both
def test_blocks_of_queries_change_nothing(name: str, composite: Composite, row: int | None) -> None:
    adapter = wide(name)
    _, call, media_mask = prompt(name, adapter, row)
    results = []
    for block in (1, 3, 1024):
        dual = stream(adapter, call, media_mask, composite)
        dual.mode.block = block
        out = after(dual, [[9] * dual.batch])
        keys, values = dual.cache.read(1)  # type: ignore[misc]
        real = dual.mask.repeat(3, 1)[:, None, :, None]  # a padded query's own state is nobody's business
        results.append((*out, keys * real, values * real))
    for result in results[:-1]:
        for a, b in zip(result, results[-1], strict=True):
            close(a, b)


def test_a_small_reserve_grows() -> None:
    adapter = wide("llava_gqa")
    _, call, media_mask = prompt("llava_gqa", adapter)
    tokens = [[t] for t in range(20, 50)]
    small, large = stream(adapter, call, media_mask, reserve=0), stream(adapter, call, media_mask, reserve=64)
    for a, b in zip(after(small, tokens), after(large, tokens), strict=True):
        assert torch.equal(a, b)
    assert small.cache.length == large.cache.length == call.length + 30
    assert small.cache.keys[0].shape[2] < call.length + 64 + 30


def test_bfloat16_stays_near_float32() -> None:
    """Phi of a bfloat16 model: within 3 % of the largest float32 value, which is how far its logits are, too."""
    for name in ("llava_gqa", "qwen2_5_vl", "gemma3", "qwen2_audio"):
        exact, coarse = fresh(name), fresh(name, torch.bfloat16)
        _, call, media_mask = prompt(name, exact)
        logits, phi = prefilled(exact, call, media_mask)
        _, low, _ = prompt(name, coarse)
        low_logits, low_phi = prefilled(coarse, low, media_mask)
        assert low_phi.dtype == low_logits.dtype == torch.float32
        scale = float(phi.abs().max())
        assert float((phi - low_phi).abs().max()) < 0.03 * scale
        with torch.no_grad():
            own = coarse.model(**ZOO[name].inputs(coarse.model)).logits[:, -1].float()
        assert float((own - low_logits).abs().max()) < 0.02 * float(own.abs().max())


def test_rewound_position_runs_again() -> None:
    adapter = wide("gemma3")
    _, call, media_mask = prompt("gemma3", adapter, None)
    weights = torch.rand(call.mask.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    channels = [Channel("any", weights * call.mask, 0.5), modality_channel(media_mask, call.mask)]
    dual = DualStream(adapter, call, channels)
    with torch.no_grad():
        first = dual.prefill().hidden
        dual.rewind()
        again = dual.current(write=False).hidden
        alone = dual.current(write=False, tangents=False).hidden
        kept = dual.current().hidden
        dual.append(torch.tensor([9, 9]))
        following = dual.current().hidden
    close(again, first)
    assert alone.shape[0] == 1
    close(alone[0], again[0], 1e-12)
    close(kept, again)
    untouched = DualStream(adapter, call, channels)
    untouched.prefill()
    untouched.append(torch.tensor([9, 9]))
    close(following, untouched.current().hidden)
    assert dual.cache.length == call.length + 1


def test_channels_are_linear_and_weight_generated_tokens() -> None:
    adapter = wide("llava_gqa")
    _, call, media_mask = prompt("llava_gqa", adapter)
    mask = call.mask
    channels = [
        modality_channel(media_mask, mask), text_channel(media_mask, mask), contrast_channel(media_mask, mask),
        Channel("half", torch.full(mask.shape, 0.5), 0.5), Channel("said", torch.zeros(mask.shape), 1.0),
    ]  # fmt: skip
    _, phi = after(DualStream(adapter, call, channels), [[9], [30]])
    close(phi[2], phi[0] - phi[1])
    close(phi[3], (phi[0] + phi[1]) / 2)
    whole = call.appended(adapter.embed(torch.tensor([[9]]))).appended(adapter.embed(torch.tensor([[30]])))
    said = torch.zeros_like(whole.mask)
    said[:, -2:] = True
    _, want = backward_sums(adapter, whole, said, [4, 50], ATTN_LRP)
    close(phi[4, 0, [4, 50]], want[0])


def test_without_channels_it_is_plain_cached_decoding() -> None:
    adapter = wide("qwen2_5_vl")
    inputs, call, _ = prompt("qwen2_5_vl", adapter, None)
    logits, phi = after(DualStream(adapter, call, []), [[9, 9]])
    assert phi.shape == (0, 2, adapter.traits.vocab)
    with torch.no_grad():
        whole = call.appended(adapter.embed(torch.tensor([[9], [9]])))
        close(logits, adapter.logits(adapter.hidden(whole)[:, -1]))
