"""Rescaling of several residual streams before the first and after the last layer (AltUp of Gemma 3n).

    in        stream i enters as ``P_i x * rms(x) / rms(P_i x)``; the quotient is a constant, like 1/std of a norm
    out       stream i leaves as ``U_i h_i * rms(h_0) / rms(U_i h_i)``, likewise; their mean is the final norm's input

The rescaling is inside the decoder's own forward, without a module. It is handled by hooks on the modules directly after
it, the first layer and the final norm: they keep the value, and set the rule's gradient or, in forward mode, its
tangents. At the first run the value is checked against the formula.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn

from limelight.errors import HookError, UnknownKindError
from limelight.relevance import rules
from limelight.relevance.kind import Attach, LayerKind, ModuleMatch
from limelight.relevance.mode import Mode, block_rows, blocks
from limelight.relevance.probing import HINT, is_linear, relative_error, tolerance

LEAST = 1e-5  # minimum mean square in the quotient


@dataclass(frozen=True)
class StreamsSpec:
    """The projections into and out of the streams (all but stream 0), and the modules after the rescaling.

    ``owner`` is a weak reference to the decoder: specs are cached per decoder and must not keep it alive.
    """

    owner: ReferenceType[nn.Module]
    into: tuple[nn.Module, ...]
    out: tuple[nn.Module, ...]
    first: nn.Module
    last: nn.Module
    norm: nn.Module

    @property
    def decoder(self) -> nn.Module:
        decoder = self.owner()
        if decoder is None:
            raise HookError(
                "the model of these rules has been freed", hint="keep a reference to the model while rules are in use"
            )
        return decoder


def recognise(name: str, decoder: Any) -> Iterator[ModuleMatch]:
    """Match a decoder with two equally long lists of square linears beside its layers."""
    lists = [c for c in decoder.children() if isinstance(c, nn.ModuleList) and len(c) and all(map(_square, c))]
    layers, norm = decoder.layers, getattr(decoder, "norm", None)
    if len(lists) != 2 or len(lists[0]) != len(lists[1]) or not isinstance(norm, nn.Module):
        return
    if isinstance(layers, nn.ModuleList):
        spec = StreamsSpec(ref(decoder), tuple(lists[0]), tuple(lists[1]), layers[0], layers[-1], norm)
        yield ModuleMatch("streams", "layers", layers, spec)


def _square(module: Any) -> bool:
    return is_linear(module) and module.in_features == module.out_features


class _Hooks:
    """Hooks for the rescaling. ``sent``, ``left``: outputs of the projections; ``first``: stream 0 after the last layer."""

    def __init__(self, spec: StreamsSpec, mode: Mode) -> None:
        self.spec, self.mode = spec, mode
        self.checked: set[str] = set()
        self._forget()

    def _forget(self) -> None:
        self.sent: dict[int, Tensor] = {}
        self.left: dict[int, Tensor] = {}
        self.first: Tensor | None = None
        self.waiting: set[str] = set()  # set only during the decoder's run, so a norm called alone is ignored

    def attach(self) -> Callable[[], None]:
        spec = self.spec
        handles = [
            spec.decoder.register_forward_pre_hook(self.start),
            spec.decoder.register_forward_hook(self.stop),
            spec.first.register_forward_pre_hook(self.enter, with_kwargs=True),
            spec.last.register_forward_hook(self.leave),
            spec.norm.register_forward_pre_hook(self.merge),
        ]
        for name, modules in (("sent", spec.into), ("left", spec.out)):
            handles += [m.register_forward_hook(self._keeping(name, i)) for i, m in enumerate(modules)]

        def detach() -> None:
            for handle in handles:
                handle.remove()
            self._forget()

        return detach

    def start(self, *_: Any) -> None:
        self._forget()
        self.waiting = {"first layer", "final norm"}

    def stop(self, *_: Any) -> None:
        missed = sorted(self.waiting)
        self._forget()
        if missed:
            raise UnknownKindError(
                f"the decoder has several streams but did not call its {' and '.join(missed)}", hint=HINT
            )

    def enter(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if "first layer" not in self.waiting:
            return None
        self.waiting.remove("first layer")
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        count = 1 + len(self.spec.into)
        if hidden.ndim != 4 or hidden.shape[0] != count:
            raise UnknownKindError(
                f"expected {count} streams at the first layer, got shape {tuple(hidden.shape)}", hint=HINT
            )
        parts = _all(self.sent, len(self.spec.into))
        if self.mode.plain(hidden):
            return None
        held = [hidden[0]]
        for part, came in zip(parts, hidden[1:], strict=True):
            held.append(self._held(_rescaled(self.mode, part.to(came.device), hidden[0]), came, f"stream {len(held)}"))
        hidden = torch.stack(held)
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    def leave(self, _: nn.Module, __: Any, output: Any) -> None:
        self.first = (output[0] if isinstance(output, tuple) else output)[0]

    def merge(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if "final norm" not in self.waiting:
            return None
        self.waiting.remove("final norm")
        mean: Tensor = args[0]
        parts = _all(self.left, len(self.spec.out))
        if self.first is None:
            raise UnknownKindError("the decoder ran its final norm before its last layer", hint=HINT)
        if self.mode.plain(mean):
            return None
        first = self.first.to(mean.device)
        total = blocks(first, self.mode.channels).to(torch.promote_types(mean.dtype, torch.float32))
        for part in parts:
            total = total + _rescaled(self.mode, part.to(mean.device), first)
        return (self._held(total / (1 + len(parts)), mean, "the mean of the streams"), *args[1:])

    def _keeping(self, name: str, index: int) -> Callable[..., None]:
        def keep(_: nn.Module, __: Any, output: Tensor) -> None:
            getattr(self, name)[index] = output

        return keep

    def _held(self, ruled: Tensor, came: Tensor, what: str) -> Tensor:
        """Return ``ruled [1 + C, B, T, D]`` as rows, with block 0's value taken from ``came``; they are compared once."""
        value = came[: block_rows(came, self.mode.channels)].detach()
        if what not in self.checked:
            error = relative_error(ruled[0], value)
            if not error <= tolerance(came.dtype, 1e-5, 5e-2):
                raise UnknownKindError(
                    f"{what} is not rescaled to the norm of stream 0: relative error {error:.2g}", hint=HINT
                )
            self.checked.add(what)
        own = ruled[0].to(came.dtype)
        own = value if self.mode.graph == "none" else rules.gradient_of(own, value)
        return torch.cat([own[None], ruled[1:].to(came.dtype)]).reshape(came.shape)


def _all(parts: dict[int, Tensor], count: int) -> list[Tensor]:
    """Return the projections of all streams, in order.

    Raises:
        UnknownKindError: the decoder has not computed all of them.
    """
    if len(parts) != count:
        raise UnknownKindError(f"the decoder has {count} stream projections but called {len(parts)}", hint=HINT)
    return [parts[i] for i in range(count)]


def _rescaled(mode: Mode, part: Tensor, first: Tensor) -> Tensor:
    """Rescale ``part [rows, T, D]`` to the norm of ``first`` -> ``[1 + C, B, T, D]``, wide, with block 0's quotient."""
    wide = torch.promote_types(part.dtype, torch.float32)
    p, h = (blocks(x, mode.channels).to(wide) for x in (part, first))
    size = h[0].pow(2).mean(-1, keepdim=True).clamp(min=torch.finfo(wide).tiny).sqrt()
    return p * mode.const(size / p[0].pow(2).mean(-1, keepdim=True).clamp(min=LEAST).sqrt())


def run(match: ModuleMatch, mode: Mode) -> Iterator[Attach]:
    yield _Hooks(match.spec, mode).attach


KIND = LayerKind("streams", recognise, run, of_decoder=True)
