"""The interface of a decoding method: a Strategy opens a Session on a prompt, a Session gives logits token by token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from limelight.decoding.sampler import TokenSampler
from limelight.errors import PromptError, UnsupportedError
from limelight.models.adapter import Adapter
from limelight.models.detect import MODALITY_IDS, known_tokens
from limelight.types import Relevance, Span


@dataclass(frozen=True)
class Detail:
    """What a session knows about one row's next token, beyond its logits. Becomes a :class:`Step`."""

    relevance: Relevance | None = None
    shares: Mapping[str, float] = field(default_factory=dict)
    intervened: bool = False
    plain: int | None = None
    losses: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    candidates: tuple[tuple[int, float, float], ...] = ()
    flagged: bool = False
    contributions: Mapping[str, float] = field(default_factory=dict)
    grounding: float | None = None
    rival_grounding: float | None = None
    grounding_by_modality: Mapping[str, float] = field(default_factory=dict)
    p_supported: float | None = None


@dataclass(frozen=True)
class StepOutput:
    """Logits ``[B, V]`` (float32 or better) of the next token, before processors.

    ``details`` has a Detail a row where it does not depend on the token; ``explain(row, token)`` is asked after the
    choice where it does (it may be costly, and is asked only for rows still running). ``decided``: the session has
    chosen itself, processors included, so that the loop takes the argmax as it is. ``last`` [B]: rows whose answer ends
    with this token, whatever the stopping criteria say. ``unchanged`` [B, V]: the logits of the unchanged model where
    ``logits`` are cut to what it finds plausible; they decide where processors bar all that the cut leaves.
    """

    logits: Tensor
    details: tuple[Detail, ...] = ()
    explain: Callable[[int, int], Detail] | None = None
    decided: bool = False
    last: Tensor | None = None
    unchanged: Tensor | None = None

    def detail(self, row: int, token: int) -> Detail:
        if self.explain is not None:
            return self.explain(row, token)
        return self.details[row] if self.details else Detail()


@dataclass
class GenerationContext:
    """One call of generate, prepared by transformers.

    Attributes:
        ids: prompt token ids ``[B, T]``; ``kwargs`` the model's further inputs, cache included.
        modality_ids: int64 ``[B, T]``, index into MODALITIES.
        mask: True at real prompt positions ``[B, T]``.
        sampler: how a token is chosen from logits (some methods need the choice inside the step).
        details: whether a strategy should tell what it can of the emitted tokens: their relevance, where that is its own
            work (greedy, exact LIME), and what the unchanged model would have said.
        relevance: whether every token must have a relevance: the loop adds what the strategy leaves out.
        processor: the model's processor, for methods that build a second prompt.
        tensors: the processor's tensors (pixels among them), which generate() may have replaced by their encoding.
        spans: each row's spans where known (generate() consumes what grids are told from).
        past: positions that the cache given to generate() holds already.
        resume: the inputs with which the model itself goes on behind them (None: ``kwargs``).
        partial: ``ids`` are those behind the cache alone.
        unseen: why the prompt cannot be run anew as a whole (None: it can).
    """

    adapter: Adapter
    ids: Tensor
    kwargs: dict[str, Any]
    modality_ids: Tensor
    mask: Tensor
    sampler: TokenSampler
    config: Any = None
    details: bool = False
    stopping: Any = None
    tensors: Mapping[str, Any] = field(default_factory=dict)
    spans: Sequence[tuple[Span, ...]] | None = None
    relevance: bool = False
    past: int = 0
    resume: dict[str, Any] | None = None
    partial: bool = False
    unseen: str | None = None

    @property
    def beside(self) -> int:
        """Index into MODALITIES of the media that stand beside the prompt (0: they are among its positions)."""
        return 0 if self.adapter.encoder is None else self.adapter.encoder.index

    @cached_property
    def known_tokens(self) -> int | None:
        """See :func:`limelight.models.detect.known_tokens`."""
        return known_tokens(getattr(self.adapter, "tokenizer", None))

    def require_prompt(self, *, words_only: bool = False) -> None:
        """Raise UnsupportedError where the prompt cannot be run anew, because part of it is in the cache alone.

        ``words_only``: the ids are enough, since the media are left out.
        """
        if self.partial or (self.unseen is not None and not words_only):
            raise UnsupportedError(
                f"this needs the whole prompt anew, and {self.unseen} (the cache holds {self.past} positions)",
                hint="give generate() all inputs of the whole conversation again, media included, and custom_generate "
                "tensors=inputs; or use a strategy that goes on from the cache alone (`limelight strategies` lists them), without "
                "relevance",
            )

    @property
    def inputs(self) -> dict[str, Any]:
        """Keyword arguments for an uncached forward of the prompt.

        Raises:
            UnsupportedError: part of the prompt is in the cache alone.
        """
        self.require_prompt()
        dropped = ("past_key_values", "use_cache", "logits_to_keep")
        out = {k: v for k, v in self.kwargs.items() if k not in dropped and v is not None}
        if self.adapter.encoder is not None:
            return {**out, self.adapter.names.ids: self.ids}
        return {"input_ids": self.ids, "modality_ids": self.modality_ids, **out}


