"""Load and fault test of the server: availability, and correctness of every client's answers.

    python -m bench.server_load                  32 clients for two minutes, batches of 8, then a minute one by one
    python -m bench.server_load --seconds 30
    python -m bench.server_load --table          write the results of bench/results/server_load.json into docs/server.md

A server process on 127.0.0.1 with the shipped miniature, one CPU thread. Well-behaved clients send a fixed set of questions
with several strategies, streamed or not, sampled or not; each answer must equal that of the same request sent alone: text,
number of tokens, interventions and flags exactly, contributions to 1e-3 (a padded batch rounds differently). Four further
clients misbehave: one disconnects mid-stream, one disconnects while waiting, one sends malformed bodies, one requests a
decoding method that raises inside the worker. At the end SIGTERM is sent while every client waits for an answer.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import itertools
import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from bench.server_table import RESULTS, at, problems, quantiles, table, written

MODEL = "demo-vision"
QUESTIONS = (
    "Describe the picture.",
    "Is there a hat in the picture?",
    "There is no cup. Is there a cup in the picture?",
)
KINDS: tuple[dict[str, Any], ...] = (
    {"limelight": {"strategy": "greedy"}},
    {"limelight": {"strategy": "greedy", "grounding": True}},
    {"limelight": {"strategy": "greedy"}, "temperature": 1.3, "seed": 7},
    {"limelight": {"strategy": "relevance-contrastive", "grounding": True}},
    {"limelight": {"strategy": "lime-cached"}},
)
MALFORMED = (b"", b"{", b"[" * 5000, b'{"model": 1}', bytes(100), b'{"model": "demo-vision", "messages": [{}]}')


class Faulty:
    """The server's own strategy in this bench: it raises. Requests that want an answer name another."""

    name = "faulty"

    def settings(self) -> dict[str, Any]:
        return {}

    def session(self, run: Any) -> Any:
        raise ZeroDivisionError("on purpose")


def child(port: int, queue: int, batch: int) -> None:
    """The server process."""
    import logging

    import torch

    import limelight
    from limelight.server.app import create_app
    from limelight.server.limits import Limits
    from limelight.server.run import configured
    from limelight.server.state import ServerConfig

    torch.set_num_threads(1)
    logging.getLogger("limelight.server").setLevel(logging.CRITICAL)
    config = ServerConfig(
        MODEL, strategy=Faulty(), limits=Limits(queue=queue, per_client=queue, timeout=300), batch=batch
    )
    server = configured(create_app(limelight.load(MODEL), config), "127.0.0.1", port, drain_seconds=120)
    server.config.log_level, server.config.access_log = "error", False
    server.config.configure_logging()
    server.run()


@dataclass
class Tally:
    """What happened."""

    counts: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    rss: list[float] = field(default_factory=list)
    tokens: int = 0
    wrong: list[str] = field(default_factory=list)


def same(got: Any, want: Any) -> bool:
    """Equal; numbers with a fraction to 1e-3."""
    if isinstance(want, dict):
        return isinstance(got, dict) and got.keys() == want.keys() and all(same(got[k], want[k]) for k in want)
    if isinstance(want, (list, tuple)):
        return isinstance(got, (list, tuple)) and len(got) == len(want) and all(map(same, got, want))
    if isinstance(want, float):
        return isinstance(got, float) and math.isclose(got, want, rel_tol=1e-3, abs_tol=1e-5)
    return bool(got == want)


def bodies() -> list[dict[str, Any]]:
    import limelight

    folder = Path(limelight.__file__).parent / "demo" / "vision" / "examples"
    urls = [
        "data:image/png;base64," + base64.b64encode((folder / f"E-wrong-00{i}.png").read_bytes()).decode()
        for i in (0, 1)
    ]
    pictures = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [
        {"model": MODEL, "max_tokens": 12, **kind,
         "messages": [{"role": "user", "content": [picture, {"type": "text", "text": text}]}]}
        for picture, text, kind in itertools.product(pictures, QUESTIONS, KINDS)
    ]  # fmt: skip


