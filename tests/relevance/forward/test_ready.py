"""Dual streams whose masks arrive ready-made: chunks, windows, and what a caller hides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from limelight.models.adapter import Adapter
from limelight.models.runtime.capture import DecoderCall
from limelight.relevance.forward.stream import DualStream, modality_channel
from tests.models.inputs.test_ready_masks import masks
from tests.tiny import built
from tests.zoo import ZOO

SAID = (9, 17, 40, 50, 60, 70)


def phis(adapter: Adapter, inputs: dict[str, Any], call: DecoderCall) -> list[Tensor]:
    """Logits and Phi of the media, of the prompt and of each token after it."""
    channel = modality_channel(adapter.modality_ids(inputs) > 0, call.mask)
    stream = DualStream(adapter, call, [channel])
    found = [torch.cat([x.flatten() for x in stream.heads(stream.prefill())])]
    for token in SAID:
        stream.append(torch.tensor([token]))
        found.append(torch.cat([x.flatten() for x in stream.heads(stream.current())]))
    return found


def test_chunked_masks_go_on_as_the_models_own() -> None:
    adapter = built("llama4")
    inputs = ZOO["llama4"].inputs(adapter.model)
    want = phis(adapter, inputs, adapter.capture(inputs))
    ready: Any = masks(adapter, inputs)
    got = phis(adapter, inputs, adapter.capture(inputs | {"attention_mask": ready}))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0)


@pytest.mark.parametrize("boolean", [False, True])
def test_one_mask_for_all_layers_keeps_hidden_what_it_hides(boolean: bool) -> None:
    """Against the uncached forward of the same call, which reads the whole mask anew."""
    adapter = built("llava_gqa")
    inputs = ZOO["llava_gqa"].inputs(adapter.model)
    length = int(inputs["input_ids"].shape[1])
    low = torch.finfo(torch.float32).min
    mask: Tensor = torch.full((1, 1, length, length), low).triu(1)
    mask[..., 2:6] = low
    call = adapter.capture(inputs | {"attention_mask": mask == 0 if boolean else mask})
    plain = adapter.capture(inputs)
    got = phis(adapter, inputs, call)
    apart = []
    for n, found in enumerate(got):
        with torch.no_grad():
            want, other = (adapter.logits(adapter.hidden(c)[:, -1:])[0, 0] for c in (call, plain))
        torch.testing.assert_close(found[: len(want)], want, atol=2e-5, rtol=0)
        apart.append(float((want - other).abs().max()))
        if n < len(SAID):
            embeds = adapter.embed(torch.tensor([[SAID[n]]]))
            call, plain = call.appended(embeds), plain.appended(embeds)
    assert min(apart) > 1e-2
