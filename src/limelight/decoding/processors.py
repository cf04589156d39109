"""Logits processors inside a step: what they will make of some logits, without their noticing that anybody asked.

The loop calls every processor exactly once per emitted token, on the logits of the distribution that the token is chosen
from, as transformers does. Some methods need to know earlier what would be chosen: LIME for the target of an update,
OPERA for its candidates. They ask here, and what keeps state is answered for from outside:

- transformers' own processors, which compute their answer from ids and scores alone, are called;
- classifier-free guidance (``guidance_scale``) runs the model on its second prompt once per emitted token, and the
  logits are used again;
- a SynthID watermark answers from a copy of its state;
- anybody's own processor acts on the emitted token only, unless it has an attribute ``stateless = True``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from limelight.compat import logits_process
from limelight.errors import UnsupportedError

# Computed from ids and scores alone (a watermark of the KGW kind seeds its generator anew at each call).
_NAMES = (
    "MinLengthLogitsProcessor", "MinNewTokensLengthLogitsProcessor", "TemperatureLogitsWarper",
    "RepetitionPenaltyLogitsProcessor", "EncoderRepetitionPenaltyLogitsProcessor", "TopPLogitsWarper", "TopKLogitsWarper",
    "TopHLogitsWarper", "MinPLogitsWarper", "TypicalLogitsWarper", "EpsilonLogitsWarper", "EtaLogitsWarper",
    "NoRepeatNGramLogitsProcessor", "EncoderNoRepeatNGramLogitsProcessor", "SequenceBiasLogitsProcessor",
    "NoBadWordsLogitsProcessor", "PrefixConstrainedLogitsProcessor", "ForcedBOSTokenLogitsProcessor",
    "ForcedEOSTokenLogitsProcessor", "InfNanRemoveLogitsProcessor", "ExponentialDecayLengthPenalty", "LogitNormalization",
    "SuppressTokensAtBeginLogitsProcessor", "SuppressTokensLogitsProcessor", "WatermarkLogitsProcessor",
)  # fmt: skip
_STATELESS = frozenset(getattr(logits_process, name) for name in _NAMES if hasattr(logits_process, name))
_GUIDANCE = logits_process.UnbatchedClassifierFreeGuidanceLogitsProcessor
_SYNTH_ID = logits_process.SynthIDTextWatermarkLogitsProcessor


def stateless(processor: Any) -> bool:
    """Its answer depends on ids and scores alone, so it may be called as often as one likes."""
    return type(processor) in _STATELESS or getattr(processor, "stateless", False) is True


def prepared(processors: Any) -> list[Any]:
    """The processors of a call of generate(), in their order; guidance runs the model once per emitted token."""
    return [_once(p) if type(p) is _GUIDANCE else p for p in processors or ()]


def applied(processors: Sequence[Any], ids: Tensor, scores: Tensor) -> Tensor:
    """``scores`` [B, V] after all processors; the input is left as it is (processors may work in place)."""
    if processors:
        scores = scores.clone()
    for processor in processors:
        scores = processor(ids, scores)
    return scores


def foreseen(processors: Sequence[Any], ids: Tensor) -> Callable[[Tensor], Tensor]:
    """What the processors will make of logits ``[B, V]`` behind ``ids`` [B, T], for choices inside a step.

    The forwards that guidance needs are run here, and not when the function is called (in the middle of an optimisation).
    """
    kept = [_seen(p, ids) for p in processors if stateless(p) or type(p) in (_GUIDANCE, _SYNTH_ID)]
    return lambda logits: applied(kept, ids, logits)


def for_row(processors: Sequence[Any], row: int, rows: int) -> Callable[[Tensor, Tensor], Tensor]:
    """(ids ``[k, T]``, logits ``[k, V]``) of several continuations of one row -> processed logits ``[k, V]``.

    Processors may hold a value for each row of the batch (paddings, encoder ids, a prefix function's batch id): each
    continuation stands in a batch of its own, in its row's place.
    """

    def processed(ids: Tensor, logits: Tensor) -> Tensor:
        if not processors:
            return logits
        pairs = zip(ids, logits, strict=True)
        return torch.stack([applied(processors, i.expand(rows, -1), x.expand(rows, -1))[row] for i, x in pairs])

    return processed


def require_stateless(processors: Sequence[Any], method: str) -> None:
    """Raise UnsupportedError unless hypotheses can be scored: no processor keeps state."""
    found = [p for p in processors if not stateless(p)]
    if not found:
        return
    own = [type(p).__name__ for p in found if type(p) not in (_GUIDANCE, _SYNTH_ID)]
    names = ", ".join(type(p).__name__ for p in found)
    raise UnsupportedError(
        f"{method} scores several continuations at each step, and {names} may be called once per emitted token only",
        hint=f"set stateless = True on {own[0]} if its answer depends on ids and scores alone"
        if own
        else "leave out guidance_scale and SynthID watermarks, or use another strategy",
    )


def _once(processor: Any) -> Any:
    """Guidance that asks its model once per length of the ids, and remembers the answer."""
    twin = copy.copy(processor)  # shares the context, which the caller may look at
    known: dict[int, Tensor] = {}

    def unconditional(ids: Tensor) -> Tensor:
        length = ids.shape[1]
        if length not in known:
            known.clear()
            try:
                known[length] = processor.get_unconditional_logits(ids)[:, -1:]
            except (RuntimeError, ValueError, IndexError) as error:
                raise UnsupportedError(
                    f"guidance_scale: {type(processor.model).__name__} cannot run transformers' second prompt ({error})",
                    hint="plain generate() fails likewise; m3id() and vcd() guide against the prompt without its picture",
                ) from error
        return known[length]

    twin.get_unconditional_logits = unconditional
    return twin


def _seen(processor: Any, ids: Tensor) -> Any:
    if type(processor) is _SYNTH_ID:

        def snapshot(ids: Tensor, scores: Tensor) -> Tensor:
            twin = copy.copy(processor)
            twin.state = copy.deepcopy(processor.state)
            out: Tensor = twin(ids, scores)
            return out

        return snapshot
    if type(processor) is _GUIDANCE and processor.guidance_scale != 1:
        processor.get_unconditional_logits(ids)
    return processor
