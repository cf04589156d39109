"""Several residual streams (AltUp of Gemma 3n): what mixes them, and the low-rank branch beside a layer. Told by probing.

    router    its scores make the coefficients that mix the streams: constants, so that the mixture is linear
    branch    ``x + norm(B A x)`` (LAuReL): linears and a norm, which have their own rules

How streams enter and leave: :mod:`limelight.relevance.held_streams`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limelight.relevance.probing import REFUSALS, apart, is_linear, sample, slack


@dataclass(frozen=True)
class StreamsSpec:
    """Projections into the streams and out of them (all but stream 0), and the modules behind the rescaling."""

    decoder: nn.Module
    into: tuple[nn.Module, ...]
    out: tuple[nn.Module, ...]
    first: nn.Module
    last: nn.Module
    norm: nn.Module


def streams_spec(decoder: nn.Module) -> StreamsSpec | None:
    """Two lists of as many square linears beside the layers of a decoder; None where there are none."""
    lists = [c for c in decoder.children() if isinstance(c, nn.ModuleList) and len(c) and all(map(_square, c))]
    layers, norm = decoder.layers, getattr(decoder, "norm", None)
    if len(lists) != 2 or len(lists[0]) != len(lists[1]) or not isinstance(norm, nn.Module):
        return None
    if not isinstance(layers, nn.ModuleList):
        return None
    return StreamsSpec(decoder, tuple(lists[0]), tuple(lists[1]), layers[0], layers[-1], norm)


def _square(module: Any) -> bool:
    return is_linear(module) and module.in_features == module.out_features


def stream_router(module: Any) -> tuple[str, nn.Module] | None:
    """The router of a module that mixes S streams before a layer (``predict``) and behind it (``correct``), or None.

    With the router's scores held, both must be linear in the streams, which is asked of a sample.
    """
    if not (callable(getattr(module, "predict", None)) and callable(getattr(module, "correct", None))):
        return None
    sizes = {n: (c.in_features, c.out_features) for n, c in module.named_children() if is_linear(c)}
    for name, (width, streams) in sizes.items():
        others = sorted(s for n, s in sizes.items() if n != name)
        if width > streams and others == sorted([(streams, streams), (streams, streams**2)]):
            router = getattr(module, name)
            return (name, router) if _mixes_linearly(module, router, int(width), int(streams)) else None
    return None


def _mixes_linearly(module: Any, router: nn.Module, width: int, streams: int) -> bool:
    scores = sample((2, 3, streams), module)
    drawn = sample((2 * streams + 2, 2, 3, width), module)
    x, y, a, b = drawn[:streams], drawn[streams:-2], drawn[-2], drawn[-1]
    handle = router.register_forward_hook(lambda *_: scores)
    try:
        with torch.no_grad():
            pairs = [(module.predict(x + y), module.predict(x) + module.predict(y))]
            pairs += [(module.correct(x + y, a + b), module.correct(x, a) + module.correct(y, b))]
    except REFUSALS:
        return False
    finally:
        handle.remove()
    return all(_near(p, q) for p, q in pairs)


def side_branch(module: nn.Module) -> bool:
    """Whether this is a low-rank branch beside a layer (LAuReL), ``x + norm(B A x)``: its parts have their own rules."""
    linears: list[Any] = [c for c in module.children() if is_linear(c)]
    norms: list[Any] = [c for c in module.children() if not is_linear(c)]
    if len(linears) != 2 or len(norms) != 1 or next(module.parameters(recurse=False), None) is not None:
        return False
    down, up = linears
    if (down.in_features, down.out_features) != (up.out_features, up.in_features):
        return False
    x = sample((2, 3, int(down.in_features)), module)
    try:
        with torch.no_grad():
            out, want = module(x), x + norms[0](up(down(x)))
    except REFUSALS:
        return False
    return isinstance(out, Tensor) and _near(out, want)


def _near(got: Tensor, want: Tensor) -> bool:
    return got.shape == want.shape and apart(got, want) <= slack(got.dtype, 1e-3, 5e-2)
