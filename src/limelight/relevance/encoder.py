"""Propagating relevance through encoder and projector, from the decoder's inputs to pixels, audio features or samples.

The decoder's relevance ends at the merged embeddings ``x`` or, of an encoder-decoder, at the encoder's states, whose gradient
under the rules is ``g``. The encoder E maps the inputs p to x, so that ``sum_media <x, g>`` is propagated by the same rules to
``R(p) = p * dE(p)/dp . g``. Convolutions are linear; class tokens and position tables are constants that absorb relevance, like
biases. Functions that the encoder calls itself: :mod:`limelight.relevance.encoder_functions`.

Conservation: under CP-LRP the sum over the inputs equals the sum over the media's positions, except for biases, learned tokens
and position tables; under AttnLRP the encoder's softmaxes absorb relevance too, like the decoder's.
Relevance of a pixel is relative to the processor's zero, which is the mean colour; that of a log-mel bin to the zero of the
feature extractor's scale, which is not silence.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from limelight.errors import HookError, SettingError, UnknownKindError, UnsupportedError
from limelight.models.adapter import Adapter
from limelight.models.detect import media_tensors
from limelight.models.runtime.attention import AttentionCall, attention, attention_hooks, configs_of, switched
from limelight.models.runtime.capture import DecoderCall
from limelight.relevance import rules
from limelight.relevance.classify import is_rotary, match_modules, refuse_unknown
from limelight.relevance.composites import Composite
from limelight.relevance.encoder_functions import INSTEAD, FunctionRules
from limelight.relevance.input_time import time_axis, without_padding
from limelight.relevance.kind import ModuleMatch, nothing
from limelight.relevance.layers import residual
from limelight.relevance.layers.attention import AttentionRule
from limelight.relevance.mode import Mode
from limelight.relevance.probing import agrees, elementwise, is_leaf

_PASSING = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Embedding),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.PixelShuffle, nn.PixelUnshuffle),
    nn.GLU,  # calls a function with a rule
)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)  # linear where they apply running statistics
_PROJECTIONS = ({"q_proj", "k_proj", "v_proj"}, {"qkv"}, {"query", "key", "value"}, {"in_proj"})


class _Stop(Exception):  # noqa: N818 - control flow across transformers' frames
    pass


def encoder_relevance(
    adapter: Adapter, inputs: Mapping[str, Any], call: DecoderCall, gradients: Sequence[Tensor], composite: Composite
) -> tuple[list[dict[str, Tensor]], dict[str, tuple[int, float]]]:
    """Return the relevance of every entry of the media tensors in ``inputs``, by name, in their shapes, for each of several
    gradients; and of sounds the time axis and the seconds between its entries. Padding of an encoder-decoder's sound counts
    as zero. One forward pass of the encoder, and one backward pass per gradient.

    Args:
        call: the captured call of ``inputs``, one row; tokens of an answer may follow.
        gradients: of the explained logits with respect to ``call.embeds``, under the composite's rules.

    Raises:
        SettingError: no media.
        UnsupportedError, UnknownKindError: there is no rule for a module of the encoder, which is named; or media enter the
            decoder other than through its embeddings.
    """
    names = [k for k in media_tensors(inputs) if isinstance(inputs[k], Tensor) and k != "inputs_embeds"]
    if not names:
        raise SettingError(
            "expected media whose encoder could be explained, got none", hint="pass a picture or a sound"
        )
    states = call.cross_attention
    if call.features is not None and states is None:
        raise UnsupportedError(
            f"{type(adapter.decoder).__name__} receives media beside its embeddings, past the end of the encoder",
            hint=INSTEAD,
        )
    want = call.embeds if states is None else call.embeds[:, : states.count, : states.width]
    with torch.inference_mode(False), torch.enable_grad(), adapter.frozen():
        leaves = {k: inputs[k].detach().clone().requires_grad_(True) for k in names}
        with encoder_rules(adapter, composite):
            found = _received(adapter, {**inputs, **leaves}, "inputs_embeds" if states is None else states.name)
        found = found if states is None else found.reshape(want.shape[0], -1, found.shape[-1])
        count = found.shape[1]
        if not agrees(found, want[:, :count].to(found), 1e-4, 3e-2):
            raise HookError("the encoder gave other embeddings under the rules", hint=f"report this model; {INSTEAD}")
        if not found.requires_grad:
            raise UnsupportedError("no gradient passes the encoder", hint=INSTEAD)
        carried = []
        for i, gradient in enumerate(gradients):
            part = gradient[:, :count, : found.shape[-1]].to(found)
            if adapter.encoder is not None:  # states of padding are nobody's media
                part = part * call.mask[:, : call.front, None].to(part)
            grads = torch.autograd.grad(
                (found * part).sum(), list(leaves.values()), allow_unused=True, retain_graph=i + 1 < len(gradients)
            )
            carried.append(dict(zip(leaves, grads, strict=True)))
    lost = [k for k in leaves if any(grads[k] is None for grads in carried)]
    if len(lost) == len(leaves):
        raise UnsupportedError(f"no relevance reaches {', '.join(lost)}", hint=INSTEAD)
    out = [
        {
            k: (x * grads[k]).detach().to("cpu", torch.promote_types(x.dtype, torch.float32))
            for k, x in leaves.items()
            if k not in lost
        }
        for grads in carried
    ]
    times = {k: time for k, x in leaves.items() if k not in lost and (time := time_axis(adapter, k, x)) is not None}
    if adapter.encoder is not None:
        out = [{k: without_padding(x, times.get(k), inputs) for k, x in one.items()} for one in out]
    return out, times


def _received(adapter: Adapter, inputs: Mapping[str, Any], argument: str) -> Tensor:
    """Run the model up to the call of its decoder and return an argument of that call, with its graph: the merged
    embeddings, or the states that cross-attention reads."""
    got: list[Tensor] = []
    names = list(inspect.signature(adapter.decoder.forward).parameters)

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        value = {**dict(zip(names, args, strict=False)), **kwargs}.get(argument)
        if isinstance(value, Tensor):
            got.append(value)
        raise _Stop

    handle = adapter.decoder.register_forward_pre_hook(stop, with_kwargs=True)
    given = {k: v for k, v in adapter.complete(inputs).items() if k not in ("modality_ids", "past_key_values")}
    try:
        adapter.parent_model(**given, use_cache=False)
    except _Stop:
        pass
    finally:
        handle.remove()
    if not got:
        raise UnsupportedError(
            f"{type(adapter.decoder).__name__} places its media itself, behind the end of the encoder", hint=INSTEAD
        )
    return got[0]


@contextmanager
def encoder_rules(adapter: Adapter, composite: Composite) -> Iterator[None]:
    """Attach a composite's rules to all modules before the decoder inside the block."""
    parts = dict(encoder_modules(adapter))
    attending = {name: m for name, m in parts.items() if _attends(m)}
    mode = Mode(graph="surrogate", backward=True, divisors=composite.attention)
    with ExitStack() as stack:
        stack.enter_context(adapter.exclusive())
        matches = encoder_matches(parts, attending) if composite.rules else []
        for match in matches:
            for attach in composite.rules.get(match.kind, nothing)(match, mode):
                stack.callback(attach())
        gated = {_label(m.name, m.module) for m in matches if m.kind in composite.rules and m.kind == "gated_mlp"}
        watch = FunctionRules(composite.attention, gated)
        if not composite.plain:
            for name, module in parts.items():
                _tell(stack, watch, name, module, attending)
        if configs := configs_of(vars(m) for m in parts.values()):  # an encoder that is one linear has none
            stack.enter_context(switched(adapter.parent_model, configs))
        stack.enter_context(attention_hooks(_EncoderAttention(composite, watch)))
        if composite.rules:
            stack.enter_context(watch)
        yield
        if missing := sorted(watch.attended - watch.ruled):
            raise HookError(
                f"expected the attention of the encoder to go by the rule, that of {', '.join(missing)} did not",
                hint=f"it does not go through transformers' attention interface; {INSTEAD}",
            )


