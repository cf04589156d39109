"""Writes the trained model, its processor, the probe and the held-out examples into the package."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile
import torch
from transformers import Qwen2AudioForConditionalGeneration, Qwen2AudioProcessor

from limelight.demo.language import NO, YES
from limelight.demo.probe import Probe
from limelight.demo.sound_language import TRANSCRIBE
from limelight.demo.sound_questions import questions
from limelight.demo.sounds import EVENTS
from limelight.demo.synthesis import RATE
from recipes.demo_audio.data import Sounds, extractor
from recipes.demo_audio.evaluate import features_of
from recipes.demo_audio.text import TEMPLATE
from recipes.demo_vision.evaluate import margins, probe_margins
from recipes.demo_vision.ship import fit_probe, save_model
from recipes.demo_vision.text import Packer

RULE = (
    "Recordings of the split 'demo' (neither dev nor test), each cell's questions in order: the first three of "
    "E-wrong/clear and of C-wrong/clear that greedy decoding gets wrong although it is right without the hint and the "
    "probe of the audio tokens is right; as many with the answer yes as can be had."
)


def processor_for(packer: Packer) -> Qwen2AudioProcessor:
    """The Qwen2-Audio processor of the miniature: four seconds at 16 kHz, 64 bands, 50 audio tokens."""
    return Qwen2AudioProcessor(extractor(), packer.tokenizer, chat_template=TEMPLATE)


def save(model: Qwen2AudioForConditionalGeneration, packer: Packer, folder: Path) -> None:
    """Model, configs and processor files."""
    model.config.transcription_prompt = TRANSCRIBE  # what `limelight transcribe` asks
    save_model(model, packer, processor_for(packer), folder)


def train_probe(
    model: Qwen2AudioForConditionalGeneration, data: Sounds, held: list[np.ndarray], steps: int = 1200
) -> Probe:
    """The probe, on the projected audio tokens of the training recordings: which of the 16 sounds are present."""
    present = torch.from_numpy(data.present[:, : len(EVENTS)]).float()  # [n, sounds]
    rate = np.array([r.kind == "events" for r in data.recordings], dtype=float)  # [n]
    return fit_probe(model, present, rate, held, steps)


@torch.no_grad()
def write_examples(
    model: Qwen2AudioForConditionalGeneration, packer: Packer, probe: Probe, folder: Path, n: int = 60
) -> int:
    """Recordings (FLAC) and examples.json, selected by `RULE`; returns how many."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.flac"):
        old.unlink()
    rows = []
    bare = questions("demo", "none/clear", n)
    heard = features_of(model, [q.recording for q in bare])
    truth = torch.tensor([q.truth == YES for q in bare])
    able = (margins(model, packer, bare, heard) > 0) == truth
    able &= (probe_margins(model, probe, [q.object for q in bare], heard, EVENTS) > 0) == truth
    for cell in ("E-wrong/clear", "C-wrong/clear"):
        items = questions("demo", cell, n)
        misled = (margins(model, packer, items, heard) > 0) != truth
        found = torch.nonzero(misled & able).flatten().tolist()
        there = [i for i in found if items[i].truth == YES][:2]
        for number in sorted([*there, *[i for i in found if i not in there][: 3 - len(there)]]):
            q, name = items[number], f"{cell.split('/')[0]}-{number:03d}.flac"
            soundfile.write(str(folder / name), q.recording.samples(), RATE, subtype="PCM_16")
            rows.append({
                "id": q.id, "audio": name, "text": q.text, "hint": q.hint, "question": q.question, "label": q.truth,
                "greedy": NO if q.truth == YES else YES, "cell": q.cell, "object": q.object,
                "objects": {key: list(span) for key, span in q.recording.spans.items()},
            })  # fmt: skip
    (folder / "examples.json").write_text(json.dumps({"rule": RULE, "examples": rows}, indent=1) + "\n")
    return len(rows)
