"""Views: the prompts that show a part of a medium in full detail, and their cached streams."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from limelight.decoding.collate import batch_of
from limelight.decoding.continuing import recounted
from limelight.decoding.looking.fields import Field, edges_of, readable
from limelight.decoding.looking.originals import asked_again, fitting, with_further_pictures
from limelight.decoding.looking.regions import Proposal, aspect_of, fitted
from limelight.decoding.strategy import GenerationContext
from limelight.decoding.streams import second_stream
from limelight.errors import UnsupportedError
from limelight.media.image import MAX_PIXELS
from limelight.models.adapter import Adapter
from limelight.types import Clip, Prompt

LOUDNESS = -20.0  # decibels relative to full scale, RMS: fainter sounds are raised to it
HEADROOM = 0.98  # no sample is raised beyond it
SHORTEST = 8  # pixels


def pictured(picture: Image.Image, proposal: Proposal, field: Field | None) -> Image.Image:
    """Cut a proposal out of the original picture, grown to the aspect that the model sees completely."""
    size = (float(picture.width), float(picture.height))
    box = proposal.box if field is None else fitted(proposal.box, size, _aspect(proposal, field))
    left, top, right, bottom = (round(x) for x in box)
    right, bottom = max(right, min(left + SHORTEST, picture.width)), max(bottom, min(top + SHORTEST, picture.height))
    return picture.crop((max(0, min(left, right - SHORTEST)), max(0, min(top, bottom - SHORTEST)), right, bottom))


def _aspect(proposal: Proposal, field: Field) -> float:
    if not field.whole:
        return aspect_of(field)
    left, top, right, bottom = proposal.box
    return (right - left) / max(bottom - top, 1e-9)


def heard(samples: Any, rate: int, start: float, stop: float) -> Any:
    """Cut seconds out of a sound ``[n]``; where they are faint, they are made louder."""
    begin = max(0, min(round(start * rate), len(samples) - 1))
    part = np.asarray(samples)[begin : max(round(stop * rate), begin + 1)]
    level, peak = float(np.sqrt(np.mean(np.square(part, dtype=np.float64)))), float(np.abs(part).max(initial=0.0))
    if level <= 0 or peak <= 0:
        return part
    factor = min(10 ** (LOUDNESS / 20) / level, HEADROOM / peak)
    return (part * factor).astype(part.dtype) if factor > 1 else part


def watched(clip: Clip, start: float, stop: float) -> Clip:
    """The frames between two times: as many as the clip has where its file can be read again, else those it has. They keep
    their times from the start of the film."""
    if readable(clip):
        from limelight.media.video import read_video

        # it was accepted once, perhaps with higher limits than the usual ones
        pixels = clip.frames[0].width * clip.frames[0].height
        return read_video(
            clip.source, len(clip), between=(start, stop), max_seconds=math.inf, max_pixels=max(MAX_PIXELS, pixels)
        )
    kept = [i for i, t in enumerate(clip.seconds) if start - 1e-6 <= t <= stop + 1e-6]
    kept = kept or [int(np.argmin([abs(t - (start + stop) / 2) for t in clip.seconds]))]
    return Clip(tuple(clip.frames[i] for i in kept), tuple(clip.seconds[i] for i in kept), clip.fps, clip.length)


def view_prompt(adapter: Adapter, prompt: Prompt, proposal: Proposal, field: Field | None) -> Prompt:
    """Return the prompt with the proposal in place of its whole medium."""
    media = {kind: fitting(adapter, kind, found) for kind, found in prompt.media.items()}
    whole = prompt.media[proposal.kind][proposal.source]
    media[proposal.kind][proposal.source] = shown(whole, proposal, field)
    return asked_again(adapter, prompt, media)


def shown(whole: Any, proposal: Proposal, field: Field | None) -> Any:
    """Return the part of a medium that a proposal shows."""
    if proposal.kind == "image":
        return pictured(whole, proposal, field)
    if proposal.kind == "audio":
        samples, rate = whole
        return heard(samples, rate, proposal.box[0], proposal.box[2]), rate
    start, stop = seconds_of(whole, proposal)
    clip = watched(whole, start, stop)
    frames = tuple(pictured(f, proposal, field) for f in clip.frames)
    return Clip(frames, clip.seconds, clip.fps, clip.duration, None)


def seconds_of(clip: Clip, proposal: Proposal) -> tuple[float, float]:
    """Between which seconds of a film a proposal lies."""
    edges = edges_of(clip)
    return proposal.interval or (edges[0], edges[-1])


def appended_prompt(adapter: Adapter, prompt: Prompt, proposals: Sequence[Proposal], fields: Sequence[Field]) -> Prompt:
    """Return the prompt with the crops as further pictures, each behind the picture that it was cut out of."""
    known = {(f.kind, f.source): f for f in fields}
    crops: dict[int, list[Image.Image]] = {}
    for p in proposals:
        crop = pictured(prompt.media["image"][p.source], p, known.get((p.kind, p.source)))
        crops.setdefault(p.source, []).append(crop)
    media = {kind: list(found) for kind, found in prompt.media.items()}
    media["image"] = [x for i, whole in enumerate(prompt.media["image"]) for x in (whole, *crops.get(i, ()))]
    counts = {source: len(found) for source, found in crops.items()}
    return asked_again(adapter, prompt, media, with_further_pictures(prompt, counts))


def empty_prompt(adapter: Adapter, prompt: Prompt) -> Prompt:
    """Return the prompt about media that show nothing: pictures of their mean colour, silence."""
    media: dict[str, list[Any]] = {}
    for kind, found in prompt.media.items():
        if kind == "image":
            media[kind] = [_plain(p) for p in found]
        elif kind == "audio":
            media[kind] = [(np.zeros_like(s), rate) for s, rate in fitting(adapter, kind, found)]
        else:
            media[kind] = [Clip(tuple(_plain(f) for f in c.frames), c.seconds, c.fps, c.duration) for c in found]
    return asked_again(adapter, prompt, media)


def _plain(picture: Image.Image) -> Image.Image:
    colour = np.asarray(picture.convert("RGB")).reshape(-1, 3).mean(0).round().astype(int)
    return Image.new("RGB", (min(picture.width, 64), min(picture.height, 64)), tuple(colour.tolist()))


@dataclass
class ViewStream:
    """A cached stream of view prompts, each behind the answer that its row has so far."""

    rows: tuple[int, ...]  # the batch row of each view
    stream: Any
    logits: Tensor  # [views, V]

    def next(self, tokens: Tensor) -> None:
        """Append the token that each row has said."""
        self.logits = self.stream.next(tokens[list(self.rows)])


def open_views(
    context: GenerationContext, prompts: Sequence[Prompt], rows: Sequence[int], answers: Sequence[Sequence[int]]
) -> list[ViewStream]:
    """Prefill view prompts, in one batch where their shapes allow it, else one by one; in order.

    Args:
        rows: the batch row of each. answers: the tokens behind each prompt, equally many.
    """
    try:
        return [_opened(context, prompts, rows, answers)]
    except UnsupportedError:
        if len(prompts) == 1:
            raise
    return [_opened(context, [p], [r], [a]) for p, r, a in zip(prompts, rows, answers, strict=True)]


def _opened(
    context: GenerationContext, prompts: Sequence[Prompt], rows: Sequence[int], answers: Sequence[Sequence[int]]
) -> ViewStream:
    adapter = context.adapter
    tensors, _ = batch_of(adapter, prompts)
    ids: Tensor = tensors.pop(adapter.names.ids)
    kwargs = adapter.complete({**tensors, adapter.names.ids: ids})
    for name in (adapter.names.ids, "modality_ids"):
        kwargs.pop(name, None)
    kwargs["past_key_values"] = context.kwargs.get("past_key_values")
    if context.kwargs.get("use_cache") is False:
        kwargs["use_cache"] = False
    positions = context.kwargs.get("position_ids")
    if isinstance(positions, Tensor) and positions.ndim > 2:
        mask = kwargs.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask
        known = {k: v for k, v in kwargs.items() if k != "past_key_values"}
        kwargs["position_ids"] = recounted(adapter, ids, mask, known)
    stream = second_stream(context, ids, kwargs)
    logits = stream.next(None)
    said = torch.tensor([list(a) for a in answers], dtype=ids.dtype, device=ids.device).reshape(len(prompts), -1)
    if said.shape[1]:
        logits = stream.extend(said)
    return ViewStream(tuple(rows), stream, logits)
