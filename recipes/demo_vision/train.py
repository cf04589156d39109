"""Train the vision miniature from scratch: python -m recipes.demo_vision.train. Stages resume from the cache.

data      render the training pictures
vision    the vision encoder: patch labels and object targets
features  the frozen encoder's features of all training pictures
language  the language model on text, pictures written as words
align     the projector alone, then projector and language model together, on pictures
ship      model, processor, probe and examples into the package
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import LlavaForConditionalGeneration

from recipes.demo_vision import model as nets
from recipes.demo_vision.data import pictures
from recipes.demo_vision.evaluate import SHIPPED, DevCheck
from recipes.demo_vision.parallel import Optimiser, Progress, has_bfloat16, run
from recipes.demo_vision.ship import save, train_probe, write_examples
from recipes.demo_vision.text import HINTED, IMAGE_TOKENS, Packer, as_words, blocks, train_tokenizer

STAGES = ("data", "vision", "features", "language", "align", "ship")


@dataclass(frozen=True)
class Plan:
    """Sizes of a run; `batch` is per process."""

    cache: Path = Path(__file__).parents[2] / ".cache" / "demo_vision"
    pictures: int = 60_000
    dev_pictures: int = 2_000
    vision_steps: int = 1_200
    vision_batch: int = 64
    language_steps: int = 320
    unhinted: float = 0.5  # of the language steps
    projector_steps: int = 40
    align_steps: int = 180
    batch: int = 24
    yes_no: int = 5
    probe_steps: int = 1_500
    check: int = 200  # dev questions per cell during alignment
    workers: int = 2
    seed: int = 1
    tiny: bool = False
    target: Path = SHIPPED
    tag: str = ""  # names the language and align checkpoints of a variant

    def file(self, stage: str) -> Path:
        return self.cache / (f"{stage}.pt" if stage in ("vision", "features") else f"{stage}{self.tag}.pt")


def new_model(plan: Plan) -> tuple[LlavaForConditionalGeneration, Packer]:
    """The untrained model (the same for every process) and the packer with its tokenizer."""
    torch.manual_seed(plan.seed)
    packer = Packer(train_tokenizer())
    tokenizer = packer.tokenizer
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model = nets.build(len(tokenizer), packer.image, special, tiny=plan.tiny)
    model.set_attn_implementation("eager")  # with bfloat16 twice as fast as sdpa here
    return model, packer


def fast(enabled: bool = True) -> torch.autocast:
    """bfloat16 matrix products where the processor has them; the parameters stay float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled and has_bfloat16())


def vision(rank: int, world: int, plan: Plan) -> None:
    """Stage 1: the vision encoder, on patch labels and object targets."""
    model, _ = new_model(plan)
    tower = model.model.vision_tower
    heads = nets.VisionHeads(tower.config.hidden_size)
    data = pictures(plan.cache, "train", plan.pictures)
    present = torch.from_numpy(data.present)  # [n, objects]
    optimiser = Optimiser([tower, heads], plan.vision_steps, muon=2e-3, adam=2e-3)
    progress, order = Progress("vision", plan.vision_steps, rank), np.random.default_rng(plan.seed)
    for step in range(plan.vision_steps):
        rows = np.sort(order.integers(0, plan.pictures, plan.vision_batch * world)[rank::world])
        pixels, patches = torch.from_numpy(data.pixels[rows]), torch.from_numpy(data.patches[rows])
        if step % 2:  # mirrored
            pixels = pixels.flip(2)  # [b, 112, 112, 3]
            patches = patches.unflatten(1, (7, 7)).flip(2).flatten(1, 2)  # [b, 49, objects]
        with fast():
            patch, found = heads(nets.image_features(model, pixels))
        loss = nets.vision_loss(patch, found, patches, present[rows])
        optimiser.step(loss, world)
        progress(step, loss)
    if rank == 0:
        print(check_vision(plan, model, heads), flush=True)
        torch.save({"tower": tower.state_dict(), "heads": heads.state_dict()}, plan.file("vision"))


@torch.no_grad()
def check_vision(plan: Plan, model: LlavaForConditionalGeneration, heads: nets.VisionHeads) -> str:
    """Balanced accuracy of the object targets on dev pictures, by visibility."""
    dev, parts = pictures(plan.cache, "dev", plan.dev_pictures), []
    for start in range(0, plan.dev_pictures, 100):
        parts.append(heads(nets.image_features(model, torch.tensor(dev.pixels[start : start + 100])))[1] > 0)
    said, truth, words = torch.cat(parts), torch.from_numpy(dev.present), []  # [n, objects]
    for visibility in ("clear", "medium", "poor"):
        rows = torch.tensor([s.visibility == visibility for s in dev.scenes])
        recall = said[rows][truth[rows]].float().mean()
        quiet = (~said[rows])[~truth[rows]].float().mean()
        words.append(f"{visibility} {(recall + quiet) / 2:.3f} (recall {recall:.3f})")
    return "vision on dev: " + ", ".join(words)


def load_vision(plan: Plan, model: LlavaForConditionalGeneration) -> None:
    model.model.vision_tower.load_state_dict(torch.load(plan.file("vision"), weights_only=True)["tower"])


