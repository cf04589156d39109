"""Previewing logits processors within a step, without changing their state.

The loop calls every processor exactly once per emitted token, on the logits of the distribution that the token is chosen
from, as transformers does. Some methods need the processed logits earlier: LIME for the target of an update, OPERA for
its candidates. This module computes them without side effects:

- transformers' own processors that depend on ids and scores alone are called;
- classifier-free guidance (``guidance_scale``) runs the model on its second prompt once per emitted token, and the
  logits are reused;
- a SynthID watermark is evaluated on a copy of its state;
- custom processors act on the emitted token only, unless they have an attribute ``stateless = True``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from limelight.compat import logits_process
from limelight.errors import UnsupportedError

# Depend on ids and scores alone (a KGW watermark reseeds its generator at each call).
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
    """Return whether the processor's output depends on ids and scores alone, so that it may be called any number of times."""
    return type(processor) in _STATELESS or getattr(processor, "stateless", False) is True


def prepared(processors: Any) -> list[Any]:
    """Return the processors of a generate() call, in order; guidance is wrapped to run once per emitted token."""
    return [_once(p) if type(p) is _GUIDANCE else p for p in processors or ()]


def applied(processors: Sequence[Any], ids: Tensor, scores: Tensor) -> Tensor:
    """Apply all processors to ``scores`` [B, V]; the input is not modified (processors may work in place)."""
    if processors:
        scores = scores.clone()
    for processor in processors:
        scores = processor(ids, scores)
    return scores


def preview(processors: Sequence[Any], ids: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a function that previews the processed logits ``[B, V]`` after ``ids`` [B, T], for choices within a step.

    Guidance's forwards are run here, not when the returned function is called (in the middle of an optimisation).
    """
    kept = [_seen(p, ids) for p in processors if stateless(p) or type(p) in (_GUIDANCE, _SYNTH_ID)]
    return lambda logits: applied(kept, ids, logits)


def for_row(processors: Sequence[Any], row: int, rows: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function from several continuations of one row, ids ``[k, T]`` and logits ``[k, V]``, to processed logits.

    Processors may keep a value per batch row (padding, encoder ids, a prefix function's batch id), so each continuation
    is processed as the given row of a batch of its own.
    """

    def processed(ids: Tensor, logits: Tensor) -> Tensor:
        if not processors:
            return logits
        pairs = zip(ids, logits, strict=True)
        return torch.stack([applied(processors, i.expand(rows, -1), x.expand(rows, -1))[row] for i, x in pairs])

    return processed


def require_stateless(processors: Sequence[Any], method: str) -> None:
    """Raise UnsupportedError if a processor keeps state, so that several hypotheses cannot be scored."""
    found = [p for p in processors if not stateless(p)]
    if not found:
        return
    own = [type(p).__name__ for p in found if type(p) not in (_GUIDANCE, _SYNTH_ID)]
    names = ", ".join(type(p).__name__ for p in found)
    raise UnsupportedError(
        f"{method} scores several continuations at each step, and {names} may be called once per emitted token only",
        hint=f"set stateless = True on {own[0]} if its output depends on ids and scores alone"
        if own
        else "leave out guidance_scale and SynthID watermarks, or use another strategy",
    )


def _once(processor: Any) -> Any:
    """Wrap a guidance processor so that it runs its model once per length of the ids and caches the logits."""
    twin = copy.copy(processor)  # shares the context, which the caller may inspect
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
                    hint="plain generate() fails as well; m3id() and vcd() contrast with the prompt without its image",
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
