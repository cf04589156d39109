"""Finished answers through the model once: logits and Phi at every position of the answer, and of them the scores.

The prompt and its answer are one sequence (teacher forcing), and one tangent row runs beside each: what the grounding meter
(:mod:`limelight.decoding.methods.meter`) measures token by token while an answer is generated, in a single forward. Logits
are computed at the answer's positions alone, and ``[positions, V]`` of them exist a piece at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limelight.calibration import Calibration, flag_rule
from limelight.decoding.collate import batch_of, pad_id
from limelight.decoding.dual import calibration_of, check_composite, earlier_channel
from limelight.errors import PromptError, SettingError, UnsupportedError
from limelight.grounding import score
from limelight.models.adapter import Adapter
from limelight.models.runtime.capture import DecoderCall
from limelight.relevance.composites import COMPOSITES
from limelight.relevance.forward.stream import Channel, DualOutput, DualStream, modality_channel
from limelight.types import EARLIER_ANSWERS, MODALITIES, Prompt, Step

TOP = 5
PIECE = 2**23  # numbers of logits and Phi held at a time


@dataclass(frozen=True)
class Said:
    """A prompt and the answer that was given to it.

    Attributes:
        tokens: of the answer.
        earlier: half-open runs of the prompt's positions that earlier answers hold.
    """

    prompt: Prompt
    tokens: tuple[int, ...]
    earlier: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Layout:
    """What a batch looks like at the decoder's door: ``answers`` int64 ``[B, N]`` behind prompts of ``start`` positions."""

    call: DecoderCall
    answers: Tensor
    start: int
    kinds: tuple[tuple[int, ...], ...]
    channels: tuple[Channel, ...]


def measure(
    adapter: Adapter,
    said: Sequence[Said],
    *,
    composite: str = "attnlrp",
) -> list[tuple[Step, ...]]:
    """The steps of every answer, as the meter would have given them: log-probability, grounding, flag, contributions,
    candidates. The flag follows the model's calibration where it has one (:mod:`limelight.calibration`).

    Args:
        said: rows of one batch; each gets what it would get alone.

    Raises:
        PromptError: an answer without tokens. SettingError: a token id that the model does not have.
        UnsupportedError: these prompts cannot share a batch, or the model has no forward mode.
        NotFiniteError: NaN or infinity in logits or relevance.
    """
    check_composite(composite)
    for row in said:
        _check(adapter, row)
    with torch.inference_mode(False), torch.no_grad(), adapter.listed():
        layout = _laid_out(adapter, said)
        stream = DualStream(adapter, layout.call, layout.channels, COMPOSITES[composite], reserve=0, continues=False)
        hidden = stream.every_position()
        known, calibration = adapter.known_tokens, calibration_of(adapter, composite)
        return [
            tuple(_steps(adapter, stream, hidden, layout, row, one, known, calibration)) for row, one in enumerate(said)
        ]


def _check(adapter: Adapter, said: Said) -> None:
    if not said.tokens:
        raise PromptError("the answer has no tokens", hint="leave the row out")
    bad = [t for t in said.tokens if not 0 <= t < adapter.traits.vocab]
    if bad:
        raise SettingError(
            f"token id {bad[0]} is none of this model's {adapter.traits.vocab}",
            hint="token_ids must come from the same tokenizer; leave them out, and the answer's text is tokenised",
        )


