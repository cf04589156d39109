"""Words synthesised by espeak-ng, one file per split; run once, when the miniature is created.

Only the sound is kept. Voices (accent + variant) differ between train, dev and test; no voice that needs other data files
(mbrola) is used.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import soxr

from limelight.demo.sounds import VOICES, WORDS, Split
from limelight.demo.synthesis import RATE, Floats, level

ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-us-nyc", "en-029")
VARIANTS: dict[Split, tuple[str, ...]] = {
    "train": ("m1", "m2", "m3", "m5", "m7", "f1", "f2", "f4"),
    "dev": ("m4", "f3"),
    "test": ("m6", "f5"),
}
VERSIONS: dict[Split, int] = {"train": 48, "dev": 3, "test": 4}
LONGEST = 0.62  # maximum seconds per word


def speak(word: str, voice: str, pace: int, pitch: int) -> Floats:
    """Synthesise one word: 16 kHz, without leading and trailing silence, at most `LONGEST` seconds, RMS 1."""
    program = shutil.which("espeak-ng")
    if program is None:
        raise FileNotFoundError("espeak-ng is needed to make the spoken words (apt install espeak-ng)")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "word.wav"
        subprocess.run([program, "-v", voice, "-s", str(pace), "-p", str(pitch), "-w", str(path), word], check=True)
        samples, rate = soundfile.read(str(path), dtype="float32")
    samples = soxr.resample(samples, rate, RATE)
    loud = np.flatnonzero(np.abs(samples) > 0.02 * np.abs(samples).max())
    cut = samples[max(0, loud[0] - 80) : min(loud[-1] + 160, loud[0] + int(LONGEST * RATE))].astype(np.float32)
    cut[-160:] *= np.linspace(1, 0, 160, dtype=np.float32)
    return level(cut)


def bank(split: Split) -> dict[str, list[Floats]]:
    """Every word in the split's voices; the k-th version of each word is one voice, pace and pitch."""
    rng, out = np.random.default_rng([ord(split[0]), 11]), {word: list[Floats]() for word in WORDS}
    for number in range(VERSIONS[split]):
        variants = VARIANTS[split]
        voice = f"{ACCENTS[int(rng.integers(len(ACCENTS)))]}+{variants[number % len(variants)]}"
        pace, pitch = int(rng.integers(135, 186)), int(rng.integers(30, 71))
        for word in WORDS:
            out[word].append(speak(word, voice, pace, pitch))
    return out


def training_bank(cache: Path) -> dict[str, list[Floats]]:
    """The words of the train split, from the cache or made into it."""
    path = cache / "voices-train.npz"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        made = bank("train")
        np.savez(path, **{f"{word}.{i}": x for word, versions in made.items() for i, x in enumerate(versions)})  # type: ignore[arg-type]
    with np.load(path) as held:
        count = len(held.files) // len(WORDS)
        return {word: [held[f"{word}.{i}"] for i in range(count)] for word in WORDS}


def ship(split: Split, folder: Path = VOICES) -> None:
    """Writes the words of dev or test as one FLAC file and the list of where each one lies."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, parts, at = [], [], 0
    for word, versions in bank(split).items():
        for sound in versions:
            rows.append({"word": word, "start": at, "stop": at + len(sound)})
            parts.append(sound * np.float32(0.08))
            at += len(sound)
    soundfile.write(str(folder / f"{split}.flac"), np.clip(np.concatenate(parts), -1, 1), RATE, subtype="PCM_16")
    note = "spoken words made by espeak-ng (formant voices); one row a word and version, samples from start to stop"
    (folder / f"{split}.json").write_text(json.dumps({"note": note, "words": rows}) + "\n")
