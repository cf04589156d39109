"""Prefill capture: run the towers once, keep what the decoder was about to receive, and go on from there alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from limelight.errors import HookError, PromptError, UnsupportedError
from limelight.models.inputs import ready_masks
from limelight.models.inputs.cross_attention import Beside, find_beside
from limelight.models.inputs.deepstack import Doors, find_doors
from limelight.models.inputs.per_layer import PerPosition, find_per_position
from limelight.models.inputs.position_mask import FEATURES, PLACES, placed
from limelight.models.inputs.ready_masks import Reach
from limelight.models.runtime.fused import fused_attention

# Arguments of a decoder call that belong to one particular call and must not be replayed.
_DROPPED = frozenset(
    {
        "past_key_values", "use_cache", "cache_position", "input_ids", "inputs_embeds", "return_dict",
        "output_attentions", "output_hidden_states", "logits_to_keep", "labels", "return_shared_kv_states",
    }
)  # fmt: skip


_KEPT = frozenset({"attention_mask", "position_ids"})


def _tensors(value: Any) -> bool:
    """Holds tensors, in whatever wrapping."""
    if isinstance(value, Mapping):
        return any(map(_tensors, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_tensors, value))
    return isinstance(value, Tensor)


def _media(got: Mapping[str, Any]) -> bool:
    """Features or pixels reach the decoder beside token ids (states for cross-attention are not placed among them)."""
    return any(
        _tensors(v) for k, v in got.items() if k not in _KEPT | _DROPPED and "cross" not in k and "mask" not in k
    )


class _Captured(Exception):  # noqa: N818 - control flow across transformers' frames, never seen by a caller
    pass


@dataclass(frozen=True)
class DecoderCall:
    """Everything needed to run the decoder alone on the whole sequence, uncached.

    Attributes:
        embeds: merged input embeddings ``[B, T, D]``, detached; with further doors ``[B, T, (1 + n) * D]``.
        mask: True at real positions, ``[B, T]``.
        kwargs: the decoder's further arguments (attention mask or masks, position ids, family extras).
        windows: mask key -> how far its layers see, for masks that arrive ready-made.
        doors: where the features behind the embeddings' first D entries go (None: there are none).
        beside: where the first positions go that are none of the prompt's (None: all are).
    """

    embeds: Tensor
    mask: Tensor
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    windows: Mapping[str, Reach] = field(default_factory=dict)
    doors: Doors | PerPosition | None = None
    beside: Beside | None = None

    @property
    def length(self) -> int:
        """Positions: those of the prompt, with states beside it in front."""
        return int(self.embeds.shape[1])

    @property
    def front(self) -> int:
        """Positions in front of the prompt's own."""
        return 0 if self.beside is None else self.beside.count

    def modality(self, ids: Tensor) -> Tensor:
        """Modalities of all positions from those of the prompt's own."""
        return ids if self.beside is None else self.beside.modality(ids)

    def arguments(self, embeds: Tensor | None = None) -> dict[str, Any]:
        """What the decoder is called with, cache aside; ``embeds``: other values of the leaf."""
        embeds = self.embeds if embeds is None else embeds
        if self.beside is not None:
            states, words = embeds[:, : self.front], embeds[:, self.front :]
            return {"inputs_embeds": words, self.beside.name: states, **self.kwargs}
        if self.doors is None:
            return {"inputs_embeds": embeds, **self.kwargs}
        first, features = self.doors.opened(embeds, self.kwargs[self.doors.where])
        rest = {k: v for k, v in self.kwargs.items() if k != self.doors.where}
        return {"inputs_embeds": first, **rest, **features}

    def appended(self, embeds: Tensor) -> DecoderCall:
        """The call for n more tokens per row, all of them text; ``embeds`` is ``[B, n, D]``.

        Raises:
            UnsupportedError: an argument of the decoder that cannot go on.
        """
        embeds = (
            embeds if self.doors is None or embeds.shape[-1] == self.embeds.shape[-1] else self.doors.widened(embeds)
        )
        count = embeds.shape[1]
        kwargs = {name: self._grown(name, value, count) for name, value in self.kwargs.items()}
        return replace(
            self,
            embeds=torch.cat([self.embeds, embeds.detach()], dim=1),
            mask=torch.cat([self.mask, self.mask.new_ones(self.mask.shape[0], count)], dim=1),
            kwargs=kwargs,
        )

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

    def row(self, index: int) -> DecoderCall:
        """One row of the batch, padding included."""
        batch = self.embeds.shape[0]

        def cut(name: str, value: Any) -> Any:
            if isinstance(value, Mapping):
                return {k: cut(name, v) for k, v in value.items()}
            if not isinstance(value, Tensor) or batch == 1:
                return value
            axis = 1 if "position" in name and value.ndim == 3 else 0  # M-RoPE positions are [axes, B, T]
            if value.ndim <= axis or value.shape[axis] != batch:
                return value
            return value.narrow(axis, index, 1)

        return replace(
            self,
            embeds=self.embeds[index : index + 1],
            mask=self.mask[index : index + 1],
            kwargs={name: cut(name, value) for name, value in self.kwargs.items()},
        )

    @property
    def strange_doors(self) -> tuple[str, ...]:
        """Decoder arguments through which features enter past ``embeds`` (cross-attention, towers inside)."""

        def floats(value: Any) -> bool:
            if isinstance(value, Mapping):
                return any(floats(v) for v in value.values())
            if isinstance(value, (list, tuple)):
                return any(floats(v) for v in value)
            return isinstance(value, Tensor) and value.is_floating_point()

        known = "" if self.doors is None else self.doors.where
        odd = [n for n, v in self.kwargs.items() if "mask" not in n and "position" not in n and floats(v)]
        return tuple(n for n in odd if n != known)

    def _grown(self, name: str, value: Any, count: int) -> Any:
        length = self.length - self.front
        if self.beside is not None and name in self.beside.masks:  # a further word sees what the last one does
            return torch.cat([value, *[value[:, :, -1:]] * count], dim=2)
        if name == "attention_mask" and isinstance(value, Mapping):
            return {key: self._grown_mask(key, mask, count) for key, mask in value.items()}
        if not isinstance(value, Tensor):
            return value
        if name == "attention_mask" and value.ndim in (2, 4):
            return self._grown_mask("", value, count)
        if name == PLACES:
            return torch.cat([value, value.new_zeros(value.shape[0], count)], dim=1)
        if "position" in name and value.shape[-1] == length:
            for _ in range(count):
                value = torch.cat([value, following(value[..., -1:])], dim=-1)
            return value
        typed = value.dtype == torch.bool or name.endswith("token_type_ids")
        typed = typed or (self.doors is not None and name == self.doors.where)
        if value.ndim >= 2 and value.shape[1] == length and typed:  # what is generated is text
            return torch.cat([value, value.new_zeros(value.shape[0], count, *value.shape[2:])], dim=1)
        if value.ndim >= 1 and length in value.shape[:3]:
            raise UnsupportedError(
                f"do not know how to extend the decoder argument {name!r} {tuple(value.shape)} by one token",
                hint="add a family file in limelight/models/families that says how",
            )
        return value

    def _grown_mask(self, key: str, mask: Any, count: int) -> Any:
        if not isinstance(mask, Tensor):
            return mask
        if mask.ndim == 2:
            return torch.cat([mask, mask.new_ones(mask.shape[0], count)], dim=1)
        return ready_masks.grown(mask, ready_masks.reach_of(key, mask.shape[-1] + count, self.windows), count)


