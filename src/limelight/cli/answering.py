"""Answering benchmark samples with a model and a decoding strategy."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from limelight.benchmarks.task import Reply
from limelight.media.worker import read
from limelight.thinking import THINKING, Spoken, markers_of, spoken
from limelight.types import Clip, Generation, Relevance, Sample


@dataclass(frozen=True)
class ModelAnswer:
    """Answers samples with a model and a strategy. The model is loaded on first use, so that instances can be pickled.

    ``relevance``: record shares and relevance maps in ``Reply.meta``, summed over the answer's tokens, each token's
    scores divided by the sum of their absolute values. ``faithfulness``: attribution methods whose insertion and deletion
    curves are recorded. ``evidence``: composites by which every token is scored. All refer to the answer without reasoning;
    ``thoughts``: the markers of reasoning, see :func:`limelight.thinking.markers_of`. ``prefix_cache``: prompts whose prefill
    later ones with the same beginning share (:class:`limelight.PrefixCache`); answers are the same up to rounding.
    """

    model: str
    strategy: str = "greedy"
    settings: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    relevance: bool = False
    faithfulness: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()
    dtype: str = "auto"
    device: str | None = None
    trust_remote_code: bool = False
    thoughts: tuple[tuple[str, str], ...] | None = None
    revision: str | None = None
    device_map: str | None = None
    prefix_cache: int = 0
    frames: int | None = None

    def identity(self) -> dict[str, Any]:
        """The settings that the answers depend on, for the run's manifest."""
        import limelight

        chosen = limelight.strategy(self.strategy, **self.settings)
        own = {"strategy": chosen.name, "strategy_settings": chosen.settings(), "generation": dict(self.generation)}
        curves: dict[str, Any] = {"faithfulness": list(self.faithfulness)} if self.faithfulness else {}
        curves |= {"evidence": list(self.evidence)} if self.evidence else {}
        of: dict[str, Any] = {"revision": self.revision} if self.revision is not None else {}
        of |= {"prefix_cache": self.prefix_cache} if self.prefix_cache else {}
        of |= {"frames": self.frames} if self.frames is not None else {}
        return {"model": self.model, **of, "dtype": self.dtype, "relevance": self.relevance, **curves, **own}

    def prepare(self) -> None:
        """Load the model."""
        self._adapter()

    def _adapter(self) -> Any:
        import limelight

        adapter = loaded(
            self.model,
            self.dtype,
            self.device,
            self.trust_remote_code,
            revision=self.revision,
            device_map=self.device_map,
        )
        known = adapter.prefix_cache
        if (0 if known is None else known.entries) != self.prefix_cache:
            adapter.prefix_cache = limelight.PrefixCache(self.prefix_cache) if self.prefix_cache else None
        return adapter

    def __call__(self, sample: Sample) -> Reply:
        return self.many([sample])[0]

    def many(self, samples: Sequence[Sample]) -> list[Reply]:
        """Answer several samples in one left-padded batch where possible, else one by one.

        Where the strategy needs media, questions without media are decoded greedily by the plain model.
        """
        import limelight
        from limelight.decoding.strategy import capabilities_of
        from limelight.errors import UnsupportedError

        adapter = self._adapter()
        samples = [_without_instruction(adapter, s) for s in samples]
        strategy = limelight.strategy(self.strategy, **self.settings)
        plain = capabilities_of(strategy).needs_media and not all(any(s.media.values()) for s in samples)
        if plain and len(samples) > 1:
            return [self(s) for s in samples]
        try:
            answers = limelight.generate_many(
                adapter,
                requests=[_messages(s, self.frames) for s in samples],
                strategy=limelight.greedy() if plain else strategy,
                relevance=self.relevance,
                seeds=[int(s.meta["seed"]) for s in samples],
                **self.generation,
            )
        except UnsupportedError:
            if len(samples) == 1:
                raise
            return [self(s) for s in samples]
        return [self._reply(adapter, s, answer) for s, answer in zip(samples, answers, strict=True)]

    def _reply(self, adapter: Any, sample: Sample, answer: Generation) -> Reply:
        from limelight.decoding.answer import end_markers

        special = end_markers(adapter)
        answered, behind = self._spoken(adapter, answer.prompt.tensors[adapter.names.ids][0].tolist(), answer.token_ids)
        kept = replace(answer, steps=tuple(s for s, own in zip(answer.steps, answered.answered, strict=True) if own))
        media = any(sample.media.values())
        text_only = {} if media else {"text_only": True}
        meta = {"tokens": len(answer.token_ids), **text_only, **behind, **grounding_meta(kept, special)}
        if self.faithfulness and media and any(answered.answered):
            from limelight.cli.faithfulness import curves

            first = answered.answered.index(True)
            meta["curves"] = curves(
                adapter, _messages(sample, self.frames), answer.token_ids[first], self.faithfulness, seed=int(sample.meta["seed"]),
                thoughts=answer.token_ids[:first],
            )  # fmt: skip
        if self.evidence and media and any(answered.answered):
            from limelight.cli.evidence import evidence_meta, probed

            messages = _messages(sample, self.frames)
            meta["evidence"] = evidence_meta(
                adapter, messages, answer.token_ids, answered.answered, self.evidence, sample.meta.get("words") or ()
            )
            if probe := probed(adapter, self.model, messages, str(sample.meta.get("object", ""))):
                meta["probe"] = probe
        device = adapter.device
        if device.type == "cuda":
            import torch

            meta["peak_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
        return Reply(answered.text, meta)

    def _spoken(self, adapter: Any, prompt: Sequence[int], ids: Sequence[int]) -> tuple[Spoken, dict[str, int]]:
        """Return the text with marked reasoning, and the answer's offset where the markers do not determine it."""
        markers, after = markers_of(self.thoughts), self.settings.get("after")
        if isinstance(after, int) and markers.pairs:
            markers = markers.plus(("", str(adapter.tokenizer.decode([after], skip_special_tokens=False))))
        elif isinstance(after, str) and after != THINKING and markers.pairs:
            markers = markers.plus(("", after))
        answered = spoken(adapter.tokenizer, ids, prompt, markers)
        usual = markers_of(self.thoughts).answer(answered.text)
        own = markers.answer(answered.text, opened=answered.opened)
        if own == usual:
            return answered, {}
        return answered, {
            "answer_from": len(answered.text) - len(own) if own and answered.text.endswith(own) else len(answered.text)
        }


def _without_instruction(adapter: Any, sample: Sample) -> Sample:
    """Replace the instruction to transcribe where the decoder would read it as previous text (Whisper)."""
    from limelight.benchmarks.tasks.asr import PROMPT
    from limelight.decoding.transcribe import prompt_for

    if adapter.encoder is None or sample.prompt != PROMPT:
        return sample
    return replace(sample, prompt=prompt_for(adapter))


def _messages(sample: Sample, frames: int | None = None) -> list[dict[str, Any]]:
    items = [{"type": m, m: _item(m, x, frames)} for m, xs in sample.media.items() for x in xs]
    return [{"role": "user", "content": [*items, {"type": "text", "text": sample.prompt}]}]


@lru_cache(maxsize=1)
def loaded(model: str, dtype: str, device: str | None, trust_remote_code: bool, **further: Any) -> Any:
    """Load a model's adapter; the last one is cached, so that several strategies share it."""
    import limelight

    given = {k: v for k, v in further.items() if v is not None}
    return limelight.load(model, dtype=dtype, device=device, trust_remote_code=trust_remote_code, **given)


def _item(kind: str, media: Any, frames: int | None = None) -> Any:
    """Decode an image, ``(samples, rate)`` or a clip; files and bytes are decoded in separate processes, with limits."""
    if isinstance(media, (str, Path, bytes, Mapping)):
        options: dict[str, Any] = {"frames": frames} if frames and kind == "video" else {}
        return read(kind, media, group="bench", **options)
    return media


def grounding_meta(answer: Generation, special: Collection[int]) -> dict[str, Any]:
    """Return ``shares``, ``image_relevance``, ``audio_relevance`` and ``video_relevance`` of an answer, where its steps have
    relevance, with the location of the latter three in the original (:class:`limelight.benchmarks.task.Reply`)."""
    found: dict[str, Any] = {}
    steps = [s for s in answer.steps if s.token not in special] or list(answer.steps)
    shares = [s.shares for s in steps if s.shares]
    if shares:
        found["shares"] = {m: sum(r.get(m, 0.0) for r in shares) / len(shares) for m in {k for r in shares for k in r}}
    scaled = [(r, float(r.scores.abs().sum())) for s in steps if (r := s.relevance) is not None]
    relevances = [(r, total) for r, total in scaled if total]
    clip = next(iter(answer.prompt.media.get("video", ())), None)
    return found | _pictured(relevances) | _sounding(relevances) | _filmed(relevances, clip) if relevances else found


def _pictured(relevances: Sequence[tuple[Relevance, float]]) -> dict[str, Any]:
    """Return ``image_relevance`` of the first image, and the boxes of its grids."""
    import torch

    spans = [s for s in relevances[0][0].spans_of("image") if s.grid is not None and len(s.grid) == 2]
    placed = [s for s in spans if s.region is not None and not s.region.frames and s.region.source == 0]
    shown = placed or spans[:1]
    if not shown:
        return {}
    listed = []
    for s in shown:
        scores = torch.stack([r.scores[s.start : s.stop].float() / total for r, total in relevances]).sum(0)
        listed.append(scores.reshape(s.grid or ())[:, : s.cells[1]].tolist())
    boxes = [[round(x, 6) for x in s.region.fractions] for s in placed if s.region is not None]
    return {"image_relevance": listed[0] if len(listed) == 1 else listed, "image_boxes": boxes or None}


def _sounding(relevances: Sequence[tuple[Relevance, float]]) -> dict[str, Any]:
    """Return ``audio_relevance`` of the first audio clip, with its windows concatenated, and its duration."""
    import torch

    spans = relevances[0][0].spans_of("audio")
    placed = [s for s in spans if s.interval is not None and s.interval.source == 0]
    shown = placed or list(spans[:1])
    if not shown or any(s.seconds is None or abs(s.seconds - (shown[0].seconds or 0)) > 1e-9 for s in shown):
        return {}
    scores: list[float] = []
    for s in shown:
        scores += torch.stack([r.scores[s.start : s.stop].float() / total for r, total in relevances]).sum(0).tolist()
    ends = {"duration": placed[0].interval.duration} if placed and placed[0].interval is not None else {}
    return {"audio_relevance": {"scores": scores, "seconds": shown[0].seconds, **ends}}


def _filmed(relevances: Sequence[tuple[Relevance, float]], clip: Clip | None) -> dict[str, Any]:
    """Return ``video_relevance`` of the first video: the scores of each frame's positions (those of a time step are divided
    among its frames), and the frames' times."""
    import torch

    spans = [s for s in relevances[0][0].spans_of("video") if s.region is not None and s.region.source == 0 and s.grid]
    if clip is None or not spans:
        return {}
    scores: list[list[float]] = [[] for _ in clip.frames]
    for s in spans:
        steps = s.region.frames if s.region is not None else ()
        each = torch.stack([r.scores[s.start : s.stop].float() / total for r, total in relevances]).sum(0)
        if not steps or len(each) % len(steps):
            return {}
        for frames, values in zip(steps, each.reshape(len(steps), -1), strict=True):
            for frame in frames:
                if frame < len(scores):  # a model may repeat the last frame to fill a step
                    scores[frame] += (values / len(frames)).tolist()
    return {"video_relevance": {"scores": scores, "seconds": list(clip.seconds)}}
