"""Train the audio miniature from scratch: python -m recipes.demo_audio.train. Stages resume from the cache.

data      synthesise the words (espeak-ng), render the training recordings
audio     the audio encoder: frame labels and presence
features  the frozen encoder's features of all training recordings
language  the language model on text, with recordings represented by words
align     the projector alone, then projector and language model together, on recordings
ship      model, processor, probe, voices and examples into the package
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import Qwen2AudioForConditionalGeneration

from limelight.demo.sounds import LABELS
from recipes.demo_audio import model as nets
from recipes.demo_audio.data import TOKENS, Sounds, sounds
from recipes.demo_audio.evaluate import SHIPPED, DevCheck
from recipes.demo_audio.ship import save, train_probe, write_examples
from recipes.demo_audio.text import HINTED, as_words, blocks, new_packer
from recipes.demo_audio.voices import ship as ship_voices
from recipes.demo_vision.model import Mark, VisionHeads, language_loss, restart_lookup, vision_loss
from recipes.demo_vision.parallel import Optimiser, Progress, run
from recipes.demo_vision.text import Packer
from recipes.demo_vision.train import each_stage, fast, load_features, once

STAGES = ("data", "audio", "features", "language", "align", "ship")


@dataclass(frozen=True)
class Plan:
    """Sizes of a run; `batch` is per process."""

    cache: Path = Path(__file__).parents[2] / ".cache" / "demo_audio"
    recordings: int = 14_000
    dev_recordings: int = 2_000
    audio_steps: tuple[int, ...] = (400, 500)  # steps of each round, with its own warm-up and cosine
    audio_batch: int = 48
    language_steps: int = 260
    unhinted: float = 0.5  # of the language steps
    projector_steps: int = 30
    align_steps: int = 160
    batch: int = 16
    yes_no: int = 4
    probe_steps: int = 1_200
    check: int = 100  # dev questions per cell during alignment
    workers: int = 2
    seed: int = 1
    tiny: bool = False
    target: Path = SHIPPED
    tag: str = ""  # names the language and align checkpoints of a variant

    def file(self, stage: str) -> Path:
        return self.cache / (f"{stage}.pt" if stage in ("audio", "features") else f"{stage}{self.tag}.pt")


def new_model(plan: Plan) -> tuple[Qwen2AudioForConditionalGeneration, Packer]:
    """The untrained model (the same for every process) and the packer with its tokenizer."""
    torch.manual_seed(plan.seed)
    packer = new_packer()
    tokenizer = packer.tokenizer
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model = nets.build(len(tokenizer), packer.image, special, tiny=plan.tiny)
    model.set_attn_implementation("eager")
    return model, packer


def audio(rank: int, world: int, plan: Plan) -> None:
    """Stage 1: the audio encoder, on frame labels (sounds and words) and on their presence."""
    model, _ = new_model(plan)
    tower = model.model.audio_tower
    heads = VisionHeads(tower.config.d_model, len(LABELS))
    parts, data = {"tower": tower, "heads": heads}, sounds(plan.cache, "train", plan.recordings)
    for number, steps in enumerate(plan.audio_steps, 1):
        kept = plan.cache / f"audio-{number}.pt"
        if kept.exists():
            held = torch.load(kept, weights_only=True)
            for name, module in parts.items():
                module.load_state_dict(held[name])
            continue
        teach(rank, world, plan, model, heads, data, number, steps)
        if rank == 0:
            print(check_audio(plan, model, heads), flush=True)
            torch.save({name: module.state_dict() for name, module in parts.items()}, kept)
    if rank == 0:
        torch.save({name: module.state_dict() for name, module in parts.items()}, plan.file("audio"))


def teach(
    rank: int, world: int, plan: Plan, model: Qwen2AudioForConditionalGeneration, heads: VisionHeads, data: Sounds,
    number: int, steps: int,
) -> None:  # fmt: skip
    """One round of training of the encoder."""
    present = torch.from_numpy(data.present)  # [n, labels]
    optimiser = Optimiser([model.model.audio_tower, heads], steps, muon=2e-3, adam=2e-3)
    progress, order = Progress("audio", steps, rank), np.random.default_rng(plan.seed * number)
    for step in range(steps):
        rows = np.sort(order.integers(0, plan.recordings, plan.audio_batch * world)[rank::world])
        spectra, frames = torch.from_numpy(data.mel[rows]).float(), torch.from_numpy(data.frames[rows])
        spectra, frames = shifted(spectra, frames, int(order.integers(0, 4)))
        with fast():
            each, found = heads(nets.audio_features(model, spectra))
        loss = vision_loss(each, found, frames, present[rows])
        optimiser.step(loss, world)
        progress(step, loss)


def shifted(spectra: torch.Tensor, frames: torch.Tensor, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Recordings [n, 64, 200] and their labels [n, 50, labels], shifted by some tokens, wrapping around."""
    return spectra.roll(4 * tokens, 2), frames.roll(tokens, 1)


