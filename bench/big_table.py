"""The table of bench/big.py: what was measured at the larger depth, and a full stack computed from both depths."""

from __future__ import annotations

from typing import Any


def _at(rows: list[dict[str, Any]], shape: str, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    small, large = sorted((r for r in rows if (r["shape"], r["name"]) == (shape, name)), key=lambda r: r["depth"])
    return small, large


def _ratio(part: dict[str, Any]) -> str:
    return f"{part['ratio']:.2f} [{part['low']:.2f}, {part['high']:.2f}]"


def _full(small: dict[str, Any], large: dict[str, Any], part: str) -> str:
    from bench.big import stacked

    depths, full = (small["depth"], large["depth"]), small["full"]
    mine = stacked(small[part]["seconds"], large[part]["seconds"], depths, full)
    base = stacked(small[part]["greedy_seconds"], large[part]["greedy_seconds"], depths, full)
    return f"{mine / base:.2f}"


def table(found: dict[str, Any]) -> str:
    """Ratios to plain cached greedy decoding of the same model."""
    from bench.big import stacked

    out = [
        "| model shape | setting | token x greedy | full stack | prefill x greedy | full stack | peak beyond the model x greedy | full stack, bf16 GiB (greedy) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = found["rows"]
    for shape in dict.fromkeys(r["shape"] for r in rows):
        for name in dict.fromkeys(r["name"] for r in rows if r["shape"] == shape):
            pair = [r for r in rows if (r["shape"], r["name"]) == (shape, name)]
            if len(pair) < 2:
                continue
            small, large = _at(rows, shape, name)
            depths, full = (small["depth"], large["depth"]), small["full"]
            memory = [
                stacked(small[k], large[k], depths, full) / 2 / 2**30 for k in ("peak_bytes", "greedy_peak_bytes")
            ]
            prefill = "forward" if name == "audit" else "prefill"
            token = ["", ""] if name == "audit" else [_ratio(large["token"]), _full(small, large, "token")]
            cells = [
                shape, name, *token, _ratio(large[prefill]), _full(small, large, prefill),
                f"{large['peak_bytes'] / large['greedy_peak_bytes']:.2f}", f"{memory[0]:.2f} ({memory[1]:.2f})",
            ]  # fmt: skip
            out.append("| " + " | ".join(cells) + " |")
    for shape, error in found.get("bfloat16", {}).items():
        out.append("")
        out.append(
            f"{shape}, bfloat16: Phi of the vocabulary differs from float32's by {error['relative_error']:.1%} of its spread."
        )
    return "\n".join(out)
