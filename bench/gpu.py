"""Benchmarks of a 7B model's shape on one GPU in one run: speed, prefill, memory, numerical agreement.

    bench/gpu.sh                     on a machine with a GPU: environment check, then this
    python -m bench.gpu --tiny       the same program on a CPU at a tiny size, for tests

LLaVA-1.5's shape (Llama 4096 wide, 32 layers, 32 heads, vocabulary 32064; CLIP-L/336; 576 positions per image),
random weights in bfloat16. Every row alternates with plain cached greedy decoding of the same model in the same process; rows
are in order of importance and each is written to the results file as soon as it is done, so that an interrupted run keeps
its results. Seconds are wall-clock between synchronised tokens; memory is the allocator's peak beyond the loaded model.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.gpu_clock import Clock, interval
from bench.gpu_shape import Size, build, machine, prompt, seven_b, tiny
from bench.gpu_table import short, table

RESULTS = Path(__file__).parent / "results" / "gpu.json"
GROUPS = ((1, 600), (1, 2400), (8, 600), (8, 2400))  # batch, prompt tokens
LATER = ("meter", "relevance-contrastive", "VCD")  # what is measured at the other shapes
SETTINGS = ("meter", "relevance-contrastive", "cached LIME, 1 update", "VCD", "M3ID")


class Bench:
    def __init__(self, size: Size, out: Path, seconds: float) -> None:
        self.size, self.out, self.clock = size, out, Clock(size)
        self.deadline = time.monotonic() + seconds
        self.model = build(size)
        self.rows: list[dict[str, Any]] = []
        self.machine = machine(size)
        self.write()

    def write(self) -> None:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"machine": self.machine, "rows": self.rows}, indent=1) + "\n"
        part = self.out.with_suffix(".part")
        part.write_text(text)
        part.replace(self.out)

    def row(self, name: str, work: Callable[[dict[str, Any]], None], **what: Any) -> None:
        """One row; what fails is a row too, with its error, and the run goes on."""
        row: dict[str, Any] = {"name": name, **what}
        if time.monotonic() > self.deadline:
            row["left_out"] = "no time left"
        else:
            started = time.monotonic()
            try:
                work(row)
            except Exception as error:  # noqa: BLE001 - a bench on a lent machine reports and goes on
                row["error"] = f"{type(error).__name__}: {str(error)[:300]}"
            row["took"] = round(time.monotonic() - started, 2)
        self.rows.append(row)
        self.write()
        print(short(row), flush=True)

    def tokens(self, strategy: Callable[[], Any] | None, inputs: dict[str, Any], count: int) -> tuple[float, float]:
        """(seconds of the first token, seconds of each later one: their median)."""
        import limelight

        stamps = [self.clock.now()]

        def step(row: int, _: Any) -> None:
            if row == 0:
                stamps.append(self.clock.now())

        given: dict[str, Any] = {
            "max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "disable_compile": True,
        }  # fmt: skip
        if strategy is None:
            self.model.generate(**inputs, **given, streamer=_Stamps(lambda: stamps.append(self.clock.now())))
        else:
            fn = limelight.custom_generate(strategy(), tensors=inputs, on_step=step)
            self.model.generate(**inputs, **given, custom_generate=fn)
        gaps = [b - a for a, b in itertools.pairwise(stamps[1:])]
        return stamps[1] - stamps[0], statistics.median(gaps)

    def decoding(self, strategy: Callable[[], Any] | None, batch: int, length: int, row: dict[str, Any]) -> None:
        inputs = prompt(self.size, batch, length)
        n = self.size.tokens
        plain = None if batch == 1 else greedy  # transformers' streamers take one row
        self.tokens(plain, inputs, 4)
        self.tokens(strategy, inputs, 4)
        firsts: list[tuple[float, float]] = []
        later: list[tuple[float, float]] = []
        for repeat in range(self.size.repeats):
            with self.clock.peak(row) if repeat == 0 else contextlib.nullcontext():
                first, each = self.tokens(strategy, inputs, n)
            base_row: dict[str, Any] = {}
            with self.clock.peak(base_row) if repeat == 0 else contextlib.nullcontext():
                base_first, base = self.tokens(plain, inputs, n)
            if repeat == 0:
                row["greedy_peak_bytes"] = base_row["peak_bytes"]
            firsts.append((first, base_first))
            later.append((each, base))
        row["seconds_per_token"] = statistics.median(a for a, _ in later)
        row["greedy_seconds_per_token"] = statistics.median(b for _, b in later)
        row["tokens_per_second"] = batch / row["seconds_per_token"]
        row["prefill_seconds"] = statistics.median(a for a, _ in firsts)
        row["greedy_prefill_seconds"] = statistics.median(b for _, b in firsts)
        row["decode"] = interval(*map(list, zip(*later, strict=True)))
        row["prefill"] = interval(*map(list, zip(*firsts, strict=True)))

    def forwards(self, batch: int, length: int, row: dict[str, Any], *, answer: int = 64) -> None:
        """An audit's work: one dual forward over prompt and answer, against one plain forward of the same tokens."""
        import limelight
        from limelight.relevance.forward.stream import DualStream, modality_channel

        adapter = limelight.wrap(self.model)
        inputs = prompt(self.size, batch, length)
        said = torch.randint(5, self.size.vocabulary - 2, (batch, answer), device=self.size.device)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], said], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])

        def plain() -> None:
            self.model(**inputs, use_cache=False, logits_to_keep=answer)

        def dual() -> None:
            call = adapter.capture(inputs)
            seen = adapter.modality_ids(inputs) > 0
            stream = DualStream(adapter, call, [modality_channel(seen, call.mask)], reserve=1)
            stream.heads(stream.prefill())

        pairs = self.turns(dual, plain, row)
        row["seconds"], row["plain_seconds"] = (statistics.median(x) for x in zip(*pairs, strict=True))
        row["forward"] = interval(*map(list, zip(*pairs, strict=True)))

    def attribution(self, length: int, row: dict[str, Any]) -> None:
        """One AttnLRP attribution against plain gradient x input of the same logit."""
        import limelight
        from limelight.relevance.composites import ATTN_LRP, GRADIENT_INPUT

        inputs = prompt(self.size, 1, length)
        pairs = self.turns(
            lambda: limelight.attribute(self.model, inputs, composite=ATTN_LRP),
            lambda: limelight.attribute(self.model, inputs, composite=GRADIENT_INPUT),
            row,
        )
        row["seconds"], row["plain_seconds"] = (statistics.median(x) for x in zip(*pairs, strict=True))
        row["backward"] = interval(*map(list, zip(*pairs, strict=True)))

    def turns(self, mine: Callable[[], Any], base: Callable[[], Any], row: dict[str, Any]) -> list[tuple[float, float]]:
        out = []
        mine(), base()
        for repeat in range(max(self.size.repeats, 3)):
            with self.clock.peak(row) if repeat == 0 else contextlib.nullcontext():
                start = self.clock.now()
                mine()
                middle = self.clock.now()
            again = self.clock.now()
            base()
            out.append((middle - start, self.clock.now() - again))
        return out

    def exact(self, row: dict[str, Any]) -> None:
        """Exact LIME, one token (seven forwards, second order) at 600 tokens."""
        from limelight.decoding.methods.lime import Lime

        inputs = prompt(self.size, 1, 600)
        with self.clock.peak(row):
            start = self.clock.now()
            self.model_generate(Lime, inputs, 1)
            row["seconds"] = self.clock.now() - start

    def model_generate(self, strategy: Callable[[], Any], inputs: dict[str, Any], count: int) -> Any:
        import limelight

        fn = limelight.custom_generate(strategy(), tensors=inputs)
        return self.model.generate(
            **inputs, custom_generate=fn, max_new_tokens=count, do_sample=False, disable_compile=True
        )

    def agreement(self, row: dict[str, Any]) -> None:
        """Phi_M of the forward route against the sum of the backward route, in this dtype; greedy = plain greedy."""
        import limelight
        from limelight.relevance.forward import flash
        from limelight.relevance.forward.stream import DualStream, modality_channel

        adapter = limelight.wrap(self.model)
        inputs = prompt(self.size, 1, 600)
        call = adapter.capture(inputs)
        seen = adapter.modality_ids(inputs) > 0
        stream = DualStream(adapter, call, [modality_channel(seen, call.mask)], reserve=1)
        logits, phi = stream.heads(stream.prefill())
        target = int(logits[0].argmax())
        back = limelight.attribute(adapter, inputs, target)
        total = sum(back.scores[s.start : s.stop].sum().item() for s in back.spans if s.modality == "image")
        row["phi_forward"], row["phi_backward"] = float(phi[0, 0, target]), float(total)
        row["phi_std_over_vocabulary"] = float(phi[0, 0].std())
        row["one_pass_prefill"] = {
            f"{dtype}, {dim}": flash.trusted(dtype, dim, torch.device(self.size.device))
            for dtype in (torch.float32, torch.bfloat16, torch.float16)
            for dim in flash.HEADS
        }
        row["largest_difference_of_captured_steps"] = self.captured(call, seen)
        same = self.model_generate(greedy, inputs, 8)
        plain = self.model.generate(**inputs, max_new_tokens=8, do_sample=False)
        row["greedy_tokens_equal"] = bool((same == plain).all())

    def captured(self, call: Any, seen: Any) -> dict[str, float]:
        """Ordinary steps against fixed-shape steps (CUDA graphs where there is a GPU), over 24 tokens, in the logits' and
        Phi's own units; beside it their standard deviation over the vocabulary."""
        import limelight
        from limelight.relevance.forward.static import StaticStep
        from limelight.relevance.forward.stream import DualStream, modality_channel

        out = []
        for static in (False, True):
            dual = DualStream(limelight.wrap(self.model), call, [modality_channel(seen, call.mask)], reserve=64)
            if not static:
                dual.static.wanted = False
            elif not self.clock.cuda:
                dual.static = StaticStep(dual, graphs=False)
            dual.prefill()
            values = []
            for i in range(24):
                dual.append(torch.full((dual.batch,), 5 + i, device=self.size.device))
                values.append([x.clone() for x in dual.heads(dual.current())])
            out.append([torch.stack(x) for x in zip(*values, strict=True)])
        (logits, phi), (own_logits, own_phi) = out
        return {
            "logits": float((logits - own_logits).abs().max()), "logits_std": float(logits.std()),
            "phi": float((phi - own_phi).abs().max()), "phi_std": float(phi.std()),
        }  # fmt: skip

    def profile(self, strategy: Callable[[], Any] | None, row: dict[str, Any]) -> None:
        """Where a token's time goes: kernels, their summed time, and the wall-clock (batch 1, 600 tokens)."""
        from torch.profiler import ProfilerActivity, profile

        inputs = prompt(self.size, 1, 600)
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.clock.cuda else [])]

        def counted(count: int) -> tuple[int, float]:
            with profile(activities=kinds) as found:
                self.tokens(strategy, inputs, count)
            kernels = [e for e in found.events() if "cuda" in str(e.device_type).lower()]
            return len(kernels), sum(e.device_time for e in kernels) / 1e6

        few, many = counted(2), counted(4)
        row["kernels_per_token"] = (many[0] - few[0]) / 2
        row["kernel_seconds_per_token"] = (many[1] - few[1]) / 2


