"""Zoo models that compute everything in float64, norms too (transformers' own norms compute in float32 whatever they get)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from limelight.models.adapter import Adapter
from limelight.models.runtime.capture import DecoderCall
from limelight.relevance.classify import classify_modules
from limelight.relevance.mode import Mode
from tests.tiny import fresh
from tests.zoo import ZOO
from tests.zoo.base import enliven


def widen(adapter: Adapter) -> Adapter:
    """Every norm and mixer of the text stack computes in the dtype of its input, in place."""
    for site in classify_modules(adapter.decoder):
        if site.kind == "norm":
            site.module.forward = _forward(site.module, site.spec)  # type: ignore[method-assign]
        if site.kind in ("gated_delta", "mamba2", "short_convolution"):
            site.module.forward = _mixing(site.spec)  # type: ignore[method-assign]
    return adapter


def _forward(module: nn.Module, spec: Any) -> Any:
    def forward(x: Tensor) -> Tensor:
        if spec.first:
            x = x * (module.weight + 1 if spec.plus_one else module.weight)
        x = x - x.mean(-1, keepdim=True) if spec.center else x
        x = x / (x.square().mean(-1, keepdim=True) + spec.eps).sqrt()
        if module._parameters.get("weight") is not None and not spec.first:
            x = x * (module.weight + 1 if spec.plus_one else module.weight)
        return x if module._parameters.get("bias") is None else x + module.bias

    return forward


def _mixing(spec: Any) -> Any:
    """transformers' own recurrences compute in float32 whatever they get."""

    def forward(hidden_states: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Tensor:
        mode = Mode(batch=hidden_states.shape[0], graph="true")
        out: Tensor = spec.compute(mode, hidden_states, None, attention_mask)[0]
        return out

    return forward


@lru_cache(maxsize=20)
def wide(name: str) -> Adapter:
    """A zoo model in float64, all of it. Shared: leave it as it is."""
    return widen(fresh(name, torch.float64))


@lru_cache(maxsize=1)
def latent() -> Adapter:
    """DeepSeek-V3's attention (MLA: values narrower than keys), all layers dense; prompts are ``kimi_k25``'s."""
    made = ZOO["kimi_k25"].build()
    made.config.text_config.first_k_dense_replace = made.config.text_config.num_hidden_layers
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = enliven(type(made)(made.config)).eval().double()
    with torch.no_grad():
        model.get_output_embeddings().weight[[5, 6]] *= 0.01
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    model.set_attn_implementation("eager")
    return widen(Adapter(model))


def prompt(name: str, adapter: Adapter, row: int | None = 0) -> tuple[dict[str, Tensor], DecoderCall, Tensor]:
    """Inputs (of one row, or the padded batch), the captured call, and where the media are ``[B, T]``."""
    tiny = ZOO[name]
    if row is None:
        assert tiny.batch is not None
        inputs = tiny.batch(adapter.model)
    else:
        inputs = tiny.inputs(adapter.model, row=row)
    with torch.no_grad():
        call = adapter.capture(inputs).cloned()
    return inputs, call, (call.modality(adapter.modality_ids(inputs)) > 0) & call.mask
