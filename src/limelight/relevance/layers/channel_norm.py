"""Norms over the channels of pictures ``[rows, channels, height, width]`` (SAM's, ConvNeXt's), recognised by probing.

Rule: that of norms over the last dimension (:mod:`limelight.relevance.layers.norm`), with the channels moved there and back.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from limelight.models.runtime.offload import weight_of
from limelight.relevance import rules
from limelight.relevance.kind import Attach, LayerKind, ModuleMatch, replaced
from limelight.relevance.layers.norm import NormSpec
from limelight.relevance.mode import Mode, blocks
from limelight.relevance.probing import answer, is_leaf, relative_error, sample, tolerance


def _spec(module: nn.Module) -> NormSpec | None:
    own = dict(module.named_parameters(recurse=False))
    eps = next((v for n in ("eps", "variance_epsilon") if isinstance(v := getattr(module, n, None), float)), None)
    if "weight" not in own or own["weight"].ndim != 1 or eps is None or len({p.shape for p in own.values()}) > 1:
        return None
    weight, bias = (weight_of(module, name) for name in ("weight", "bias"))
    x = sample((1, len(own["weight"]), 2, 3), module)
    out = answer(module, x)
    if not isinstance(out, Tensor) or out.shape != x.shape:
        return None
    for center in (True, False):
        spec = NormSpec(center, weight, bias, eps)
        last = x.movedim(1, -1)
        want = spec.through(last, last)
        want = (want if bias is None else want + bias.detach().to(want)).movedim(-1, 1)
        if relative_error(out, want) <= tolerance(out.dtype, 1e-4, 3e-2):
            return spec
    return None


def recognise(name: str, module: nn.Module) -> Iterator[ModuleMatch]:
    if is_leaf(module) and (spec := _spec(module)) is not None:
        yield ModuleMatch("channel_norm", name, module, spec)


def run(match: ModuleMatch, mode: Mode) -> Iterator[Attach]:
    spec: NormSpec = match.spec.read()
    original = match.module.forward

    def forward(x: Tensor) -> Tensor:
        if mode.plain(x):
            return original(x)  # type: ignore[no-any-return]
        if mode.backward:
            value, last = mode.value(original, x).movedim(1, -1), x.movedim(1, -1)
            out = rules.frozen_norm(last, value, gain=spec.gain, center=spec.center, eps=spec.eps)
            return out.movedim(-1, 1)
        y = blocks(x, mode.channels).movedim(2, -1)
        y = spec.through(y, mode.const(y[0]))
        if spec.bias is not None:
            y = torch.cat([y[:1] + spec.bias.to(y), y[1:]])
        return y.movedim(-1, 2).reshape(x.shape).to(x.dtype)

    yield replaced(match.module, forward)


KIND = LayerKind("channel_norm", recognise, run, order=41)