class _Stamps:
    """A transformers streamer that only tells when a token came."""

    def __init__(self, at: Callable[[], None]) -> None:
        self.at, self.prompt = at, True

    def put(self, _: Any) -> None:
        if not self.prompt:
            self.at()
        self.prompt = False

    def end(self) -> None:
        pass


def greedy() -> Any:
    from limelight.decoding.registry import strategy

    return strategy("greedy")


def plan(bench: Bench) -> Iterator[tuple[str, Callable[[dict[str, Any]], None], dict[str, Any]]]:
    """(name, work, what it is of), the most telling first."""
    from bench.speed_settings import settings

    known = settings()
    for batch, length in GROUPS:
        what = {"batch": batch, "prompt_tokens": length}
        first = (batch, length) == GROUPS[0]
        yield "greedy, limelight's loop", partial(bench.decoding, greedy, batch, length), what
        yield "greedy, captured", partial(bench.decoding, Captured, batch, length), what
        for name in SETTINGS if first else LATER:
            yield name, partial(bench.decoding, known[name], batch, length), what
        if batch == 1:
            yield "audit", partial(bench.forwards, batch, length), what
        if batch == 1:
            yield "attribute", partial(bench.attribution, length), what
        if first:
            yield "agreement", bench.agreement, what
            yield "exact LIME, one token", bench.exact, what
    what = {"batch": 1, "prompt_tokens": 600}
    yield "profile: plain greedy", partial(bench.profile, None), what
    yield "profile: meter", partial(bench.profile, known["meter"]), what
    yield "flash attention baseline", partial(flash, bench), {"batch": 1, "prompt_tokens": 2400}


