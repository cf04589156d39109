"""ILVAD: attention to image positions that become salient from one layer to the next is raised, and to text that saw them.

Source: Xie et al., "Finding the Correct Visual Evidence Without Forgetting: Mitigating Hallucination in LVLMs via
Inter-Layer Visual Attention Discrepancy", ICML 2026 (arXiv 2605.20965); formulas and settings as in the released code.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limelight.decoding.contrast_inputs import media_mask
from limelight.decoding.contrastive import check_count, check_layer_range, check_range
from limelight.decoding.instruments import (
    DecoderHook,
    chosen_layers,
    hooked_attention,
    key_places,
    refuse_cross_attention,
)
from limelight.decoding.intervention import InterventionSession, wide
from limelight.decoding.strategy import Capabilities, GenerationContext, Method
from limelight.decoding.streams import second_stream
from limelight.models.adapter import Adapter
from limelight.models.runtime.attention import softmax_with_sinks

PUBLISHED = (0, 30)  # of 32 layers, both included


@dataclass(frozen=True)
class Ilvad(Method):
    """The last query's attention to image position i is multiplied by ``exp(alpha S_i)``, to text by its own score; renormalised.

    ``S``: the unchanged model first writes ``pilot`` tokens. In every layer, the attention of each generated token (from
    the second forward on) to the media is averaged over the half of the heads that attend most to them, and over tokens;
    ``b_l`` marks the positions above ``tau`` times the layer's mean. ``S = sum_l max(0, b_{l+1} - b_l)`` where the mean over
    layers is above average, scaled to [0, 1]. The media's factor acts in the half of the heads whose attention to them
    lies most on high S.

    A text position's score is the sum over layers of ``sum_i alpha S_i a_i``, its attention a averaged over the same kind
    of heads; scaled to [0, 1] over the text behind the media, ``beta`` is added, and it multiplies the last query's
    attention in the half of the heads that attend most to that text.

    Args:
        alpha: largest logarithm of the media's factor; 0 gives the media no factor.
        beta: smallest factor of text. None: text keeps its attention; with ``alpha=0`` too it is the unchanged model.
        tau: threshold of ``b_l``.
        pilot: number of tokens of the unchanged model's answer that S is found from, at least 2.
        start, stop: layers (from 0) ``start <= layer < stop`` in which attention is changed; None: 0 and 31 of LLaVA-7B's
            32, in proportion for other depths.

    The released scripts use beta 1 and layers 0 to 30 for yes/no questions, as here, beta 0.3 and layers 5 to 25 for
    captions, beta 0.2 and alpha 4 for LLaVA-Bench.

    Differs from the paper: nothing known.
    Differs from the released code (LLaVA-1.5; batch 1, attention forwards replaced): any model whose attention uses
    transformers' interface, batches, several media (text is what is behind the first). There the prompt's last position
    has a second, empty entry among the scores, so that every later score multiplies its successor's attention; and
    outliers (beyond 3 standard deviations) stay clipped for good; here scores stand at their own position, and clipping
    acts on a copy. There S or scores that are all equal give NaN; here they change nothing. The pilot ends at an
    end-of-sequence token; if it is the first token, nothing is changed. The factors are added as logarithms before the
    softmax, which is the same.
    """

    name = "ilvad"
    capabilities = Capabilities(batches=True, second_prompt=True, beams=True)

    alpha: float = 5.0
    beta: float | None = 1.0
    tau: float = 5.0
    pilot: int = 10
    start: int | None = None
    stop: int | None = None

    def __post_init__(self) -> None:
        check_range("ilvad", "alpha", self.alpha, 0.0, hint="the released scripts: 5")
        check_range("ilvad", "tau", self.tau, 0.0, hint="the released scripts: 5")
        if self.beta is not None:
            check_range("ilvad", "beta", self.beta, 0.0, hint="the released scripts: 1, for captions 0.3")
        check_count("ilvad", "pilot", self.pilot, 2, hint="the paper: 10")
        check_layer_range("ilvad", self.start, self.stop, hint="the paper: 0 and 31")

    def session(self, context: GenerationContext) -> IlvadSession:
        """Raises SettingError on layers that the model does not have, UnsupportedError on a cross-attention model."""
        return IlvadSession(self, context)


class IlvadSession(InterventionSession):
    def __init__(self, strategy: Ilvad, context: GenerationContext) -> None:
        refuse_cross_attention(context.adapter, "ilvad")
        context.require_prompt()
        super().__init__(context, "ilvad", recompute=True)
        self.strategy = strategy
        self.layers = chosen_layers(context.adapter, PUBLISHED, strategy.start, strategy.stop, "ilvad")
        self.neutral = strategy.alpha == 0 and strategy.beta is None
        self.evidence: Evidence | None = None

    def acts(self) -> bool:
        return not self.neutral

    def acted(self, rows: int) -> list[bool]:
        return [False] * rows if self.evidence is None else self.evidence.salient.tolist()

    def changed(self, *, prefill: bool) -> AbstractContextManager[Any]:
        if self.neutral:
            return nullcontext()
        adapter = self.context.adapter
        if self.evidence is None:
            salient = saliency(self.context, self.strategy.tau, self.strategy.pilot)
            self.evidence = Evidence(self.context, salient, self.layers, self.strategy)
        self.evidence.begin(self.length)
        return hooked_attention(adapter, self.evidence, adapter.attention_layers)

    def reorder(self, rows: Tensor) -> None:
        super().reorder(rows)
        if self.evidence is not None:
            self.evidence.seen = self.evidence.seen[rows]  # the rest is the prompt's, which beams share


def saliency(context: GenerationContext, tau: float, pilot: int) -> Tensor:
    """Return S ``[B, T]``, scaled to [0, 1] in every row, from the first tokens of the unchanged model's answer."""
    adapter, places = context.adapter, media_mask(context)
    record = MediaAttention(adapter, places)
    stream = second_stream(context, tokens=pilot)
    going = torch.ones_like(places[:, 0])
    ends = torch.tensor(end_tokens(context.config), device=places.device)
    tokens = stream.next(None).argmax(-1)
    for step in range(1, pilot):
        going = going & ~torch.isin(tokens, ends)
        if not bool(going.any()):
            break
        record.begin(places.shape[1] + step, going)
        with hooked_attention(adapter, record, adapter.attention_layers):
            tokens = stream.next(tokens).argmax(-1)
    return salient(record.mean(), places, tau)


