"""The recordings of `bench.whisper`: fetched from Debian packages and the package index into .cache, never committed.

Recordings: prompts of a telephone exchange (asterisk-core-sounds-en-g722, CC-BY-SA-3.0), read sentences and cards
(pocketsphinx-testdata, BSD), music (asterisk-moh-opsound-g722, CC-BY-SA), effects (sound-theme-freedesktop, CC-BY-SA and
GPL), sentences by the voices of flite and espeak-ng. Silence, hum, noise, breath and cough are synthesised here.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from limelight.errors import DataError
from limelight.media.audio import read_audio

RATE = 16000
CACHE = Path(".cache") / "whisper"
SENTENCES = Path(__file__).with_name("whisper_sentences.txt")
PACKAGES = ("asterisk-core-sounds-en-g722", "pocketsphinx-testdata", "asterisk-moh-opsound-g722", "sound-theme-freedesktop",
            "flite", "libflite1", "espeak-ng", "espeak-ng-data", "libespeak-ng1", "libsonic0", "libpcaudio0")  # fmt: skip
KINDS = ("silence", "hum", "white noise", "pink noise", "room noise", "music", "effects", "breath", "cough")
EACH = 23  # clips without words of a kind
SNR = (None, 10, 5, 0)  # dB; None: clean
NOISES = ("white noise", "pink noise", "room noise", "music")
VOICES = ("flite awb", "flite rms", "flite slt", "espeak-ng en-us", "espeak-ng en-gb")
Samples = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Clip:
    """A recording, made when it is asked for.

    Attributes:
        kind: of :data:`KINDS`, or ``speech``.
        source: the recording or the draw it comes from; clips of one source are resampled together.
        text: what is said in it.
        snr: of speech, in dB; None: clean.
        noise: what was added.
    """

    id: str
    kind: str
    source: str
    make: Callable[[], Samples]
    text: str = ""
    snr: int | None = None
    noise: str = ""

    @property
    def fold(self) -> int:
        """Half that the source belongs to: thresholds for one half are chosen on the other."""
        return hashlib.sha256(self.source.encode()).digest()[0] % 2


def fetch() -> Path:
    """The folder with the packages' contents, fetched with apt where it is not there yet.

    Raises:
        DataError: apt-get or dpkg failed.
    """
    folder = CACHE / "packages"
    for name in PACKAGES:
        done = folder / f".{name}"
        if done.exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        for command in (["apt-get", "download", name], ["dpkg", "-x", f"{name}.deb", "."]):
            if command[0] == "dpkg":
                next(folder.glob(f"{name}_*.deb")).rename(folder / f"{name}.deb")
            result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            if result.returncode:
                raise DataError(f"{' '.join(command)}: {result.stderr.strip()[-200:]}", hint="a Debian system with apt-get and its lists")  # fmt: skip
        (folder / f"{name}.deb").unlink()
        done.touch()
    return folder.resolve()


# recordings


def decoded(path: Path) -> Samples:
    """A file at 16 kHz, mono, in -1..1."""
    if path.suffix == ".raw":
        return (np.fromfile(path, dtype="<i2") / 32768).astype(np.float32)
    if path.suffix != ".g722":
        return read_audio(path, RATE)
    import av

    with av.open(str(path), format="g722") as container:
        frames = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
    return (np.concatenate(frames) / 32768).astype(np.float32)


def spoken_by(voice: str, text: str, place: Path) -> Path:
    """A sentence by a synthesiser of the packages."""
    packages = fetch()
    path = place / f"{hashlib.sha256(f'{voice}|{text}'.encode()).hexdigest()[:16]}.wav"
    if path.exists():
        return path
    place.mkdir(parents=True, exist_ok=True)
    engine, name = voice.split()
    libraries = packages / "usr" / "lib" / "x86_64-linux-gnu"
    program = packages / "usr" / "bin"
    command = {
        "flite": [program / f"flite_cmu_us_{name}", "-t", text, "-o", path],
        "espeak-ng": [program / "espeak-ng", "-v", name, "-w", path, text],
    }[engine]
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(libraries),
        "ESPEAK_DATA_PATH": str(libraries / "espeak-ng-data"),
    }
    subprocess.run([str(c) for c in command], check=True, capture_output=True, env=environment)
    return path


# sounds made here


def at_level(samples: Samples, decibels: float) -> Samples:
    """Scaled to a root mean square in dBFS, and limited to -1..1."""
    level = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) or 1.0
    return np.clip(samples * (10 ** (decibels / 20) / level), -1, 1).astype(np.float32)


def coloured(rng: np.random.Generator, n: int, slope: float, low: float = 20.0, high: float = 8000.0) -> Samples:
    """Noise whose power falls with ``f ** -slope`` between two frequencies (0 white, 1 pink, 2 brown)."""
    spectrum = np.fft.rfft(rng.standard_normal(n))
    f = np.fft.rfftfreq(n, 1 / RATE)
    shape = np.where((f >= low) & (f <= high), np.maximum(f, low) ** (-slope / 2), 0.0)
    return np.fft.irfft(spectrum * shape, n).astype(np.float32)


def hum(rng: np.random.Generator, n: int) -> Samples:
    t = np.arange(n) / RATE
    base = float(rng.choice([50.0, 60.0])) * (1 + 0.002 * rng.standard_normal())
    parts = [rng.uniform(0.1, 1) / k * np.sin(2 * np.pi * base * k * t + rng.uniform(0, 6)) for k in range(1, 9)]
    return (np.sum(parts, 0) + 0.01 * rng.standard_normal(n)).astype(np.float32)


def room(rng: np.random.Generator, n: int) -> Samples:
    """A rumble that swells and fades, a fan, and some knocks."""
    t = np.arange(n) / RATE
    swell = 1 + 0.3 * np.sin(2 * np.pi * rng.uniform(0.1, 0.5) * t + rng.uniform(0, 6))
    out = coloured(rng, n, 1.7, 30) * swell
    out = out / out.std() + 0.2 * hum(rng, n)
    for at in rng.integers(0, max(1, n - 800), 3):
        burst = coloured(rng, 800, 1.0, 100) * np.exp(-np.arange(800) / rng.uniform(60, 200))
        out[at : at + 800] += 2 * burst / burst.std() * rng.uniform(0.2, 1)
    return out.astype(np.float32)


def breath(rng: np.random.Generator, n: int) -> Samples:
    """In and out through the mouth, some fifteen times a minute, in a quiet room."""
    t = np.arange(n) / RATE
    period = rng.uniform(2.5, 5)
    phase = (t / period + rng.uniform()) % 1
    inward = np.where(phase < 0.35, np.sin(np.pi * phase / 0.35), 0.0) ** 2
    outward = np.where((phase > 0.45) & (phase < 0.95), np.sin(np.pi * (phase - 0.45) / 0.5), 0.0) ** 1.5
    air = coloured(rng, n, 0.4, 600, 5000), coloured(rng, n, 1.0, 250, 3000)
    return (
        inward * air[0] / air[0].std() + 0.8 * outward * air[1] / air[1].std() + 0.003 * rng.standard_normal(n)
    ).astype(np.float32)


def cough(rng: np.random.Generator, n: int) -> Samples:
    """One to three coughs in a quiet room: a burst, a hiss through the vocal tract, a short voiced end."""
    out = 0.002 * rng.standard_normal(n)
    at = int(rng.uniform(0.2, 0.5) * n)
    for _ in range(int(rng.integers(1, 4))):
        length = int(rng.uniform(0.25, 0.45) * RATE)
        if at + length >= n:
            break
        t = np.arange(length) / RATE
        hiss = sum(coloured(rng, length, 0.0, f * 0.8, f * 1.2) * g for f, g in ((500, 1.0), (1500, 0.7), (2800, 0.4)))
        pitch = rng.uniform(110, 220)
        voice = np.sign(np.sin(2 * np.pi * pitch * t)) * np.exp(-(((t - 0.25) / 0.05) ** 2))
        body = hiss / np.std(hiss) * np.exp(-t / 0.09) * np.minimum(1, t / 0.004) + 0.3 * voice
        out[at : at + length] += body
        at += length + int(rng.uniform(0.1, 0.6) * RATE)
    return out.astype(np.float32)


def rng_of(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def wordless() -> Iterator[Clip]:
    """Clips in which nobody speaks, :data:`EACH` of every kind."""
    packages = fetch()
    still = sorted((packages / "usr/share/asterisk/sounds/en_US_f_Allison/silence").glob("*.g722"))
    tracks = sorted((packages / "usr/share/asterisk/moh").glob("*.g722"))
    effects = sorted(
        p
        for p in (packages / "usr/share/sounds/freedesktop/stereo").glob("*.oga")
        if p.is_file() and not p.is_symlink() and not p.stem.startswith("audio-channel")  # in these a voice speaks
    )
    for kind in KINDS:
        for i in range(EACH):
            name = f"{kind} {i}"
            source, make = name, _made(kind, name)
            if kind == "silence" and i < len(still):
                source, make = f"silence {still[i].stem}", _whole(still[i])
            elif kind == "music":
                track = tracks[i % len(tracks)]
                source, make = track.stem, _excerpt(track, name)
            elif kind == "effects":
                effect = effects[i % len(effects)]
                source, make = effect.stem, _in_quiet(effect, name)
            yield Clip(name, kind, source, make)


def _made(kind: str, name: str) -> Callable[[], Samples]:
    def make() -> Samples:
        rng = rng_of(name)
        n = int(rng.uniform(2, 12) * RATE)
        if kind == "silence":
            if rng.uniform() < 0.5:
                return np.zeros(n, np.float32)
            return at_level(coloured(rng, n, 0.0), rng.uniform(-90, -65))
        level = {"breath": (-45, -25), "cough": (-35, -18)}.get(kind, (-50, -12))
        return at_level(_sound(kind, rng, n), rng.uniform(*level))

    return make


def _sound(kind: str, rng: np.random.Generator, n: int) -> Samples:
    if kind in ("white noise", "pink noise"):
        return coloured(rng, n, float(kind == "pink noise"))
    return {"hum": hum, "room noise": room, "breath": breath, "cough": cough}[kind](rng, n)


def _whole(path: Path) -> Callable[[], Samples]:
    return lambda: decoded(path)


@cache
def _track(path: Path) -> Samples:
    return decoded(path)


def _excerpt(path: Path, name: str) -> Callable[[], Samples]:
    def make() -> Samples:
        rng, whole = rng_of(name), _track(path)
        n = int(rng.uniform(4, 12) * RATE)
        at = int(rng.integers(0, len(whole) - n))
        return at_level(whole[at : at + n], rng.uniform(-35, -15))

    return make


def _in_quiet(path: Path, name: str) -> Callable[[], Samples]:
    def make() -> Samples:
        rng, effect = rng_of(name), decoded(path)
        before, after = (int(rng.uniform(0.3, 3) * RATE) for _ in range(2))
        out = np.concatenate([np.zeros(before), effect * rng.uniform(0.3, 1), np.zeros(after)])[: 25 * RATE]
        return np.clip(out + 10 ** (-70 / 20) * rng.standard_normal(len(out)), -1, 1).astype(np.float32)

    return make


def sentences() -> Iterator[tuple[str, str, Callable[[], Samples]]]:
    """(name, what is said, its recording) of clean speech."""
    packages = fetch()
    prompts = packages / "usr/share/asterisk/sounds/en_US_f_Allison"
    read = packages / "usr/share/pocketsphinx/test/data"
    for line in SENTENCES.read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        name, text = line.split("\t")
        corpus, _, item = name.partition("/")
        if corpus == "asterisk":
            yield name, text, _whole(prompts / f"{item}.g722")
        elif corpus == "pocketsphinx":
            yield name, text, _whole(read / item)
        else:
            for voice in VOICES:
                yield f"{voice}/{item}", text, _by(voice, text)


def _by(voice: str, text: str) -> Callable[[], Samples]:
    return lambda: decoded(spoken_by(voice, text, CACHE / "voices"))


def speech(levels: Sequence[int | None] = SNR) -> Iterator[Clip]:
    """Every sentence clean, and half of them with noise, a quarter of these with each kind of it."""
    tracks = sorted((fetch() / "usr/share/asterisk/moh").glob("*.g722"))
    for snr in levels:
        for i, (name, text, make) in enumerate(sentences()):
            if snr is not None and i // len(NOISES) % 2:
                continue
            noise = "" if snr is None else NOISES[i % len(NOISES)]
            said = "clean" if snr is None else f"{snr} dB"
            made = make if snr is None else _noisy(make, noise, snr, f"{name} {noise}", tracks)
            yield Clip(f"{name} {said}", "speech", name, made, text, snr, noise)


def _noisy(
    make: Callable[[], Samples], noise: str, snr: int, name: str, tracks: Sequence[Path]
) -> Callable[[], Samples]:
    def mixed() -> Samples:
        rng, voice = rng_of(name), make()
        if noise == "music":
            track = _track(tracks[int(rng.integers(len(tracks)))])
            at = int(rng.integers(0, len(track) - len(voice)))
            other = track[at : at + len(voice)]
        else:
            other = _sound(noise, rng, len(voice))
        power = np.square(voice, dtype=np.float64)
        active = power[np.convolve(power, np.ones(800) / 800, "same") > 1e-3 * power.max()]
        wanted = 10 * np.log10(active.mean()) - snr
        out = voice + at_level(other, float(wanted))
        return (out / max(1.0, float(np.abs(out).max()))).astype(np.float32)

    return mixed


def clips() -> list[Clip]:
    """All of them, in an order whose beginning is balanced, so that a run that was stopped early can be read."""
    found = [*wordless(), *speech()]
    groups: dict[tuple[str, int | None], list[Clip]] = {}
    for clip in found:
        groups.setdefault((clip.kind, clip.snr), []).append(clip)
    order = {c.id: ((i + 0.5) / len(group), k) for k, group in enumerate(groups.values()) for i, c in enumerate(group)}
    return sorted(found, key=lambda c: order[c.id])