def _laid_out(adapter: Adapter, said: Sequence[Said]) -> Layout:
    """Prompts padded on the left, answers on the right: what stands behind an answer is seen by none of it."""
    tensors, pads = batch_of(adapter, [s.prompt for s in said])
    call = adapter.capture(tensors).cloned()
    ids = adapter.modality_ids(tensors).to(call.embeds.device)
    longest = max(len(s.tokens) for s in said)
    answers = torch.full((len(said), longest), pad_id(adapter), dtype=torch.long, device=call.embeds.device)
    for row, one in enumerate(said):
        answers[row, : len(one.tokens)] = torch.tensor(one.tokens)
    start = call.length - call.front
    if ids.shape[1] != start:
        raise UnsupportedError(
            f"{type(adapter.model).__name__} makes {start} positions of a prompt of {ids.shape[1]}",
            hint="audit answers of this model with limelight.generate(..., meter=True) as they are generated",
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
    if any(s.earlier for s in said):
        runs = [
            tuple((call.front + pad + first, call.front + pad + last) for first, last in one.earlier)
            for one, pad in zip(said, pads, strict=True)
        ]
        channels.append(earlier_channel(runs, whole.mask & (grown == 0)))
    return Layout(whole, answers, start, kinds, tuple(channels))


def _steps(
    adapter: Adapter,
    stream: DualStream,
    hidden: Tensor,
    layout: Layout,
    row: int,
    said: Said,
    known: int | None,
    calibration: Calibration | None,
) -> Iterator[Step]:
    """The steps of one row, from states ``[1 + C, B, T, D]``."""
    first, count = layout.start - 1, len(said.tokens)
    size = max(1, PIECE // (hidden.shape[0] * adapter.traits.vocab))
    for at in range(0, count, size):
        stop = min(at + size, count)
        tokens = layout.answers[row, at:stop]
        logits, phi = stream.heads(DualOutput(hidden[:, row, first + at : first + stop]))
        groups = {c.name: p for c, p in zip(stream.channels[1:], phi[1:], strict=True)}
        if not said.earlier:
            groups.pop(EARLIER_ANSWERS, None)
        kinds = [MODALITIES[k] for k in layout.kinds[row]]
        yield from _told(adapter, tokens, logits, phi[0], groups, kinds, known, calibration)


def _told(
    adapter: Adapter,
    tokens: Tensor,
    logits: Tensor,
    phi: Tensor,
    groups: Mapping[str, Tensor],
    kinds: Sequence[str],
    known: int | None,
    calibration: Calibration | None,
) -> Iterator[Step]:
    """Steps of ``tokens`` [N] from logits and Phi_M ``[N, V]``, and Phi of further groups."""

    def chosen(values: Tensor) -> Tensor:
        return values.gather(-1, tokens[:, None])[:, 0]

    def standardised(values: Tensor, moments: tuple[Tensor, Tensor]) -> Tensor:
        return score.standardised(values[:, None], *moments)[:, 0]

    moments = score.moments_of_known(phi, known)
    z = standardised(chosen(phi), moments)
    rivals = standardised(score.rival_score(phi, logits, tokens), moments)  # z rises with Phi
    rule = flag_rule(calibration)
    limits = {k: rule[k] for k in ("threshold", "needs_rival", "margin")}
    flags = score.flagged(z, rivals, **limits).tolist()
    by_kind = {
        k: standardised(chosen(groups[k]), score.moments_of_known(groups[k], known)) if k in groups else z
        for k in kinds
    }
    parts = {k: chosen(groups.get(k, phi)) for k in kinds}
    if EARLIER_ANSWERS in groups:
        parts[EARLIER_ANSWERS] = chosen(groups[EARLIER_ANSWERS])
    shares = _contributions(chosen(logits), parts)
    best = logits.topk(min(TOP, logits.shape[-1]), dim=-1)
    support = phi.gather(-1, best.indices)
    logprobs = (chosen(logits) - logits.logsumexp(-1)).tolist()
    own, beside, told = z.tolist(), rivals.tolist(), {k: v.tolist() for k, v in by_kind.items()}
    for i, token in enumerate(tokens.tolist()):
        listed = best.indices[i].tolist()
        candidates = zip(listed, adapter.tokens(listed), best.values[i].tolist(), support[i].tolist(), strict=True)
        grounding = _number(own[i]) if kinds else None
        yield Step(
            token=token,
            text=adapter.tokens([token])[0],
            logprob=logprobs[i],
            plain=listed[0],
            candidates=tuple(candidates),
            flagged=bool(kinds) and flags[i],
            contributions={k: v[i] for k, v in shares.items()},
            grounding=grounding,
            p_supported=None if calibration is None or grounding is None else calibration.probability(grounding),
            rival_grounding=_number(beside[i]) if kinds else None,
            grounding_by_modality={k: v[i] for k, v in told.items() if _number(v[i]) is not None},
        )


def _contributions(logits: Tensor, parts: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """``|Phi_g|`` of each group by ``sum_g |Phi_g| + |l - sum_g Phi_g|``; text is the rest. ``[N]`` each."""
    wide = {k: v.double() for k, v in parts.items()}
    rest = logits.double() - sum(wide.values(), torch.zeros_like(logits, dtype=torch.double))
    total = sum((v.abs() for v in wide.values()), rest.abs()).clamp_min(1e-12)
    found = {k: (v.abs() / total).tolist() for k, v in wide.items()}
    return found | {"text": (rest.abs() / total).tolist()}


def _number(value: float) -> float | None:
    return value if value == value and abs(value) != float("inf") else None