@torch.no_grad()
def features(rank: int, world: int, plan: Plan) -> None:
    """The frozen encoder's patch features of every training picture, float16 [n, 49, d]."""
    model, _ = new_model(plan)
    load_vision(plan, model)
    data, parts = pictures(plan.cache, "train", plan.pictures), []
    edges = np.linspace(0, plan.pictures, world + 1).astype(int)
    for start in range(edges[rank], edges[rank + 1], 200):
        pixels = torch.tensor(data.pixels[start : min(start + 200, edges[rank + 1])])
        with fast():
            parts.append(nets.image_features(model, pixels).half())
    np.save(plan.cache / f"features-{rank}.npy", torch.cat(parts).numpy())
    if rank == 0:
        torch.save({"parts": world}, plan.file("features"))


def load_features(plan: Any) -> list[np.ndarray]:
    """The features of every process's part of the training pictures (or recordings)."""
    count = torch.load(plan.file("features"), weights_only=True)["parts"]
    return [np.load(plan.cache / f"features-{part}.npy", mmap_mode="r") for part in range(count)]


def language(rank: int, world: int, plan: Plan) -> None:
    """Stage 2: the language model on text, each image represented by 49 words."""
    model, packer = new_model(plan)
    nets.restart_lookup(model)
    data, vocabulary = pictures(plan.cache, "train", plan.pictures), packer.tokenizer.get_vocab()
    mark = nets.Mark(model.config.text_config.hidden_size)
    where = torch.zeros(1, len(packer.prefix), 1)  # 1 at the picture's words
    where[:, packer.first : packer.first + IMAGE_TOKENS] = 1
    parts = [model.model.language_model, model.lm_head, mark]
    optimiser = Optimiser(parts, plan.language_steps, muon=2e-3, adam=3e-3)
    progress, rng = Progress("language", plan.language_steps, rank), np.random.default_rng([plan.seed, rank, 2])
    for step in range(plan.language_steps):
        rows = rng.integers(0, plan.pictures, plan.batch)
        words = [as_words(rng, data.patches[i], data.scenes[i].visibility, vocabulary) for i in rows]
        told = step >= plan.language_steps * plan.unhinted  # first without hints, then with them
        packed = packer([blocks(rng, data.scenes[i], plan.yes_no, HINTED if told else 0.0, told) for i in rows], words)
        written = nn.functional.pad(where * mark.vector, (0, 0, 0, packed.ids.shape[1] - where.shape[1]))  # [1, t, d]
        with fast():
            loss = nets.language_loss(model, packed, None, written)
        optimiser.step(loss, world)
        progress(step, loss)
    if rank == 0:
        with torch.no_grad():
            model.model.multi_modal_projector.linear_2.bias.copy_(mark.vector)
        torch.save(model.state_dict(), plan.file("language"))


def align(rank: int, world: int, plan: Plan) -> None:
    """Stage 3: the projector alone, then projector and language model; the vision encoder is frozen."""
    model, packer = new_model(plan)
    model.load_state_dict(torch.load(plan.file("language"), weights_only=True))
    load_vision(plan, model)
    held, data = load_features(plan), pictures(plan.cache, "train", plan.pictures)
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
            seen = torch.from_numpy(held[part][rows]).float()  # [b, 49, d]
            packed = packer([blocks(rng, data.scenes[edges[part] + i], plan.yes_no) for i in rows])
            with fast():
                loss = nets.language_loss(model, packed, seen)
            optimiser.step(loss, world)
            progress(step, loss)
            if check and ((step + 1) % 90 == 0 or step + 1 == steps):
                table = {cell: f"{a:.2f}/{b:.2f}" for cell, (a, b) in check(model).items()}
                print("dev accuracy/AUC  " + "  ".join(f"{cell} {v}" for cell, v in table.items()), flush=True)
    if rank == 0:
        torch.save(model.state_dict(), plan.file("align"))


def ship(rank: int, world: int, plan: Plan) -> None:
    """Stage 4: model, processor, probe and examples into the package."""
    model, packer = new_model(plan)
    model.load_state_dict(torch.load(plan.file("align"), weights_only=True))
    model.eval()
    if rank == 0:
        probe = train_probe(model, pictures(plan.cache, "train", plan.pictures), load_features(plan), plan.probe_steps)
        plan.target.mkdir(parents=True, exist_ok=True)
        probe.save(plan.target / "probe.safetensors")
        print(f"{write_examples(model, packer, probe, plan.target / 'examples')} examples", flush=True)
        save(model, packer, plan.target)


def run_stages(plan: Plan, stages: tuple[str, ...] = STAGES, port: int = 29611) -> None:
    """Runs the stages whose result is not in the cache yet."""

    def data() -> None:
        pictures(plan.cache, "dev", plan.dev_pictures, plan.workers)
        pictures(plan.cache, "train", plan.pictures, plan.workers)

    trained = {"vision": vision, "features": features, "language": language, "align": align}
    work = {name: partial(once, plan, name, stage, port) for name, stage in trained.items()}
    each_stage(stages, {**work, "data": data, "ship": lambda: run(ship, 1, port, plan)})


def once(plan: Any, name: str, stage: Callable[..., None], port: int) -> None:
    """Runs a stage in its processes, unless its result is in the cache."""
    if not plan.file(name).exists():
        run(stage, plan.workers, port, plan)


def each_stage(stages: tuple[str, ...], work: dict[str, Callable[[], None]]) -> None:
    """Run the stages in order and print how long each took."""
    for stage in stages:
        began = time.time()
        work[stage]()
        print(f"stage {stage}: {time.time() - began:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--port", type=int, default=29611)
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
