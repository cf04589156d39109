"""Several residual streams (Gemma 3n): told by probing, rules against a slow twin, refused where they rescale otherwise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limelight.errors import UnknownKindError
from limelight.models.adapter import Adapter
from limelight.relevance.attachment import attached
from limelight.relevance.attribute import attribute
from limelight.relevance.classify import classify_modules
from limelight.relevance.composites import ATTN_LRP, CP_LRP, Composite
from limelight.relevance.layers import streams
from limelight.relevance.layers.affine_container import side_branch
from limelight.relevance.layers.streams import StreamsSpec
from limelight.relevance.mode import Mode
from tests.relevance.forward.helpers import backward_sums, close, prefilled
from tests.slow_twins import gemma3n as twin
from tests.tiny import built, fresh, snapshot
from tests.wide import prompt, wide, widen
from tests.zoo import ZOO
from tests.zoo.base import enliven

NAME = "gemma3n"


def other(**changes: Any) -> Adapter:
    """The row's model with another text stack, in float64."""
    made = ZOO[NAME].build()
    for key, value in changes.items():
        setattr(made.config.text_config, key, value)
    from tests.zoo.stand_in import without_timm

    with torch.random.fork_rng(devices=[]), without_timm(NAME, made.config):
        torch.manual_seed(0)
        model = enliven(type(made)(made.config)).eval().double()
    model.set_attn_implementation("eager")
    return widen(Adapter(model))


def test_what_is_found() -> None:
    decoder = built(NAME).decoder
    sites = classify_modules(decoder)
    layers = len(decoder.layers)
    (site,) = [s for s in sites if s.kind == "streams"]
    assert isinstance(site.spec, StreamsSpec)
    assert (site.spec.into, site.spec.out) == (
        tuple(decoder.altup_projections),
        tuple(decoder.altup_unembed_projections),
    )
    routers = [s.spec for s in sites if s.kind == "altup"]
    assert routers == [layer.altup.modality_router for layer in decoder.layers]
    assert sum(s.kind == "gated_mlp" for s in sites) == 2 * layers  # the MLPs, and the layers' own inputs
    assert all(side_branch(layer.laurel) for layer in decoder.layers)
    for name in ("llava", "gemma4"):
        assert not list(streams.recognise("", built(name).decoder))


@pytest.mark.parametrize("composite", [ATTN_LRP, CP_LRP], ids=lambda c: c.name)
@pytest.mark.parametrize("streams", ["as built", "four, the second active", "no scale"])
def test_relevance_is_the_slow_twins(streams: str, composite: Composite) -> None:
    changes: dict[str, dict[str, Any]] = {
        "as built": {},
        "four, the second active": {"altup_num_inputs": 4, "altup_active_idx": 1},
        "no scale": {"altup_correct_scale": False},
    }
    adapter = other(**changes[streams]) if changes[streams] else wide(NAME)
    inputs, call, media_mask = prompt(NAME, adapter)
    constant = call.kwargs["per_layer_inputs"][0]
    logits, phi = prefilled(adapter, call, media_mask, composite)
    for target in (5, 77):
        got = attribute(adapter, inputs, target, composite=composite)
        want, logit = twin.attribute(adapter.model, call.embeds[0], constant, target, composite is CP_LRP)
        close(got.scores, want, 1e-9)
        assert got.logit == pytest.approx(float(logit), abs=1e-9)
        assert float(want.abs().max()) > 0.05
        sums = torch.stack([want[media_mask[0]].sum(), want[~media_mask[0]].sum()])
        close(phi[:, 0, target], sums, 1e-9)
        close(logits[0, target], logit, 1e-9)
    _, both = backward_sums(adapter, call, media_mask, [5, 77], composite)
    close(phi[:, 0, [5, 77]], both, 1e-9)


def test_the_true_gradient_is_the_models_own() -> None:
    """With nothing held, block 0 of a dual forward has the gradient of the plain decoder, rescaling included."""
    adapter = wide(NAME)
    _, call, _ = prompt(NAME, adapter)
    (match,) = streams.recognise("", adapter.decoder)
    grads = []
    for mode in (None, Mode(channels=2, graph="true")):
        embeds = call.embeds.clone().requires_grad_(True)
        undo = next(iter(streams.run(match, mode)))() if mode is not None else lambda: None
        try:
            rows = 1 if mode is None else 2
            kwargs = {
                k: v.repeat(rows, *[1] * (v.ndim - 1)) if isinstance(v, Tensor) else v for k, v in call.kwargs.items()
            }
            given = type(call)(call.embeds, call.mask, kwargs, call.reaches, call.features)
            out = adapter.hidden(given, embeds.repeat(rows, 1, 1))[0, -1]
        finally:
            undo()
        grads.append(torch.autograd.grad(out.square().sum(), embeds)[0])
    close(grads[1], grads[0], 1e-9)
    assert float(grads[0].abs().max()) > 1e-3


@pytest.mark.parametrize("where", ["a stream", "the mean", "the count", "everything"])
@pytest.mark.parametrize("direction", ["backward", "forward"])
def test_a_decoder_that_does_it_otherwise_is_refused(where: str, direction: str) -> None:
    adapter = fresh(NAME)
    inputs, call, media_mask = prompt(NAME, adapter)
    decoder = adapter.decoder
    if where == "a stream":
        decoder.layers[0].register_forward_pre_hook(
            lambda _, args: (torch.cat([args[0][:2], 2 * args[0][2:]]), *args[1:])
        )
    elif where == "the mean":
        decoder.norm.register_forward_pre_hook(lambda _, args: (args[0] * 1.5,))
    elif where == "the count":
        decoder.altup_projections.append(nn.Linear(32, 32))
        decoder.altup_unembed_projections.append(nn.Linear(32, 32))
    else:
        decoder.forward = lambda inputs_embeds, **_: (inputs_embeds,)
    before = snapshot(adapter.model)
    with pytest.raises(UnknownKindError) as caught:
        if direction == "backward":
            attribute(adapter, inputs)
        else:
            prefilled(adapter, call, media_mask)
    assert caught.value.hint
    assert snapshot(adapter.model) == before


def test_a_norm_or_a_layer_that_is_run_alone_is_left_alone() -> None:
    adapter = fresh(NAME)
    x = torch.randn(1, 3, 32)
    want = adapter.decoder.norm(x)
    with attached(adapter):
        assert torch.equal(adapter.decoder.norm(x), want)