def end_tokens(config: Any) -> list[int]:
    """Return the end-of-sequence ids of a generation config."""
    ids = getattr(config, "eos_token_id", None)
    return [] if ids is None else torch.as_tensor(ids).flatten().tolist()


class MediaAttention(DecoderHook):
    """Sums the last query's attention to the media ``[B, T]`` per layer, over the heads that attend most to them."""

    def __init__(self, adapter: Adapter, places: Tensor) -> None:
        super().__init__(adapter)
        self.places, self.length = places, places.shape[1]
        self.sums: dict[int, Tensor] = {}
        self.going = torch.zeros_like(places[:, 0])
        self.steps = torch.zeros_like(places[:, 0], dtype=torch.long)

    def begin(self, length: int, going: Tensor) -> None:
        """The next forward has ``length`` positions and counts for the rows ``going`` [B]."""
        self.length, self.going = length, going
        self.steps = self.steps + going

    def out(self, layer: int, out: Tensor, weights: Tensor) -> Tensor:
        if not self.inside:
            return out
        keys, size = weights.shape[-1], self.places.shape[1]
        own = wide(weights[..., -1, :]) * key_places(self.places, keys, self.length)[:, None]
        best = own.sum(-1).topk(half(own.shape[1]), dim=1).indices
        mean = own.gather(1, best[..., None].expand(-1, -1, keys)).mean(1)
        first = max(0, self.length - keys)  # a sliding window has lost the first positions
        at = mean.new_zeros(len(mean), size)
        if first < size:
            at[:, first:] = mean[:, : size - first]
        self.sums[layer] = self.sums.get(layer, torch.zeros_like(at)) + at * self.going[:, None]
        return out

    def mean(self) -> Tensor:
        """Return the mean over the recorded forwards ``[layers, B, T]``, in the order of layers; empty if none was."""
        sums = [self.sums[layer] for layer in sorted(self.sums)]
        stack = torch.stack(sums) if sums else torch.zeros(0, *self.places.shape, device=self.places.device)
        return stack / self.steps.clamp_min(1)[:, None]


def salient(attention: Tensor, places: Tensor, tau: float) -> Tensor:
    """Return S ``[B, T]`` from the mean attention ``[layers, B, T]`` to the media ``places`` [B, T]."""
    out = torch.zeros(places.shape, device=places.device, dtype=attention.dtype)
    for row in range(places.shape[0]):
        own = attention[:, row, places[row]]
        if not own.numel() or not bool((own > 0).any()):
            continue
        marked = (own > tau * own.mean(-1, keepdim=True)).to(own.dtype)
        over = own.mean(0)
        values = (marked[1:] - marked[:-1]).clamp_min(0).sum(0) * (over > over.mean())
        if not bool(values.max() == values.min()):
            values = clipped(values)
            out[row, places[row]] = (values - values.min()) / (values.max() - values.min())
    return out


