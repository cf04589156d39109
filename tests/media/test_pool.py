"""The pool of decoder processes: time and memory limits, turns, cancelling, replacing and closing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any

import pytest

from limelight.errors import MediaError, SettingError, UnsupportedError
from limelight.media import process, worker
from limelight.media.pool import DecoderPool
from limelight.media.process import Limits
from tests.media import hostile
from tests.media.decoders import AWAY, BOUNDED, noise, picture, pids, running, until


@pytest.fixture
def pool() -> Iterator[DecoderPool]:
    made = DecoderPool(2)
    yield made
    made.close()


@pytest.fixture(scope="module")
def scans() -> bytes:
    return hostile.progressive_jpeg(4000, 10_000)


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
