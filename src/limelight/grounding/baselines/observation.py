"""Logits, hidden states and attention of every answer token, from one forward over a prompt and its finished answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limelight.errors import SettingError, UnsupportedError
from limelight.models.adapter import Adapter
from limelight.models.runtime.attention import AttentionHook, attention_hooks
from limelight.models.runtime.capture import DecoderCall
from limelight.models.runtime.wrappers import unwrapped
from limelight.relevance.layers.norm import final_norm


@dataclass(frozen=True)
class Observation:
    """An answer of ``n`` tokens after a prompt of ``start`` positions; ``S = start + n`` positions in total.

    Attributes:
        tokens: int64 ``[n]``.
        logits: ``[n, V]``, float32 or wider, from which each token was chosen.
        hidden: ``[L + 1, S, D]``: the input of the first layer and the output of each of the ``L``, before the final norm.
        attention: ``[L, H, n, S]``: the weights of the positions that predicted each token; zero where a layer has none.
        media: bool ``[S]``.
        read: bool, whether hidden states exist at the media's positions (not the case with cross-attention).
        norm, head: the logit lens: ``head(norm(h))`` are the logits of a hidden state.
        without: ``[n, V]`` logits of the same tokens after the prompt without its media, or None.
    """

    tokens: Tensor
    logits: Tensor
    hidden: Tensor
    attention: Tensor
    media: Tensor
    read: bool
    norm: Callable[[Tensor], Tensor]
    head: Callable[[Tensor], Tensor]
    without: Tensor | None = None

    @property
    def start(self) -> int:
        return self.hidden.shape[1] - len(self.tokens)

    @property
    def predicting(self) -> slice:
        """The positions that predicted the tokens."""
        return slice(self.start - 1, self.start - 1 + len(self.tokens))

    @property
    def own(self) -> slice:
        """The tokens' own positions."""
        return slice(self.start, self.start + len(self.tokens))

    def lens(self, hidden: Tensor) -> Tensor:
        """Return logits ``[..., V]`` of hidden states ``[..., D]`` of any layer (nostalgebraist, 2020)."""
        return _wide(self.head(self.norm(hidden)))


class _Weights(AttentionHook):
    """Records the attention weights of the last positions by layer."""

    def __init__(self, modules: Mapping[int, nn.Module], rows: slice, front: int, length: int) -> None:
        self.only = frozenset(id(m) for m in modules.values())
        self.rows, self.front, self.length = rows, front, length
        self.kept: dict[int, Tensor] = {}

    def out(self, layer: int, out: Tensor, weights: Tensor) -> Tensor:
        part = weights[0, :, self.rows]  # [H, n, keys]
        wide = part.new_zeros(*part.shape[:2], self.length)
        if part.shape[-1] == self.front and self.front:
            wide[..., : self.front] = part
        else:
            wide[..., self.length - part.shape[-1] :] = part
        self.kept[layer] = self.kept.get(layer, 0) + wide
        return out


@contextmanager
def _hidden_states(layers: Sequence[nn.Module], into: list[Tensor]) -> Iterator[None]:
    def entering(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        into.append(args[0] if args else kwargs["hidden_states"])

    def leaving(_: nn.Module, __: Any, output: Any) -> None:
        into.append(output[0] if isinstance(output, (tuple, list)) else output)

    with ExitStack() as hooks:
        hooks.callback(layers[0].register_forward_pre_hook(entering, with_kwargs=True).remove)
        for layer in layers:
            hooks.callback(layer.register_forward_hook(leaving).remove)
        yield


def observe(
    adapter: Adapter,
    inputs: Mapping[str, Any],
    tokens: Sequence[int],
    *,
    call: DecoderCall | None = None,
    without: Mapping[str, Any] | None = None,
) -> Observation:
    """Run one forward of the unchanged model over one prompt and its answer.

    Args:
        inputs: the prompt's tensors, one row (:meth:`Adapter.prepare`).
        tokens: the answer's ids, from any decoder or engine.
        call: the captured prompt, where it is at hand.
        without: the tensors of the same prompt without its media, for :func:`pmi`; one more forward.

    Raises:
        SettingError: no tokens.
        UnsupportedError: the decoder has several residual streams, so there is no single hidden state.
    """
    if not len(tokens):
        raise SettingError("expected the tokens of an answer, got none", hint="pass at least one token id")
    with torch.inference_mode(False), torch.no_grad():
        call, ids = answered(adapter, inputs, tokens, call=call)
        count, length, front = len(tokens), call.length, call.front
        own = length - front
        weights = _Weights(adapter.attention_layers, slice(own - count - 1, own - 1), front, length)
        states: list[Tensor] = []
        layers = [unwrapped(layer) for layer in adapter.decoder.layers]
        with adapter.routed(), attention_hooks(weights), _hidden_states(layers, states):
            last = adapter.hidden(call)
        if any(s.ndim != 3 or s.shape[:2] != (1, own) for s in states):
            raise UnsupportedError(
                f"expected hidden states [1, {own}, width] from each layer, got {[tuple(s.shape) for s in states]}",
                hint="this family has several residual streams; use the relevance scores, which do not need hidden states",
            )
        hidden = torch.stack([nn.functional.pad(s[0].to(call.embeds.device), (0, 0, front, 0)) for s in states])
        logits = _wide(adapter.logits(last[:, length - count - 1 : length - 1]))[0]
        modality = call.modality(adapter.modality_ids(inputs))
        media = torch.zeros(length, dtype=torch.bool)
        media[: modality.shape[1]] = modality[0].cpu() > 0
        heads = next(iter(weights.kept.values())).shape[0]
        attention = torch.stack(
            [
                weights.kept.get(layer, hidden.new_zeros(heads, count, length))
                for layer in sorted(adapter.attention_layers)
            ]
        )
        bare = None if without is None else _without(adapter, without, tokens)
    no_grad = torch.no_grad()
    norm, head = no_grad(final_norm(adapter)), no_grad(adapter.logits)
    return Observation(ids[0].cpu(), logits, hidden, attention, media.to(hidden.device), not front, norm, head, bare)


def answered(
    adapter: Adapter, inputs: Mapping[str, Any], tokens: Sequence[int], *, call: DecoderCall | None = None
) -> tuple[DecoderCall, Tensor]:
    """The decoder's call over prompt and answer, and the answer's ids ``[1, n]`` on the model's device; ``call``: the
    prompt's, where it is at hand."""
    call = adapter.capture(inputs) if call is None else call
    ids = torch.tensor([list(tokens)], device=call.embeds.device)
    embeds = torch.cat([adapter.embed(ids[:, j : j + 1]) for j in range(ids.shape[1])], dim=1)
    return call.appended(embeds), ids


def _without(adapter: Adapter, inputs: Mapping[str, Any], tokens: Sequence[int]) -> Tensor:
    call, _ = answered(adapter, inputs, tokens)
    start = call.length - len(tokens) - 1
    return _wide(adapter.logits(adapter.hidden(call)[:, start:-1]))[0]


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
