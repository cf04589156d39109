"""Formatting of the rows of bench/gpu.py as log lines and as a table."""

from __future__ import annotations

from typing import Any

TARGETS = {"meter": 1.15, "relevance-contrastive": 1.15, "cached LIME, 1 update": 3.2, "audit": 2.1}


def short(row: dict[str, Any]) -> str:
    """Format a row as one log line."""
    parts = [f"{row['name']:<28}", f"batch {row.get('batch', 1)}", f"prompt {row.get('prompt_tokens', '')}"]
    for key in ("decode", "prefill", "forward", "backward"):
        if key in row:
            r = row[key]
            parts.append(f"{key} x{r['ratio']:.2f} [{r['low']:.2f}, {r['high']:.2f}]")
    if "seconds_per_token" in row:
        parts.append(f"{1e3 * row['seconds_per_token']:.1f} ms/token, prefill {1e3 * row['prefill_seconds']:.0f} ms")
    parts += [f"{k} {row[k]:.4g}" for k in ("seconds", "kernels_per_token", "kernel_seconds_per_token") if k in row]
    if row.get("peak_bytes") is not None:
        parts.append(f"peak +{row['peak_bytes'] / 2**30:.2f} GiB")
    parts += [
        f"{k}: {row[k]}"
        for k in (
            "error",
            "left_out",
            "phi_forward",
            "phi_backward",
            "greedy_tokens_equal",
            "largest_difference_of_captured_steps",
            "one_pass_prefill",
        )
        if k in row
    ]
    return "  ".join(parts)


def table(found: dict[str, Any]) -> str:
    """The rows as Markdown."""
    lines = [
        "| setting | batch | prompt | ms per token | x greedy | prefill ms | prefill x | peak GiB beyond the model (greedy) | target |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in found["rows"]:
        ratio = r.get("decode") or r.get("forward") or r.get("backward")
        if ratio is None:
            continue
        spread = f"{ratio['ratio']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"
        decoding = "decode" in r
        each = f"{1e3 * r['seconds_per_token']:.1f}" if decoding else ""
        first = f"{1e3 * r['prefill_seconds']:.0f}" if decoding else f"{1e3 * r['seconds']:.0f}"
        peak = "" if r.get("peak_bytes") is None else f"{r['peak_bytes'] / 2**30:.2f}"
        if r.get("greedy_peak_bytes") is not None:
            peak += f" ({r['greedy_peak_bytes'] / 2**30:.2f})"
        target = TARGETS.get(r["name"])
        lines.append(
            f"| {r['name']} | {r['batch']} | {r['prompt_tokens']} | {each} | {spread if decoding else ''} | {first} "
            f"| {r['prefill']['ratio']:.2f} | {peak} | {target or ''} |"
            if decoding
            else f"| {r['name']} | {r['batch']} | {r['prompt_tokens']} |  |  | {first} | {spread} | {peak} | {target or ''} |"
        )
    return "\n".join(lines)
