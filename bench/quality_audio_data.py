"""The questions, captions and phrases of the audio quality table, generated once, in batches for the model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import limelight
from bench import quality_data as pictures
from bench.quality_audio_decoders import BY_NAME, Decoder
from limelight.benchmarks.scorers.grounding import event_coverage, grounding
from limelight.demo import sound_language as language
from limelight.demo.language import YES
from limelight.demo.sound_questions import Request as Question
from limelight.demo.sound_questions import captions, questions, transcriptions

MODEL, MODALITY = "demo-audio", "audio"
CACHE = Path(".cache/quality-audio")
CELLS = pictures.TEXT_CELLS  # the same ten: five sets, clear and poor
CAPTION_SETS = pictures.CAPTION_SETS
SPEECH_SETS = ("usual/clear", "broken/clear", "digits/clear", "usual/poor", "broken/poor", "digits/poor")
QUIET_SETS = ("noise", "silence", "events")
TOKENS = 50


def decoder(name: str) -> Decoder:
    """A row of the table."""
    return BY_NAME[name]


def mentioned(text: str) -> set[str]:
    """The sounds that a caption names."""
    return set(language.mentioned(text))


def adapter() -> limelight.Adapter:
    return pictures.padded_left(MODEL)


def yes_no_ids() -> tuple[int, int]:
    """The tokens that answer: where "ASSISTANT: yes" and "ASSISTANT: no" first differ."""
    return pictures.answering(adapter())


@dataclass(frozen=True)
class Asked:
    """One request: its words, the spectrogram [64, 200] of its recording, what is true, where the sound asked for is."""

    id: str
    text: str
    mel: np.ndarray[Any, Any]
    truth: Any
    span: tuple[float, float] | None = None


def _spectra(name: str, asked: list[Question]) -> np.ndarray[Any, Any]:
    """Log-mel features [n, 64, 200], as the processor makes them; kept, since making the sound costs more than an answer."""
    path = CACHE / f"mel-{name.replace('/', '-')}-{len(asked)}.npy"
    larger = [p for p in CACHE.glob(f"mel-{name.replace('/', '-')}-*.npy") if int(p.stem.split("-")[-1]) >= len(asked)]
    if larger:  # the first n of a set are the same whatever n is
        path = larger[0]
    else:
        CACHE.mkdir(parents=True, exist_ok=True)
        extract = adapter().processor.feature_extractor
        made = [
            extract(q.recording.samples(), sampling_rate=extract.sampling_rate, return_tensors="np")["input_features"]
            for q in asked
        ]
        part = path.with_suffix(f".{os.getpid()}")
        with part.open("wb") as file:
            np.save(file, np.concatenate(made))
        part.rename(path)
    found: np.ndarray[Any, Any] = np.load(path, mmap_mode="r")[: len(asked)]
    return found


def cell(split: str, name: str, n: int) -> list[Asked]:
    """Questions of a cell; ``truth`` is (label is yes). The five sets of a clarity share their recordings."""
    asked = questions(split, name, n)  # type: ignore[arg-type]
    heard = _spectra(f"{split}-{name.split('/')[1]}", asked)
    return [
        Asked(q.id, q.text, mel, q.truth == YES, q.recording.spans.get(q.object))
        for q, mel in zip(asked, heard, strict=True)
    ]


def caption_set(split: str, name: str, n: int) -> list[Asked]:
    """Caption requests about clear recordings; ``truth`` is the set of sounds."""
    asked = captions(split, name, n)  # type: ignore[arg-type]
    heard = _spectra(f"{split}-captions", asked)
    return [Asked(q.id, q.text, mel, frozenset(q.truth)) for q, mel in zip(asked, heard, strict=True)]


def speech_set(split: str, name: str, n: int) -> list[Asked]:
    """Transcription requests; ``truth`` is what is said, "" where nobody speaks."""
    asked = transcriptions(split, name, n)  # type: ignore[arg-type]
    heard = _spectra(f"{split}-speech-{name}", asked)
    return [Asked(q.id, q.text, mel, q.truth) for q, mel in zip(asked, heard, strict=True)]


def inputs(batch: list[Asked]) -> dict[str, Any]:
    """Left-padded tensors of a batch, equal to the processor's."""
    own = adapter()
    turns = [[{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": a.text}]}] for a in batch]
    texts = own.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    mark = own.processor.audio_token
    out = own.tokenizer(
        [t.replace(mark, mark * TOKENS) for t in texts], padding=True, return_tensors="pt", add_special_tokens=False
    )
    mel = torch.from_numpy(np.stack([a.mel for a in batch]))  # [n, 64, 200]
    return {
        "input_ids": out["input_ids"],
        "attention_mask": out["attention_mask"],
        "input_features": mel,
        "feature_attention_mask": torch.ones(len(batch), mel.shape[2], dtype=torch.int32),
    }


def batches(asked: list[Asked], size: int) -> Iterator[tuple[list[Asked], dict[str, Any]]]:
    """Batches of similar length, so that padding costs little."""
    return pictures.batched(asked, size, inputs)


def inside(asked: Asked, relevance: Any) -> tuple[float, float] | None:
    """Relevance inside the true event over all relevance on the sound, and its chance level; None without the event."""
    if asked.span is None:
        return None
    scores, seconds = relevance.on_seconds()
    covered = event_coverage(len(scores), seconds, [asked.span])
    return grounding(scores.numpy(), covered), float(covered.mean())


def probe_margins(split: str, name: str, n: int) -> np.ndarray[Any, Any]:
    """The probe's margin for each question of a cell: what the audio tokens tell."""
    from limelight.demo.probe import Probe
    from limelight.demo.sounds import EVENTS, VOICES

    inner, probe = adapter().model.model, Probe.load(VOICES.parent / "probe.safetensors")
    asked = cell(split, name, n)
    columns = [EVENTS.index(q.object) for q in questions(split, name, n)]  # type: ignore[arg-type]
    with torch.no_grad():
        parts = []
        for start in range(0, n, 100):
            mel = torch.from_numpy(np.stack([a.mel for a in asked[start : start + 100]]))
            parts.append(probe(inner.multi_modal_projector(inner.audio_tower(mel).last_hidden_state)))
    found: np.ndarray[Any, Any] = torch.cat(parts)[torch.arange(n), columns].numpy()
    return found
