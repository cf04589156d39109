"""Propagating relevance through encoder and projector, from the media's embeddings to pixels or audio features.

The decoder's relevance ends at the merged embeddings ``x``, whose gradient under the rules is ``g``. The encoder E maps the
inputs p to x, so that ``sum_media <x, g>`` is propagated by the same rules to ``R(p) = p * dE(p)/dp . g``. Convolutions are
linear; class tokens and position tables are constants that absorb relevance, like biases.

Conservation: under CP-LRP the sum over the inputs equals the sum over the media's positions, except for biases, learned tokens
and position tables; under AttnLRP the encoder's softmaxes absorb relevance too, like the decoder's.
Relevance of a pixel is relative to the processor's zero, which is the mean colour.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from limelight.errors import HookError, SettingError, UnknownKindError, UnsupportedError
from limelight.models.adapter import Adapter
from limelight.models.detect import media_tensors
from limelight.models.runtime.attention import attention_hooks, configs_of, switched
from limelight.models.runtime.capture import DecoderCall
from limelight.relevance.classify import match_modules, refuse_unknown
from limelight.relevance.composites import Composite
from limelight.relevance.kind import ModuleMatch, nothing
from limelight.relevance.layers import residual
from limelight.relevance.layers.attention import AttentionRule
from limelight.relevance.mode import Mode

_INSTEAD = "leave the encoder out: attribute() without through_encoder ends at the embeddings"
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PROJECTIONS = ({"q_proj", "k_proj", "v_proj"}, {"qkv"}, {"query", "key", "value"}, {"in_proj"})
_CURVED = {
    *(
        functional.gelu,
        functional.silu,
        functional.relu,
        functional.softmax,
        functional.layer_norm,
        functional.group_norm,
    ),
    *(
        functional.normalize,
        functional.sigmoid,
        functional.tanh,
        functional.softplus,
        functional.leaky_relu,
        functional.elu,
    ),
    *(torch.relu, torch.tanh, torch.sigmoid, torch.softmax, torch.exp, torch.rsqrt, torch.erf),
    *(torch.Tensor.relu, torch.Tensor.tanh, torch.Tensor.sigmoid, torch.Tensor.softmax, torch.Tensor.exp),
}
_PRODUCTS = {torch.mul, torch.Tensor.mul, torch.Tensor.__mul__, torch.matmul, torch.Tensor.matmul, torch.bmm}


class _Stop(Exception):  # noqa: N818 - control flow across transformers' frames
    pass


class _Watch(TorchFunctionMode):
    """Raises for nonlinear functions outside of modules with a rule, except inside attention, which has its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inside: list[str] = []
        self.attending = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.attending and torch.is_grad_enabled():
            live = [x for x in args if isinstance(x, Tensor) and x.requires_grad]
            if (func in _CURVED and live) or (func in _PRODUCTS and len(live) > 1):
                where = self.inside[-1] if self.inside else "the model itself"
                raise UnsupportedError(
                    f"{where} computes {getattr(func, '__name__', func)} as a function, for which there is no rule",
                    hint=_INSTEAD,
                )
        return func(*args, **(kwargs or {}))


