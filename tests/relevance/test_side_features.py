"""Relevance of all that enters a decoder: against features as leaves of their own, and forward against backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from limelight.relevance.attachment import attached
from limelight.relevance.attribute import attribute
from limelight.relevance.composites import ATTN_LRP, CP_LRP, GRADIENT_INPUT, Composite
from tests.models.inputs.test_deepstack import DEEPSTACK
from tests.relevance.forward.helpers import after, backward_sums, close, prefilled, stream
from tests.wide import prompt, wide
from tests.zoo import ZOO

families = pytest.mark.parametrize("name", DEEPSTACK)


@families
@pytest.mark.parametrize("composite", [ATTN_LRP, CP_LRP, GRADIENT_INPUT], ids=lambda c: c.name)
def test_all_that_enters_is_booked_at_the_position_of_its_token(name: str, composite: Composite) -> None:
    adapter = wide(name)
    inputs, call, _ = prompt(name, adapter)
    features = call.features
    assert features is not None
    given = call.arguments()
    embeds = given["inputs_embeds"].clone().requires_grad_(True)
    handed = given[features.name]
    leaves = [f.clone().requires_grad_(True) for f in (handed.values() if isinstance(handed, dict) else handed)]
    given |= {
        "inputs_embeds": embeds,
        features.name: dict(zip(handed, leaves, strict=True)) if isinstance(handed, dict) else leaves,
    }
    with attached(adapter, composite), adapter.routed():
        logits = adapter.logits(adapter.decoder(use_cache=False, **given)[0][:, -1])[0]
        target = int(logits.argmax())
        gradients = torch.autograd.grad(logits[target], [embeds, *leaves])
    want = (gradients[0] * embeds)[0].sum(-1).detach()
    alone = want.clone()
    spots = [i for a, b, _ in ZOO[name].spans for i in range(a, b)]
    for feature, gradient in zip(leaves, gradients[1:], strict=True):
        want[spots] += (feature * gradient).sum(-1).detach()
    assert float((want - alone).abs().max()) > 0.01  # the embeddings alone would miss this
    got = attribute(adapter, inputs, target, composite=composite)
    close(got.scores, want)


@families
def test_token_by_token_is_one_prefill_and_the_backward_route(name: str) -> None:
    adapter = wide(name)
    _, call, media_mask = prompt(name, adapter)
    tokens = [[9], [55], [33]]
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
    close(phi[:, 0, [5, 80]], sums, 1e-7 if name == "cohere_compass" else 1e-10)  # its rotary computes in float32


@families
def test_batch_rows_are_their_runs_alone(name: str) -> None:
    adapter = wide(name)
    _, call, media_mask = prompt(name, adapter, None)
    tokens = [[9, 12], [55, 60]]
    logits, phi = after(stream(adapter, call, media_mask), tokens)
    for row in (0, 1):
        _, call, media_mask = prompt(name, adapter, row)
        own, sums = after(stream(adapter, call, media_mask), [[pair[row]] for pair in tokens])
        close(logits[row], own[0])
        close(phi[:, row], sums[:, 0])


def _ending_in_a_picture(name: str) -> tuple[dict[str, Tensor], int]:
    tiny = ZOO[name]
    end = tiny.spans[-1][1]
    inputs = tiny.inputs(wide(name).model)
    whole = inputs["input_ids"].shape[1]
    return {k: v[:, :end] if v.shape[-1] == whole and v.ndim == 2 else v for k, v in inputs.items()}, end


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "granite_docling"])
def test_a_prompt_that_ends_in_a_picture(name: str) -> None:
    """The last position is fed again with its features where a method rewinds; words go on behind the largest axis."""
    adapter = wide(name)
    inputs, end = _ending_in_a_picture(name)
    with torch.no_grad():
        call = adapter.capture(inputs).cloned()
    media_mask = (adapter.modality_ids(inputs) > 0) & call.mask
    assert bool(media_mask[0, end - 1])
    dual = stream(adapter, call, media_mask)
    with torch.no_grad():
        want = dual.prefill().hidden
        dual.rewind()
        close(dual.current().hidden, want)
    logits, phi = after(stream(adapter, call, media_mask), [[9], [55]])
    whole = call
    with torch.no_grad():
        for token in (9, 55):
            whole = whole.appended(adapter.embed(torch.tensor([[token]])))
    own, sums = backward_sums(adapter, whole, nn.functional.pad(media_mask, (0, 2)), [5, 80], ATTN_LRP)
    close(logits[0], own)
    close(phi[:, 0, [5, 80]], sums)
