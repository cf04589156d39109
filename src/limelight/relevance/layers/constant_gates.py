"""Gated products without the bilinear rule: ``act(gate) * up`` with the gate as a constant, so that all goes to ``up``.

What CP-LRP does to attention weights (Ali et al., 2022), done to the gates of MLPs as well: the signal-take-all rule of
Arras et al., "Explaining Recurrent Neural Network Predictions in Sentiment Analysis" (2017). Conserving: ``R_up = R_out``.
Of blocks ``[act(g) u, act(g) u']``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from limelight.errors import UnsupportedError
from limelight.relevance.kind import Attach, ModuleMatch, Rule, hooked, replaced
from limelight.relevance.layers import gated_mlp
from limelight.relevance.layers.gated_mlp import GatedSpec
from limelight.relevance.layers.gaussian_topk import kept
from limelight.relevance.mode import Mode, blocks

BILINEAR = (
    "experts",
    "gated_attention",
    "gated_delta",
    "mamba2",
    "short_convolution",
)  # other kinds with such products


def run(match: ModuleMatch, mode: Mode) -> Iterator[Attach]:
    """The rule of gated MLPs. Raises UnsupportedError where the gated factor is no input of the MLP."""
    spec: GatedSpec = match.spec
    if spec.factor:
        raise UnsupportedError(
            f"{match.name} multiplies its gate by an input of the layer, which has no rule without the bilinear one",
            hint="use cp-lrp",
        )
    if mode.backward and not spec.written:
        yield hooked(lambda: spec.act.register_forward_hook(lambda _, __, out: out.detach()))
    else:
        yield replaced(match.module, _constant(match.module.forward, spec, mode))


def _constant(original: Callable[..., Tensor], spec: GatedSpec, mode: Mode) -> Callable[[Tensor], Tensor]:
    activation = type(spec.act).forward

    def value_of(z: Tensor) -> Tensor:
        return activation(spec.act, z if spec.deviations is None else kept(z, spec.deviations))  # type: ignore[no-any-return]

    def forward(x: Tensor) -> Tensor:
        if mode.plain(x):
            return original(x)
        z, up = spec.halves(x)
        gate = mode.const(value_of(blocks(z, mode.channels)[0]))
        out: Tensor = spec.down((blocks(up, mode.channels) * gate).reshape(up.shape))
        return out

    return forward


def _refused(name: str) -> Rule:
    def rule(match: ModuleMatch, mode: Mode) -> tuple[Attach, ...]:
        raise UnsupportedError(
            f"{match.name} ({name}) holds products that have no rule without the bilinear one", hint="use cp-lrp"
        )

    return rule


def rules_from(table: Mapping[str, Rule]) -> dict[str, Rule]:
    """A table of rules with the gates of MLPs as constants; kinds with other products of two signals are refused."""
    return {**table, gated_mlp.KIND.name: run, **{name: _refused(name) for name in BILINEAR if name in table}}
