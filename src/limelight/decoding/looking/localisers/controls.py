"""Localisers that do not ask the model: controls."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from limelight.decoding.looking.glance import Glance
from limelight.decoding.looking.localisers import Localiser


def random(glance: Glance) -> Tensor:
    """Uniform noise, generated from the seed and the prompt, so that a row of a batch gets the same noise as alone."""
    out = torch.zeros(glance.media.shape)
    for row, prompt in enumerate(glance.prompts):
        ids = prompt.tensors[glance.adapter.names.ids][0].cpu().numpy().tobytes()
        pixels = b"".join(v.cpu().float().numpy().tobytes() for v in prompt.tensors.values() if v.is_floating_point())
        seed = zlib.crc32(ids + pixels) + int(glance.options.get("seed", 0))
        generator = torch.Generator().manual_seed(seed)
        for span in glance.own(row):
            out[row, span.start : span.stop] = torch.rand(len(span), generator=generator)
    return out


LOCALISERS = {"random": Localiser(random, "noise (control)")}