def clipped(values: Tensor) -> Tensor:
    """Clip ``values`` [n], n > 1, beyond 3 standard deviations."""
    spread = 3 * values.std()
    return values.clamp(values.mean() - spread, values.mean() + spread)


def text_factors(values: Tensor, beta: float) -> Tensor:
    """Return the factors of text from its scores ``values`` [n]; all equal: 1."""
    if len(values) < 2 or bool(values.max() == values.min()):
        return torch.ones_like(values)
    return (clipped(values) - values.min()) / (values.max() - values.min()) + beta


class Evidence(DecoderHook):
    """Raises the last query's attention to salient media, and to text that attended to them."""

    def __init__(self, context: GenerationContext, salient: Tensor, layers: set[int], strategy: Ilvad) -> None:
        super().__init__(context.adapter)
        self.layers, self.beta = layers, strategy.beta
        self.media = media_mask(context)
        self.factor = strategy.alpha * salient  # a logarithm
        self.salient = (self.factor > 0).any(-1)
        self.text = context.mask & (self.media.cumsum(-1) > 0) & ~self.media
        self.seen = torch.zeros_like(self.factor)
        self.length = self.media.shape[1]

    def begin(self, length: int) -> None:
        """The next forward has ``length`` positions."""
        self.length, new = length, length - self.seen.shape[1]
        self.seen = torch.nn.functional.pad(self.seen, (0, new))

    def attend(self, call: Any) -> None:
        super().attend(call)
        self.sinks = call.sinks

    def scores(self, layer: int, scores: Tensor) -> Tensor:
        if not self.inside:
            return scores
        keys, queries = scores.shape[-1], scores.shape[-2]
        weights = wide(softmax_with_sinks(scores, self.sinks, torch.promote_types(scores.dtype, torch.float32)))
        media = key_places(self.media, keys, self.length).to(weights.dtype)[:, None, None]
        factor = key_places(self.factor, keys, self.length).to(weights.dtype)[:, None, None]
        towards = (weights * factor).sum(-1)  # [B, H, Q]
        ranking = towards / ((weights * media).sum(-1) + 1e-8)
        best = ranking.topk(half(ranking.shape[1]), dim=1).indices
        text = torch.ones_like(self.seen[:, -1:], dtype=torch.bool) if queries == 1 else self.text[:, -queries:]
        self.seen[:, -queries:] += towards.gather(1, best).mean(1).to(self.seen.dtype) * text
        if layer not in self.layers:
            return scores
        heads = torch.zeros_like(ranking[..., -1], dtype=torch.bool).scatter(1, best[..., -1], True)
        added = torch.where(heads[..., None], factor[:, :, 0], 0.0)  # [B, H, K]
        if self.beta is not None:
            added = added + self._of_text(weights[..., -1, :])
        last = scores[..., -1, :]
        allowed = last > torch.finfo(last.dtype).min / 2
        changed = torch.where(allowed, last + added.to(last.dtype), last)
        return torch.cat([scores[..., :-1, :], changed[..., None, :]], dim=-2)

    def _of_text(self, weights: Tensor) -> Tensor:
        """Return the logarithms ``[B, H, K]`` of the factors of text, from the last query's ``weights`` [B, H, K]."""
        keys = weights.shape[-1]
        behind = torch.nn.functional.pad(self.text, (0, self.length - self.text.shape[1]), value=True)
        scored = behind.clone()
        scored[:, -1] = False  # the query itself
        factor = torch.ones_like(self.seen)
        for row in range(len(factor)):
            factor[row, scored[row]] = text_factors(self.seen[row, scored[row]], self.beta or 0.0)
        share = (weights * key_places(behind, keys, self.length)[:, None]).sum(-1)
        best = share.topk(half(share.shape[1]), dim=1).indices
        heads = torch.zeros_like(share, dtype=torch.bool).scatter(1, best, True)
        logs = key_places(torch.where(scored, factor, 1.0).log(), keys, self.length)[:, None]
        return torch.where(heads[..., None], logs.to(weights.dtype), 0.0)


def half(heads: int) -> int:
    """Return half the number of heads, at least one."""
    return max(1, heads // 2)


ilvad = Ilvad
STRATEGIES = {"ilvad": Ilvad}
