"""Routers of a mixture of experts: they choose the experts, and their outputs are constants under the rules.

Recognised as siblings of experts (stacked, or in a ModuleList) that map linearly to one score per expert. A linear with
one output channel beside experts, the gate of a shared expert, counts as a router.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import nn

from limelight.relevance.blocks import decided
from limelight.relevance.kind import Attach, LayerKind, ModuleMatch, replaced
from limelight.relevance.layers.experts import stacked
from limelight.relevance.mode import Mode


def routers(container: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the routers among the children of a block with experts: linear to one score per expert (or to one gate)."""
    children = dict(container.named_children())
    for experts in children.values():
        listed = isinstance(experts, nn.ModuleList) and len(experts) > 1 and _alike(experts)
        if not (listed or stacked(experts)):
            continue
        count = len(experts) if isinstance(experts, nn.ModuleList) else int(next(experts.parameters()).shape[0])
        for name, child in children.items():
            if child is not experts and not isinstance(child, nn.ModuleList) and _decides(child, count):
                yield name, child
        return


def _alike(experts: nn.ModuleList) -> bool:
    """Return whether the modules have equal shapes and two or more matrices each, and nothing else (unlike layers)."""
    shapes = [tuple((n, p.shape) for n, p in e.named_parameters() if p.ndim == 2) for e in experts]
    odd = any(p.ndim != 2 for e in experts for n, p in e.named_parameters() if not n.endswith("bias"))
    return not odd and len(shapes[0]) > 1 and len(set(shapes)) == 1


def _decides(module: nn.Module, experts: int) -> bool:
    """Return whether all matrices inside map to scores: one per expert (possibly including shared ones), or one."""
    matrices = [p for p in module.parameters() if p.ndim == 2]
    most = experts if isinstance(module, nn.Linear) else 2 * experts - 1
    return bool(matrices) and all(
        p.shape[0] == 1 or (experts <= p.shape[0] <= most and p.shape[0] < p.shape[1]) for p in matrices
    )


def recognise(name: str, module: nn.Module) -> Iterator[ModuleMatch]:
    for inner, router in routers(module):
        yield ModuleMatch("router", f"{name}.{inner}", router, covers=tuple(router.modules()))


def run(match: ModuleMatch, mode: Mode) -> Iterator[Attach]:
    """Use block 0's routing for all blocks."""
    yield replaced(match.module, partial(decided, mode, match.module.forward))


KIND = LayerKind("router", recognise, run)
