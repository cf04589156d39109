"""Decoding in processes: the same results as in this one, every hostile file ended, and nobody else held up."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import os
import re
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from limelight.errors import MediaError, MediaWarning, MissingExtraError, SettingError, UnsupportedError
from limelight.media import process, worker
from limelight.media.image import read_image
from limelight.media.pool import DecoderPool, Ticket
from limelight.media.process import Job, Limits
from limelight.media.video import read_video
from tests.media import hostile
from tests.models.films import film

BOUNDED = {"max_pixels": 16_000_000}
AWAY = Limits(60.0, 10**9, 10**8)  # what must end for another reason than its time


def linux() -> None:
    if not Path("/proc/self/statm").exists():
        pytest.skip("the system does not tell a process's memory (no /proc)")


@pytest.fixture
def pool() -> Iterator[DecoderPool]:
    made = DecoderPool(2)
    yield made
    made.close()


@pytest.fixture(scope="module")
def scans() -> bytes:
    return hostile.progressive_jpeg(4000, 10_000)


def picture(data: Any, limits: Limits | None = None, group: str = "", **options: Any) -> Job:
    options = {**BOUNDED, **options}
    return Job("image", data, options, limits or worker.limits_for("image", options), group)


def noise(side: int = 64) -> bytes:
    out = io.BytesIO()
    Image.effect_noise((side, side), 90).convert("RGB").save(out, "PNG")
    return out.getvalue()


def until(true: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)


def running(pool: DecoderPool) -> list[Ticket]:
    return list(pool._running)


def pids(pool: DecoderPool) -> set[int]:
    return {p.popen.pid for p in list(pool._processes)}


def rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_results_are_those_of_this_process(tmp_path: Path) -> None:
    data = noise()
    (tmp_path / "a.png").write_bytes(data)
    for source in (data, tmp_path / "a.png", str(tmp_path / "a.png"), {"bytes": data, "path": None}):
        got = worker.read("image", source)
        assert np.array_equal(np.asarray(got), np.asarray(read_image(data)))
    array = np.asarray(read_image(data))
    assert np.array_equal(np.asarray(worker.read("image", array)), array)  # in memory: no process
    assert np.array_equal(np.asarray(worker.read("image", data, trusted=True)), array)
    clip = film(tmp_path / "a.mp4")
    got, want = worker.read("video", clip, frames=5), read_video(clip, 5)
    assert got.seconds == want.seconds and got.fps == want.fps and got.duration == want.duration
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(got.frames, want.frames, strict=True))


def test_sounds_and_their_warnings() -> None:
    soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed (pip install 'limelight[audio]')")
    wave = (0.5 * np.sin(np.arange(8000) * 0.05)).astype(np.float32)
    out = io.BytesIO()
    soundfile.write(out, wave, 16000, format="WAV", subtype="FLOAT")
    samples, rate = worker.read("audio", out.getvalue())
    assert rate == 16000
    np.testing.assert_array_equal(samples, wave)
    samples, rate = worker.read("audio", out.getvalue(), to_rate=8000)
    assert (rate, len(samples)) == (8000, 4000)
    with pytest.warns(MediaWarning, match="truncated"):
        worker.read("audio", out.getvalue()[:20_000])
    found = asyncio.run(worker.read_async("audio", out.getvalue()[:20_000]))
    assert "truncated" in found.warnings[0]


def test_errors_are_the_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for source, kind in ((b"no picture", MediaError), (tmp_path / "missing.png", MediaError), (b"", MediaError)):
        with pytest.raises(kind) as caught:
            worker.read("image", source)
        assert caught.value.hint
    with pytest.raises(SettingError):
        worker.read("image", noise(), background="whit")
    with pytest.raises(SettingError, match="unknown media type"):
        worker.read("smell", noise())
    raised = process._raised({"error": "missing", "message": "needs av", "hint": "pip"}, picture(b"x"))
    assert isinstance(raised, MissingExtraError) and "needs av" in str(raised)


HOSTILE: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "exif": ("image", hostile.exif_png, "memory limit"),
    "bomb": ("image", lambda: hostile.png_that_claims(30_000), "pixels"),
    "bomb within the bound": ("image", lambda: hostile.png_that_claims(3_900), "corrupt|cut|truncated"),
    "text": ("image", lambda: hostile.png_with_chunk(b"zTXt"), ""),
    "long text": ("image", lambda: hostile.png_with_chunk(b"iTXt", 30_000_000, 60), ""),
    "profile": ("image", lambda: hostile.png_with_chunk(b"iCCP"), ""),
    "wav": ("audio", lambda: hostile.sound_that_claims("wav"), "truncated|limit"),
    "flac": ("audio", lambda: hostile.sound_that_claims("flac"), "limit"),
    "ogg": ("audio", lambda: hostile.sound_that_claims("ogg"), ""),
    "film": ("video", hostile.many_samples_mp4, "memory|frames|time|read"),
    "film cut short": ("video", lambda: hostile.many_samples_mp4()[:700], ""),
    "picture cut short": ("image", lambda: noise()[:3000], "corrupt"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(name: str) -> None:
    linux()
    kind, make, match = HOSTILE[name]
    pytest.importorskip({"audio": "soundfile", "video": "av"}.get(kind, "PIL"), reason="the extra is not installed")
    data, before = make(), rss()
    bounds = {"image": BOUNDED, "audio": {"max_seconds": 300.0}, "video": {"max_seconds": 120.0, "max_pixels": 4_000_000,
              "max_total_pixels": 1_500_000_000}}[kind]  # fmt: skip
    ended = ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            worker.read(kind, data, **bounds)
        except MediaError as error:
            ended = error.message
    ended += "".join(str(w.message) for w in caught)
    assert re.search(match, ended), ended
    assert rss() - before < 200_000_000
    assert worker.read("image", hostile.plain_png()).size == (8, 8)


def test_an_animation_of_thousands_of_frames_is_its_first() -> None:
    with pytest.warns(MediaWarning, match="only the first"):
        got = worker.read("image", hostile.long_gif(), **BOUNDED)
    assert got.size == (2000, 2000)


def test_processor_time_is_bounded(scans: bytes, pool: DecoderPool) -> None:
    with pytest.raises(MediaError, match=r"limit of 0\.7 s of CPU time"):
        pool.run(picture(scans, Limits(0.7, 10**9, 10**8)))
    assert pool.run(picture(noise())).value.size == (64, 64)


def test_wall_time_memory_and_output_are_bounded(scans: bytes, pool: DecoderPool) -> None:
    with pytest.raises(MediaError, match=r"time limit of 0\.3 s"):
        pool.run(picture(scans, Limits(60.0, 10**9, 10**8, wall_seconds=0.3)))
    with pytest.raises(MediaError, match="memory limit of 30 MB"):
        pool.run(picture(hostile.plain_png(3000, 3000), Limits(9.0, 30_000_000, 10**8)))
    with pytest.raises(MediaError, match="decodes to 12,288 bytes"):
        pool.run(picture(noise(), Limits(9.0, 10**9, 1000)))
    assert pool.run(picture(noise())).value.size == (64, 64)


def test_quick_files_overtake_slow_ones(scans: bytes, pool: DecoderPool) -> None:
    """Ten files that take for ever, from the same address, do not keep an innocent one from its turn."""
    slow = [pool.submit(picture(scans, AWAY)) for _ in range(10)]
    until(lambda: len(running(pool)) == 2)
    for _ in range(3):
        assert pool.run(picture(noise())).value.size == (64, 64)
        assert not any(t.future.done() for t in slow)
    assert sum(t.slow for t in slow) >= 1
    for ticket in slow:
        ticket.cancel()
    until(lambda: not running(pool))
    assert pool.run(picture(noise())).value.size == (64, 64)


def test_a_slow_file_is_decoded_in_the_end(pool: DecoderPool) -> None:
    """What is set back for quick ones starts over, and is not lost."""
    long = hostile.progressive_jpeg(2000, 120)
    slow = [pool.submit(picture(long, AWAY)) for _ in range(4)]
    quick = [pool.submit(picture(noise())) for _ in range(20)]
    for ticket in quick:
        ticket.future.result(200)
    for ticket in slow:
        assert ticket.future.result(200).value.size == (2000, 2000)


def test_groups_take_turns(pool: DecoderPool, scans: bytes) -> None:
    held = [pool.submit(picture(scans, AWAY)) for _ in range(2)]
    until(lambda: len(running(pool)) == 2)
    order: list[str] = []
    jobs = ["a"] * 20 + ["b"]
    tickets = []
    with pool._change:  # nothing is taken until all wait
        for group in jobs:
            ticket = pool.submit(picture(noise(), group=group))
            ticket.future.add_done_callback(lambda _, group=group: order.append(group))
            tickets.append(ticket)
    for ticket in tickets:
        ticket.future.result(200)
    assert order.index("b") <= 4
    for ticket in held:
        ticket.cancel()


def test_cancelling_ends_the_process(scans: bytes, pool: DecoderPool) -> None:
    ticket = pool.submit(picture(scans, AWAY))
    until(lambda: running(pool))
    (victim,) = {p.popen.pid for p in pool._running.values()}
    ticket.cancel()
    until(lambda: victim not in pids(pool))
    with pytest.raises(CancelledError):
        ticket.future.result(10)
    with pytest.raises(MediaError, match=r"within 0\.3 s"):
        pool.run(picture(scans, AWAY), timeout=0.3)
    until(lambda: not running(pool))


def test_a_task_that_is_cancelled_ends_the_job(scans: bytes) -> None:
    async def leave() -> None:
        task = asyncio.create_task(worker.read_async("image", scans, limits=AWAY, **BOUNDED))
        while not running(worker.default_pool()):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await worker.read_async("image", scans, limits=AWAY, **BOUNDED)

    asyncio.run(leave())
    until(lambda: not running(worker.default_pool()))


def test_processes_are_reused_and_replaced(pool: DecoderPool) -> None:
    pool.start()
    until(lambda: len(pids(pool)) == 3)  # one of them a spare
    before = pids(pool)
    for _ in range(6):
        pool.run(picture(noise()))
    assert pids(pool) == before
    for each in list(pool._processes):
        each.kill()  # by the system, while they wait: no job's fault
    until(lambda: not any(each.alive for each in list(pool._processes)))
    for _ in range(4):
        assert pool.run(picture(noise())).value.size == (64, 64)
    assert pids(pool) - before


def test_a_decoder_that_dies_of_a_file(pool: DecoderPool, scans: bytes) -> None:
    ticket = pool.submit(picture(scans, AWAY))
    until(lambda: running(pool))
    pool._running[ticket].kill()  # the first time could have been the machine's fault
    until(lambda: ticket.retried and running(pool))
    pool._running[ticket].kill()
    with pytest.raises(MediaError, match="the decoder exited with code -9 on the file"):
        ticket.future.result(60)


def test_a_decoder_is_not_believed(pool: DecoderPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that a file took over may answer anything: it costs its own result."""
    pool.run(picture(noise()))
    for reply in (
        {},
        {"sizes": [[-4, -4]]},
        {"sizes": []},
        {"sizes": "x"},
        {"sizes": [[10**6, 10**6]]},
        {"error": "?"},
    ):
        with monkeypatch.context() as patch:
            patch.setattr(process.DecodingProcess, "_header", lambda _, reply=reply: reply)
            with pytest.raises(MediaError):
                pool.submit(picture(noise())).future.result(60)
            until(lambda: not running(pool))


