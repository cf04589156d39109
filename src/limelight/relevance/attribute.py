"""Attribution of each token to image regions, audio intervals and words. One backward pass per target."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from limelight.errors import NotFiniteError, PromptError, SettingError
from limelight.models.adapter import Adapter, wrap
from limelight.models.runtime.capture import DecoderCall
from limelight.models.runtime.fused import fused_attention
from limelight.models.spans import grown
from limelight.relevance.attachment import attached
from limelight.relevance.composites import ATTN_LRP, Composite, composite_of
from limelight.relevance.encoder import encoder_relevance
from limelight.relevance.positions import position_hook
from limelight.relevance.targets import answer_ids, check_differ, first_token
from limelight.types import MODALITIES, Prompt, Relevance, Span


def input_relevance(
    f: Tensor, embeds: Tensor, *, create_graph: bool = False, retain_graph: bool | None = None
) -> Tensor:
    """Compute ``R_i = sum_d x_id * df/dx_id`` for a scalar ``f`` (or a sum over rows): ``[B, T]`` in float32 or wider.

    Under a composite's rules the gradient is the LRP-modified one (method of AttnLRP, eq. 5-6: input x gradient).
    """
    (grad,) = torch.autograd.grad(f, embeds, create_graph=create_graph, retain_graph=retain_graph)
    wide = torch.promote_types(embeds.dtype, torch.float32)
    return (grad.to(wide) * embeds.to(wide)).sum(-1)


def attribute(
    model: Any,
    inputs: Any = None,
    target: int | str | None = None,
    *,
    against: int | str | None = None,
    messages: Any = None,
    media: Any = None,
    position: int = -1,
    row: int = 0,
    composite: Composite | str = ATTN_LRP,
    sinks: Sequence[int] = (),
    through_encoder: bool = False,
) -> Relevance:
    """Compute the relevance of every input position for one logit.

    Args:
        model: a transformers model or an :class:`Adapter`.
        inputs: keyword arguments of ``model.forward`` (a processor's output), with ``modality_ids`` [B, T] (0 text, 1 image,
            2 video, 3 audio) where they cannot be detected; a :class:`Prompt`; or messages, in the form of ``messages``.
        messages, media: as for :func:`limelight.generate`, instead of ``inputs``; needs an Adapter with a processor.
        target: the token id to explain, or an answer whose first token is explained (``"yes"``; a leading space is added if
            that is more likely); None: the most likely token.
        against: another token id or answer: the relevance is then of the difference ``logit(target) - logit(against)``.
            Evidence that supports both equally cancels out; what decides between them remains.
        position: the position whose prediction is explained, counted along the row including padding; negative values count
            from the last non-padding position (-1: the next token after the prompt, with left or right padding).
        row: row of the batch.
        composite: rules, or their name: ``attnlrp``, ``cp-lrp``, ``reslrp``, ``pa-lrp``, ... (all:
            :data:`limelight.relevance.composites.COMPOSITES`).
        sinks: positions to exclude from shares and plots (attention sinks, often ``(0,)``).
        through_encoder: propagate relevance through encoder and projector to pixels, audio features or samples, in
            ``Relevance.media_inputs`` (:mod:`limelight.relevance.encoder`); needs a batch of one row.

    Returns:
        Relevance with scores ``[T]`` (padding included, as zeros). A prompt without media is all text. Of an
        encoder-decoder, the states of its encoder stand in front of the prompt's positions, and relevance is that of these
        states; those of padding (Whisper's silence up to 30 s) count as zero.

    Raises:
        SettingError: target or position out of range, both answers start with the same token, an unknown composite, or not
            exactly one of inputs and messages.
        UnsupportedError: the model is in training mode.
        NotFiniteError: the logits are NaN or infinite.
        PromptError, HookError, UnknownKindError: see :class:`Adapter` and :func:`attached`.
    """
    adapter, composite = wrap(model), composite_of(composite)
    tensors, spans = tensors_of(adapter, inputs, messages, media)
    whole = adapter.capture(tensors)
    _check_alone(whole, through_encoder)
    call = _row(whole, row)
    place = _place(call, position)
    (found,) = relevance_of(
        adapter,
        call,
        tensors,
        [(place, first_token(adapter, call, place, target))],
        against=first_token(adapter, call, place, against),
        row=row,
        composite=composite,
        sinks=sinks,
        prompt_spans=spans,
        through_encoder=through_encoder,
    )
    return found


def tensors_of(
    adapter: Adapter, inputs: Any, messages: Any = None, media: Any = None
) -> tuple[Mapping[str, Any], tuple[Span, ...] | None]:
    """Return the model's inputs and the prompt's spans, from tensors, a Prompt, or messages with media.

    Raises:
        SettingError: both inputs and messages, or neither.
        PromptError, MediaError: see ``Adapter.prepare``.
    """
    if (inputs is None) == (messages is None):
        raise SettingError(
            "expected either inputs or messages" + ("" if inputs is None else ", got both"),
            hint="attribute(adapter, messages='What is this?', media='photo.jpg'), or a processor's output as inputs",
        )
    given = messages if inputs is None else inputs
    if not isinstance(given, Prompt):
        tensors = isinstance(given, Mapping) and "content" not in given
        if tensors and media is None:
            return given, None
        if tensors:
            raise SettingError(
                "media can be given with messages, not with tensors", hint="pass messages=, or leave media out"
            )
        given = adapter.prepare(given, media)
    elif media is not None:
        raise SettingError("a Prompt already contains its media", hint="leave media out")
    return given.tensors, given.spans or None


def attribute_generated(
    model: Any,
    inputs: Any,
    generated: Tensor | Sequence[int] | str,
    *,
    media: Any = None,
    row: int = 0,
    composite: Composite | str = ATTN_LRP,
    sinks: Sequence[int] = (),
    prompt_spans: tuple[Span, ...] | None = None,
    last_only: bool = False,
    against: int | None = None,
    through_encoder: bool = False,
) -> list[Relevance]:
    """Compute the relevance of every generated token: one forward of prompt + answer, one backward pass per token.

    Args:
        inputs: the prompt's tensors (not the answer's), a :class:`Prompt`, or messages with ``media``.
        generated: the ``n`` token ids after the prompt, or the answer as text (a leading space is added if that is more
            likely).
        last_only: only the last token.
        against: with ``last_only``, a token id whose logit is subtracted from the last token's.
        through_encoder: as for :func:`attribute`; one backward pass through the encoder per token, and ``n`` gradients
            ``[T, D]`` in memory.

    Returns:
        ``n`` relevances; the ``j``-th covers the positions before token ``j`` (later ones are zero).

    Raises:
        SettingError: no tokens, several rows of tokens, or an invalid token id.
        PromptError: the row is padded on the right. For the rest see :func:`attribute`.
    """
    adapter, composite = wrap(model), composite_of(composite)
    inputs, own = tensors_of(adapter, inputs, None, media)
    prompt_spans = own if prompt_spans is None else prompt_spans
    whole = adapter.capture(inputs)
    _check_alone(whole, through_encoder)
    call = _row(whole, row)
    if call.length and not bool(call.mask[0, -1:].all()):
        raise PromptError(
            f"row {row} is padded on the right, between prompt and answer",
            hint="pad prompts on the left (tokenizer.padding_side = 'left')",
        )
    if isinstance(generated, str):
        generated = answer_ids(adapter, call, call.length - 1, generated)
    ids = _answer(generated, adapter.traits.vocab).to(call.embeds.device)
    start = call.length
    with torch.no_grad():
        if ids.shape[1] > 1:
            embeds = torch.cat([adapter.embed(token.reshape(1, 1)) for token in ids[0, :-1]], dim=1)
            call = call.appended(embeds)
    targets = [(start - 1 + j, int(token)) for j, token in enumerate(ids[0])]
    if against is not None and not last_only:
        raise SettingError("against= explains the last token alone", hint="add last_only=True")
    targets = targets[-1:] if last_only else targets
    return relevance_of(
        adapter,
        call,
        inputs,
        targets,
        against=against,
        row=row,
        composite=composite,
        sinks=sinks,
        generated=ids[0, :-1],
        prompt_spans=prompt_spans,
        through_encoder=through_encoder,
    )


def relevance_of(
    adapter: Adapter,
    call: DecoderCall,
    inputs: Mapping[str, Any],
    targets: Sequence[tuple[int, int | None]],
    *,
    against: int | None = None,
    row: int = 0,
    composite: Composite | str = ATTN_LRP,
    sinks: Sequence[int] = (),
    generated: Tensor | None = None,
    prompt_spans: tuple[Span, ...] | None = None,
    through_encoder: bool = False,
) -> list[Relevance]:
    """Compute relevance for several (position, token) targets of a captured row: one forward, one backward pass each.

    ``against``: a token id whose logit is subtracted from every target's. ``through_encoder``: as for :func:`attribute`;
    ``inputs`` are then those of this row alone.
    """
    sinks = tuple(_integer(i, "a sink") for i in _positions(sinks))
    if any(not 0 <= i < call.length for i in sinks):
        raise SettingError(
            f"sinks {sinks} are not all within the {call.length} positions", hint="the usual sink is position 0"
        )
    targets = [(at, None if token is None else _token(token, adapter.traits.vocab)) for at, token in targets]
    against = None if against is None else _token(against, adapter.traits.vocab)
    template = frozenset(i + call.front for i in getattr(inputs, "template", ()))
    given, inputs = inputs, inputs if adapter.encoder is None else adapter.complete(inputs)
    known = inputs.get(adapter.names.ids) is not None
    count = 0 if generated is None else len(generated)
    words = adapter.words(inputs, row) if known else ("<?>",) * (call.length - call.front - count)
    if generated is not None:
        words = (*words, *adapter.tokens(generated))
    if (states := call.cross_attention) is not None:
        kind = states.kind or MODALITIES[int(adapter.modality_ids(inputs)[row].max())]
        own = adapter.spans(inputs, row) if prompt_spans is None else prompt_spans
        words, spans = states.words(words, kind), states.spans(call.length, adapter.parent_model.config, kind, own)
    elif prompt_spans is None:
        spans = adapter.spans(inputs, row, length=call.length)
    else:
        spans = grown(prompt_spans, call.length)
    out: list[Relevance] = []
    gradients: list[Tensor] = []
    with following_rules(adapter, composite, call) as leaves:
        hidden = adapter.hidden(leaves.call, leaves.embeds)
        for j, (position, target) in enumerate(targets):
            logits = adapter.logits(hidden[:, position : position + 1])[0, 0]
            if not bool(torch.isfinite(logits).all()):
                raise NotFiniteError("the logits contain NaN or infinity", hint="check weights and dtype; try float32")
            token = int(logits.argmax()) if target is None else target
            logit = logits[token]
            if against is not None:
                check_differ(token, against, adapter.tokens([token])[0])
                logit = logit - logits[against]
            scores, gradient = leaves.relevance_and_gradient(logit, retain_graph=j + 1 < len(targets))
            scores = scores[0]
            gradients += [gradient] if through_encoder else []
            if adapter.encoder is not None:  # states of padding are read like others, and are nobody's media
                scores = scores * call.mask[0]
            if not bool(torch.isfinite(scores).all()):
                raise NotFiniteError("the relevance contains NaN or infinity", hint="try float32 or bfloat16")
            out.append(
                Relevance(
                    scores=scores.detach().to("cpu", torch.promote_types(scores.dtype, torch.float32)),
                    tokens=words,
                    spans=spans,
                    target=token,
                    target_token=adapter.tokens([token])[0],
                    logit=float(logit.detach()),
                    position=position,
                    sinks=sinks,
                    against=against,
                    against_token="" if against is None else adapter.tokens([against])[0],
                    template=template,
                )
            )
    if not through_encoder:
        return out
    carried, times = encoder_relevance(adapter, given, call, gradients, composite_of(composite))
    return [replace(r, media_inputs=c, media_times=times) for r, c in zip(out, carried, strict=True)]


class Leaves:
    """What relevance is asked of: the merged embeddings and, of a composite with a part for them, rotary positions.

    Attributes:
        call: the captured call, whose tensors may enter a graph.
        embeds: its embeddings ``[B, T, D]``, a leaf.
    """

    def __init__(self, call: DecoderCall, positions: Tensor | None) -> None:
        self.call = call
        self.embeds = call.embeds.detach().requires_grad_(True)
        self.positions = positions

    def relevance(self, f: Tensor, *, retain_graph: bool = False) -> Tensor:
        """``[B, T]`` of a scalar, or of a sum over rows: input x gradient of every leaf."""
        return self.relevance_and_gradient(f, retain_graph=retain_graph)[0]

    def relevance_and_gradient(self, f: Tensor, *, retain_graph: bool = False) -> tuple[Tensor, Tensor]:
        """The same, and the gradient of ``f`` with respect to the embeddings ``[B, T, D]``."""
        wide = torch.promote_types(self.embeds.dtype, torch.float32)
        leaves = [self.embeds] if self.positions is None else [self.embeds, self.positions]
        grad, *turned = torch.autograd.grad(f, leaves, retain_graph=retain_graph)
        scores = (grad.to(wide) * self.embeds.to(wide)).sum(-1)
        return sum((t.to(wide) for t in turned), scores), grad  # the positions' leaf is ones


@contextmanager
def following_rules(adapter: Adapter, composite: Composite | str, call: DecoderCall) -> Iterator[Leaves]:
    """The rules of a composite on the model, for backward passes from logits of ``call`` computed inside the block.

    Raises:
        UnsupportedError: the composite has a part for rotary positions, and the decoder has none.
    """
    composite = composite_of(composite)
    with torch.inference_mode(False), torch.enable_grad(), adapter.frozen():
        call = call.ordinary()
        hook = position_hook(adapter, call, composite.attention) if composite.positional else None
        hooks = () if hook is None else (hook,)
        with attached(adapter, composite, *hooks), fused_attention():
            yield Leaves(call, None if hook is None else hook.positions)


def _check_alone(call: DecoderCall, through_encoder: bool) -> None:
    if through_encoder and len(call.embeds) > 1:
        raise SettingError("expected one row, whose encoder is explained, got a batch", hint="pass the rows one by one")


def _row(call: DecoderCall, row: Any) -> DecoderCall:
    """Select one row of a captured batch."""
    row, batch = _integer(row, "row"), int(call.embeds.shape[0])
    if not 0 <= row < batch:
        raise SettingError(f"row {row} is outside the batch of {batch}", hint="rows are counted from 0")
    return call.row(row)


def _place(call: DecoderCall, position: Any) -> int:
    """Convert a position of the prompt to a position of the call.

    Raises:
        SettingError: outside the prompt, or padding.
    """
    given, own = _integer(position, "position"), call.mask[0, call.front :]
    real = own.nonzero()[:, 0].tolist()
    end = real[-1] + 1 if real else len(own)
    at = given if given >= 0 else end + given
    if not 0 <= at < len(own):
        raise SettingError(f"position {given} is outside the {len(own)} positions", hint="use -1 for the last")
    if real and not bool(own[at]):
        raise SettingError(
            f"position {given} is padding",
            hint=f"the row's real positions are {real[0]} to {real[-1]}; -1 is the last of them",
        )
    return call.front + at


def _answer(generated: Any, vocabulary: int) -> Tensor:
    """Validate the token ids of one answer and return them as ``[1, n]``."""
    ids = torch.as_tensor(generated)
    ids = ids[0] if ids.ndim == 2 and len(ids) == 1 else ids
    if ids.ndim != 1:
        raise SettingError(
            f"expected the ids [n] of one answer, got shape {list(ids.shape)}", hint="call once per row, with row="
        )
    if not len(ids):
        raise SettingError("no generated tokens to attribute", hint="pass at least one token id")
    return torch.tensor([[_token(i, vocabulary) for i in ids.tolist()]])


def _token(value: Any, vocabulary: int) -> int:
    token = _integer(value, "a token id")
    if not 0 <= token < vocabulary:
        raise SettingError(f"token id {token} is outside the vocabulary of {vocabulary}", hint="check the id")
    return token


def _integer(value: Any, name: str) -> int:
    """Convert to an integer, also from a one-element tensor or array; booleans and fractions are refused."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return int(operator.index(value))
    except TypeError:
        raise SettingError(f"expected an integer for {name}, got {value!r}", hint="such as 0") from None


def _positions(sinks: Any) -> Sequence[Any]:
    if isinstance(sinks, (str, bytes)) or not hasattr(sinks, "__iter__"):
        raise SettingError(f"expected positions for sinks, got {sinks!r}", hint="sinks=(0,)")
    return list(sinks)
