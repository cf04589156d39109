"""Decoding files in other processes: the same results as in this one, hostile files, and the process's environment."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from limelight.errors import MediaError, MediaWarning, MissingExtraError, SettingError
from limelight.media import process, worker
from limelight.media.image import read_image
from limelight.media.pool import Ticket
from limelight.media.video import read_video
from tests.media import hostile
from tests.media.decoders import BOUNDED, linux, noise, picture, rss, running, until
from tests.models.films import film


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