async def ask(http: httpx.AsyncClient, body: dict[str, Any], stream: bool) -> Any:
    """(text, usage, tokens' grounding) of a request, or its status when it was refused."""
    if not stream:
        got = await http.post("/v1/chat/completions", json=body)
        if got.status_code != 200:
            return got.status_code
        told = got.json()
        return told["choices"][0]["message"]["content"], told["usage"], told["limelight"].get("tokens", [])
    text, usage, tokens = "", None, []
    more = {"stream": True, "stream_options": {"include_usage": True}}
    async with http.stream("POST", "/v1/chat/completions", json=body | more) as got:
        if got.status_code != 200:
            await got.aread()
            return got.status_code
        async for line in got.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                return event["error"]["code"]
            text += "".join(c["delta"].get("content") or "" for c in event["choices"])
            usage = event.get("usage") or usage
            tokens += event.get("limelight", {}).get("tokens", [])
    return text, usage, tokens


async def client(
    http: httpx.AsyncClient, asked: list[dict[str, Any]], alone: list[Any], tally: Tally, seed: int
) -> None:
    draw = random.Random(seed)
    while True:
        number, stream = draw.randrange(len(asked)), draw.random() < 0.5
        began = time.monotonic()
        got = await ask(http, asked[number], stream)
        if got == 429:
            tally.counts["429, asked again"] += 1
            await asyncio.sleep(0.2 + draw.random() * 0.3)
        elif same(got, alone[number]):
            tally.counts["answers equal to their sequential ones"] += 1
            tally.tokens += got[1]["completion_tokens"]
            tally.seconds.append(time.monotonic() - began)
        else:
            tally.counts["WRONG OR LOST ANSWERS"] += 1
            tally.wrong.append(f"{number} {stream}: {got!r:.200} instead of {alone[number]!r:.200}")


async def vanish_mid_stream(http: httpx.AsyncClient, body: dict[str, Any], tally: Tally) -> None:
    async with http.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as got:
        if got.status_code == 200:
            async for _ in got.aiter_lines():
                tally.counts["vanished mid-stream"] += 1
                break


async def vanish_while_waiting(http: httpx.AsyncClient, body: dict[str, Any], tally: Tally) -> None:
    try:
        await http.post("/v1/chat/completions", json=body, timeout=0.2)
    except httpx.TimeoutException:
        tally.counts["vanished while waiting"] += 1


async def malformed(http: httpx.AsyncClient, body: dict[str, Any], tally: Tally) -> None:
    for data in MALFORMED:
        got = await http.post("/v1/chat/completions", content=data, headers={"Content-Type": "application/json"})
        right = got.status_code in (400, 429) and "error" in got.json()
        tally.counts["malformed bodies refused" if right else "MALFORMED BODIES NOT REFUSED"] += 1


async def broken(http: httpx.AsyncClient, body: dict[str, Any], tally: Tally) -> None:
    got = await http.post("/v1/chat/completions", json={k: v for k, v in body.items() if k != "limelight"})
    if got.status_code != 429:
        right = got.status_code == 500 and "on purpose" not in got.text
        tally.counts["worker exceptions told as 500" if right else "WORKER EXCEPTIONS TOLD OTHERWISE"] += 1


async def again(
    url: str, act: Callable[[httpx.AsyncClient, dict[str, Any], Tally], Awaitable[None]], body: Any, tally: Tally
) -> None:
    while True:
        async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as http:
            await act(http, body, tally)
        await asyncio.sleep(0.5)


async def watch(url: str, pid: int, tally: Tally) -> None:
    """/health and the process's memory, once a second."""
    async with httpx.AsyncClient(base_url=url, timeout=10, trust_env=False) as http:
        while True:
            began = time.monotonic()
            (await http.get("/health")).raise_for_status()
            tally.health.append(time.monotonic() - began)
            status = Path(f"/proc/{pid}/status")
            if status.exists():
                tally.rss.append(
                    next(int(x.split()[1]) for x in status.read_text().splitlines() if "VmRSS" in x) / 1024
                )
            await asyncio.sleep(1)


async def drained(
    url: str, process: subprocess.Popen[bytes], asked: list[dict[str, Any]], alone: list[Any]
) -> tuple[int, float]:
    """SIGTERM while twelve requests are accepted: how many were answered, and after how many seconds it was gone."""
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as http:
        inside = [asyncio.ensure_future(ask(http, asked[i], i % 2 == 0)) for i in range(12)]
        while await inside_of(http) < 10 and not all(task.done() for task in inside):
            await asyncio.sleep(0.01)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        got = await asyncio.gather(*inside, return_exceptions=True)
    await asyncio.to_thread(process.wait, 60)
    right = sum(same(g, w) for g, w in zip(got, alone, strict=False))
    return right, time.monotonic() - began