@torch.no_grad()
def check_audio(plan: Plan, model: Qwen2AudioForConditionalGeneration, heads: VisionHeads) -> str:
    """Print the balanced accuracy of detected sounds and of words on dev recordings, by clarity."""
    dev, parts = sounds(plan.cache, "dev", plan.dev_recordings), []
    for start in range(0, plan.dev_recordings, 100):
        spectra = torch.tensor(dev.mel[start : start + 100])
        parts.append(heads(nets.audio_features(model, spectra))[1] > 0)
    said, truth, words = torch.cat(parts), torch.from_numpy(dev.present), []  # [n, labels]
    for kind in ("events", "speech"):
        columns = slice(0, 16) if kind == "events" else slice(16, None)
        for clarity in ("clear", "medium", "poor"):
            rows = torch.tensor([r.clarity == clarity and r.kind == kind for r in dev.recordings])
            recall = said[rows, columns][truth[rows, columns]].float().mean()
            quiet = (~said[rows, columns])[~truth[rows, columns]].float().mean()
            words.append(f"{kind} {clarity} {(recall + quiet) / 2:.3f} (recall {recall:.3f})")
    return "audio on dev: " + ", ".join(words)


def load_audio(plan: Plan, model: Qwen2AudioForConditionalGeneration) -> None:
    model.model.audio_tower.load_state_dict(torch.load(plan.file("audio"), weights_only=True)["tower"])


@torch.no_grad()
def features(rank: int, world: int, plan: Plan) -> None:
    """The frozen encoder's features of every training recording, float16 [n, 50, d]."""
    model, _ = new_model(plan)
    load_audio(plan, model)
    data, parts = sounds(plan.cache, "train", plan.recordings), []
    edges = np.linspace(0, plan.recordings, world + 1).astype(int)
    for start in range(edges[rank], edges[rank + 1], 200):
        spectra = torch.tensor(data.mel[start : min(start + 200, edges[rank + 1])])
        with fast():
            parts.append(nets.audio_features(model, spectra).half())
    np.save(plan.cache / f"features-{rank}.npy", torch.cat(parts).numpy())
    if rank == 0:
        torch.save({"parts": world}, plan.file("features"))


def language(rank: int, world: int, plan: Plan) -> None:
    """Stage 2: the language model on text, each recording represented by 50 words."""
    model, packer = new_model(plan)
    restart_lookup(model)
    data, vocabulary = sounds(plan.cache, "train", plan.recordings), packer.tokenizer.get_vocab()
    mark = Mark(model.config.text_config.hidden_size)
    where = torch.zeros(1, len(packer.prefix), 1)  # 1 at the recording's words
    where[:, packer.first : packer.first + TOKENS] = 1
    parts = [model.model.language_model, model.lm_head, mark]
    optimiser = Optimiser(parts, plan.language_steps, muon=2e-3, adam=3e-3)
    progress, rng = Progress("language", plan.language_steps, rank), np.random.default_rng([plan.seed, rank, 2])
    for step in range(plan.language_steps):
        rows = rng.integers(0, plan.recordings, plan.batch)
        words = [as_words(rng, data.frames[i], data.recordings[i], vocabulary) for i in rows]
        told = step >= plan.language_steps * plan.unhinted  # first without hints, then with them
        asked = [blocks(rng, data.recordings[i], plan.yes_no, HINTED if told else 0.0, told) for i in rows]
        packed = packer(asked, words)
        written = nn.functional.pad(where * mark.vector, (0, 0, 0, packed.ids.shape[1] - where.shape[1]))  # [1, t, d]
        with fast():
            loss = language_loss(model, packed, None, written)
        optimiser.step(loss, world)
        progress(step, loss)
    if rank == 0:
        with torch.no_grad():
            model.model.multi_modal_projector.linear.bias.copy_(mark.vector)
        torch.save(model.state_dict(), plan.file("language"))


