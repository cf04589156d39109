"""Synthesis of the audio miniature's world: sixteen everyday sounds and background noise, generated from a seed.

Numpy only. Every function takes a random generator and a number of samples (16 kHz) and returns float32 ``[n]`` of RMS 1;
pitch, tempo and timbre vary with the generator, so that no two sounds of a class are the same.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

RATE = 16_000  # samples per second
Floats = npt.NDArray[np.float32]
Maker = Callable[[np.random.Generator, int], Floats]


def level(samples: npt.NDArray[np.floating]) -> Floats:
    """Scale samples to RMS 1 (silence is unchanged)."""
    power = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) if samples.size else 0.0
    return _floats(samples / power if power > 0 else samples)


def _floats(values: npt.ArrayLike) -> Floats:
    return np.asarray(values, dtype=np.float32)


def _time(n: int) -> Floats:
    return _floats(np.arange(n, dtype=np.float32) / RATE)


def _phase(hertz: npt.NDArray[np.floating] | float, n: int) -> npt.NDArray[np.float64]:
    """Return the phase in cycles at each sample, for a constant or varying pitch."""
    return np.cumsum(np.broadcast_to(np.asarray(hertz, np.float64), n)) / RATE


def _sine(hertz: npt.NDArray[np.floating] | float, n: int) -> Floats:
    return _floats(np.sin(np.float32(2 * np.pi) * (_phase(hertz, n) % 1).astype(np.float32)))


def _saw(hertz: npt.NDArray[np.floating] | float, n: int) -> Floats:
    return (2 * (_phase(hertz, n) % 1) - 1).astype(np.float32)


def _shaped(samples: Floats, peaks: list[tuple[float, float]], floor: float = 0.0) -> Floats:
    """Filter samples through resonances (centre, width; hertz), which give a sound its timbre."""
    size = -(-len(samples) // 1024) * 1024  # FFTs of lengths with large prime factors are slow
    spectrum = np.fft.rfft(samples, size)
    hertz = np.fft.rfftfreq(size, 1 / RATE)
    gain = floor + sum(np.exp(-0.5 * ((hertz - centre) / width) ** 2) for centre, width in peaks)
    return np.fft.irfft(spectrum * gain, size)[: len(samples)].astype(np.float32)


def _noise(rng: np.random.Generator, n: int) -> Floats:
    return rng.standard_normal(n, dtype=np.float32)


def _repeated(
    n: int, every: float, length: float, one: Callable[[int, int], npt.NDArray[np.floating]], jitter: Floats
) -> Floats:
    """Repeat ``one(number, samples)`` periodically, each at most ``length`` seconds, starting immediately."""
    out = np.zeros(n, np.float32)
    at = number = 0
    while at < n:
        size = min(int(length * RATE), n - at)
        out[at : at + size] += one(number, size)
        at += int(every * (1 + jitter[number % len(jitter)]) * RATE)
        number += 1
    return out


def _jitter(rng: np.random.Generator, share: float = 0.08) -> Floats:
    return rng.uniform(-share, share, 16).astype(np.float32)


def _hump(n: int) -> Floats:
    """Return a smooth rise and fall."""
    return _floats(np.sin(np.pi * (np.arange(n, dtype=np.float32) + 0.5) / n) ** 0.6)


def _bell(rng: np.random.Generator, n: int) -> Floats:
    base, slow = rng.uniform(520, 880), rng.uniform(0.25, 0.5)

    def strike(_: int, size: int) -> Floats:
        t = _time(size)
        partials = ((1.0, 1.0), (2.0, 0.7), (2.41, 0.6), (3.01, 0.45), (4.52, 0.3), (5.43, 0.2))
        return np.asarray(sum(w * np.sin(2 * np.pi * base * r * t) * np.exp(-t * r**0.5 / slow) for r, w in partials))

    return _repeated(n, rng.uniform(0.55, 0.85), 1.4, strike, _jitter(rng))


def _siren(rng: np.random.Generator, n: int) -> Floats:
    low, high, pace = rng.uniform(500, 700), rng.uniform(1150, 1500), rng.uniform(1.6, 3.2)
    swing = (1 - np.cos(2 * np.pi * (pace * _time(n) + rng.random()))) / 2
    pitch = low * (high / low) ** swing
    return _floats(_sine(pitch, n) + 0.35 * _sine(2 * pitch, n) + 0.2 * _sine(3 * pitch, n))


def _horn(rng: np.random.Generator, n: int) -> Floats:
    base = rng.uniform(330, 430)
    tone = _saw(base, n) + _saw(base * rng.uniform(1.22, 1.29), n)
    tone = _shaped(tone, [(900, 700), (2200, 500)], 0.05)
    on = rng.uniform(0.28, 0.5)
    gate = ((_time(n) % (on + 0.12)) < on).astype(np.float32)
    return tone * np.convolve(gate, np.ones(160, np.float32) / 160, "same")


def _motor(rng: np.random.Generator, n: int) -> Floats:
    pace = rng.uniform(24, 40) * (1 + 0.08 * np.sin(2 * np.pi * rng.uniform(0.4, 1) * _time(n) + rng.uniform(0, 6)))
    turns = _phase(pace, n) % 1
    puffs = np.exp(-turns * 7).astype(np.float32)
    return _shaped(puffs * (0.6 * _noise(rng, n) + 1) - puffs.mean(), [(90, 60), (240, 120), (600, 260)])


def _dog(rng: np.random.Generator, n: int) -> Floats:
    base, rough = rng.uniform(330, 480), rng.uniform(0.25, 0.5)

    def bark(_: int, size: int) -> Floats:
        fall = base * (1.25 - 0.5 * np.linspace(0, 1, size))
        return (_saw(fall, size) + rough * _noise(rng, size)) * _hump(size)

    barks = _repeated(n, rng.uniform(0.3, 0.42), rng.uniform(0.13, 0.19), bark, _jitter(rng, 0.15))
    return _shaped(barks, [(rng.uniform(700, 950), 260), (1600, 400)], 0.03)


def _cow(rng: np.random.Generator, n: int) -> Floats:
    base = rng.uniform(110, 150)
    shape = 1 + 0.18 * np.sin(np.pi * np.linspace(0, 1, n)) + 0.01 * np.sin(2 * np.pi * 6 * _time(n))
    moo = _shaped(_saw(base * shape, n), [(rng.uniform(280, 360), 110), (rng.uniform(650, 800), 130)], 0.01)
    return moo * _hump(n)


def _duck(rng: np.random.Generator, n: int) -> Floats:
    base = rng.uniform(210, 280)

    def quack(_: int, size: int) -> Floats:
        pitch = base * (1.12 - 0.3 * np.linspace(0, 1, size))
        return _saw(pitch, size) * np.minimum(1, 6 * _hump(size) ** 2)

    quacks = _repeated(n, rng.uniform(0.2, 0.27), rng.uniform(0.12, 0.16), quack, _jitter(rng))
    return _shaped(quacks, [(rng.uniform(1350, 1600), 220), (2900, 350)], 0.01)


def _hammer(rng: np.random.Generator, n: int) -> Floats:
    ring = rng.uniform(1700, 2300) * np.array([1, 1.53, 2.02, 2.71])

    def hit(_: int, size: int) -> Floats:
        t = _time(size)
        rings = sum(np.sin(2 * np.pi * f * t) * np.exp(-t * 32) for f in ring)
        return np.asarray(rings + 2 * _noise(rng, size) * np.exp(-t * 300))

    return _repeated(n, rng.uniform(0.32, 0.48), 0.2, hit, _jitter(rng, 0.05))


def _bird(rng: np.random.Generator, n: int) -> Floats:
    base = rng.uniform(2600, 3600)

    def chirp(number: int, size: int) -> Floats:
        start, stop = (base, base * 1.4) if number % 3 else (base * 1.5, base * 1.05)
        return _sine(np.linspace(start, stop, size), size) * _hump(size)

    return _repeated(n, rng.uniform(0.11, 0.17), rng.uniform(0.06, 0.09), chirp, _jitter(rng, 0.2))


def _frog(rng: np.random.Generator, n: int) -> Floats:
    tone, pulses = rng.uniform(480, 680), rng.uniform(34, 50)

    def croak(_: int, size: int) -> Floats:
        beat = np.exp(-(_phase(pulses, size) % 1) * 5).astype(np.float32)
        return (_sine(tone, size) + 0.5 * _sine(2.7 * tone, size)) * beat * _hump(size)

    return _repeated(n, rng.uniform(0.34, 0.46), rng.uniform(0.2, 0.26), croak, _jitter(rng))


def _cricket(rng: np.random.Generator, n: int) -> Floats:
    tone, pulses = rng.uniform(4300, 5200), rng.uniform(26, 34)
    t = _time(n)
    groups = ((t * pulses / 4) % 1 < 0.72) * np.clip(np.sin(2 * np.pi * pulses * t), 0, None)
    return _floats(_sine(tone, n) * groups.astype(np.float32))


def _wolf(rng: np.random.Generator, n: int) -> Floats:
    base = rng.uniform(300, 400)
    glide = np.interp(np.linspace(0, 1, n), [0, 0.25, 0.7, 1], [1, 1.75, 1.65, 1.1])
    pitch = base * glide * (1 + 0.012 * np.sin(2 * np.pi * 5.5 * _time(n)))
    return _floats((_sine(pitch, n) + 0.3 * _sine(2 * pitch, n) + 0.08 * _noise(rng, n) * 0.3) * _hump(n))


def _phone(rng: np.random.Generator, n: int) -> Floats:
    low, trill = rng.uniform(1250, 1650), rng.uniform(16, 22)
    t = _time(n)
    pitch = np.where((t * trill) % 1 < 0.5, low, low * 1.26)
    gate = (t % 0.62 < 0.42).astype(np.float32)
    return (_sine(pitch, n) + 0.25 * _sine(2 * pitch, n)) * gate


def _clock(rng: np.random.Generator, n: int) -> Floats:
    tick, tock = rng.uniform(2400, 3200), rng.uniform(1300, 1800)

    def knock(number: int, size: int) -> Floats:
        t = _time(size)
        click = _sine(tock if number % 2 else tick, size) + 0.6 * _noise(rng, size)
        return click * np.exp(-t * 190)

    return _repeated(n, rng.uniform(0.2, 0.28), 0.04, knock, np.zeros(1, np.float32))


def _shower(rng: np.random.Generator, n: int) -> Floats:
    hiss = _shaped(_noise(rng, n), [(rng.uniform(3000, 4500), 900), (6300, 900)], 0.02)
    drops = (rng.random(n) < 0.004) * _noise(rng, n) * 6
    return hiss * (1 + 0.15 * _sine(rng.uniform(1, 3), n)) + _shaped(drops.astype(np.float32), [(2600, 700)])


def _drum(rng: np.random.Generator, n: int) -> Floats:
    base, pace = rng.uniform(75, 120), rng.uniform(0.2, 0.32)

    def beat(number: int, size: int) -> Floats:
        t = _time(size)
        skin = np.sin(2 * np.pi * np.cumsum(base * (1 + 1.2 * np.exp(-t * 40))) / RATE) * np.exp(-t * 14)
        snap = _noise(rng, size) * np.exp(-t * 60) * (0.5 if number % 2 else 0.1)
        return skin + snap  # type: ignore[no-any-return]

    return _repeated(n, pace, 0.3, beat, np.zeros(1, np.float32))


MAKERS: dict[str, Maker] = {
    "siren": _siren, "horn": _horn, "bell": _bell, "motor": _motor,
    "dog": _dog, "cow": _cow, "duck": _duck, "hammer": _hammer,
    "bird": _bird, "frog": _frog, "cricket": _cricket, "wolf": _wolf,
    "phone": _phone, "clock": _clock, "shower": _shower, "drum": _drum,
}  # fmt: skip


def make(name: str, rng: np.random.Generator, n: int) -> Floats:
    """Synthesise one sound of a class: float32 [n] of RMS 1, with faded ends."""
    out = level(MAKERS[name](rng, n))
    edge = min(n // 4, 240)
    ramp = np.linspace(0, 1, edge, dtype=np.float32)
    out[:edge] *= ramp
    out[n - edge :] *= ramp[::-1]
    return out


def background(rng: np.random.Generator, kind: str, n: int) -> Floats:
    """Synthesise noise of RMS 1: white, pink, brown, hum; swell (only in dev) and gusts (only in test and demo)."""
    if kind == "hum":
        base = rng.uniform(48, 62)
        tones = sum(_sine(base * k, n) / k for k in (1, 2, 3, 5))
        return level(level(tones) + 0.5 * background(rng, "pink", n))  # type: ignore[arg-type]
    slope = {"white": 0.0, "pink": 0.5, "brown": 1.0, "swell": 0.25, "gusts": 0.7}[kind]
    spectrum = np.fft.rfft(_noise(rng, n))
    spectrum /= np.maximum(np.fft.rfftfreq(n, 1 / RATE), 40) ** slope
    out = np.fft.irfft(spectrum, n).astype(np.float32)
    if kind == "swell":
        out *= 1 + 0.6 * _sine(rng.uniform(0.3, 0.9), n)
    elif kind == "gusts":
        out *= np.interp(np.arange(n), np.linspace(0, n, 12), rng.uniform(0.4, 1.6, 12)).astype(np.float32)
    return level(out)
