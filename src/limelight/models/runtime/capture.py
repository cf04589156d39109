"""Prefill capture: run the towers once, keep what the decoder was about to receive, and go on from there alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
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
from limelight.models.inputs.side_features import Media, SideFeatures, no_media
from limelight.models.runtime.fused import fused_attention

# Arguments of a decoder call that belong to one particular call and must not be replayed.
_DROPPED = frozenset(
    {
        "past_key_values", "use_cache", "cache_position", "input_ids", "inputs_embeds", "return_dict",
        "output_attentions", "output_hidden_states", "logits_to_keep", "labels", "return_shared_kv_states",
    }
)  # fmt: skip


_KEPT = frozenset({"attention_mask", "position_ids"})


def _media(got: Mapping[str, Any]) -> bool:
    """Features or pixels reach the decoder beside token ids, for it to put among them (it puts no states of
    cross-attention there)."""
    plain = {k for k, rows in DECODER.rows.items() if "position" in rows[0].names or "state" in rows[0].names}
    return any(holds_tensors(v) for k, v in got.items() if k not in plain | _DROPPED)


class _Captured(Exception):  # noqa: N818 - control flow across transformers' frames, never seen by a caller
    pass


@dataclass(frozen=True)
class DecoderCall:
    """Everything needed to run the decoder alone on the whole sequence, uncached.

    Attributes:
        embeds: the leaf of relevance: merged input embeddings ``[B, T, D]``, detached, with the features beside them.
        mask: True at real positions, ``[B, T]``.
        kwargs: the decoder's further arguments (attention mask or masks, position ids, family extras).
        reaches: layer type -> how far it sees, for masks that arrive ready-made.
        features: where in the leaf features are that do not enter by the embeddings (None: there are none).
    """

    embeds: Tensor
    mask: Tensor
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    reaches: Reaches = field(default_factory=dict)
    features: SideFeatures | None = None

    @property
    def length(self) -> int:
        """Positions: those of the prompt, with cross-attention states in front."""
        return int(self.embeds.shape[1])

    @property
    def front(self) -> int:
        """Positions in front of the prompt's own."""
        return 0 if self.features is None else self.features.front

    @property
    def padding(self) -> Tensor:
        """Positions ``[B]`` on the left of the prompt that hold nothing; of a ready-made mask, that see nothing."""
        masks = self.kwargs.get("attention_mask")
        for mask in masks.values() if isinstance(masks, Mapping) else [masks]:
            if isinstance(mask, Tensor) and mask.ndim == 4:
                return ready_masks.padding_of(mask)
        return (~self.mask[:, self.front :]).long().cumprod(-1).sum(-1)

    def of_encoder(self, known: EncoderDecoder, inputs: Mapping[str, Any]) -> DecoderCall:
        """The same with what is known of the encoder's states: their kind, their time, and which of them are padding."""
        states = self.cross_attention
        if states is None:
            return self
        seen = known.heard(inputs, self.mask[:, : self.front])
        return replace(
            self,
            mask=torch.cat([seen, self.mask[:, self.front :]], dim=1),
            features=replace(states, kind=known.kind, seconds=known.seconds),
        )

    @property
    def cross_attention(self) -> CrossAttentionStates | None:
        """The states in front of the prompt's own positions, where there are any."""
        return self.features if isinstance(self.features, CrossAttentionStates) else None

    def modality(self, ids: Tensor) -> Tensor:
        """Modalities of all positions from those of the prompt's own."""
        return ids if self.cross_attention is None else self.cross_attention.modality(ids)

    def arguments(self, embeds: Tensor | None = None) -> dict[str, Any]:
        """What the decoder is called with, cache aside; ``embeds``: other values of the leaf."""
        embeds = self.embeds if embeds is None else embeds
        if self.features is None:
            return {"inputs_embeds": embeds, **self.kwargs}
        return self.features.arguments(embeds, self.kwargs)

    def appended(self, embeds: Tensor) -> DecoderCall:
        """The call for n more tokens per row, all of them text; ``embeds`` is ``[B, n, D]``.

        Raises:
            UnsupportedError: an argument of the decoder that cannot go on.
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
        """One row of the batch, padding included."""
        one = slice(index, index + 1)
        return replace(self, embeds=self.embeds[one], mask=self.mask[one], kwargs=DECODER.row(self.kwargs, index))

    def reordered(self, index: Tensor) -> DecoderCall:
        """The rows ``index`` [B'], in this order and with repetitions."""
        kwargs = DECODER.reorder(self.kwargs, index)
        return replace(self, embeds=self.embeds[index], mask=self.mask[index], kwargs=kwargs)

    def ending(self, count: int) -> DecoderCall:
        """The last ``count`` positions of the prompt alone, behind all that is in front of it."""
        embeds, mask = (torch.cat([x[:, : self.front], x[:, -count:]], dim=1) for x in (self.embeds, self.mask))
        return replace(self, embeds=embeds, mask=mask, kwargs=DECODER.tail(self.kwargs, count))

    def repeated(self, rows: int) -> dict[str, Any]:
        """The call's own arguments for so many rows, of values and tangents."""
        kwargs = DECODER.repeat(self.kwargs, rows)
        if self.features is not None:
            kwargs |= self.features.spread({k: self.kwargs[k] for k in self.features.kept}, rows)
        return kwargs

    def cloned(self) -> DecoderCall:
        """Plain copies of every tensor."""
        return self._each(lambda x: x.clone())

    def ordinary(self) -> DecoderCall:
        """The same with copies of what was made under inference_mode, which cannot enter a graph."""
        return self._each(lambda x: x.clone() if x.is_inference() else x)

    def _each(self, change: Callable[[Tensor], Tensor]) -> DecoderCall:
        def walk(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {k: walk(v) for k, v in value.items()}
            if type(value) in (list, tuple):
                return type(value)(map(walk, value))
            return change(value) if isinstance(value, Tensor) else value

        return replace(self, embeds=walk(self.embeds), mask=walk(self.mask), kwargs=walk(self.kwargs))


_PLACED: WeakKeyDictionary[nn.Module, set[frozenset[str]]] = WeakKeyDictionary()


def _check_placed(model: nn.Module, decoder: nn.Module, inputs: Mapping[str, Any], got: Mapping[str, Any]) -> None:
    """Once a model and kind of media: the decoder on merged embeddings alone gives what it gives with its media.

    Raises:
        UnsupportedError: it does not, so something of the media goes another way.
    """
    media = frozenset(k for k, v in inputs.items() if k not in _KEPT | _DROPPED and holds_tensors(v))
    if media in _PLACED.setdefault(decoder, set()):
        return
    seen: list[Tensor] = []
    handle = decoder.register_forward_hook(lambda *a: seen.append(a[-1][0]))
    try:
        with torch.no_grad(), fused_attention():
            model(**{k: v for k, v in inputs.items() if k != "past_key_values"}, use_cache=False)
            decoder(**{k: v for k, v in got.items() if k not in _DROPPED or k == "inputs_embeds"}, use_cache=False)
    finally:
        handle.remove()
    given = inputs.get("attention_mask")
    if isinstance(given, Tensor) and given.shape == seen[0].shape[:2]:  # nobody reads what is computed at padding
        seen = [x[given.bool().to(x.device)] for x in seen]
    whole, alone = seen
    slack = 1e-5 if whole.dtype in (torch.float32, torch.float64) else 2e-2
    if whole.shape != alone.shape or not torch.allclose(whole, alone, rtol=slack, atol=slack):
        raise UnsupportedError(
            f"{type(decoder).__name__} takes its media itself, and not by its embeddings alone: relevance would miss them",
            hint="only plain decoding (greedy) works on this family so far",
        )
    _PLACED[decoder].add(media)


def capture(
    model: nn.Module,
    decoder: nn.Module,
    inputs: Mapping[str, Any],
    reaches: Reaches,
    media: Media = no_media,
    prompt: PromptNames = DECODER_ONLY,
    words: Callable[[Tensor], Tensor] | None = None,
) -> DecoderCall:
    """Run ``model(**inputs)`` up to the call of ``decoder`` and keep what it was given. Towers run once, without grad.

    Args:
        media: tells positions of media by their ids.

    Raises:
        HookError: the decoder was never called.
    """
    names = list(inspect.signature(decoder.forward).parameters)
    got: dict[str, Any] = {}

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        got.update(zip(names, args, strict=False))
        got.update(kwargs)
        if (own := placed(decoder, got)) is not None:
            got["placed"] = own
            raise _Captured
        if got.get("inputs_embeds") is not None or not _media(got):
            raise _Captured

    def merged(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        got["merged"] = args[0] if args else kwargs["hidden_states"]
        raise _Captured

    handles = [
        decoder.register_forward_pre_hook(stop, with_kwargs=True),
        decoder.layers[0].register_forward_pre_hook(merged, with_kwargs=True),  # type: ignore[index, union-attr]
    ]

    def run(module: nn.Module, **given: Any) -> None:
        try:
            with torch.no_grad():
                module(**given, use_cache=False)
        except _Captured:
            pass

    want: Tensor | None = None
    try:
        run(model, **{k: v for k, v in inputs.items() if k != "past_key_values"})
        if "merged" in got:  # the decoder has placed the media itself: from here on it is called with what came of that
            want = got.pop("merged")
            got = {k: v for k, v in got.items() if k in _KEPT or not holds_tensors(v)} | {"inputs_embeds": want}
        elif "placed" in got:
            own = got.pop("placed")
            want, got = own.embeds, {**own.kwargs, "inputs_embeds": own.embeds}
        if want is not None:
            for handle in handles:
                handle.remove()
            _check_placed(model, decoder, inputs, got)
    finally:
        for handle in handles:
            handle.remove()
    if not got:
        raise HookError(
            f"{type(model).__name__} ran without calling its decoder {type(decoder).__name__}",
            hint="run `limelight models --check` on this checkpoint; its family may need a file in models/families",
        )
    embeds = got.get("inputs_embeds")
    if embeds is None:
        ids = got.get("input_ids")
        if ids is None:
            raise HookError(
                "the decoder was called with neither inputs_embeds nor input_ids", hint="report this family"
            )
        with torch.no_grad():
            embeds = (words or decoder.get_input_embeddings())(ids)  # type: ignore[operator]
    embeds = embeds.detach().clone()
    if embeds.shape[1] == 0:
        raise PromptError("the prompt is empty: zero positions", hint="pass at least one token")
    kwargs = {k: v for k, v in got.items() if k not in _DROPPED and v is not None}
    if "attention_mask" in kwargs:
        kwargs["attention_mask"] = ready_masks.additive(kwargs["attention_mask"], embeds.dtype)
    given = inputs.get(prompt.mask)
    mask = given.bool() if isinstance(given, Tensor) and given.ndim == 2 else None
    if mask is None or mask.shape != embeds.shape[:2]:
        mask = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
    mask = mask.to(embeds.device)
    if "attention_mask" in names and "attention_mask" not in kwargs:
        kwargs["attention_mask"] = mask.long()  # without a mask, positions may be mistaken for packed sequences
    if "position_ids" in names and "position_ids" not in kwargs and not bool(mask.all()):
        # as generate() counts: offsets live in rotated coordinates, so a padded row must not be shifted
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
    """Raises UnsupportedError for an argument with unknown axes, or with features that the leaf does not hold."""
    known = () if call.features is None else call.features.kept
    missed = [k for k, v in call.kwargs.items() if DECODER.is_features(k) and holds_tensors(v)]
    missed = [k for k in missed if k not in known] + list(DECODER.undeclared(call.kwargs, taken))
    if missed:
        raise UnsupportedError(
            f"{type(model).__name__} hands its decoder {', '.join(missed)} beside the input embeddings: nobody has declared "
            "the axes, or how the features in it are placed, and relevance at the embeddings alone might miss them",
            hint="only plain decoding (greedy) works on this family so far; "
            "limelight/models/inputs/decoder_inputs.py is where arguments are declared",
        )
    DECODER.each(call.kwargs, lambda axes, value, _: value)  # as many axes as declared
