"""Localisers by attention, and by the similarity of cached values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from limelight.decoding.collate import batch_of
from limelight.decoding.instruments import in_proportion, refuse_cross_attention
from limelight.decoding.looking.glance import Glance, differentiable, finite, positions
from limelight.decoding.looking.localisers import Localiser
from limelight.decoding.looking.originals import reworded
from limelight.errors import SettingError, UnsupportedError
from limelight.models.adapter import Adapter
from limelight.models.runtime.attention import AttentionHook, attention_hooks
from limelight.models.runtime.capture import DecoderCall

LAYER = 14  # of 32: the released code of "MLLMs know where to look" for LLaVA-1.5
GENERIC = "Write a general description of the image."


class _Weights(AttentionHook):
    """Keeps the attention weights ``[B, H, Q, K]`` of some layers (None: all)."""

    def __init__(self, adapter: Adapter, layers: Sequence[int] | None = None) -> None:
        self.only = frozenset(id(m) for i, m in adapter.attention_layers.items() if layers is None or i in layers)
        self.kept: dict[int, Tensor] = {}

    def out(self, layer: int, out: Tensor, weights: Tensor) -> Tensor:
        self.kept[layer] = weights
        return out


class _Values(AttentionHook):
    """Keeps the values ``[B, K, H d]`` of every layer."""

    def __init__(self, adapter: Adapter) -> None:
        self.only = frozenset(id(m) for m in adapter.attention_layers.values())
        self.kept: list[Tensor] = []

    def qkv(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.kept.append(v.transpose(1, 2).flatten(2))
        return q, k, v


def last_query(adapter: Adapter, call: DecoderCall, layers: Sequence[int] | None = None) -> Tensor:
    """Attention of the last position ``[layers, B, H, T]``; zero where a sliding window ends.

    Raises:
        UnsupportedError: no layer has attention weights.
    """
    refuse_cross_attention(adapter, "this map of where to look")
    hook = _Weights(adapter, layers)
    with torch.inference_mode(False), torch.no_grad(), attention_hooks(hook):
        adapter.hidden(call.ordinary())
    if not hook.kept:
        raise UnsupportedError(
            f"{type(adapter.model).__name__} has no attention weights in layers {layers}", hint="where='attnlrp'"
        )
    rows = [w[:, :, -1].float() for _, w in sorted(hook.kept.items())]
    return torch.stack([pad(w, (call.length - w.shape[-1], 0)) for w in rows])


def mean_attention(glance: Glance) -> Tensor:
    """Attention of the last query, mean over layers and heads."""
    return finite(last_query(glance.adapter, glance.call).mean((0, 2)))


def head_attention(glance: Glance) -> Tensor:
    """Attention of the last query, the largest over layers and heads."""
    return finite(last_query(glance.adapter, glance.call).amax((0, 2)))


def middle_layer(adapter: Adapter) -> int:
    """The attention layer in proportion to the published one."""
    layers = sorted(adapter.attention_layers)
    return layers[in_proportion((LAYER, LAYER), len(layers))[0]]


def relative_attention(glance: Glance) -> Tensor:
    """Attention of the last query, middle layer and mean over heads, over that for a generic question.

    Source: Zhang et al., "MLLMs Know Where to Look", ICLR 2025 (arXiv 2502.17422), eq. 3 and released code.
    """
    adapter, layers = glance.adapter, [middle_layer(glance.adapter)]
    own = last_query(adapter, glance.call, layers)[0].mean(1)
    words = str(glance.options.get("generic") or GENERIC)
    generic = [reworded(adapter, p, words) for p in glance.prompts]
    tensors, pads = batch_of(adapter, generic)
    base = last_query(adapter, adapter.capture(tensors), layers)[0].mean(1)
    out = torch.zeros_like(own)
    for row in range(glance.rows):
        here = positions(glance.own(row))
        there = [i + pads[row] for i in positions([s for s in generic[row].spans if s.modality != "text"])]
        if len(here) != len(there):
            raise UnsupportedError(
                f"the generic question has {len(there)} media positions, the prompt {len(here)}", hint="where='attnlrp'"
            )
        out[row, here] = own[row, here] / base[row, there].clamp_min(1e-12)
    return finite(out)


def attention_gradient(glance: Glance) -> Tensor:
    """Attention times the positive part of its gradient of the log-probability of the likeliest token; middle layer, last
    query, mean over heads. Source: as :func:`relative_attention`, eq. 5 and released code."""
    refuse_cross_attention(glance.adapter, "attention times gradient")
    hook = _Weights(glance.adapter, [middle_layer(glance.adapter)])
    with differentiable(glance) as (call, embeds), attention_hooks(hook):
        f = glance.log_probability(glance.adapter.hidden(call, embeds)).sum()
        (weights,) = hook.kept.values()
        (found,) = torch.autograd.grad(f, weights)
    scores = (weights.detach() * found.clamp_min(0))[:, :, -1].mean(1).float()
    return finite(pad(scores, (glance.call.length - scores.shape[-1], 0)))


def value_similarity(glance: Glance) -> Tensor:
    """Cosine between the cached values of media positions and those of the target's words, mean over layers and words.

    The target is the setting ``target``, else all words of the question behind the media.
    Source: Zhong et al., "FOCUS", NeurIPS 2025 (arXiv 2506.21710), section 3.
    Differs from the paper: it has the model name the target; here it is given, or the whole question.
    """
    refuse_cross_attention(glance.adapter, "the similarity of values")
    hook = _Values(glance.adapter)
    with torch.inference_mode(False), torch.no_grad(), attention_hooks(hook):
        glance.adapter.hidden(glance.call.ordinary())
    out = torch.zeros(glance.media.shape, device=glance.call.embeds.device)
    for row in range(glance.rows):
        words = target_positions(glance, row)
        for values in hook.kept:
            unit = normalize(values[row].float(), dim=-1)
            shift = glance.call.length - unit.shape[0]  # a sliding window keeps the last keys
            kept = [i - shift for i in words if i >= shift]
            out[row, shift:] += (unit @ unit[kept].T).mean(-1) / len(hook.kept) if kept else 0
    return finite(out)


def target_positions(glance: Glance, row: int) -> list[int]:
    """Positions of the target's words in the prompt of a row.

    Raises:
        SettingError: the target is not among the prompt's words.
    """
    tokenizer, target = glance.adapter.tokenizer, glance.options.get("target")
    prompt = glance.prompts[row]
    ids = prompt.tensors[glance.adapter.names.ids][0].tolist()
    offset = glance.call.length - glance.answer - len(ids)
    last = max(s.stop for s in prompt.spans if s.modality != "text")
    if target is None:
        special = set(getattr(tokenizer, "all_special_ids", None) or ())
        return [i + offset for i in range(last, len(ids)) if ids[i] not in special]
    found = _places(tokenizer, ids, str(target))
    if not found:
        raise SettingError(
            f"look-again: the target {target!r} is not among the words of the prompt",
            hint="spell it as the prompt does",
        )
    return [i + offset for i in found]


def _places(tokenizer: Any, ids: list[int], target: str) -> list[int]:
    for text in (" " + target, target):
        words = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        starts = [i for i in range(len(ids)) if words and ids[i : i + len(words)] == words]
        if starts:
            return [j for i in starts for j in range(i, i + len(words))]
    return []


LOCALISERS = {
    "attention": Localiser(mean_attention, "attention of the last query, mean over layers and heads"),
    "attention-head": Localiser(head_attention, "attention of the last query, largest over layers and heads"),
    "relative-attention": Localiser(relative_attention, "attention over that for a generic question (ViCrop)"),
    "attention-gradient": Localiser(attention_gradient, "attention times its gradient (ViCrop)", True),
    "value-similarity": Localiser(value_similarity, "cosine of cached values with those of the question (FOCUS)"),
}
