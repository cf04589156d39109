"""Trains the video miniature from nothing: python -m recipes.demo_video.train. Resumes where it was stopped.

data      render the training films
vision    the vision encoder, on single frames: patch labels and object targets
features  the frozen encoder's features of all training films
language  the language model on text, films written as words
align     the projector alone, then projector and language model together, on films
ship      model, processor, probe and examples into the package

One process. Every stage saves itself twice a minute, with its optimiser and its generator, so that it can be stopped
at any moment and started again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlavaOnevisionForConditionalGeneration

from limelight.demo.films import FRAMES, NAMES
from recipes.demo_video import model as nets
from recipes.demo_video.data import GRID, TOKENS, films
from recipes.demo_video.evaluate import SHIPPED, DevCheck, check_words
from recipes.demo_video.ship import rounded, save, train_probe, write_examples
from recipes.demo_video.text import HINTED, MARKS, as_words, blocks, new_packer
from recipes.demo_vision.model import Mark, VisionHeads, language_loss, restart_lookup, vision_loss
from recipes.demo_vision.parallel import Optimiser, Progress
from recipes.demo_vision.text import Packer
from recipes.demo_vision.train import each_stage, fast

STAGES = ("data", "vision", "features", "language", "align", "ship")
SAVE_EVERY = 30.0  # seconds


@dataclass(frozen=True)
class Plan:
    """Sizes of a run."""

    cache: Path = Path.home() / ".cache" / "limelight" / "recipes" / "demo_video"
    films: int = 14_000
    dev_films: int = 500
    vision_steps: int = 1_000
    vision_batch: int = 64  # frames
    language_steps: int = 1_250
    unhinted: float = 0.76  # of the language steps
    projector_steps: int = 40
    align_steps: int = 900
    batch: int = 24
    yes_no: int = 6
    probe_steps: int = 600
    check: int = 100  # dev questions a cell during alignment
    seed: int = 1
    tiny: bool = False
    target: Path = SHIPPED
    tag: str = ""  # names the language and align checkpoints of a variant

    def file(self, stage: str) -> Path:
        return self.cache / (f"{stage}.pt" if stage == "vision" else f"{stage}{self.tag}.pt")


def new_model(plan: Plan) -> tuple[LlavaOnevisionForConditionalGeneration, Packer]:
    """The untrained model and the packer with its tokenizer."""
    torch.manual_seed(plan.seed)
    packer = new_packer()
    tokenizer = packer.tokenizer
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    marks = {kind: tokenizer.convert_tokens_to_ids(MARKS[f"{kind}_token"]) for kind in ("image", "video")}
    model = nets.build(len(tokenizer), marks, special, tiny=plan.tiny)
    model.set_attn_implementation("eager")
    return model, packer


def run_steps(
    plan: Plan, name: str, steps: int, modules: Mapping[str, nn.Module], optimiser: Optimiser, rng: np.random.Generator,
    loss_of: Callable[[int], Tensor], after: Callable[[int], None] = lambda step: None,
) -> None:  # fmt: skip
    """Train for some steps; what was saved of this stage (modules, optimiser, generator) is taken up again."""
    kept, first = plan.cache / f"{name}{plan.tag}-partial.pt", 0
    if kept.exists():
        held = torch.load(kept, weights_only=False)
        for key, module in modules.items():
            module.load_state_dict(held["modules"][key])
        for part, state in zip(optimiser.parts, held["optimiser"], strict=True):
            part.load_state_dict(state)
        rng.bit_generator.state, first = held["rng"], held["step"]
        optimiser.step_number = first
        print(f"{name}: goes on at step {first} of {steps}", flush=True)
    progress, saved = Progress(name, steps, 0, first=first), time.time()
    for step in range(first, steps):
        loss = loss_of(step)
        optimiser.step(loss, 1)
        progress(step, loss)
        after(step)
        if time.time() - saved > SAVE_EVERY or step + 1 == steps:
            state = {
                "modules": {key: module.state_dict() for key, module in modules.items()},
                "optimiser": [part.state_dict() for part in optimiser.parts],
                "rng": rng.bit_generator.state,
                "step": step + 1,
            }
            torch.save(state, kept.with_suffix(".new"))
            kept.with_suffix(".new").replace(kept)
            saved = time.time()


def vision(plan: Plan) -> None:
    """Stage 1: the vision encoder, on patch labels and object targets of single frames."""
    model, _ = new_model(plan)
    tower = model.model.vision_tower
    heads = VisionHeads(tower.config.hidden_size, len(NAMES))
    data = films(plan.cache, "train", plan.films)
    present, rng = torch.from_numpy(data.present).flatten(0, 1), np.random.default_rng(plan.seed)  # [n * 8, objects]
    pixels = data.pixels.reshape(-1, *data.pixels.shape[2:])
    patches = data.patches.reshape(-1, *data.patches.shape[2:])

    def loss_of(step: int) -> Tensor:
        rows = np.sort(rng.integers(0, len(pixels), plan.vision_batch))
        frames, labels = torch.from_numpy(pixels[rows]), torch.from_numpy(patches[rows])
        if step % 2:  # mirrored
            frames = frames.flip(2)  # [b, 48, 48, 3]
            labels = labels.unflatten(1, (GRID, GRID)).flip(2).flatten(1, 2)  # [b, 36, objects]
        with fast():
            patch, found = heads(nets.frame_features(model, frames))
        return vision_loss(patch, found, labels, present[rows])

    optimiser = Optimiser([tower, heads], plan.vision_steps, muon=2e-3, adam=2e-3)
    run_steps(plan, "vision", plan.vision_steps, {"tower": tower, "heads": heads}, optimiser, rng, loss_of)
    print(check_vision(plan, model, heads), flush=True)
    torch.save({"tower": tower.state_dict(), "heads": heads.state_dict()}, plan.file("vision"))


@torch.no_grad()
def check_vision(plan: Plan, model: LlavaOnevisionForConditionalGeneration, heads: VisionHeads) -> str:
    """Balanced accuracy of the object targets on dev frames, by visibility."""
    dev, parts, words = films(plan.cache, "dev", plan.dev_films), [], []
    for start in range(0, plan.dev_films, 50):
        seen = nets.film_features(model, torch.tensor(dev.pixels[start : start + 50]))  # [50, 8, 36, d]
        parts.append(heads(seen.flatten(0, 1))[1] > 0)
    said, truth = torch.cat(parts), torch.from_numpy(dev.present).flatten(0, 1)  # [n * 8, objects]
    for visibility in ("clear", "medium", "poor"):
        rows = torch.tensor([f.visibility == visibility for f in dev.films]).repeat_interleave(FRAMES)
        recall = said[rows][truth[rows]].float().mean()
        quiet = (~said[rows])[~truth[rows]].float().mean()
        words.append(f"{visibility} {(recall + quiet) / 2:.3f} (recall {recall:.3f})")
    return "vision on dev frames: " + ", ".join(words)


def load_vision(plan: Plan, model: LlavaOnevisionForConditionalGeneration) -> None:
    model.model.vision_tower.load_state_dict(torch.load(plan.file("vision"), weights_only=True)["tower"])


@torch.no_grad()
def features(plan: Plan) -> None:
    """The frozen encoder's patch features of every training film, float16 [n, 8, 36, d]."""
    model, _ = new_model(plan)
    load_vision(plan, model)
    data, parts, began = films(plan.cache, "train", plan.films), [], time.time()
    for start in range(0, plan.films, 100):
        with fast():
            parts.append(nets.film_features(model, torch.tensor(data.pixels[start : start + 100])).half().numpy())
        if (start // 100) % 20 == 0:
            print(f"features {start + len(parts[-1])}/{plan.films}  {time.time() - began:.0f} s", flush=True)
    np.save(plan.cache / "features-0.npy", np.concatenate(parts))
    torch.save({"parts": 1}, plan.file("features"))


def load_features(plan: Plan) -> np.ndarray:
    """The features of the training films [n, 8, 36, d], in memory."""
    held: np.ndarray = np.load(plan.cache / "features-0.npy")
    return held


def language(plan: Plan) -> None:
    """Stage 2: the language model on text; a film is 72 words and a mark."""
    model, packer = new_model(plan)
    restart_lookup(model)
    data, vocabulary = films(plan.cache, "train", plan.films), packer.tokenizer.get_vocab()
    mark = Mark(model.config.text_config.hidden_size)
    where = torch.zeros(1, len(packer.prefix), 1)  # 1 at the film's words
    where[:, packer.first : packer.first + TOKENS] = 1
    modules = {"language": model.model.language_model, "head": model.lm_head, "mark": mark}
    optimiser = Optimiser(modules.values(), plan.language_steps, muon=2e-3, adam=3e-3)
    rng = np.random.default_rng([plan.seed, 2])

    def loss_of(step: int) -> Tensor:
        rows = rng.integers(0, plan.films, plan.batch)
        words = [as_words(rng, data.patches[i], data.films[i], vocabulary) for i in rows]
        told = step >= plan.language_steps * plan.unhinted  # first learn to watch, then to be told
        asked = [blocks(rng, data.films[i], plan.yes_no, HINTED if told else 0.0, told) for i in rows]
        packed = packer(asked, words)
        written = nn.functional.pad(where * mark.vector, (0, 0, 0, packed.ids.shape[1] - where.shape[1]))  # [1, t, d]
        with fast():
            return language_loss(model, packed, None, written)

    def after(step: int) -> None:
        if (step + 1) % 100 == 0 or step + 1 == plan.language_steps:
            print(check_words(model, packer, mark.vector.detach(), plan.check), flush=True)

    run_steps(plan, "language", plan.language_steps, modules, optimiser, rng, loss_of, after)
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.bias.copy_(mark.vector)
        inner = model.model
        inner.image_newline.copy_(inner.language_model.embed_tokens.weight[packer.image] + mark.vector)
    torch.save(model.state_dict(), plan.file("language"))


def align(plan: Plan) -> None:
    """Stage 3: the projector alone, then projector and language model; the vision encoder stays as it is."""
    model, packer = new_model(plan)
    model.load_state_dict(torch.load(plan.file("language"), weights_only=True))
    load_vision(plan, model)
    held, data = load_features(plan), films(plan.cache, "train", plan.films)
    check = DevCheck(model, packer, plan.check)
    projector = {"projector": model.model.multi_modal_projector, "newline": Newline(model)}
    rest = {"language": model.model.language_model, "head": model.lm_head}
    for number, (name, modules, steps, muon, adam) in enumerate((
        ("projector", projector, plan.projector_steps, 0.0, 5e-3),
        ("align", projector | rest, plan.align_steps, 1e-3, 1.5e-3),
    )):  # fmt: skip
        rng = np.random.default_rng([plan.seed, 3, number])

        def loss_of(step: int, rng: np.random.Generator = rng) -> Tensor:
            rows = np.sort(rng.integers(0, len(held), plan.batch))
            seen = torch.from_numpy(held[rows]).float()  # [b, 8, 36, d]
            packed = packer([blocks(rng, data.films[i], plan.yes_no) for i in rows])
            with fast():
                return language_loss(model, packed, seen)

        def after(step: int, steps: int = steps) -> None:
            if (step + 1) % 75 == 0 or step + 1 == steps:
                print("dev  " + "  ".join(f"{cell} {v}" for cell, v in check(model).items()), flush=True)

        run_steps(plan, name, steps, modules, Optimiser(modules.values(), steps, muon=muon, adam=adam), rng, loss_of, after)  # fmt: skip
    torch.save(model.state_dict(), plan.file("align"))


class Newline(nn.Module):
    """The model's newline embedding as a module of its own."""

    def __init__(self, model: LlavaOnevisionForConditionalGeneration) -> None:
        super().__init__()
        self.image_newline = model.model.image_newline


def ship(plan: Plan) -> None:
    """Stage 4: model, processor, probe and examples into the package."""
    model, packer = new_model(plan)
    model.load_state_dict(torch.load(plan.file("align"), weights_only=True))
    rounded(model).eval()
    plan.target.mkdir(parents=True, exist_ok=True)
    probe = train_probe(model, films(plan.cache, "train", plan.films), load_features(plan), plan.probe_steps)
    probe.save(plan.target / "probe.safetensors")
    print(f"{write_examples(model, packer, probe, plan.target / 'examples')} examples", flush=True)
    save(model, packer, plan.target)


def run_stages(plan: Plan, stages: tuple[str, ...] = STAGES) -> None:
    """Runs the stages whose result is not in the cache yet."""

    def data() -> None:
        films(plan.cache, "dev", plan.dev_films)
        films(plan.cache, "train", plan.films)

    def once(name: str, stage: Callable[[Plan], None]) -> None:
        if not plan.file(name).exists():
            stage(plan)

    trained = {"vision": vision, "features": features, "language": language, "align": align}
    work = {name: partial(once, name, stage) for name, stage in trained.items()}
    each_stage(stages, {**work, "data": data, "ship": lambda: ship(plan)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--cache", type=Path, default=Plan.cache)
    parser.add_argument("--films", type=int, default=Plan.films)
    parser.add_argument("--tag", default="")
    parser.add_argument("--vision-steps", type=int, default=Plan.vision_steps)
    parser.add_argument("--language-steps", type=int, default=Plan.language_steps)
    parser.add_argument("--align-steps", type=int, default=Plan.align_steps)
    parser.add_argument("--target", type=Path, default=SHIPPED)
    parser.add_argument("--seed", type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(1)
    plan = Plan(
        cache=a.cache, films=a.films, tag=a.tag, vision_steps=a.vision_steps, language_steps=a.language_steps,
        align_steps=a.align_steps, target=a.target, seed=a.seed,
    )  # fmt: skip
    run_stages(plan, tuple(a.stages.split(",")))


if __name__ == "__main__":
    main()