def following(last: Tensor) -> Tensor:
    """Position ids of a word behind those of the last position, ``[B, 1]`` or M-RoPE's ``[axes, B, 1]``."""
    if last.ndim == 3:  # [.., t, h, w]: words go on behind the largest of the three
        last = torch.cat([last[:-3], last[-3:].amax(dim=0, keepdim=True).expand_as(last[-3:])])
    return last + 1


_PLACED: WeakKeyDictionary[nn.Module, set[frozenset[str]]] = WeakKeyDictionary()


def _check_placed(model: nn.Module, decoder: nn.Module, inputs: Mapping[str, Any], got: Mapping[str, Any]) -> None:
    """Once a model and kind of media: the decoder on merged embeddings alone gives what it gives with its media.

    Raises:
        UnsupportedError: it does not, so something of the media goes another way.
    """
    media = frozenset(k for k, v in inputs.items() if k not in _KEPT | _DROPPED and _tensors(v))
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
    windows: Mapping[str, Reach],
    media_mask: Tensor | None = None,
) -> DecoderCall:
    """Run ``model(**inputs)`` up to the door of ``decoder`` and keep what it was given. Towers run once, without grad.

    Raises:
        HookError: the decoder was never called.
    """
    names = list(inspect.signature(decoder.forward).parameters)
    got: dict[str, Any] = {}

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        got.update(zip(names, args, strict=False))
        got.update(kwargs)
        if (embeds := placed(decoder, got)) is not None:
            got["placed"] = embeds
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
            got = {k: v for k, v in got.items() if k in _KEPT or not _tensors(v)} | {"inputs_embeds": want}
        elif "placed" in got:
            want = got.pop("placed")
            got = {k: v for k, v in got.items() if k not in ("input_ids", FEATURES)} | {"inputs_embeds": want}
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
            embeds = decoder.get_input_embeddings()(ids)  # type: ignore[operator]
    embeds = embeds.detach().clone()
    if embeds.shape[1] == 0:
        raise PromptError("the prompt is empty: zero positions", hint="pass at least one token")
    kwargs = {k: v for k, v in got.items() if k not in _DROPPED and v is not None}
    if "attention_mask" in kwargs:
        kwargs["attention_mask"] = ready_masks.additive(kwargs["attention_mask"], embeds.dtype)
    given = inputs.get("attention_mask")
    mask = given.bool() if isinstance(given, Tensor) and given.ndim == 2 else None
    if mask is None or mask.shape != embeds.shape[:2]:
        mask = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
    mask = mask.to(embeds.device)
    if "attention_mask" in names and "attention_mask" not in kwargs:
        kwargs["attention_mask"] = mask.long()  # without a mask, positions may be mistaken for packed sequences
    if "position_ids" in names and "position_ids" not in kwargs and not bool(mask.all()):
        # as generate() counts: offsets live in rotated coordinates, so a padded row must not be shifted
        kwargs["position_ids"] = (mask.long().cumsum(-1) - 1).clamp_min(0)
    reads = find_beside(embeds, kwargs)
    if reads is not None:
        beside, states, seen = reads
        rest = {k: v for k, v in kwargs.items() if k != beside.name}
        return DecoderCall(
            torch.cat([states.to(embeds), embeds], dim=1), torch.cat([seen, mask], dim=1), rest, windows, None, beside
        )
    found = find_doors(embeds, kwargs)
    each = None if found is not None else find_per_position(embeds, kwargs, media_mask)
    if each is not None:
        return DecoderCall(each[1], mask, {**kwargs, each[0].name: each[2]}, windows, each[0])
    if found is None:
        return DecoderCall(embeds, mask, kwargs, windows)
    doors, wide = found
    return DecoderCall(wide, mask, {k: v for k, v in kwargs.items() if k != doors.name}, windows, doors)
