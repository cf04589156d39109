"""Speed and memory, as ratios to plain cached greedy decoding in the same run.

    python -m bench.speed            the committed table (long)
    python -m bench.speed --quick    a short version of it, in under three minutes
    python -m bench.speed --gpu      a 7B-shaped LLaVA with random bfloat16 weights on the first GPU

Each (setting, prompt length, batch) runs in a process of its own, in turn with greedy decoding of the same model there:
process time of one thread. A repeat's time per token is the median over its tokens (of a gated setting: the mean); the ratio is the
median over repeats, with its 95 % interval by bootstrap over them. Peak memory beyond the loaded model; FLOPs by counting matrix
products. Nothing is written on a busy machine unless told (--busy). The model has random weights: LM 512 wide, 8 layers, 8 heads, vocabulary 32000, LLaVA-shaped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.direct_labels import GROUPS, apart, group_of
from bench.machine import about, add_busy, ratio_of, require_quiet, shown

RESULTS = Path(__file__).parent / "results"
CACHE = Path(".cache/speed")  # finished cells of an interrupted run; emptied when a run is complete
LENGTHS = {150: 100, 600: 576, 2400: 2304}  # prompt tokens -> image tokens among them
GPU_SETTINGS = ("greedy", "meter", "relevance-contrastive", "cached LIME, 1 update", "cached LIME, gated 20 %")


def build(length: int, *, gpu: bool = False) -> Any:
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    side = round(LENGTHS[length] ** 0.5)
    text = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8}
    vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    if gpu:
        text = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
        vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision, image_size=side * 14, patch_size=14),
        text_config=LlamaConfig(**text, vocab_size=32000, max_position_embeddings=8192),
        image_token_index=31999,
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    with torch.device("cuda" if gpu else "cpu"):
        torch.set_default_dtype(torch.bfloat16 if gpu else torch.float32)
        model = LlavaForConditionalGeneration(config).eval()
        torch.set_default_dtype(torch.float32)
    return model


def prompt(length: int, batch: int, device: str, dtype: Any) -> dict[str, Any]:
    import torch

    image = LENGTHS[length]
    side = round(image**0.5)
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(5, 30000, (batch, length - image), generator=generator)
    ids = torch.cat([words[:, :8], torch.full((batch, image), 31999), words[:, 8:]], dim=1)
    pixels = torch.randn(batch, 3, side * 14, side * 14, generator=generator).to(device, dtype)
    return {"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device), "pixel_values": pixels}


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(name: str, length: int, batch: int, tokens: int, repeats: int, *, gpu: bool, flops: bool) -> dict[str, Any]:
    """One cell, in this process. Seconds a token are those after the first; the first is the prefill."""
    import logging
    import warnings

    import torch

    import limelight
    from bench.flops import FlopCounter
    from bench.speed_settings import UNCACHED, settings

    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    model = build(length, gpu=gpu)
    device = "cuda" if gpu else "cpu"
    inputs = prompt(length, batch, device, next(model.parameters()).dtype)
    clock = (lambda: (torch.cuda.synchronize(), time.perf_counter())[1]) if gpu else time.process_time

    def run(setting: str, count: int, at: Any) -> None:
        strategy = settings()[setting]()
        fn = limelight.custom_generate(strategy, tensors=inputs, on_step=lambda row, step: at() if row == 0 else None)
        with torch.no_grad():
            model.generate(
                **inputs,
                custom_generate=fn,
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                disable_compile=True,
            )

    def timed(setting: str, count: int) -> tuple[float, list[float]]:
        """Seconds of the first token and of each later one."""
        stamps = [clock()]
        run(setting, count, lambda: stamps.append(clock()))
        return stamps[1] - stamps[0], [b - a for a, b in itertools.pairwise(stamps[1:])] or [stamps[1] - stamps[0]]

    loaded = torch.cuda.memory_allocated() if gpu else peak_bytes()
    middle = statistics.mean if "gated" in name else statistics.median  # a gate's rare costly tokens count
    seconds: list[float] = []
    firsts: list[float] = []
    base: list[float] = []
    base_firsts: list[float] = []
    if name not in UNCACHED and "uncached" not in name:
        timed(name, tokens)  # the first run warms up
    for repeat in range(repeats):
        first, later = timed(name, tokens)
        firsts.append(first)
        seconds.append(middle(later))
        if repeat == 0:
            peak = (torch.cuda.max_memory_allocated() if gpu else peak_bytes()) - loaded
            timed("greedy", 2)
        first, later = timed("greedy", max(tokens, 8))  # in turn: a machine's pace drifts within minutes
        base_firsts.append(first)
        base.append(statistics.median(later))
    counted: float | None = None
    if flops and not gpu:
        model.set_attn_implementation("eager")
        marks: list[int] = []
        with FlopCounter() as counter:
            run(name, 1 if name in UNCACHED else 3, lambda: marks.append(counter.total))
        counted = float(marks[0] if len(marks) == 1 else (marks[-1] - marks[0]) / (len(marks) - 1))
    return {
        "name": name,
        "prompt_tokens": length,
        "batch": batch,
        "repeats": repeats,
        "seconds_per_token": statistics.median(seconds) / batch,
        "token": ratio_of(seconds, base),
        "prefill": ratio_of(firsts, base_firsts),
        "peak_bytes": peak,
        "flops_per_token": None if counted is None else counted / batch,
    }


def cell(
    name: str, length: int, batch: int, tokens: int, repeats: int, *, gpu: bool, flops: bool, only_kept: bool = False
) -> dict[str, Any] | None:
    """The same in a fresh process, or what an interrupted run left; None (with a line on stderr) when it fails."""
    key = "-".join(str(x) for x in (name, length, batch, tokens, repeats, gpu, flops)).replace(" ", "_")
    kept = CACHE / f"{key}.json"
    if flops and kept.exists():
        row: dict[str, Any] = json.loads(kept.read_text())
        return row
    if only_kept:
        return None
    arguments = [
        sys.executable,
        "-m",
        "bench.speed",
        "--cell",
        name,
        str(length),
        str(batch),
        str(tokens),
        str(repeats),
    ]
    arguments += ["--gpu"] * gpu + ["--flops"] * flops
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = (done.stderr.strip().splitlines() or ["killed"])[-1]
        print(f"{name} at {length} x {batch} did not run: {tail}", file=sys.stderr)
        return None
    row = json.loads(done.stdout.strip().splitlines()[-1])
    if flops:
        CACHE.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(row))
    return row


def plan(*, quick: bool, gpu: bool) -> list[tuple[str, int, int, int, int]]:
    """(name, prompt length, batch, tokens, repeats). What nobody would wait for is left out, not guessed."""
    from bench.speed_settings import BATCHED, PEERS, UNCACHED, settings

    out = []
    for length in (600,) if quick or gpu else (600, 150, 2400):
        for batch in (1,) if quick else (1, 8):
            for name in GPU_SETTINGS if gpu else settings():
                slow = name in UNCACHED or name == "greedy, uncached"
                if slow and (length > 600 or batch > 1):
                    continue
                if batch > 1 and not gpu and name not in BATCHED:
                    continue
                if "6 Adam" in name and length > 600:
                    continue
                if name in PEERS[2:] and (length, batch) != (600, 1):  # what a peer costs, once
                    continue
                if quick and (
                    name in PEERS
                    or name in ("LIME as published", "cached LIME, 6 Adam updates", "cached LIME, 6 updates")
                ):
                    continue
                tokens = 1 if name in UNCACHED else 3 if slow else 10 if length > 600 or batch > 1 else 16
                out.append((name, length, batch, tokens, 1 if quick else 5))
    return out


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| setting | prompt | batch | ms per token | x greedy | prefill x greedy | peak MiB beyond the model | GFLOP a token |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        flops = "" if r["flops_per_token"] is None else f"{r['flops_per_token'] / 1e9:.2f}"
        lines.append(
            f"| {r['name']} | {r['prompt_tokens']} | {r['batch']} | {1e3 * r['seconds_per_token']:.1f} "
            f"| {ratio(r['token'])} | {ratio(r['prefill'])} | {r['peak_bytes'] / 2**20:.0f} | {flops} |"
        )
    return "\n".join(lines)


def ratio(found: dict[str, float]) -> str:
    """A ratio with its interval; rows of older files, of two repeats, have none and two digits."""
    if "low" not in found:
        rounded = float(f"{found['ratio']:.1e}")
        return f"{rounded:.{1 if rounded < 10 else 0}f}"
    return shown(found["ratio"], found["low"], found["high"])


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Cost over prompt length, batch 1, as ratios to greedy at that length: groups of different runs can be put side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    ends = []
    for name in dict.fromkeys(r["name"] for r in rows if r["batch"] == 1):
        points = sorted(
            (r["prompt_tokens"], r["token"]["ratio"]) for r in rows if r["name"] == name and r["batch"] == 1
        )
        if len(points) < 2:  # the table has it: a point is no curve, and their names would cover the others
            continue
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, color=GROUPS[group_of(name)])
        ends.append((name, *points[-1]))
    for length in {x for _, x, _ in ends}:  # names beside the last points
        here = [(name, y) for name, x, y in ends if x == length]
        for (name, y), place in zip(here, apart([math.log10(y) for _, y in here], 0.075), strict=True):
            axes.annotate(
                name, (length, y), (length * 1.12, 10**place), fontsize=7.5, va="center", color=GROUPS[group_of(name)],
                arrowprops={"arrowstyle": "-", "color": "#bbb", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2},
            )  # fmt: skip
    lengths = sorted({r["prompt_tokens"] for r in rows})
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="prompt tokens",
        ylabel="x plain cached greedy at that length (one thread)",
        title="Cost of a token over prompt length",
    )
    axes.set_xticks(lengths, [str(n) for n in lengths])
    axes.minorticks_off()
    axes.set_xlim(lengths[0] * 0.85, lengths[-1] * 3.4)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one prompt length, batch 1, one repeat")
    parser.add_argument(
        "--groups", nargs="+", metavar="TOKENSxBATCH",
        help="measure only these (600x1 2400x8) and keep the other rows of the file; ratios are within a group",
    )  # fmt: skip
    parser.add_argument("--gpu", action="store_true", help="7B-shaped random model on the first GPU")
    parser.add_argument("--kept", action="store_true", help="only the cells that an interrupted run has finished")
    parser.add_argument("--flops", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--cell", nargs=5, metavar=("NAME", "LENGTH", "BATCH", "TOKENS", "REPEATS"), help=argparse.SUPPRESS
    )
    parser.add_argument(
        "--out", type=Path, help="where to write the rows (default bench/results/speed.json; not for --quick)"
    )
    add_busy(parser)
    args = parser.parse_args()
    if args.cell:
        name, length, batch, tokens, repeats = args.cell
        row = measure(name, int(length), int(batch), int(tokens), int(repeats), gpu=args.gpu, flops=args.flops)
        print(json.dumps(row))
        return
    cells = plan(quick=args.quick, gpu=args.gpu)
    groups = {f"{length}x{batch}" for _, length, batch, *_ in cells}
    if args.groups and not set(args.groups) <= groups:
        parser.error(f"expected groups among {', '.join(sorted(groups))}, got {' '.join(args.groups)}")
    out = args.out or (None if args.quick else RESULTS / ("speed_gpu.json" if args.gpu else "speed.json"))
    if out is not None and not args.kept and not args.gpu:
        require_quiet(busy=args.busy)
    rows: list[dict[str, Any]] = []
    if args.groups:
        cells = [c for c in cells if f"{c[1]}x{c[2]}" in args.groups]
        before = json.loads(out.read_text())["rows"] if out is not None and out.exists() else []
        rows += [r for r in before if f"{r['prompt_tokens']}x{r['batch']}" not in args.groups]
    for i, (name, length, batch, tokens, repeats) in enumerate(cells):
        print(f"[{i + 1}/{len(cells)}] {name}, {length} prompt tokens, batch {batch}", file=sys.stderr, flush=True)
        row = cell(name, length, batch, tokens, repeats, gpu=args.gpu, flops=not args.quick, only_kept=args.kept)
        if row is not None:
            rows.append(row)
    measured = {(r["prompt_tokens"], r["batch"]) for r in rows if r["name"] == "greedy"}
    rows = [r for r in rows if (r["prompt_tokens"], r["batch"]) in measured]
    rows.sort(key=lambda r: (r["prompt_tokens"], r["batch"]))
    print(table(rows))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"machine": about(), "rows": rows}, indent=1) + "\n")
        if not args.gpu:
            plot(rows, out.with_suffix(".png"))
        shutil.rmtree(CACHE, ignore_errors=True)


if __name__ == "__main__":
    main()
