"""Ids of a vision or an audio vocabulary (Gemma 3n) are embedded as the model embeds them."""

from __future__ import annotations

import torch

from limelight.models.inputs.media_vocabulary import hard_tokens
from tests.tiny import built
from tests.zoo import ZOO

IDS = [31, 99, 100, 103, 107, 108, 115, 127]


@torch.no_grad()
def test_embeddings_are_what_the_decoder_receives() -> None:
    adapter = built("gemma3n")
    inputs = ZOO["gemma3n"].inputs(adapter.model)
    more = torch.tensor([IDS])
    ids = torch.cat([inputs["input_ids"], more], dim=1)
    call = adapter.capture({**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)})
    got = adapter.embed(more)
    assert torch.equal(got, call.embeds[:, -len(IDS) :])
    words = adapter.model.get_input_embeddings()(more)
    changed = (got[..., : words.shape[-1]] != words).any(-1)[0].tolist()
    assert changed == [i >= 100 for i in IDS]


def test_other_models_have_none() -> None:
    assert hard_tokens(built("gemma4").model) is None
    assert hard_tokens(built("llava").model) is None