def flash(bench: Bench, row: dict[str, Any]) -> None:
    """Plain greedy decoding with flash attention, as the baseline some people run."""
    before = bench.model.config._attn_implementation
    try:
        bench.model.set_attn_implementation("flash_attention_2")
        bench.decoding(bench_meter, 1, 2400, row)
    finally:
        bench.model.set_attn_implementation(before)


class Captured:
    """Greedy decoding on a dual stream without tangents: what the captured step costs for the model alone."""

    name = "greedy, captured"

    def settings(self) -> dict[str, Any]:
        return {}

    def session(self, run: Any) -> Any:
        from limelight.decoding.dual import captured, open_stream

        dual = open_stream(run, captured(run)[0], [], "attnlrp")

        class Session:
            def next(self, tokens: Any) -> Any:
                from limelight.decoding.strategy import StepOutput

                with torch.no_grad():
                    if tokens is not None:
                        dual.append(tokens)
                    return StepOutput(dual.heads(dual.prefill() if tokens is None else dual.current())[0])

        return Session()


def bench_meter() -> Any:
    from limelight.decoding.registry import strategy

    return strategy("meter")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--tiny", action="store_true", help="a tiny model on the CPU: tries the program, measures nothing"
    )
    parser.add_argument("--seconds", type=float, default=470, help="start no row after this long")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only rows whose name starts with one of these")
    parser.add_argument("--groups", nargs="+", metavar="BATCHxTOKENS", help="only these groups (1x600 8x2400)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        parser.error("no GPU is visible to torch; --tiny tries the program on the CPU")
    bench = Bench(tiny() if args.tiny else seven_b(), args.out, args.seconds)
    for name, work, what in plan(bench):
        if args.only and not any(name.startswith(n) for n in args.only):
            continue
        if args.groups and f"{what['batch']}x{what['prompt_tokens']}" not in args.groups:
            continue
        bench.row(name, work, **what)
    print(table(json.loads(args.out.read_text())))
    failed = [r["name"] for r in bench.rows if "error" in r and not r["name"].startswith("flash")]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
