"""What the model can do before any rule: captions and questions about scenes whose cut-outs it has not seen."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from limelight.models.checkpoints.smol_vision import SmolVision
from recipes.demo_vision.text import Packer
from recipes.real_vision.data import Features
from recipes.real_vision.nouns import CANDIDATES
from recipes.real_vision.text import BETWEEN, DESCRIBE, KINDS, NO, YES, Company, question, says


@torch.no_grad()
def answers(
    model: SmolVision, packer: Packer, asked: Sequence[str], values: Tensor, most: int = 32
) -> list[str]:  # fmt: skip
    """Greedy answers to the same number of tokens of question for each of the features ``[n, positions, width]``."""
    lines = [packer.prefix + packer.encode(BETWEEN[0] + a + BETWEEN[1]) for a in asked]
    ids = torch.tensor(lines, device=model.device)
    language = model.model.language_model
    embeds = language.embed_tokens(ids)
    holes = (ids == packer.image)[..., None].expand_as(embeds)
    image = model.model.multi_modal_projector(values.to(model.device)).to(embeds.dtype)
    out = language(inputs_embeds=embeds.masked_scatter(holes, image), use_cache=True)
    said: list[list[int]] = [[] for _ in lines]
    done = torch.zeros(len(lines), dtype=torch.bool, device=model.device)
    for _ in range(most):
        token = model.lm_head(out.last_hidden_state[:, -1]).float().argmax(-1)
        done |= token == packer.eos
        if bool(done.all()):
            break
        for line, one, over in zip(said, token.tolist(), done.tolist(), strict=True):
            if not over:
                line.append(one)
        out = language(input_ids=token[:, None], past_key_values=out.past_key_values, use_cache=True)
    return [packer.tokenizer.decode(line) for line in said]


@torch.no_grad()
def margins(model: SmolVision, packer: Packer, asked: Sequence[str], values: Tensor) -> Tensor:
    """Log-odds of yes over no as the first token of the answer, ``[n]``."""
    lines = [packer.prefix + packer.encode(BETWEEN[0] + a + BETWEEN[1]) for a in asked]
    yes, no = (packer.encode(word)[0] for word in (YES, NO))
    longest = max(map(len, lines))
    ids = torch.tensor([line + [packer.eos] * (longest - len(line)) for line in lines], device=model.device)
    language = model.model.language_model
    embeds = language.embed_tokens(ids)
    holes = (ids == packer.image)[..., None].expand_as(embeds)
    image = model.model.multi_modal_projector(values.to(model.device)).to(embeds.dtype)
    hidden = language(inputs_embeds=embeds.masked_scatter(holes, image), use_cache=False).last_hidden_state
    last = hidden[torch.arange(len(lines)), torch.tensor([len(line) - 1 for line in lines])]
    both = last.float() @ model.lm_head.weight[[yes, no]].float().T
    return (both[:, 0] - both[:, 1]).cpu()


def measure(
    model: SmolVision,
    packer: Packer,
    held: Features,
    nouns: Sequence[str],
    company: Company,
    count: int,
    batch: int = 50,
) -> dict[str, Any]:
    """Captions (recall, CHAIR_i, CHAIR_s) and questions (accuracy by kind) on the first ``count`` scenes."""
    rng = random.Random(0)
    named = said = invented = right = recalled = 0
    scenes_wrong = 0
    scored: dict[str, list[bool]] = {k: [] for k in ("yes", *KINDS)}
    shown: list[str] = []
    for rows in torch.arange(min(count, len(held))).split(batch):
        values = held.floats(rows)
        truths = [[nouns[i] for i in held.things[r].tolist() if i >= 0] for r in rows]
        for truth, answer in zip(truths, answers(model, packer, [DESCRIBE[0]] * len(rows), values), strict=True):
            words = says(answer, CANDIDATES)
            wrong = [w for w in words if w not in truth]
            named, recalled = named + len(truth), recalled + sum(t in words for t in truth)
            said, invented, scenes_wrong = said + len(words), invented + len(wrong), scenes_wrong + bool(wrong)
            right += 1
            if len(shown) < 6:
                shown.append(f"{truth} -> {answer!r}")
        for kind in scored:
            asked = [rng.choice(t) if kind == "yes" else company.absent(kind, t, rng) for t in truths]
            found = margins(model, packer, [question(a) for a in asked], values) > 0
            scored[kind] += (found if kind == "yes" else ~found).tolist()
    return {
        "scenes": right, "recall": recalled / named, "CHAIR_i": invented / max(1, said), "CHAIR_s": scenes_wrong / right,
        "said": said / right, **{kind: sum(v) / len(v) for kind, v in scored.items()}, "shown": shown,
    }  # fmt: skip