def encoder_relevance(
    adapter: Adapter, inputs: Mapping[str, Any], call: DecoderCall, gradient: Tensor, composite: Composite
) -> dict[str, Tensor]:
    """Return the relevance of every entry of the media tensors in ``inputs``, by name, in their shapes.

    Args:
        call: the captured call of ``inputs``, one row.
        gradient: of the explained logit with respect to ``call.embeds``, under the composite's rules.

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
    if call.features is not None:
        raise UnsupportedError(
            f"{type(adapter.decoder).__name__} receives media beside its embeddings, past the end of the encoder",
            hint=_INSTEAD,
        )
    with torch.inference_mode(False), torch.enable_grad(), adapter.frozen():
        leaves = {k: inputs[k].detach().clone().requires_grad_(True) for k in names}
        with encoder_rules(adapter, composite):
            embeds = _merged(adapter, {**inputs, **leaves})
        slack = 1e-5 if embeds.dtype in (torch.float32, torch.float64) else 2e-2
        if embeds.shape != call.embeds.shape or not torch.allclose(
            embeds, call.embeds.to(embeds), rtol=slack, atol=slack
        ):
            raise HookError("the encoder gave other embeddings under the rules", hint=f"report this model; {_INSTEAD}")
        if not embeds.requires_grad:
            raise UnsupportedError("no gradient passes the encoder", hint=_INSTEAD)
        grads = torch.autograd.grad((embeds * gradient.to(embeds)).sum(), list(leaves.values()), allow_unused=True)
    lost = [k for k, g in zip(leaves, grads, strict=True) if g is None]
    if len(lost) == len(leaves):
        raise UnsupportedError(f"no relevance reaches {', '.join(lost)}", hint=_INSTEAD)
    return {
        k: (x * g).detach().to("cpu", torch.promote_types(x.dtype, torch.float32))
        for (k, x), g in zip(leaves.items(), grads, strict=True)
        if g is not None
    }


def _merged(adapter: Adapter, inputs: Mapping[str, Any]) -> Tensor:
    """Run the model up to the call of its decoder and return the merged embeddings with their graph."""
    got: list[Tensor] = []

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        embeds = kwargs.get("inputs_embeds")
        if isinstance(embeds, Tensor):
            got.append(embeds)
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
            f"{type(adapter.decoder).__name__} places its media itself, behind the end of the encoder", hint=_INSTEAD
        )
    return got[0]


@contextmanager
def encoder_rules(adapter: Adapter, composite: Composite) -> Iterator[None]:
    """Attach a composite's rules to all modules before the decoder inside the block."""
    parts = dict(encoder_modules(adapter))
    attending = {name: m for name, m in parts.items() if _attends(m)}
    mode = Mode(graph="surrogate", backward=True, divisors=composite.attention)
    watch, rule = _Watch(), _Counting(composite)
    with ExitStack() as stack:
        stack.enter_context(adapter.exclusive())
        matches = encoder_matches(parts, attending) if composite.rules else []
        for match in matches:
            for attach in composite.rules.get(match.kind, nothing)(match, mode):
                stack.callback(attach())
        if composite.rules:
            for name, module in parts.items():
                _tell(stack, watch, name, module, attending)
        stack.enter_context(switched(adapter.parent_model, configs_of(vars(m) for m in parts.values())))
        stack.enter_context(attention_hooks(rule))
        if composite.rules:
            stack.enter_context(watch)
        yield
        if rule.calls < len(attending):
            raise HookError(
                f"expected {len(attending)} attention modules of the encoder to go by the rule, {rule.calls} did: "
                f"{', '.join(attending)}",
                hint=f"this attention does not go through transformers' attention interface; {_INSTEAD}",
            )


class _Counting(AttentionRule):
    """The attention rule, counting its calls."""

    def __init__(self, composite: Composite) -> None:
        super().__init__(composite.attention)
        self.calls = 0

    def qkv(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.calls += 1
        return super().qkv(layer, q, k, v)


def _tell(stack: ExitStack, watch: _Watch, name: str, module: nn.Module, attending: Mapping[str, nn.Module]) -> None:
    attends = int(name in attending)

    def enter(*_: Any) -> None:
        watch.inside.append(f"{name} ({type(module).__name__})")
        watch.attending += attends

    def leave(*_: Any) -> None:
        watch.inside.pop()
        watch.attending -= attends

    stack.callback(module.register_forward_pre_hook(enter).remove)
    stack.callback(module.register_forward_hook(leave, always_call=True).remove)


def encoder_modules(adapter: Adapter) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module of the model outside of its decoder, head and text embeddings that does not contain them."""
    behind = [adapter.decoder, adapter.head, adapter.model.get_input_embeddings()]
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
    linear = (*_CONVOLUTIONS, nn.Embedding)

    def refuse(name: str, module: nn.Module) -> None:
        loose = [p for p in module.parameters(recurse=False) if p.ndim > 1]
        constants = bool(loose) and all(
            p.ndim == 3 and p.shape[0] == 1 for p in loose
        )  # learned tokens, positions [1, N, D]
        if name not in attending and not constants:
            refuse_unknown(name, module)

    try:
        matches = match_modules(((n, m) for n, m in parts.items() if not isinstance(m, linear)), refuse)
    except UnknownKindError as error:
        raise UnknownKindError(f"in the encoder, {error.message}", hint=_INSTEAD) from error
    layers = {name.rpartition(".")[0] for name in attending}
    return [*matches, *(ModuleMatch(residual.KIND.name, name, parts[name]) for name in layers if name in parts)]
