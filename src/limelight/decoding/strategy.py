"""Interface of decoding methods: a Strategy opens a Session on a prompt; a Session returns logits token by token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor

from limelight.decoding.sampler import TokenSampler
from limelight.errors import PromptError, SettingError, UnsupportedError
from limelight.models.adapter import Adapter
from limelight.models.detect import MODALITY_IDS, known_tokens
from limelight.types import Prompt, Relevance, Span, TakenView

Runs = tuple[tuple[int, int], ...]  # half-open


@dataclass(frozen=True)
class Detail:
    """A session's data about one row's next token besides its logits. Becomes part of a :class:`Step`."""

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
    views: tuple[TakenView, ...] = ()
    support: float | None = None


@dataclass(frozen=True)
class StepOutput:
    """Logits ``[B, V]`` (float32 or wider) of the next token, before processors.

    ``details`` contains one Detail per row if it does not depend on the token; otherwise ``explain(row, token)`` is
    called after the choice (it may be costly, and is called only for unfinished rows). ``decided``: the session has
    chosen the token itself, processors included, so the loop takes the argmax directly. ``last`` [B]: rows whose answer
    ends with this token, regardless of the stopping criteria. ``unchanged`` [B, V]: the unchanged model's logits, where
    ``logits`` have a plausibility cut; they are used where processors exclude every token that the cut leaves.
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
    """The inputs of one generate() call, as prepared by transformers.

    Attributes:
        ids: prompt token ids ``[B, T]``; ``kwargs``: the model's other inputs, including the cache.
        modality_ids: int64 ``[B, T]``, index into MODALITIES.
        mask: True at real prompt positions ``[B, T]``.
        sampler: chooses a token from logits (some methods need the choice within the step).
        details: whether a strategy should report what it can about the emitted tokens: their relevance, if it computes
            it itself (greedy, exact LIME), and the unchanged model's most likely token.
        relevance: whether every token must have a relevance: the loop computes what the strategy does not.
        processor: the model's processor, for methods that build a second prompt.
        tensors: the processor's tensors (pixels among them), which generate() may have replaced by their encoding.
        spans: each row's spans where known (generate() consumes the tensors that determine grids).
        earlier: half-open runs of each row's positions that answers of earlier turns hold, where they are known.
        prompts: the prepared prompts with their original media, for methods that look at those again (one per row, or
            per row before num_return_sequences repeated them).
        past: number of positions already in the cache passed to generate().
        resume: the inputs with which the model continues after them (None: ``kwargs``).
        partial: ``ids`` contain only the positions after the cache.
        unseen: why the whole prompt cannot be recomputed (None: it can).
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
    earlier: Sequence[Runs] | None = None
    relevance: bool = False
    prompts: Sequence[Prompt] | None = None
    past: int = 0
    resume: dict[str, Any] | None = None
    partial: bool = False
    unseen: str | None = None

    @property
    def beside(self) -> int:
        """Index into MODALITIES of the media that stand beside the prompt (0: they are among its positions)."""
        encoder = getattr(self.adapter, "encoder", None)
        return 0 if encoder is None else encoder.index

    @cached_property
    def known_tokens(self) -> int | None:
        """See :func:`limelight.models.detect.known_tokens`."""
        return known_tokens(getattr(self.adapter, "tokenizer", None))

    def require_prompt(self, *, words_only: bool = False) -> None:
        """Raise UnsupportedError if the prompt cannot be recomputed because part of it is only in the cache.

        ``words_only``: the ids suffice, since the media are not used.
        """
        if self.partial or (self.unseen is not None and not words_only):
            raise UnsupportedError(
                f"the whole prompt must be recomputed, but {self.unseen} (the cache has {self.past} positions)",
                hint="pass all inputs of the whole conversation to generate() again, media included, and tensors=inputs to "
                "custom_generate; or use a strategy that continues from the cache (`limelight strategies` lists them), "
                "without relevance",
            )

    @property
    def inputs(self) -> dict[str, Any]:
        """Keyword arguments for an uncached forward of the prompt.

        Raises:
            UnsupportedError: part of the prompt is only in the cache.
        """
        self.require_prompt()
        dropped = ("past_key_values", "use_cache", "logits_to_keep")
        out = {k: v for k, v in self.kwargs.items() if k not in dropped and v is not None}
        if self.adapter.encoder is not None:
            return {**out, self.adapter.names.ids: self.ids}
        return {"input_ids": self.ids, "modality_ids": self.modality_ids, **out}


@dataclass(frozen=True)
class Capabilities:
    """Capabilities and requirements of a decoding method, used by the token loop, the meter, the server and the benchmarks.

    The defaults are conservative and apply to strategies without this attribute. ``tests/decoding/test_capabilities.py``
    verifies the declared capabilities of every registered strategy.

    Attributes:
        batches: each row of a left-padded batch gets the answer that it would get alone, streamed as it is generated, so
            that requests of several users may share a batch.
        needs_media: refuses rows without an image, audio or video.
        gradients: runs backward passes, so every linear layer must be differentiable.
        second_prompt: also runs another version of the prompt, for which ids and media must be available.
        continues_cache: its answer comes from a stream on generate()'s cache, which may already contain part of the
            prompt. Otherwise the whole prompt is recomputed and checked against the cache.
        meter: the composite under which its steps already contain the grounding meter's values; empty: they do not.
        originals: reads the original media and where the prompt's positions lie in them, so that prompts need regions.
        long_audio: reads audio longer than the model's window piece by piece, so prompts may be prepared with it.
        after: works after a marker (:class:`limelight.decoding.after.After`), on prompt and thinking section together.
        beams: works under transformers' beam search (``num_beams``): its sessions have ``reorder(rows)``.
    """

    batches: bool = False
    needs_media: bool = True
    gradients: bool = False
    second_prompt: bool = False
    continues_cache: bool = False
    meter: str = ""
    originals: bool = False
    long_audio: bool = False
    after: bool = True
    beams: bool = False


def capabilities_of(strategy: Any) -> Capabilities:
    """Return a strategy's ``capabilities``, or the conservative defaults if it has none.

    Raises:
        SettingError: this is not a strategy.
    """
    check_strategy(strategy)
    found: Capabilities = getattr(strategy, "capabilities", Capabilities())
    return found


def check_media(strategy: Strategy, context: GenerationContext) -> None:
    """Raise PromptError if a row has no image, audio or video, and the strategy requires one."""
    if context.partial or context.beside:  # what is in the cache is not known; who needs it says so
        return
    empty = ~((context.modality_ids > 0) & context.mask).any(-1)
    if capabilities_of(strategy).needs_media and bool(empty.any()):
        raise PromptError(
            f"{strategy.name} requires an image, audio or video in the prompt; row {int(empty.nonzero()[0, 0])} has none",
            hint="decode a turn without media with greedy() or meter(); or put the media into the messages, or "
            f"{MODALITY_IDS}",
        )


class Session(Protocol):
    """The decoding state of a strategy on one prompt batch.

    An optional method ``cache()`` returns generate()'s cache as plain decoding would leave it now, or None; without it
    the loop fills the cache. An optional method ``reorder(rows)`` makes row ``i`` continue from row ``rows[i]`` [B] of the
    same prompt, for beam search.
    """

    def next(self, tokens: Tensor | None) -> StepOutput:
        """Append ``tokens`` [B] (None at the start) and return the next token's logits."""
        ...


def check_strategy(strategy: Any) -> None:
    """Raise SettingError unless this is a strategy object."""
    if isinstance(strategy, type) or not callable(getattr(strategy, "session", None)):
        raise SettingError(
            f"expected a strategy such as limelight.lime(), got {strategy!r}",
            hint=f"limelight.strategy({strategy!r}) creates it by name"
            if isinstance(strategy, str)
            else "call it: lime()",
        )


@runtime_checkable
class Strategy(Protocol):
    """A decoding method with its settings. ``name`` is its name in the CLI and the registry.

    An optional attribute ``capabilities`` (:class:`Capabilities`) declares what it supports; without it the conservative
    defaults apply.
    """

    @property
    def name(self) -> str: ...

    def session(self, context: GenerationContext) -> Session:
        """Open a session. Raises SettingError or UnsupportedError when the method cannot work on this prompt."""
        ...

    def settings(self) -> dict[str, Any]:
        """Return plain values that reproduce the strategy."""
        ...


@dataclass(frozen=True)
class Method:
    """Base class of the strategies in ``methods/``: frozen dataclasses whose fields are the settings."""

    name: ClassVar[str]

    def settings(self) -> dict[str, Any]:
        """Return plain values that reproduce the strategy."""
        return asdict(self)
