"""The originals of a prompt's media, and prompts that ask the same about other media."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from limelight.decoding.looking.fields import edges_of, rate_of
from limelight.decoding.strategy import GenerationContext
from limelight.errors import SettingError, UnsupportedError
from limelight.models.adapter import Adapter
from limelight.models.inputs.decoder_inputs import MODEL
from limelight.models.prompts import split_media
from limelight.types import Prompt

Turns = Sequence[Mapping[str, Any]]


def prompts_of(context: GenerationContext) -> list[Prompt]:
    """Return the prepared prompt of each row, with its original media.

    Raises:
        SettingError: they are not known, or belong to another batch.
        UnsupportedError: an encoder-decoder, or a prompt that is only in the cache.
    """
    context.require_prompt()
    if context.adapter.encoder is not None:
        raise UnsupportedError(
            f"look-again cannot ask {type(context.adapter.model).__name__} again: its encoder reads one medium",
            hint="limelight.transcribe splits long audio; of a picture, ask about a crop of your own",
        )
    given = context.prompts
    if not given or any(not p.media or not p.turns for p in given):
        raise SettingError(
            "look-again needs the original media beside the processor's tensors, to cut views out of them",
            hint="limelight.generate(adapter, messages=..., media=...), or custom_generate(strategy, processor=processor, "
            "prompts=[limelight.wrap(model, processor).prepare(messages, media), ...])",
        )
    rows, name = len(context.ids), context.adapter.names.ids
    if rows % len(given):
        raise SettingError(
            f"prompts= has {len(given)} entries for {rows} rows", hint="pass one prompt per row of the batch"
        )
    found = [p for p in given for _ in range(rows // len(given))]
    for row, prompt in enumerate(found):
        own = context.ids[row][context.mask[row]]
        asked = prompt.tensors[name][0].to(own.device)
        if own.shape[0] < asked.shape[0] or not torch.equal(own[: asked.shape[0]], asked):
            raise SettingError(
                f"prompts= belong to another batch: row {row} has other token ids",
                hint="generate(**prompt.tensors, custom_generate=custom_generate(strategy, prompts=[prompt]))",
            )
    return found


def bare_turns(prompt: Prompt) -> list[dict[str, Any]]:
    """Return the prompt's messages with ``{"type": kind}`` in place of each medium."""
    turns, _ = split_media(prompt.turns)
    return [{**t, "content": [i if i["type"] == "text" else {"type": i["type"]} for i in t["content"]]} for t in turns]


def asked_again(
    adapter: Adapter, prompt: Prompt, media: Mapping[str, Sequence[Any]], turns: Turns | None = None
) -> Prompt:
    """Return the same question (or ``turns``) about other media."""
    timed = bool(media.get("audio")) and not media.get("image") and not media.get("video")  # costs nothing
    return adapter.prepare(list(bare_turns(prompt) if turns is None else turns), media, regions=timed)


def reworded(adapter: Adapter, prompt: Prompt, words: str) -> Prompt:
    """Return a prompt of one turn that asks ``words`` about the same media."""
    items = [i for turn in bare_turns(prompt) for i in turn["content"] if i["type"] != "text"]
    media = {k: fitting(adapter, k, v) for k, v in prompt.media.items()}
    return asked_again(adapter, prompt, media, [{"role": "user", "content": [*items, {"type": "text", "text": words}]}])


def fitting(adapter: Adapter, kind: str, media: Sequence[Any]) -> list[Any]:
    """Return media as the first view shows them: audio cut to the model's window."""
    window = window_of(adapter) if kind == "audio" else None
    if window is None:
        return list(media)
    return [(samples[: round(window * rate)], rate) for samples, rate in media]


def window_of(adapter: Adapter) -> float | None:
    """Return the longest audio that the model takes, in seconds, where its processor declares one."""
    from limelight.media.truncation import window_seconds

    return window_seconds(adapter.processor)


def with_further_pictures(prompt: Prompt, counts: Mapping[int, int]) -> Turns:
    """Return the turns with so many further pictures behind each picture (its index -> their number)."""
    turns, seen = [], -1
    for turn in bare_turns(prompt):
        content: list[Any] = []
        for item in turn["content"]:
            content.append(item)
            if item["type"] == "image":
                seen += 1
                content += [{"type": "image"}] * counts.get(seen, 0)
        turns.append({**turn, "content": content})
    return turns


def seen_pixels(adapter: Adapter, prompt: Prompt, kind: str = "image") -> float:
    """Return how many pixels the model sees of each picture of the prompt (of each frame of its films), on average."""
    media = prompt.media.get(kind, ())
    count = len(media) if kind == "image" else sum(len(clip) for clip in media)
    alone = not prompt.media.get("video" if kind == "image" else "image")  # frames may be handed over as pictures
    total = 0.0
    for name, value in prompt.tensors.items():
        if "pixel" not in name or not (alone or ("video" in name) == (kind == "video")):
            continue
        if not isinstance(value, Tensor) or not MODEL.axes(name, value).features:
            continue
        extractor = getattr(adapter.processor, "image_processor", None)
        times = (
            float(getattr(extractor, "temporal_patch_size", None) or 1) if value.ndim < 4 and kind == "image" else 1.0
        )
        total += value.numel() / 3 / times
    return total / max(1, count)


def gain(adapter: Adapter, prompt: Prompt, source: int, kind: str = "image") -> float:
    """Return how much finer an original is than what the model sees of it, per side; 0 where unknown. Of a film, the larger of
    that of its frames and of how many times as many frames its file has."""
    seen, medium = seen_pixels(adapter, prompt, kind), prompt.media[kind][source]
    width, height = medium.size if kind == "image" else medium.frames[0].size
    finer = math.sqrt(width * height / seen) if seen else 0.0
    if kind == "image":
        return finer
    edges = edges_of(medium)
    return max(finer, rate_of(medium) * (edges[-1] - edges[0]) / len(medium))
