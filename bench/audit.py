"""What an audit costs: ratios to one plain forward of the same model over the same tokens, in turn in the same process.

    python -m bench.audit            CPU: process time of one thread
    python -m bench.audit --gpu      a 7B-shaped LLaVA with random bfloat16 weights on the first GPU: wall clock, synchronised

A plain forward is what scoring an answer without relevance takes: towers, prompt and answer once, logits at the answer's
positions alone (``logits_to_keep``), and the log-probabilities of its tokens. The audit is all that ``limelight.audit`` does
behind the processor: the same with a tangent row beside every row, z-scores over the vocabulary, candidates, steps. The model
is that of bench/speed.py. Median ratio of the pairs, and its interval of 95 % by bootstrap over them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.machine import about, add_busy, processor, ratio_of, require_quiet, shown
from bench.speed import LENGTHS, build, prompt

TARGET = 2.3


@dataclass(frozen=True)
class Setting:
    """Prompt tokens, answer tokens, rows, and whether an earlier answer stands in the prompt."""

    length: int
    answer: int
    batch: int = 1
    earlier: bool = False

    @property
    def name(self) -> str:
        told = f"prompt {self.length}, answer {self.answer}, batch {self.batch}"
        return told + (", an earlier answer" if self.earlier else "")


SETTINGS = (
    Setting(150, 16), Setting(150, 64), Setting(600, 64), Setting(600, 64, 4), Setting(600, 256), Setting(2400, 64),
    Setting(600, 64, 1, True),
)  # fmt: skip


def timed(work: Callable[[], Any], *, gpu: bool) -> float:
    """Seconds of one run: process time, or on a GPU wall clock with everything done."""
    clock = time.perf_counter if gpu else time.process_time
    if gpu:
        torch.cuda.synchronize()
    start = clock()
    work()
    if gpu:
        torch.cuda.synchronize()
    return clock() - start


def measured(setting: Setting, repeats: int, *, gpu: bool) -> dict[str, Any]:
    """Ratio and both times of one setting."""
    from limelight.auditing.forward import AnsweredPrompt, measure
    from limelight.decoding.answer import prompt_of
    from limelight.models.adapter import Adapter

    adapter = Adapter(build(setting.length, gpu=gpu))
    device = adapter.device
    dtype = adapter.model.dtype
    prompts = [prompt_of(adapter, prompt(setting.length, 1, str(device), dtype)) for _ in range(setting.batch)]
    generator = torch.Generator().manual_seed(2)
    answers = torch.randint(5, 30000, (setting.batch, setting.answer), generator=generator)
    earlier = ((setting.length - 12, setting.length - 4),) if setting.earlier else ()
    said = [AnsweredPrompt(p, tuple(a), earlier) for p, a in zip(prompts, answers.tolist(), strict=True)]
    ids = torch.cat([torch.cat([p.tensors["input_ids"] for p in prompts]), answers.to(device)[:, :-1]], dim=1)
    pixels = torch.cat([p.tensors["pixel_values"] for p in prompts])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    targets = answers.to(device)

    def plain() -> Any:
        with torch.no_grad():
            out = adapter.model(**inputs, use_cache=False, logits_to_keep=setting.answer)
            logits = out.logits.float()
            return (logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)).tolist()

    def audit() -> Any:
        return measure(adapter, said)

    own, told = plain(), audit()
    apart = max(
        abs(a - s.logprob) for row, steps in zip(own, told, strict=True) for a, s in zip(row, steps, strict=True)
    )
    if apart > (0.3 if gpu else 1e-3):
        raise SystemExit(
            f"{setting.name}: the two are not the same computation, log-probabilities differ by {apart:.2g}"
        )
    pairs = []
    for turn in range(repeats):
        order = (plain, audit) if turn % 2 else (audit, plain)
        seconds = {work: timed(work, gpu=gpu) for work in order}
        pairs.append((seconds[plain], seconds[audit]))
    return {
        "setting": setting.name, **ratio_of([b for _, b in pairs], [a for a, _ in pairs]),
        "plain_seconds": statistics.median(a for a, _ in pairs), "audit_seconds": statistics.median(b for _, b in pairs),
        "repeats": repeats,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument(
        "--length", type=int, choices=sorted(LENGTHS), action="append", help="of the prompt; all by default"
    )
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    add_busy(parser)
    given = parser.parse_args()
    if given.out and not given.gpu:
        require_quiet(busy=given.busy)
    torch.set_num_threads(1)
    where = torch.cuda.get_device_name() if given.gpu else f"{processor()}, one thread"
    print(f"audit / plain forward over the same tokens, {where}")
    rows = []
    for setting in SETTINGS:
        if given.length and setting.length not in given.length:
            continue
        row = measured(setting, given.repeats, gpu=given.gpu)
        rows.append(row)
        mark = "" if row["high"] <= TARGET or setting.earlier else f"   above {TARGET}"
        print(
            f"{row['setting']:55} {shown(row['ratio'], row['low'], row['high'])}   "
            f"{1000 * row['plain_seconds']:.0f} ms -> {1000 * row['audit_seconds']:.0f} ms{mark}",
            flush=True,
        )
    if given.out:
        given.out.write_text(json.dumps({"where": where, "machine": about(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
