"""What the tests of the peers share: a strategy run through generate(), and its logits token by token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from limelight.decoding.loop import GroundedOutput, custom_generate
from limelight.decoding.strategy import Strategy
from limelight.errors import SettingError, UnsupportedError
from limelight.models.adapter import Adapter
from tests.slow_twins import stack
from tests.tiny import llava, llava_inputs
from tests.zoo import ZOO

TOKENS = 3
CLOSE: dict[str, Any] = {"atol": 2e-5, "rtol": 2e-5}  # float64 models whose norms compute in float32


@lru_cache(maxsize=12)
def double(name: str) -> Adapter:
    """A zoo model in float64, on the attention its class chooses. Shared: leave it as it is."""
    return Adapter(ZOO[name].build().double())


@lru_cache(maxsize=2)
def deep(layers: int = 4) -> Adapter:
    """A LLaVA of more layers, in float64 throughout (eager attention is not: it turns padded rows into NaN)."""
    model = llava(num_hidden_layers=layers)
    model.set_attn_implementation("sdpa")
    return Adapter(model)


def inputs_of(name: str, kind: str = "single") -> dict[str, Tensor]:
    """``single``, ``other`` (the second prompt alone) or ``batch`` (both, left-padded)."""
    row, model = ZOO[name], double(name).model
    if kind == "batch":
        assert row.batch is not None
        return row.batch(model)
    return row.inputs(model, row=int(kind == "other"))


def run(
    adapter: Adapter, inputs: Mapping[str, Any], strategy: Strategy, *, n: int = TOKENS, bind: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> GroundedOutput:  # fmt: skip
    """``n`` tokens by a strategy; ``logits`` are those of its session."""
    bound = {"tensors": inputs, **(bind or {})}
    settings = {"max_new_tokens": n, "do_sample": False, "disable_compile": True, **kwargs}
    out: GroundedOutput = adapter.model.generate(
        **inputs, custom_generate=custom_generate(strategy, processor=adapter.processor, **bound),
        return_dict_in_generate=True, output_logits=True, **settings,
    )  # fmt: skip
    return out


def emitted(out: GroundedOutput, inputs: Mapping[str, Any]) -> Tensor:
    """The new token ids ``[B, n]``."""
    return out.sequences[:, inputs["input_ids"].shape[1] :]


def plain_tokens(adapter: Adapter, inputs: Mapping[str, Any], n: int = TOKENS) -> Tensor:
    """transformers' own greedy answer."""
    out: Tensor = adapter.model.generate(**inputs, max_new_tokens=n, do_sample=False, disable_compile=True)
    return out[:, inputs["input_ids"].shape[1] :]


def check_against_twin(out: GroundedOutput, twin: list[Tensor], rows: int) -> None:
    """Logits of every step equal the twin's, -inf included."""
    assert out.logits is not None
    assert len(out.logits) == len(twin)
    for got, want in zip(out.logits, twin, strict=True):
        assert got.shape == want.shape
        assert got.shape[0] == rows
        torch.testing.assert_close(got, want, **CLOSE)


def deep_inputs(kind: str = "single") -> dict[str, Tensor]:
    """Prompts for :func:`deep`: as :func:`inputs_of`."""
    model = deep().model
    rows = [llava_inputs(model, seed=1), llava_inputs(model, seed=2)]
    rows[1] = {k: v[:, 1:] if k in ("input_ids", "attention_mask") else v for k, v in rows[1].items()}
    if kind != "batch":
        return rows[int(kind == "other")]
    rows[1] = {
        k: torch.cat([torch.zeros_like(v[:, :1]), v], dim=1) if k in ("input_ids", "attention_mask") else v
        for k, v in rows[1].items()
    }
    return {k: torch.cat([r[k] for r in rows]) for k in rows[0]}


def media_places(adapter: Adapter, inputs: Mapping[str, Any]) -> Tensor:
    """bool ``[B, T]``: placeholder positions, by their ids."""
    ids = inputs["input_ids"]
    places = torch.zeros_like(ids, dtype=torch.bool)
    for token in adapter.placeholders:
        places |= ids == token
    return places


def written_out(adapter: Adapter, inputs: Mapping[str, Any], tokens: Tensor) -> tuple[Tensor, list[bool]]:
    """What the twins on :mod:`tests.slow_twins.grouped` take: merged embeddings of a prompt and all but the last of
    ``tokens`` [1, t], and which positions of the prompt are the picture's."""
    return stack.prompt(adapter.model, inputs, tokens[:, :-1]), media_places(adapter, inputs)[0].tolist()


def check_deep_twin(
    strategy: Strategy,
    twin: Callable[[Any, Tensor, list[bool]], list[Tensor]],
    *,
    kind: str = "single",
    n: int = TOKENS,
) -> GroundedOutput:
    """The logits of every token on :func:`deep` equal those of ``twin(model, embeddings, media)``, see :func:`written_out`."""
    adapter, inputs = deep(), deep_inputs(kind)
    out = run(adapter, inputs, strategy, n=n)
    embeds, media = written_out(adapter, inputs, emitted(out, inputs))
    check_against_twin(out, [logits[None] for logits in twin(adapter.model, embeds, media)], rows=1)
    return out


def intervened(out: GroundedOutput) -> list[bool]:
    """Which tokens of the first row were changed by the strategy."""
    assert out.steps is not None
    return [step.intervened for step in out.steps[0]]


def check_refusals(strategy: Strategy, beyond: Strategy | None = None, layer: int = 4) -> None:
    """A cross-attention model is refused, and the layer that ``beyond`` sets, which :func:`deep` does not have."""
    with pytest.raises(UnsupportedError, match="cross-attention"):
        run(double("mllama"), inputs_of("mllama"), strategy)
    if beyond is not None:
        with pytest.raises(SettingError, match=rf"layers \[{layer}\]"):
            run(deep(), deep_inputs(), beyond)


def check_alone_and_in_a_batch(name: str, strategy: Strategy, n: int = TOKENS) -> None:
    """Left padding, and neighbours, change nothing, at any token."""
    adapter = double(name)
    batch = run(adapter, inputs_of(name, "batch"), strategy, n=n)
    for row, kind in enumerate(("single", "other")):
        alone = run(adapter, inputs_of(name, kind), strategy, n=n)
        assert torch.equal(emitted(batch, inputs_of(name, "batch"))[row], emitted(alone, inputs_of(name, kind))[0])
        for of_batch, own in zip(batch.logits or (), alone.logits or (), strict=True):
            torch.testing.assert_close(of_batch[row], own[0], **CLOSE)


FAMILIES = ("llava", "internvl", "qwen2_5_vl", "qwen2_5_vl_video", "gemma3", "qwen2_audio")