@dataclass(frozen=True)
class Capabilities:
    """What a decoding method can do and what it needs: asked by the token loop, the meter, the server and the benchmarks.

    The defaults are the careful ones, and stand for a strategy that says nothing. ``tests/decoding/test_capabilities.py``
    holds every strategy of the registry to what it claims.

    Attributes:
        batches: each row of a left-padded batch gets the answer that it would get alone, as it is generated, so that
            requests of several users may share a batch.
        needs_media: refuses rows without a picture, sound or video.
        gradients: runs backward passes, so that every linear layer must let a gradient through.
        second_prompt: also runs another version of the prompt, for which ids and media must be at hand.
        continues_cache: its answer comes from a stream on generate()'s cache, which may hold part of the prompt already.
            Otherwise the whole prompt is read anew, and checked against the cache.
        meter: the composite under which its steps carry the grounding meter's values already; empty: they do not.
        after: works behind a marker (:class:`limelight.decoding.after.After`), on prompt and thoughts together.
    """

    batches: bool = False
    needs_media: bool = True
    gradients: bool = False
    second_prompt: bool = False
    continues_cache: bool = False
    meter: str = ""
    after: bool = True


def capabilities_of(strategy: Any) -> Capabilities:
    """A strategy's ``capabilities``, or the careful defaults where it has none."""
    found: Capabilities = getattr(strategy, "capabilities", Capabilities())
    return found


def check_media(strategy: Strategy, context: GenerationContext) -> None:
    """Raise PromptError when a row has no picture, sound or video and the strategy works on nothing else."""
    if context.partial or context.beside:  # what is in the cache is not known; who needs it says so
        return
    empty = ~((context.modality_ids > 0) & context.mask).any(-1)
    if capabilities_of(strategy).needs_media and bool(empty.any()):
        raise PromptError(
            f"{strategy.name} works on the picture, sound or video of a prompt, and row {int(empty.nonzero()[0, 0])} has none",
            hint="decode a turn without media with greedy() or meter(); or put the picture or sound into the messages, or "
            f"{MODALITY_IDS}",
        )


class Session(Protocol):
    """A strategy at work on one prompt batch.

    A session with a method ``cache()`` returns generate()'s cache as plain decoding would leave it now, or None; where
    there is none the loop fills it.
    """

    def next(self, tokens: Tensor | None) -> StepOutput:
        """Append ``tokens`` [B] (None at the start) and say what may come next."""
        ...


@runtime_checkable
class Strategy(Protocol):
    """A decoding method with its settings. ``name`` is what the CLI and the registry call it.

    An attribute ``capabilities`` (:class:`Capabilities`) says what it can do; without it the careful defaults hold.
    """

    @property
    def name(self) -> str: ...

    def session(self, context: GenerationContext) -> Session:
        """Open a session. Raises SettingError or UnsupportedError when the method cannot work on this prompt."""
        ...

    def settings(self) -> dict[str, Any]:
        """Plain values that reproduce the strategy."""
        ...
