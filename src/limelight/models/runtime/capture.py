"""Prefill capture: run the media encoders once and record the decoder's inputs, so that the decoder can run on its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from limelight.errors import HookError, PromptError, UnsupportedError
from limelight.models.inputs import ready_masks
from limelight.models.inputs.cross_attention import CrossAttentionStates
from limelight.models.inputs.decoder_inputs import DECODER, Reaches, holds_tensors
from limelight.models.inputs.encoder_decoder import DECODER_ONLY, EncoderDecoder, PromptNames
from limelight.models.inputs.kinds import find, placed
from limelight.models.inputs.side_features import Media, SideFeatures
from limelight.models.runtime.fused import fused_attention

# Arguments of a single decoder call that must not be replayed in another.
_DROPPED = frozenset(
    {
        "past_key_values", "use_cache", "cache_position", "input_ids", "inputs_embeds", "return_dict",
        "output_attentions", "output_hidden_states", "logits_to_keep", "labels", "return_shared_kv_states",
    }
)  # fmt: skip


_KEPT = frozenset({"attention_mask", "position_ids"})


def _inserts_media(arguments: Mapping[str, Any]) -> bool:
    """Return whether the decoder receives features or pixels that it inserts among its token ids itself (cross-attention
    states are not inserted)."""
    plain = {k for k, rows in DECODER.rows.items() if "position" in rows[0].names or "state" in rows[0].names}
    return any(holds_tensors(v) for k, v in arguments.items() if k not in plain | _DROPPED)


class _Captured(Exception):  # noqa: N818 - control flow through transformers' frames, never reaches a caller
    pass


@dataclass(frozen=True)
class DecoderCall:
    """Everything needed to run the decoder alone on the whole sequence, without a cache.

    Attributes:
        embeds: the leaf of relevance: merged input embeddings ``[B, T, D]``, detached, combined with the side features.
        mask: True at real positions, ``[B, T]``.
        kwargs: the decoder's further arguments (attention mask or masks, position ids, family extras).
        reaches: layer type -> reach of its attention, for prepared masks.
        features: layout of the side features within the leaf (None: there are none).
    """

    embeds: Tensor
    mask: Tensor
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    reaches: Reaches = field(default_factory=dict)
    features: SideFeatures | None = None

    @property
    def length(self) -> int:
        """Number of positions: cross-attention states, if any, followed by the prompt."""
        return int(self.embeds.shape[1])

    @property
    def front(self) -> int:
        """Number of positions before the prompt."""
        return 0 if self.features is None else self.features.front

    @property
    def padding(self) -> Tensor:
        """Number of left padding positions per row ``[B]``; from a prepared mask, the fully masked queries."""
        masks = self.kwargs.get("attention_mask")
        for mask in masks.values() if isinstance(masks, Mapping) else [masks]:
            if isinstance(mask, Tensor) and mask.ndim == 4:
                return ready_masks.padding_of(mask)
        return (~self.mask[:, self.front :]).long().cumprod(-1).sum(-1)

    def with_encoder(self, encoder: EncoderDecoder, inputs: Mapping[str, Any]) -> DecoderCall:
        """Return the call with the encoder states' modality, their duration, and their padding masked."""
        states = self.cross_attention
        if states is None:
            return self
        seen = encoder.unpadded(inputs, self.mask[:, : self.front])
        return replace(
            self,
            mask=torch.cat([seen, self.mask[:, self.front :]], dim=1),
            features=replace(states, kind=encoder.kind, seconds=encoder.seconds),
        )

    @property
    def cross_attention(self) -> CrossAttentionStates | None:
        """The cross-attention states before the prompt, or None."""
        return self.features if isinstance(self.features, CrossAttentionStates) else None

    def modality(self, ids: Tensor) -> Tensor:
        """Return the modalities of all positions, given those of the prompt."""
        return ids if self.cross_attention is None else self.cross_attention.modality(ids)

    def arguments(self, embeds: Tensor | None = None) -> dict[str, Any]:
        """Return the decoder's arguments, except the cache; ``embeds`` replaces the leaf's values."""
        embeds = self.embeds if embeds is None else embeds
        if self.features is None:
            return {"inputs_embeds": embeds, **self.kwargs}
        return self.features.arguments(embeds, self.kwargs)

    def appended(self, embeds: Tensor) -> DecoderCall:
        """Return the call extended by n text tokens per row; ``embeds`` is ``[B, n, D]``.

        Raises:
            UnsupportedError: an argument of the decoder that cannot be extended.
        """
        embeds = embeds if self.features is None else self.features.widened(embeds)
        count = embeds.shape[1]
        return replace(
            self,
            embeds=torch.cat([self.embeds, embeds.detach()], dim=1),
            mask=torch.cat([self.mask, self.mask.new_ones(self.mask.shape[0], count)], dim=1),
            kwargs=DECODER.append(self.kwargs, count, self.reaches),
        )

    def row(self, index: int) -> DecoderCall:
        """Return one row of the batch, with its padding."""
        one = slice(index, index + 1)
        return replace(self, embeds=self.embeds[one], mask=self.mask[one], kwargs=DECODER.row(self.kwargs, index))

    def reordered(self, index: Tensor) -> DecoderCall:
        """Return the rows ``index`` [B'], in this order and with repetitions."""
        kwargs = DECODER.reorder(self.kwargs, index)
        return replace(self, embeds=self.embeds[index], mask=self.mask[index], kwargs=kwargs)

    def tail(self, count: int) -> DecoderCall:
        """Return the last ``count`` positions of the prompt, with everything that precedes the prompt."""
        embeds, mask = (torch.cat([x[:, : self.front], x[:, -count:]], dim=1) for x in (self.embeds, self.mask))
        return replace(self, embeds=embeds, mask=mask, kwargs=DECODER.tail(self.kwargs, count))

    def repeated(self, rows: int) -> dict[str, Any]:
        """Return ``kwargs`` expanded to ``rows`` rows of values and tangents."""
        kwargs = DECODER.repeat(self.kwargs, rows)
        if self.features is not None:
            kwargs |= self.features.spread({k: self.kwargs[k] for k in self.features.kept}, rows)
        return kwargs

    def cloned(self) -> DecoderCall:
        """Return a copy with every tensor cloned."""
        return self._each(lambda x: x.clone())

    def ordinary(self) -> DecoderCall:
        """Return the call with inference tensors (created under inference_mode) cloned, since autograd cannot use them."""
        return self._each(lambda x: x.clone() if x.is_inference() else x)

    def _each(self, change: Callable[[Tensor], Tensor]) -> DecoderCall:
        def walk(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {k: walk(v) for k, v in value.items()}
            if type(value) in (list, tuple):
                return type(value)(map(walk, value))
            return change(value) if isinstance(value, Tensor) else value

        return replace(self, embeds=walk(self.embeds), mask=walk(self.mask), kwargs=walk(self.kwargs))


def last_hidden(out: Any) -> Tensor:
    """Return the last hidden states of a decoder's output, which may be a tuple."""
    hidden: Tensor = out.last_hidden_state if hasattr(out, "last_hidden_state") else out[0]
    return hidden


_CHECKED: WeakKeyDictionary[nn.Module, set[frozenset[str]]] = WeakKeyDictionary()


def _check_merged(
    model: nn.Module, decoder: nn.Module, inputs: Mapping[str, Any], arguments: Mapping[str, Any]
) -> None:
    """Check that the decoder's output on merged embeddings alone equals its output on ids and media.

    Done once per model and set of media arguments.

    Raises:
        UnsupportedError: the outputs differ, so the media have another path into the decoder.
    """
    media = frozenset(k for k, v in inputs.items() if k not in _KEPT | _DROPPED and holds_tensors(v))
    if media in _CHECKED.setdefault(decoder, set()):
        return
    outputs: list[Tensor] = []
    handle = decoder.register_forward_hook(lambda *a: outputs.append(a[-1][0]))
    try:
        with torch.no_grad(), fused_attention():
            model(**{k: v for k, v in inputs.items() if k != "past_key_values"}, use_cache=False)
            merged = {k: v for k, v in arguments.items() if k not in _DROPPED or k == "inputs_embeds"}
            decoder(**merged, use_cache=False)
    finally:
        handle.remove()
    given = inputs.get("attention_mask")
    if isinstance(given, Tensor) and given.shape == outputs[0].shape[:2]:  # outputs at padding are not used
        outputs = [x[given.bool().to(x.device)] for x in outputs]
    expected, actual = outputs
    tolerance = 1e-5 if expected.dtype in (torch.float32, torch.float64) else 2e-2
    if expected.shape != actual.shape or not torch.allclose(expected, actual, rtol=tolerance, atol=tolerance):
        raise UnsupportedError(
            f"{type(decoder).__name__} reads its media in other ways than through its input embeddings, so relevance at the "
            "embeddings would be incomplete",
            hint="only plain decoding (greedy) works on this family so far",
        )
    _CHECKED[decoder].add(media)


def capture(
    model: nn.Module,
    decoder: nn.Module,
    inputs: Mapping[str, Any],
    reaches: Reaches,
    media: Media = lambda: None,
    prompt: PromptNames = DECODER_ONLY,
    embed: Callable[[Tensor], Tensor] | None = None,
) -> DecoderCall:
    """Run ``model(**inputs)`` up to the call of ``decoder`` and record its arguments. Encoders run once, without grad.

    Args:
        reaches: see :class:`DecoderCall`.
        media: returns the media positions according to the token ids.
        prompt: names of the prompt's arguments.
        embed: embeds token ids as the decoder does, if it is called with ids (None: its own embedding table).

    Raises:
        HookError: the decoder was not called.
        PromptError: an empty prompt.
        UnsupportedError: see :func:`_check_merged` and :func:`_require_declared`.
    """
    names = list(inspect.signature(decoder.forward).parameters)
    arguments: dict[str, Any] = {}

    def before_decoder(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments.update(zip(names, args, strict=False))
        arguments.update(kwargs)
        if (own := placed(decoder, arguments)) is not None:
            arguments["placed"] = own
            raise _Captured
        if arguments.get("inputs_embeds") is not None or not _inserts_media(arguments):
            raise _Captured

    def before_first_layer(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments["merged"] = args[0] if args else kwargs["hidden_states"]
        raise _Captured

    first_layer: nn.Module = decoder.layers[0]  # type: ignore[index, assignment]
    with ExitStack() as hooks, torch.no_grad(), suppress(_Captured):
        hooks.callback(decoder.register_forward_pre_hook(before_decoder, with_kwargs=True).remove)
        hooks.callback(first_layer.register_forward_pre_hook(before_first_layer, with_kwargs=True).remove)
        model(**{k: v for k, v in inputs.items() if k != "past_key_values"}, use_cache=False)
    merged: Tensor | None = None
    if "merged" in arguments:  # the decoder inserted the media itself; the merged embeddings replace ids and media
        merged = arguments.pop("merged")
        kept = {k: v for k, v in arguments.items() if k in _KEPT or not holds_tensors(v)}
        arguments = {**kept, "inputs_embeds": merged}
    elif "placed" in arguments:
        own = arguments.pop("placed")
        merged, arguments = own.embeds, {**own.kwargs, "inputs_embeds": own.embeds}
    if merged is not None:
        _check_merged(model, decoder, inputs, arguments)
    if not arguments:
        raise HookError(
            f"{type(model).__name__} ran without calling its decoder {type(decoder).__name__}",
            hint="run `limelight models --check` on this checkpoint; its family may need a file in models/families",
        )
    embeds = arguments.get("inputs_embeds")
    if embeds is None:
        ids = arguments.get("input_ids")
        if ids is None:
            raise HookError(
                "the decoder was called with neither inputs_embeds nor input_ids", hint="report this family"
            )
        with torch.no_grad():
            embeds = (embed or decoder.get_input_embeddings())(ids)  # type: ignore[operator]
    embeds = embeds.detach().clone()
    if embeds.shape[1] == 0:
        raise PromptError("the prompt is empty: zero positions", hint="pass at least one token")
    kwargs = {k: v for k, v in arguments.items() if k not in _DROPPED and v is not None}
    if "attention_mask" in kwargs:
        kwargs["attention_mask"] = ready_masks.additive(kwargs["attention_mask"], embeds.dtype)
    given = inputs.get(prompt.mask)
    mask = given.bool() if isinstance(given, Tensor) and given.ndim == 2 else None
    if mask is None or mask.shape != embeds.shape[:2]:
        mask = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
    mask = mask.to(embeds.device)
    if "attention_mask" in names and "attention_mask" not in kwargs:
        kwargs["attention_mask"] = mask.long()  # without a mask, transformers may detect packed sequences
    if "position_ids" in names and "position_ids" not in kwargs and not bool(mask.all()):
        # as in generate(): offsets act on rotated keys, so padding must not shift a row's positions
        kwargs["position_ids"] = (mask.long().cumsum(-1) - 1).clamp_min(0)
    found = find(embeds, kwargs, media)
    if found is None:
        call = DecoderCall(embeds, mask, kwargs, reaches)
    else:
        mask = mask if found.seen is None else torch.cat([found.seen, mask], dim=1)
        call = DecoderCall(found.leaf, mask, found.kwargs, reaches, found.features)
    _require_declared(call, model, names)
    return call


def _require_declared(call: DecoderCall, model: nn.Module, taken: Sequence[str]) -> None:
    """Raise UnsupportedError for an argument with undeclared axes, or with features that are not part of the leaf."""
    known = () if call.features is None else call.features.kept
    unknown = [k for k, v in call.kwargs.items() if DECODER.is_features(k) and holds_tensors(v) and k not in known]
    unknown += DECODER.undeclared(call.kwargs, taken)
    if unknown:
        raise UnsupportedError(
            f"{type(model).__name__} passes {', '.join(unknown)} to its decoder in addition to the input embeddings; the axes, "
            "or the positions of the features, are not declared, so relevance at the embeddings might be incomplete",
            hint="only plain decoding (greedy) works on this family so far; "
            "declare arguments in limelight/models/inputs/decoder_inputs.py",
        )
    DECODER.each(call.kwargs, lambda axes, value, _: value)  # checks the number of axes
