"""Collation of several prompts into one left-padded batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from limelight.errors import UnsupportedError
from limelight.models.adapter import Adapter
from limelight.models.inputs.decoder_inputs import MODEL, Arguments
from limelight.types import Prompt, Span


def collate(
    prompts: Sequence[Prompt], *, pad: int = 0, arguments: Arguments = MODEL, ids: str = "input_ids"
) -> tuple[dict[str, Any], list[int]]:
    """Return one left-padded batch of tensors, and the number of padding positions before each row.

    Tensors with one entry per position are padded; the others (pixels, grids, audio features) are concatenated along the
    axis of their rows or media items, as transformers' processors batch them. Prompts without media have none of them.

    Args:
        pad: token id for padding ``ids``.
        arguments: axes of the model's arguments. ``ids``: the argument with the prompt's token ids.

    Raises:
        UnsupportedError: a tensor's other axes differ between prompts, a tensor with one entry per prompt is missing from
            some, or a tensor's axes are not declared.
    """
    if len(prompts) == 1:
        return dict(prompts[0].tensors), [0]
    lengths = [len(p.tokens) for p in prompts]
    width = max(lengths)
    out: dict[str, Any] = {}
    for name in dict.fromkeys(k for p in prompts for k in p.tensors):
        values = _filled(name, prompts, lengths, arguments)
        first = values[0]
        if not all(isinstance(v, Tensor) for v in values):
            if any(v is not first and v != first for v in values):
                raise UnsupportedError(
                    f"the prompts differ in {name!r}, which is not a tensor", hint="run the prompts one by one"
                )
            out[name] = first
            continue
        found: list[Tensor] = [v for v in values if isinstance(v, Tensor)]
        axes = arguments.axes(name, found[0])
        if axes.positions is not None:
            fill = pad if name == ids else 0
            found = [axes.pad(v, width - n, fill) for v, n in zip(found, lengths, strict=True)]
        if axes.indexes:
            found = _numbered(found, [p.tensors[axes.indexes] for p in prompts if p.tensors.get(name) is not None])
        axis = axes.rows if axes.rows is not None else axes.media_items or 0
        if len({(*v.shape[:axis], *v.shape[axis + 1 :]) for v in found}) != 1:
            raise UnsupportedError(
                f"{name} has shapes {[tuple(v.shape) for v in found]}, which cannot share a batch",
                hint="run the prompts one by one",
            )
        out[name] = torch.cat(found, dim=axis)
    return out, [width - n for n in lengths]


def _filled(name: str, prompts: Sequence[Prompt], lengths: Sequence[int], arguments: Arguments) -> list[Any]:
    """Return the named tensor of every prompt; missing ones become zeros if the tensor labels positions."""
    values = [p.tensors.get(name) for p in prompts]
    here = [v for v in values if v is not None]
    if len(here) == len(values):
        return values
    if any(v is None and any(s.modality != "text" for s in p.spans) for v, p in zip(values, prompts, strict=True)):
        raise UnsupportedError(
            f"the prompts have different kinds of media: only some have {name!r}", hint="run the prompts one by one"
        )
    sample = here[0]
    if isinstance(sample, Tensor):
        axes = arguments.axes(name, sample)
        if axes.new == "zero" and axes.names == ("row", "position"):
            return [sample.new_zeros(1, n) if v is None else v for v, n in zip(values, lengths, strict=True)]
        if axes.media and axes.rows is None:
            return here  # concatenated in the order of the prompts that have them
    raise UnsupportedError(
        f"{name!r} has one entry per prompt, but only some prompts have it", hint="run the prompts one by one"
    )


def _numbered(indices: Sequence[Tensor], targets: Sequence[Tensor]) -> list[Tensor]:
    """Shift each prompt's patch numbers by the number of patches of the prompts before it; negative ones are kept."""
    found, before = [], 0
    for index, target in zip(indices, targets, strict=True):
        found.append(torch.where(index < 0, index, index + before))
        before += target.shape[0] * target.shape[1]
    return found


def shift_spans(spans: tuple[Span, ...], pad: int) -> tuple[Span, ...]:
    """Return the spans moved right by ``pad`` positions of padding, which count as text."""
    if not pad:
        return spans
    moved = [replace(s, start=s.start + pad, stop=s.stop + pad) for s in spans]
    if moved[0].modality == "text":
        return (replace(moved[0], start=0), *moved[1:])
    return (Span(0, pad, "text"), *moved)


def batch_of(adapter: Adapter, prompts: Sequence[Prompt]) -> tuple[dict[str, Any], list[int]]:
    """Collate prompts for one model; see :func:`collate`.

    Raises:
        UnsupportedError: see :func:`collate`; or the model does not support batches, or none of prompts of unequal length.
    """
    name = type(adapter.model).__name__
    if len(prompts) > 1 and adapter.family.no_batch:
        raise UnsupportedError(
            f"{name} does not support batches: {adapter.family.no_batch}", hint="run the prompts one by one"
        )
    tensors, pads = collate(prompts, pad=pad_id(adapter), arguments=adapter.arguments, ids=adapter.names.ids)
    if any(pads) and adapter.family.no_padding:
        raise UnsupportedError(
            f"{name} does not support padding: {adapter.family.no_padding}",
            hint="run prompts of unequal length one by one",
        )
    if any(pads) and adapter.encoder is not None and not adapter.encoder.counts:
        raise UnsupportedError(
            f"the decoder of {name} takes no position ids, so padding would shift a prompt's positions",
            hint="process prompts of unequal length one at a time",
        )
    return tensors, pads


def pad_id(adapter: Any) -> int:
    """Return the token id used for padding."""
    for source in (adapter.tokenizer, adapter.model.generation_config):
        value = getattr(source, "pad_token_id", None)
        if value is None:
            value = getattr(source, "eos_token_id", None)
        if isinstance(value, (list, tuple)):
            value = value[0]
        if value is not None:
            return int(value)
    return 0
