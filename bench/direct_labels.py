"""Labels beside the ends of lines, and few colours: one per group of methods."""

from __future__ import annotations

from collections.abc import Sequence

GROUPS = {  # at most 8 colours, distinguishable with the common colour vision deficiencies
    "plain": "#47515d",
    "ours": "#0f766e",
    "LIME": "#c2410c",
    "published": "#1d4ed8",
    "control": "#8b8b8b",
}


def group_of(name: str) -> str:
    """The group of a row: plain decoding, controls, ours, LIME, or published."""
    if name.startswith(("greedy", "sampled")):
        return "plain"
    if "text positions" in name or "random direction" in name:
        return "control"
    if "LIME" in name:
        return "LIME"
    return "ours" if name.startswith(("relevance-contrastive", "meter", "reconsider", "look-again")) else "published"


def apart(places: Sequence[float], gap: float) -> list[float]:
    """Move labels as little as needed, in their order, so that neighbours are at least ``gap`` apart."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    out = [places[i] for i in order]
    for _ in range(500):
        moved = False
        for a in range(len(out) - 1):
            lack = gap - (out[a + 1] - out[a])
            if lack > 1e-9:
                out[a] -= lack / 2
                out[a + 1] += lack / 2
                moved = True
        if not moved:
            break
    found = [0.0] * len(places)
    for place, i in zip(out, order, strict=True):
        found[i] = place
    return found