async def inside_of(http: httpx.AsyncClient) -> float:
    """Requests in the queue and in the worker."""
    value = await metrics(http)
    return value["limelight_waiting"] + value["limelight_running"]


async def metrics(http: httpx.AsyncClient) -> dict[str, float]:
    page = (await http.get("/metrics")).text
    return {line.split()[0]: float(line.split()[1]) for line in page.splitlines() if not line.startswith("#")}


async def batches(http: httpx.AsyncClient) -> tuple[float, float]:
    """Answers and batches so far."""
    value = await metrics(http)
    return value["limelight_batch_answers_sum"], value["limelight_batch_answers_count"]


async def run(url: str, process: subprocess.Popen[bytes], clients: int, seconds: float) -> dict[str, Any]:
    asked, tally = bodies(), Tally()
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as http:
        while True:
            try:
                await http.get("/health")
                break
            except httpx.ConnectError:
                if process.poll() is not None:
                    raise
                await asyncio.sleep(0.2)
        alone = [await ask(http, b, stream=False) for b in asked]
        again_alone = [await ask(http, b, stream=True) for b in asked]
    if alone != again_alone or any(not isinstance(a, tuple) for a in alone):
        raise SystemExit("the sequential answers do not repeat")
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=300, trust_env=False, limits=limits) as http:
        before = await batches(http)
        tasks = [asyncio.ensure_future(client(http, asked, alone, tally, i)) for i in range(clients)]
        faults = (vanish_mid_stream, vanish_while_waiting, malformed, broken)
        tasks += [asyncio.ensure_future(again(url, act, asked[0], tally)) for act in faults]
        tasks.append(asyncio.ensure_future(watch(url, process.pid, tally)))
        done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            tally.counts[f"CLIENT FAILED: {task.exception()!r}"] += 1
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as http:
        after = await batches(http)
    right, gone = await drained(url, process, asked, alone)
    for line in tally.wrong[:5]:
        print("  ", line, file=sys.stderr)
    answers, rounds = after[0] - before[0], after[1] - before[1]
    return {
        "requests": len(asked),
        "seconds": seconds,
        "clients": clients,
        "counts": dict(sorted(tally.counts.items())),
        "answers_a_second": len(tally.seconds) / seconds,
        "tokens_a_second": tally.tokens / seconds,
        "mean_batch": answers / rounds if rounds else 0.0,
        "latency": quantiles(tally.seconds),
        "health": quantiles(tally.health),
        "memory_mb": {"after 5 s": at(tally.rss, 5), "peak": max(tally.rss, default=0.0), "end": at(tally.rss, -1)},
        "sigterm": {"accepted": 12, "answered": right, "seconds": gone},
    }


def measured(clients: int, seconds: float, queue: int, batch: int) -> dict[str, Any]:
    """One server process, one run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "bench.server_load",
        "--child",
        str(port),
        "--queue",
        str(queue),
        "--batch",
        str(batch),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, env=environment) as process:
        try:
            found = asyncio.run(run(f"http://127.0.0.1:{port}", process, clients, seconds))
        finally:
            process.kill()
    return {"batch": batch, **found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--queue", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--single-seconds", type=float, default=60, help="of the run one by one; 0: leave it out")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only write the table of --out into docs/server.md")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        child(given.child, given.queue, given.batch)
        return 0
    if given.table:
        written(json.loads(given.out.read_text())["runs"])
        return 0
    runs = {f"batches of {given.batch}": measured(given.clients, given.seconds, given.queue, given.batch)}
    if given.single_seconds:
        runs["one by one"] = measured(given.clients, given.single_seconds, given.queue, 1)
    wrong = [f"{name}: {what}" for name, found in runs.items() for what in problems(found)]
    given.out.write_text(
        json.dumps({"model": MODEL, "cpu_threads": 1, "runs": runs, "problems": wrong}, indent=1) + "\n"
    )
    print(table(runs))
    for line in wrong:
        print("PROBLEM", line)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
