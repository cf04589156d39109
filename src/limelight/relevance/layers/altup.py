"""AltUp (Gemma 3n): several residual streams, mixed before (``predict``) and after (``correct``) a layer.

The mixing coefficients are computed from a router's scores; they are constants under the rules, so mixing is linear.
Recognised by widths and probing. See :mod:`limelight.relevance.layers.streams` for how streams enter and leave the layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn

from limelight.relevance.blocks import decided
from limelight.relevance.kind import Attach, LayerKind, ModuleMatch, replaced
from limelight.relevance.mode import Mode
from limelight.relevance.probing import agrees, answer, is_linear, sample


def recognise(name: str, module: Any) -> Iterator[ModuleMatch]:
    """Match a module that mixes S streams: with fixed router scores, both functions must be linear in the streams."""
    if not (callable(getattr(module, "predict", None)) and callable(getattr(module, "correct", None))):
        return
    sizes = {n: (int(c.in_features), int(c.out_features)) for n, c in module.named_children() if is_linear(c)}
    for inner, (width, streams) in sizes.items():
        others = sorted(s for n, s in sizes.items() if n != inner)
        if width > streams and others == sorted([(streams, streams), (streams, streams**2)]):
            router = getattr(module, inner)
            if _mixes_linearly(module, router, width, streams):
                yield ModuleMatch("altup", name, module, router, tuple(router.modules()))
            return


def _mixes_linearly(module: Any, router: nn.Module, width: int, streams: int) -> bool:
    scores = sample((2, 3, streams), module)
    drawn = sample((2 * streams + 2, 2, 3, width), module)
    x, y, a, b = drawn[:streams], drawn[streams:-2], drawn[-2], drawn[-1]
    handle = router.register_forward_hook(lambda *_: scores)
    try:
        mixed = answer(lambda: [module.predict(v) for v in (x + y, x, y)])
        corrected = answer(lambda: [module.correct(v, c) for v, c in ((x + y, a + b), (x, a), (y, b))])
    finally:
        handle.remove()
    found = (mixed, corrected)
    return None not in found and all(agrees(both, one + other) for both, one, other in found)


def run(match: ModuleMatch, mode: Mode) -> Iterator[Attach]:
    """Use block 0's scores for all blocks."""
    yield replaced(match.spec, partial(decided, mode, match.spec.forward))


KIND = LayerKind("altup", recognise, run)
