"""Scoring finished answers in a single forward pass with tangents, which computes logits and Phi at every answer position.

Prompt and answer form one sequence (teacher forcing) with a tangent row. The scores equal those that the grounding meter
(:mod:`limelight.decoding.methods.meter`) measures token by token during generation. Logits are computed only at the
answer's positions, and in chunks, so that ``[positions, V]`` is never stored at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limelight.calibration import Calibration
from limelight.decoding.collate import batch_of, pad_id
from limelight.decoding.dual import calibration_of, check_composite, earlier_channel
from limelight.errors import PromptError, SettingError, UnsupportedError
from limelight.grounding.token_measures import token_measures
from limelight.models.adapter import Adapter
from limelight.models.runtime.capture import DecoderCall
from limelight.relevance.composites import COMPOSITES
from limelight.relevance.forward.stream import Channel, DualOutput, DualStream, modality_channel
from limelight.types import EARLIER_ANSWERS, MODALITIES, Prompt, Step

CHUNK = 2**23  # maximum number of values of logits and Phi in memory at once


@dataclass(frozen=True)
class AnsweredPrompt:
    """A prompt and its finished answer.

    Attributes:
        tokens: the answer's token ids.
        earlier: half-open ranges of the prompt's positions that contain earlier answers.
    """

    prompt: Prompt
    tokens: tuple[int, ...]
    earlier: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Layout:
    """The decoder's inputs for a batch: ``answers`` int64 ``[B, N]`` after prompts of ``start`` positions.

    Attributes:
        kinds: media kinds of each row, as indices into ``MODALITIES``.
        channels: tangent channels; the first is that of all media.
    """

    call: DecoderCall
    answers: Tensor
    start: int
    kinds: tuple[tuple[int, ...], ...]
    channels: tuple[Channel, ...]


def measure(
    adapter: Adapter,
    prompts: Sequence[AnsweredPrompt],
    *,
    composite: str = "attnlrp",
) -> list[tuple[Step, ...]]:
    """Return the steps of every answer as the meter would: log-probability, grounding, flag, contributions, candidates.

    The flag uses the model's calibration, if it has one (:mod:`limelight.calibration`).

    Args:
        prompts: rows of one batch, whose results do not depend on each other.

    Raises:
        PromptError: an answer without tokens. SettingError: a token id outside the vocabulary.
        UnsupportedError: these prompts cannot share a batch, or the model has no forward mode.
        NotFiniteError: NaN or infinity in logits or relevance.
    """
    check_composite(composite)
    for prompt in prompts:
        _check(adapter, prompt)
    with torch.inference_mode(False), torch.no_grad(), adapter.listed():
        layout = _laid_out(adapter, prompts)
        stream = DualStream(adapter, layout.call, layout.channels, COMPOSITES[composite], reserve=0, continues=False)
        hidden = stream.every_position()
        calibration = calibration_of(adapter, composite)
        return [tuple(_steps(adapter, stream, hidden, layout, row, p, calibration)) for row, p in enumerate(prompts)]


def _check(adapter: Adapter, prompt: AnsweredPrompt) -> None:
    if not prompt.tokens:
        raise PromptError("the answer has no tokens", hint="leave the row out")
    bad = [t for t in prompt.tokens if not 0 <= t < adapter.traits.vocab]
    if bad:
        raise SettingError(
            f"token id {bad[0]} is outside this model's vocabulary of {adapter.traits.vocab}",
            hint="token_ids must come from the model's own tokenizer; without them, the answer's text is tokenised",
        )


def _laid_out(adapter: Adapter, prompts: Sequence[AnsweredPrompt]) -> Layout:
    """Build the batch: prompts padded on the left, answers on the right, where no answer token attends to the padding."""
    tensors, pads = batch_of(adapter, [p.prompt for p in prompts])
    call = adapter.capture(tensors).cloned()
    ids = adapter.modality_ids(tensors).to(call.embeds.device)
    longest = max(len(p.tokens) for p in prompts)
    answers = torch.full((len(prompts), longest), pad_id(adapter), dtype=torch.long, device=call.embeds.device)
    for row, prompt in enumerate(prompts):
        answers[row, : len(prompt.tokens)] = torch.tensor(prompt.tokens)
    start = call.length - call.front
    if ids.shape[1] != start:
        raise UnsupportedError(
            f"{type(adapter.model).__name__} expands a prompt of {ids.shape[1]} ids to {start} positions, which audits do not "
            "support",
            hint="measure this model's answers during generation: limelight.generate(..., meter=True)",
        )
    modality = call.modality(ids)
    whole = call if longest == 1 else call.appended(adapter.embed(answers[:, :-1]))
    grown = torch.nn.functional.pad(modality, (0, longest - 1))
    beside = set() if adapter.encoder is None else {adapter.encoder.index}  # these media are outside the prompt
    kinds = tuple(tuple(sorted(({int(k) for k in row.unique()} | beside) - {0})) for row in ids)
    channels = [modality_channel(grown > 0, whole.mask)]
    if any(len(k) > 1 for k in kinds):
        present = sorted({k for row in kinds for k in row})
        channels += [Channel(MODALITIES[k], modality_channel(grown == k, whole.mask).prompt, 0.0) for k in present]
    if any(p.earlier for p in prompts):
        runs = [
            tuple((call.front + pad + first, call.front + pad + last) for first, last in one.earlier)
            for one, pad in zip(prompts, pads, strict=True)
        ]
        channels.append(earlier_channel(runs, whole.mask & (grown == 0)))
    return Layout(whole, answers, start, kinds, tuple(channels))


def _steps(
    adapter: Adapter,
    stream: DualStream,
    hidden: Tensor,
    layout: Layout,
    row: int,
    prompt: AnsweredPrompt,
    calibration: Calibration | None,
) -> Iterator[Step]:
    """Yield the steps of one row, given hidden states and tangents ``[1 + C, B, T, D]``."""
    first, count = layout.start - 1, len(prompt.tokens)
    size = max(1, CHUNK // (hidden.shape[0] * adapter.traits.vocab))
    for at in range(0, count, size):
        stop = min(at + size, count)
        tokens = layout.answers[row, at:stop]
        logits, phi = stream.heads(DualOutput(hidden[:, row, first + at : first + stop]))
        groups = {c.name: p for c, p in zip(stream.channels[1:], phi[1:], strict=True)}
        if not prompt.earlier:
            groups.pop(EARLIER_ANSWERS, None)
        kinds = [MODALITIES[k] for k in layout.kinds[row]]
        probabilities = torch.softmax(logits, dim=-1)
        measured = token_measures(
            tokens, logits, phi[0], kinds, groups,
            known=adapter.known_tokens, calibration=calibration, probabilities=probabilities,
        )  # fmt: skip
        total = logits.amax(-1) - probabilities.amax(-1).log()  # log of the sum of exponentials
        logprobs = (logits.gather(-1, tokens[:, None])[:, 0] - total).tolist()
        for token, logprob, own in zip(tokens.tolist(), logprobs, measured, strict=True):
            texts = adapter.tokens([t for t, _, _ in own["candidates"]])
            own["candidates"] = tuple((t, w, x, y) for (t, x, y), w in zip(own["candidates"], texts, strict=True))
            yield Step(token, adapter.tokens([token])[0], logprob, **own)
