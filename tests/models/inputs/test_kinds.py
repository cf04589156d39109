"""A kind of features beside the embeddings: one row and one file, and relevance follows in every direction."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaModel

from limelight.decoding.instruments import masked_media
from limelight.errors import UnsupportedError
from limelight.models.adapter import Adapter
from limelight.models.inputs import decoder_inputs, kinds
from limelight.models.inputs.axes import Axes
from limelight.relevance.attachment import attached
from limelight.relevance.attribute import attribute
from limelight.relevance.composites import ATTN_LRP
from tests.relevance.forward.helpers import after, backward_sums, close, stream
from tests.tiny import fresh
from tests.wide import widen
from tests.zoo import ZOO

NAME = "visual_residual"
PAGE = Path(__file__).resolve().parents[3] / "docs" / "extend.md"


class Residual(LlamaModel):
    """Features enter again behind the first layer."""

    def forward(self, *args: Any, visual_residual: Tensor | None = None, **kwargs: Any) -> Any:
        def add(_: nn.Module, __: Any, hidden: Any) -> Any:
            return hidden if visual_residual is None else hidden + visual_residual.to(hidden)

        handle = self.layers[0].register_forward_hook(add)
        try:
            return super().forward(*args, **kwargs)
        finally:
            handle.remove()


def shown() -> dict[str, Any]:
    """The example of docs/extend.md."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    scope: dict[str, Any] = {"__name__": __name__}
    for block in blocks:
        if NAME in block:
            exec(compile(block, str(PAGE), "exec"), scope)
    return scope


@pytest.fixture
def adapter() -> Adapter:
    adapter = widen(fresh("llava", torch.float64))
    adapter.decoder.__class__ = Residual
    return adapter


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> type:
    """With the row and the kind of the example."""
    scope = shown()
    every = (*kinds.side_kinds(), scope["KIND"])
    monkeypatch.setattr(kinds, "side_kinds", lambda: every)
    monkeypatch.setitem(decoder_inputs.DECODER_ARGUMENTS, NAME, scope["ROW"][NAME])
    kind: type = scope["VisualResidual"]
    return kind


def given(adapter: Adapter) -> dict[str, Tensor]:
    """The features of a picture, zero at words."""
    inputs = ZOO["llava"].inputs(adapter.model)
    where = adapter.modality_ids(inputs) > 0
    features = torch.randn(*where.shape, adapter.traits.hidden, dtype=torch.float64) * where[..., None]
    return {**inputs, NAME: features}


def test_every_file_with_a_kind_is_found() -> None:
    names = [kind.name for kind in kinds.side_kinds()]
    assert set(names) == {
        "cross-attention states", "deepstack", "media vocabulary", "per-layer inputs", "position mask"
    }  # fmt: skip
    assert names[-1] == "per-layer inputs"  # its embeddings are wide
    assert all(k.find or k.place or k.places or k.embedder for k in kinds.side_kinds())


def test_undeclared_side_features_are_named(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = given(adapter)
    with pytest.raises(UnsupportedError, match=NAME) as caught:
        adapter.capture(inputs)
    assert caught.value.hint
    row = {NAME: (Axes("row position feature", "zero", features=True),)}
    monkeypatch.setitem(decoder_inputs.DECODER_ARGUMENTS, NAME, row[NAME])
    with pytest.raises(UnsupportedError, match=NAME):  # axes alone do not put its features into the leaf
        adapter.capture(inputs)


def test_all_that_enters_is_relevant(adapter: Adapter, known: type) -> None:
    inputs = given(adapter)
    call = adapter.capture(inputs)
    assert isinstance(call.features, known)
    embeds, features = (x.clone().requires_grad_(True) for x in call.embeds.split(adapter.traits.hidden, dim=-1))
    with attached(adapter, ATTN_LRP), adapter.routed():
        got = {**call.arguments(), "inputs_embeds": embeds, NAME: features}
        logits = adapter.logits(adapter.decoder(use_cache=False, **got)[0][:, -1])[0]
        gradients = torch.autograd.grad(logits[9], [embeds, features])
    parts = [(g * x)[0].sum(-1).detach() for g, x in zip(gradients, (embeds, features), strict=True)]
    assert float(parts[1].abs().max()) > 1e-3
    close(attribute(adapter, inputs, 9).scores, sum(parts, torch.zeros(())))
    with torch.no_grad():
        close(logits.detach(), adapter.model(**inputs).logits[0, -1], 1e-5)


def test_token_by_token_is_the_backward_route(adapter: Adapter, known: type) -> None:
    with torch.no_grad():
        call = adapter.capture(given(adapter)).cloned()
    media_mask = adapter.modality_ids(ZOO["llava"].inputs(adapter.model)) > 0
    logits, phi = after(stream(adapter, call, media_mask), [[9], [55]])
    whole = call
    for token in (9, 55):
        whole = whole.appended(adapter.embed(torch.tensor([[token]])).detach())
    want_logits, want = backward_sums(adapter, whole, nn.functional.pad(media_mask, (0, 2)), [5, 80], ATTN_LRP)
    close(logits[0], want_logits)
    close(phi[:, 0, [5, 80]], want)


@torch.no_grad()
def test_masked_with_their_positions(adapter: Adapter, known: type) -> None:
    inputs = given(adapter)
    keep = adapter.modality_ids(inputs) == 0
    with masked_media(adapter, keep):
        got = adapter.model(**inputs).logits
    call = adapter.capture(inputs)
    want = adapter.logits(adapter.hidden(call, call.embeds * keep[..., None]))
    close(got, want, 1e-5)
    assert not torch.allclose(got, adapter.model(**inputs).logits)