class _EncoderAttention(AttentionRule):
    """The attention rule of encoders: tells the watch when it runs, and follows a bias of the scores that depends on the
    queries (relative positions), which is one of the two products that they pass."""

    def __init__(self, composite: Composite, watch: FunctionRules) -> None:
        super().__init__(composite.attention)
        self.watch, self.biased = watch, False

    def attend(self, call: AttentionCall) -> tuple[Tensor, Tensor | None] | None:
        self.watch.routed = True
        if self.biased or call.mask is None or not call.mask.requires_grad:
            return None
        bias = rules.divided(call.mask, self.divisors[2]) if self.divisors[0] else call.mask.detach()
        self.biased = True
        try:
            return attention(
                call.module,
                call.query,
                call.key,
                call.value,
                bias,
                call.scaling,
                softcap=call.softcap,
                s_aux=call.sinks,
            )
        finally:
            self.biased = False

    def qkv(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.watch.ruled.update(self.watch.attending)
        return super().qkv(layer, q, k, v)

    def attended(self, layer: int, out: Tensor) -> None:
        self.watch.routed = False


def _tell(
    stack: ExitStack, watch: FunctionRules, name: str, module: nn.Module, attending: Mapping[str, nn.Module]
) -> None:
    label, attends = _label(name, module), name in attending

    def enter(*_: Any) -> None:
        watch.inside.append(label)
        if attends:
            watch.attending.append(label)
            watch.attended.add(label)

    def leave(*_: Any) -> None:
        watch.inside.pop()
        if attends:
            watch.attending.pop()

    stack.callback(module.register_forward_pre_hook(enter).remove)
    stack.callback(module.register_forward_hook(leave, always_call=True).remove)


def _label(name: str, module: nn.Module) -> str:
    return f"{name} ({type(module).__name__})"


def encoder_modules(adapter: Adapter) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module of the model outside of its decoder, head and text embeddings that does not contain them."""
    behind = [adapter.decoder, adapter.head, adapter.word_table]
    known = {id(inner) for m in behind if m is not None for inner in m.modules()}
    for name, module in adapter.parent_model.named_modules():
        if id(module) not in known and not any(id(inner) in known for inner in module.modules()):
            yield name, module


def _attends(module: nn.Module) -> bool:
    children = {name for name, _ in module.named_children()}
    return any(names <= children for names in _PROJECTIONS)


def encoder_matches(parts: Mapping[str, nn.Module], attending: Mapping[str, nn.Module]) -> list[ModuleMatch]:
    """Match the modules of an encoder with layer kinds.

    Raises:
        UnknownKindError: a module is of none; it is named.
    """
    own: list[ModuleMatch] = []

    def refuse(name: str, module: nn.Module) -> None:
        weights = list(module.parameters(recurse=False))
        loose = [p for p in weights if p.ndim > 1]
        constants = bool(loose) and all(
            p.ndim in (3, 4) and p.shape[0] == 1 for p in loose
        )  # learned tokens, positions [1, N, D] or [1, H, W, D]
        if is_leaf(module) and all(p.ndim == 0 for p in module.parameters()) and elementwise(module) == "activation":
            own.append(ModuleMatch("activation", name, module))  # a compression with a learned number
        elif name not in attending and not constants and (loose or (weights and is_leaf(module))):
            refuse_unknown(name, module)  # without weights it only calls functions, which are watched

    try:
        matches = match_modules(((n, m) for n, m in parts.items() if not _passes(m)), refuse)
    except UnknownKindError as error:
        raise UnknownKindError(f"in the encoder, {error.message}", hint=INSTEAD) from error
    layers = {name.rpartition(".")[0] for name in attending}
    return [*matches, *own, *(ModuleMatch(residual.KIND.name, name, parts[name]) for name in layers if name in parts)]


def _passes(module: nn.Module) -> bool:
    if isinstance(module, _BATCH_NORMS):
        return not module.training and module.running_mean is not None
    return isinstance(module, _PASSING) or is_rotary(module)