def align(rank: int, world: int, plan: Plan) -> None:
    """Stage 3: the projector alone, then projector and language model; the audio encoder is frozen."""
    model, packer = new_model(plan)
    model.load_state_dict(torch.load(plan.file("language"), weights_only=True))
    load_audio(plan, model)
    held, data = load_features(plan), sounds(plan.cache, "train", plan.recordings)
    edges = np.cumsum([0, *map(len, held)])
    rng, check = np.random.default_rng([plan.seed, rank, 3]), DevCheck(model, packer, plan.check) if rank == 0 else None
    projector, rest = [model.model.multi_modal_projector], [model.model.language_model, model.lm_head]
    for name, modules, steps, muon, adam in (
        ("projector", projector, plan.projector_steps, 0.0, 5e-3),
        ("align", projector + rest, plan.align_steps, 1e-3, 1.5e-3),
    ):
        optimiser, progress = Optimiser(modules, steps, muon=muon, adam=adam), Progress(name, steps, rank)
        for step in range(steps):
            part = int(rng.integers(len(held)))
            rows = np.sort(rng.integers(0, len(held[part]), plan.batch))
            heard = torch.from_numpy(held[part][rows]).float()  # [b, 50, d]
            packed = packer([blocks(rng, data.recordings[edges[part] + i], plan.yes_no) for i in rows])
            with fast():
                loss = language_loss(model, packed, heard)
            optimiser.step(loss, world)
            progress(step, loss)
            if check and ((step + 1) % 100 == 0 or step + 1 == steps):
                print("dev  " + "  ".join(f"{cell} {v}" for cell, v in check(model).items()), flush=True)
    if rank == 0:
        torch.save(model.state_dict(), plan.file("align"))


def ship(rank: int, world: int, plan: Plan) -> None:
    """Stage 4: model, processor, probe and examples into the package."""
    model, packer = new_model(plan)
    model.load_state_dict(torch.load(plan.file("align"), weights_only=True))
    model.eval()
    if rank == 0:
        plan.target.mkdir(parents=True, exist_ok=True)
        probe = train_probe(model, sounds(plan.cache, "train", plan.recordings), load_features(plan), plan.probe_steps)
        probe.save(plan.target / "probe.safetensors")
        print(f"{write_examples(model, packer, probe, plan.target / 'examples')} examples", flush=True)
        save(model, packer, plan.target)


def run_stages(plan: Plan, stages: tuple[str, ...] = STAGES, port: int = 29631) -> None:
    """Runs the stages whose result is not in the cache yet."""

    def data() -> None:
        for split in ("dev", "test"):
            if not (SHIPPED / "voices" / f"{split}.flac").exists():
                ship_voices(split)  # type: ignore[arg-type]
        sounds(plan.cache, "dev", plan.dev_recordings, plan.workers)
        sounds(plan.cache, "train", plan.recordings, plan.workers)

    trained = {"audio": audio, "features": features, "language": language, "align": align}
    work = {name: partial(once, plan, name, stage, port) for name, stage in trained.items()}
    each_stage(stages, {**work, "data": data, "ship": lambda: run(ship, 1, port, plan)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--port", type=int, default=29631)
    parser.add_argument("--tag", default="")
    parser.add_argument("--language-steps", type=int, default=Plan.language_steps)
    parser.add_argument("--align-steps", type=int, default=Plan.align_steps)
    parser.add_argument("--seed", type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(1)
    plan = Plan(workers=a.workers, tag=a.tag, language_steps=a.language_steps, align_steps=a.align_steps, seed=a.seed)
    run_stages(plan, tuple(a.stages.split(",")), a.port)


if __name__ == "__main__":
    main()
