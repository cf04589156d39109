"""Training data: recordings rendered once into log-mel spectrograms and frame labels."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import WhisperFeatureExtractor

from limelight.demo.sounds import CLARITIES, LABELS, SECONDS, Clarity, Kind, Recording, Split, recording
from limelight.demo.synthesis import RATE
from recipes.demo_audio.voices import training_bank

HOP = 320
BINS = 64
FRAMES = SECONDS * RATE // HOP  # 200 spectrogram frames
TOKENS = FRAMES // 4  # 50 audio tokens: a convolution and a pooling halve the frames
KIND_SHARE: dict[Kind, float] = {"events": 0.6, "speech": 0.32, "noise": 0.05, "silence": 0.03}
CLARITY_SHARE: dict[Clarity, float] = {"clear": 0.4, "medium": 0.3, "poor": 0.3}


def extractor() -> WhisperFeatureExtractor:
    """Log-mel spectrograms of four seconds: 64 bands, 20 ms per frame."""
    return WhisperFeatureExtractor(
        feature_size=BINS, sampling_rate=RATE, hop_length=HOP, chunk_length=SECONDS, n_fft=512
    )


def mel(sounds: list[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Return the spectrograms [n, 64, 200] of audio clips."""
    out: npt.NDArray[np.float32] = extractor()(sounds, sampling_rate=RATE, return_tensors="np")["input_features"]
    return out


@cache
def _bank(folder: Path) -> dict[str, list[npt.NDArray[np.float32]]]:
    return training_bank(folder)


def training_recording(folder: Path, index: int, split: Split = "train") -> tuple[Recording, npt.NDArray[np.float32]]:
    """The index-th recording of the training mixture (or of the same mixture in another split) and its samples."""
    rng = np.random.default_rng([index, 21])
    kinds, shares = zip(*KIND_SHARE.items(), strict=True)
    kind: Kind = kinds[int(rng.choice(len(kinds), p=shares))]
    clarity: Clarity = CLARITIES[int(rng.choice(3, p=[CLARITY_SHARE[c] for c in CLARITIES]))]
    bank = _bank(folder) if split == "train" and kind == "speech" else None
    made = recording(split, kind, clarity, index, bank=bank)
    return made, made.samples(bank)


def coverage(one: Recording) -> npt.NDArray[np.uint8]:
    """Share of every audio token that each sound or word fills: [50, labels], 0..255."""
    out = np.zeros((TOKENS, len(LABELS)), np.uint8)
    edges = np.linspace(0, SECONDS, TOKENS + 1)
    for event in one.events:
        inside = np.minimum(event.offset, edges[1:]) - np.maximum(event.onset, edges[:-1])
        share = np.clip(inside / (SECONDS / TOKENS), 0, 1)
        column = out[:, LABELS.index(event.name)]
        np.maximum(column, np.round(share * 255).astype(np.uint8), out=column)
    return out


@dataclass
class Sounds:
    """Rendered recordings: mel [n, 64, 200] float16, frames [n, 50, labels] uint8, recordings [n]."""

    mel: npt.NDArray[np.float16]
    frames: npt.NDArray[np.uint8]
    recordings: list[Recording]

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """[n, labels]"""
        return np.array([[name in r.names for name in LABELS] for r in self.recordings])


def _part(job: tuple[Path, Split, int, int]) -> tuple[list[Recording], npt.NDArray[np.float16], npt.NDArray[np.uint8]]:
    folder, split, start, stop = job
    torch.set_num_threads(1)
    made = [training_recording(folder, index, split) for index in range(start, stop)]
    return [r for r, _ in made], mel([s for _, s in made]).astype(np.float16), np.stack([coverage(r) for r, _ in made])


def sounds(folder: Path, split: Split, count: int, workers: int = 2) -> Sounds:
    """The first `count` recordings of a split's mixture, from the cache or rendered into it."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [folder / f"{split}-{count}-{part}.npy" for part in ("mel", "frames", "recordings")]
    if not names[2].exists():
        _bank(folder)
        edges = np.linspace(0, count, max(2, count // 200 + 1)).astype(int)
        jobs = [(folder, split, int(a), int(b)) for a, b in itertools.pairwise(edges)]
        shapes = ((np.float16, (count, BINS, FRAMES)), (np.uint8, (count, TOKENS, len(LABELS))))
        held = [
            np.lib.format.open_memmap(name, mode="w+", dtype=kind, shape=shape)  # type: ignore[no-untyped-call]
            for name, (kind, shape) in zip(names, shapes, strict=False)
        ]
        began, done = time.time(), list[Recording]()
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            for number, (recordings, spectra, frames) in enumerate(pool.imap(_part, jobs), 1):
                held[0][len(done) : len(done) + len(recordings)] = spectra
                held[1][len(done) : len(done) + len(recordings)] = frames
                done += recordings
                if number % 10 == 0 or number == len(jobs):
                    rate = len(done) / (time.time() - began)
                    print(
                        f"render {split} {len(done)}/{count}  {rate:.0f}/s  {(count - len(done)) / rate:.0f} s left",
                        flush=True,
                    )
        np.save(names[2], np.array(done, dtype=object), allow_pickle=True)
    spectra, frames = (np.load(name, mmap_mode="r") for name in names[:2])
    return Sounds(spectra, frames, list(np.load(names[2], allow_pickle=True)))