def test_closing_leaves_nothing(pool: DecoderPool, scans: bytes) -> None:
    pool.start()
    tickets = [pool.submit(picture(scans, AWAY)) for _ in range(5)]
    until(lambda: len(running(pool)) == 2)
    processes = list(pool._processes)
    pool.close()
    assert all(p.popen.returncode is not None for p in processes)  # waited for: no zombie
    assert all(t.future.done() for t in tickets)
    assert not any(t.is_alive() for t in pool._threads)
    with pytest.raises(UnsupportedError):
        pool.submit(picture(noise()))


SCRIPT = """
import sys, threading
from limelight.media import worker
pool = worker.default_pool()
pool.start()
print(worker.read("image", {path!r}).size, flush=True)
{more}
print(*sorted(p.popen.pid for p in pool._processes), flush=True)
"""


@pytest.mark.parametrize("more", ["", "import os; pool.start(); os.kill(os.getpid(), 9)"])
def test_a_program_that_ends_takes_its_decoders_along(more: str, tmp_path: Path) -> None:
    """No guard in the main module is needed, nothing heavy is loaded, and a parent that is killed leaves no orphans."""
    (tmp_path / "a.png").write_bytes(noise())
    script = SCRIPT.format(
        path=str(tmp_path / "a.png"), more=f"print(*[p.popen.pid for p in pool._processes], flush=True)\n{more}"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200, check=False)
    assert done.stdout.startswith("(64, 64)"), done.stderr
    assert not done.stderr
    children = [int(n) for n in " ".join(done.stdout.splitlines()[1:]).split()]
    assert children
    until(lambda: not any(_alive(pid) for pid in children))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def test_from_a_daemonic_process(tmp_path: Path) -> None:
    """multiprocessing's daemons may have no children of its own kind; Ray's actors and loaders of data are such."""
    (tmp_path / "a.png").write_bytes(noise())
    script = tmp_path / "daemon.py"
    script.write_text(
        "import multiprocessing\n"
        "def work():\n"
        "    from limelight.media import worker\n"
        f"    print(worker.read('image', {str(tmp_path / 'a.png')!r}).size, flush=True)\n"
        "if __name__ == '__main__':\n"
        "    process = multiprocessing.get_context('spawn').Process(target=work, daemon=True)\n"
        "    process.start(); process.join()\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=200, check=False)
    assert done.stdout == "(64, 64)\n", done.stderr


def test_a_forked_process_gets_a_pool_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = worker.default_pool()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    other = worker.default_pool()
    assert other is not mine
    monkeypatch.undo()
    other.owner = os.getpid()
    other.close()
    worker.default_pool().close()


def test_where_no_process_can_be_started(pool: DecoderPool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise PermissionError("no processes here")

    monkeypatch.setattr(process.subprocess, "Popen", refused)
    with pytest.raises(UnsupportedError, match="no processes here") as caught:
        pool.run(picture(noise()))
    assert "LIMELIGHT_DECODERS=0" in caught.value.hint
    monkeypatch.undo()
    assert pool.run(picture(noise())).value.size == (64, 64)  # it tries again
    monkeypatch.setattr(process.subprocess, "Popen", refused)
    monkeypatch.setenv(worker.COUNT_VARIABLE, "0")
    assert worker.read("image", noise()).size == (64, 64)
    monkeypatch.setenv(worker.COUNT_VARIABLE, "many")
    with pytest.raises(SettingError, match="many"):
        worker._count()


def test_the_decoder_is_light_and_knows_no_secrets() -> None:
    code = (
        "import sys, os; from limelight.media import decoder; decoder.preload(); "
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=True)
    assert done.stdout == "[]\n"
    linux()
    os.environ["LIMELIGHT_API_KEY"] = "secret"
    try:
        started = process.DecodingProcess()
        assert b"secret" not in Path(f"/proc/{started.popen.pid}/environ").read_bytes()
        started.close()
    finally:
        del os.environ["LIMELIGHT_API_KEY"]


def test_many_threads_share_a_pool(pool: DecoderPool) -> None:
    data, found = noise(200), []

    def work() -> None:
        for _ in range(5):
            found.append(pool.run(picture(data)).value.size)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    assert found == [(200, 200)] * 30


def test_an_error_lets_go_of_its_file() -> None:
    """At once, not when the collector of cycles comes by: it counts objects, not megabytes."""

    async def ask() -> None:
        await worker.read_async("image", b"no picture")

    worker.read("image", noise())
    gc.collect()
    gc.disable()
    try:
        for call in (lambda: worker.read("image", b"no picture"), lambda: asyncio.run(ask())):
            with contextlib.suppress(MediaError):
                call()
            until(lambda: not running(worker.default_pool()))
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            assert not [o for o in gc.garbage if isinstance(o, (MediaError, Ticket))]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
