"""What an answer of one token costs (POPE's yes or no), as ratios to greedy in turn in the same process.

    python -m bench.one_token            the committed table (about a quarter of an hour of one thread)
    python -m bench.one_token --quick    fewer repeats, prompts of 600 tokens alone

The prompt is the cost of such answers. Three routes to the relevance of the media for the candidates:

    forward mode     values with one tangent row: Phi_M of every token of the vocabulary (what relevance-contrastive runs)
    k backward       one forward with the rules, and one backward pass per candidate token
    prefix cache     forward mode behind the prefill of an earlier question about the same image

Process time of one thread; the model is that of bench/speed.py. Median of the pairs and its interval of 95 % by bootstrap.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.machine import about, add_busy, ratio_of, require_quiet, shown
from bench.speed import LENGTHS, build, prompt

RESULTS = Path(__file__).parent / "results" / "one_token.json"
BACKWARD = (1, 2, 4)


def questions(length: int, count: int) -> list[dict[str, Any]]:
    """Prompts about one image: the last eight tokens differ."""
    first = prompt(length, 1, "cpu", torch.float32)
    generator = torch.Generator().manual_seed(3)
    out = []
    for _ in range(count):
        ids = first["input_ids"].clone()
        ids[:, -8:] = torch.randint(5, 30000, (1, 8), generator=generator)
        out.append({**first, "input_ids": ids})
    return out


def routes(length: int, count: int) -> tuple[dict[str, Callable[[int], Any]], Callable[[int], None]]:
    """Name -> what answers the i-th question, and what prepares it."""
    import limelight
    from limelight.models.adapter import Adapter
    from limelight.relevance.attribute import following_rules

    adapter = Adapter(build(length))
    asked = questions(length, count)

    def generated(i: int, strategy: Any) -> Any:
        inputs = asked[i]
        method = limelight.custom_generate(strategy, tensors=inputs)
        with torch.no_grad():
            return adapter.model.generate(
                **inputs, custom_generate=method, max_new_tokens=1, do_sample=False, disable_compile=True
            )

    def greedy(i: int) -> Any:
        return generated(i, limelight.greedy())

    def forward(i: int) -> Any:
        return limelight.generate(
            adapter, messages=asked[i], strategy=limelight.relevance_contrastive(), max_new_tokens=1, relevance=False
        )

    def backward(i: int, k: int) -> Any:
        call = adapter.capture(asked[i])
        media = adapter.modality_ids(asked[i])[0] > 0
        with following_rules(adapter, "attnlrp", call) as leaves:
            logits = adapter.logits(adapter.hidden(leaves.call, leaves.embeds)[:, -1:])[0, 0]
            best = logits.detach().topk(k).indices.tolist()
            return [float(leaves.relevance(logits[t], retain_graph=True).detach()[0, media].sum()) for t in best]

    known = limelight.PrefixCache()

    def again(i: int) -> Any:
        adapter.prefix_cache = known
        try:
            return forward(i)
        finally:
            adapter.prefix_cache = None

    def prepare(i: int) -> None:
        known.clear()
        again((i + 1) % count)

    named: dict[str, Callable[[int], Any]] = {"greedy": greedy, "forward mode": forward, "prefix cache": again}
    named |= {f"{k} backward": lambda i, k=k: backward(i, k) for k in BACKWARD}
    return named, prepare


def measured(length: int, repeats: int) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    named, prepare = routes(length, 4)
    seconds: dict[str, list[float]] = {name: [] for name in named}
    for turn in range(repeats + 1):  # the first turn warms up
        i = turn % 4
        for name in random.Random(turn).sample(sorted(named), len(named)):
            if name == "prefix cache":
                prepare(i)
            start = time.process_time()
            named[name](i)
            if turn:
                seconds[name].append(time.process_time() - start)
    return [
        {
            "name": name, "prompt_tokens": length, "seconds": statistics.median(found), "repeats": len(found),
            **ratio_of(found, seconds["greedy"]),
        }
        for name, found in seconds.items()
    ]  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| route | prompt | x greedy |", "|---|---|---|"]
    lines += [f"| {r['name']} | {r['prompt_tokens']} | {shown(r['ratio'], r['low'], r['high'])} |" for r in rows]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="7 repeats, prompts of 600 tokens, nothing written")
    parser.add_argument("--repeats", type=int, default=15)
    add_busy(parser)
    given = parser.parse_args()
    if not given.quick:
        require_quiet(busy=given.busy)
    lengths = (600,) if given.quick else tuple(sorted(LENGTHS))
    rows = []
    for length in lengths:
        rows += measured(length, 7 if given.quick or length > 1000 else given.repeats)
    for r in rows:
        print(
            f"{r['name']:16} {r['prompt_tokens']:5}  x{r['ratio']:.2f} [{r['low']:.2f}, {r['high']:.2f}]  {r['seconds']:.3f} s"
        )
    if not given.quick:
        RESULTS.write_text(json.dumps({"machine": about(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
