"""Self-test of a checkpoint: what was detected, and whether all features of the library work with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from limelight import compat
from limelight.errors import LimelightError
from limelight.models.adapter import Adapter
from limelight.models.detect import DecoderTraits
from limelight.models.runtime.capture import DecoderCall
from limelight.types import Prompt

QUESTION = "What is this?"
# Errors that a model new to the library may raise: reported as the check's result instead of a traceback.
_FAILURES = (LimelightError, RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError)


@dataclass(frozen=True)
class Check:
    """One result; ``ok`` is None where there is nothing to check, or a strategy does not support the model by design."""

    name: str
    ok: bool | None
    detail: str


def detected(adapter: Adapter) -> dict[str, Any]:
    """What was detected from config, processor and modules."""
    traits, config, family = adapter.traits, adapter.model.config, adapter.family
    parameters = list(adapter.model.parameters())
    path = next((n for n, m in adapter.model.named_modules() if m is adapter.decoder), "")
    paper = family.paper
    return {
        "model": type(adapter.model).__name__,
        "model type": str(getattr(config, "model_type", "")),
        "family": family.name,
        "processor": type(adapter.processor).__name__,
        "inputs": ", ".join(sorted(adapter.modalities)) or "text",
        "placeholder tokens": adapter.placeholder_names(),
        "decoder": f"{path} ({type(adapter.decoder).__name__})",
        "layers, heads, kv heads, head size": f"{traits.layers}, {_sizes(traits)}",
        "hidden size, vocabulary": f"{traits.hidden}, {traits.vocab}",
        "parameters": f"{sum(p.numel() for p in parameters) / 1e6:.1f} M, {_dtypes(parameters)}",
        "head scale, soft-cap": f"{adapter.head_scalars.scale:g}, {adapter.head_scalars.cap or 'none'}",
        "lime settings": f"lr {paper.lr:g}, kl_weight {paper.kl_weight:g}, tau {paper.tau:g}, steps {paper.steps}",
    }


def _sizes(traits: DecoderTraits) -> str:
    """Return the sizes of all layers, or of each kind of layer with their number."""
    counts: dict[tuple[int, int, int], int] = {}
    for size in traits.each.values():
        counts[size] = counts.get(size, 0) + 1
    if len(counts) < 2:
        return f"{traits.heads}, {traits.kv_heads}, {traits.head_dim}"
    return "; ".join(f"{', '.join(map(str, size))} in {n} layers" for size, n in counts.items())


def _entrances(call: DecoderCall) -> str:
    """Describe where features enter other than by the embeddings."""
    if call.features is None:
        return ""
    if call.front:
        return f"; {call.front} states outside the prompt ({call.features.name})"
    return f"; features enter by {call.features.name}, too"


def _dtypes(parameters: list[Any]) -> str:
    return ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in parameters}))


def probe_media(modality: str) -> Any:
    """Return an image of a disc, one second of a tone, or four frames of a moving disc."""
    if modality == "audio":
        return (np.sin(2 * np.pi * 440 * np.arange(16000) / 16000).astype(np.float32) * 0.3, 16000)
    frames = []
    for shift in range(4 if modality == "video" else 1):
        image = Image.new("RGB", (224, 224), (90, 120, 160))
        ImageDraw.Draw(image).ellipse((40 + 20 * shift, 60, 120 + 20 * shift, 140), fill=(220, 160, 40))
        frames.append(image)
    return frames if modality == "video" else frames[0]


def self_test(adapter: Adapter, *, strategies: bool = True) -> Iterator[Check]:
    """Run the checks and yield each result. The last check verifies that the model is unmodified."""
    prompts: dict[str, Prompt] = {}
    for modality in sorted(adapter.modalities) or ["text"]:
        media: dict[str, list[Any]] = {} if modality == "text" else {modality: [probe_media(modality)]}
        check, prompt = _attempt(f"prompt with {modality}", partial(_prompt, adapter, media))
        yield check
        if prompt is not None:
            prompts[modality] = prompt
    if not prompts:
        return
    prompt = next(iter(prompts.values()))
    inputs = adapter.complete(prompt.tensors)
    check, own = _attempt("the model runs", partial(_own, adapter, prompt, inputs))
    yield check
    if own is None:
        return
    before = snapshot(adapter)  # after the model's first run, in which transformers may install its own hooks
    yield _attempt("hooks bind", partial(_hooks, adapter, inputs))[0]
    yield _attempt("logits are the model's own", partial(_logits, adapter, inputs, own[0]))[0]
    yield _attempt("relevance", partial(_relevance, adapter, prompt))[0]
    yield _attempt("greedy decoding is the model's own", partial(_greedy, adapter, prompt, own[1]))[0]
    if strategies:
        yield from _strategies(adapter, prompt)
    yield _attempt("model untouched", partial(_untouched, adapter, before, inputs, own[0]))[0]


def _attempt(name: str, run: Callable[[], Any]) -> tuple[Check, Any]:
    """Run a check: a function that returns (ok, detail) or (ok, detail, value)."""
    try:
        ok, detail, *value = run()
    except _FAILURES as error:
        return Check(name, False, _brief(error)), None
    return Check(name, ok, detail), value[0] if value else None


def _brief(error: Exception) -> str:
    text = str(error).strip() or "no message"
    return text if isinstance(error, LimelightError) else f"{type(error).__name__}: {text.splitlines()[0]}"


def _prompt(adapter: Adapter, media: dict[str, list[Any]]) -> tuple[bool, str, Prompt]:
    prompt = adapter.prepare(QUESTION, media)
    at = 0
    for span in prompt.spans:
        if span.start != at or span.stop <= at:
            return False, f"the spans do not partition the prompt: {span} after position {at}", prompt
        at = span.stop
    if at != len(prompt.tokens):
        return False, f"the spans end at {at}, the prompt at {len(prompt.tokens)}", prompt
    media_spans = [s for s in prompt.spans if s.modality != "text"]
    listed = "; ".join(f"{s.modality} {s.start}–{s.stop} {_layout(s.grid, s.seconds)}" for s in media_spans[:6])
    more = f"; {len(media_spans) - 6} more" if len(media_spans) > 6 else ""
    return True, f"{at} positions" + (f", {listed}{more}" if listed else ""), prompt


def _layout(grid: tuple[int, ...] | None, seconds: float | None) -> str:
    if grid is not None:
        return "(" + " x ".join(map(str, grid)) + ")"
    return f"({seconds * 1000:.0f} ms each)" if seconds else "(layout unknown)"


def _hooks(adapter: Adapter, inputs: Mapping[str, Any]) -> tuple[bool, str]:
    from limelight.relevance.attachment import attached, matches_of
    from limelight.relevance.composites import ATTN_LRP

    call = adapter.capture(inputs)
    with torch.no_grad(), attached(adapter, ATTN_LRP):
        adapter.hidden(call)
    kinds: dict[str, int] = {}
    for site in matches_of(adapter):
        name = str(getattr(site.kind, "value", site.kind))
        kinds[name] = kinds.get(name, 0) + 1
    rules = ", ".join(f"{n} {k}" for k, n in sorted(kinds.items()))
    return True, f"{len(adapter.attention_layers)} attention layers; {rules}{_entrances(call)}"


def _own(
    adapter: Adapter, prompt: Prompt, inputs: Mapping[str, Any], tokens: int = 4
) -> tuple[bool, str, tuple[Tensor, list[int]]]:
    """Run the unmodified model: logits, and a few greedy tokens."""
    logits = model_logits(adapter, inputs)
    settings = {"max_new_tokens": tokens, "do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    ids = adapter.model.generate(**prompt.tensors, **settings)[0].tolist()[-tokens:]
    finite = bool(torch.isfinite(logits).all())
    return finite, "finite logits" if finite else "logits contain NaN or infinity", (logits, ids)


def _logits(adapter: Adapter, inputs: Mapping[str, Any], own: Tensor) -> tuple[bool, str]:
    with torch.no_grad():
        ours = adapter.logits(adapter.hidden(adapter.capture(inputs))[:, -1:])[:, 0].float()
    gap, size = float((ours - own).abs().max()), float(own.abs().max())
    if gap == 0.0:
        return True, "bit-equal"
    wide = own.dtype == torch.float64 or next(adapter.model.parameters()).dtype in (torch.float32, torch.float64)
    allowed = (1e-4 if wide else 3e-2) * max(size, 1.0)
    same = int(ours.argmax()) == int(own.argmax())
    return (
        gap <= allowed and same,
        f"largest difference {gap:.2g} of {size:.3g} (order of summation; up to {allowed:.2g} is accepted)",
    )


def model_logits(adapter: Adapter, inputs: Mapping[str, Any]) -> Tensor:
    """Return the unmodified model's logits ``[B, V]`` of the last position, in float32."""
    with torch.no_grad():
        out = adapter.model(**{k: v for k, v in inputs.items() if k != "modality_ids"}, use_cache=False)
    logits: Tensor = out.logits[:, -1].float()
    return logits


def _relevance(adapter: Adapter, prompt: Prompt) -> tuple[bool, str]:
    from limelight.relevance.attribute import attribute

    found = attribute(adapter, prompt.tensors)
    finite = bool(torch.isfinite(found.scores).all())
    media_share = 1.0 - found.share("text")
    shares = ", ".join(f"{v:.0%} {m}" for m, v in found.shares().items())
    return (
        finite and (media_share > 0 or not adapter.modalities),
        f"of {found.target_token!r} (logit {found.logit:.3g}): sum {found.total():.3g}; {shares}",
    )


def _greedy(adapter: Adapter, prompt: Prompt, own: list[int]) -> tuple[bool, str]:
    from limelight.decoding.generate import generate

    ours = list(generate(adapter, None, prompt, relevance=False, max_new_tokens=len(own)).token_ids)
    return own[-len(ours) :] == ours, f"{len(ours)} tokens: {adapter.tokenizer.decode(ours)!r}"


def _strategies(adapter: Adapter, prompt: Prompt, tokens: int = 2) -> Iterator[Check]:
    """Run every registered strategy with its defaults for two tokens."""
    from limelight.decoding.generate import generate
    from limelight.decoding.registry import strategies
    from limelight.errors import SettingError, UnsupportedError

    for name in strategies():
        began = time.perf_counter()
        try:
            answer = generate(adapter, None, prompt, strategy=name, max_new_tokens=tokens)
        except (UnsupportedError, SettingError) as error:
            yield Check(f"strategy {name}", None, f"not supported by this model: {error.message}")
            continue
        except _FAILURES as error:
            yield Check(f"strategy {name}", False, _brief(error))
            continue
        each = (time.perf_counter() - began) / max(len(answer.token_ids), 1)
        yield Check(f"strategy {name}", True, f"{each:.2f} s per token, including relevance")


def snapshot(adapter: Adapter) -> dict[str, Any]:
    """Record the state that must not change: parameter versions, hooks, instance-level forwards, attention implementations."""
    modules = dict(adapter.model.named_modules())
    return {
        "parameters": {n: (p.data_ptr(), compat.version_of(p)) for n, p in adapter.model.named_parameters()},
        "hooks": {n: compat.count_hooks(m) for n, m in modules.items()},
        "forwards": {n: id(m.__dict__["forward"]) for n, m in modules.items() if "forward" in m.__dict__},
        "attention": {n: compat.attention_implementation(m.config) for n, m in modules.items() if hasattr(m, "config")},
        "gradients": [n for n, p in adapter.model.named_parameters() if p.grad is not None],
        "training": [n for n, m in modules.items() if m.training],
    }  # fmt: skip


def _untouched(adapter: Adapter, before: Mapping[str, Any], inputs: Mapping[str, Any], own: Tensor) -> tuple[bool, str]:
    changed = [what for what, value in snapshot(adapter).items() if value != before[what]]
    if not torch.equal(model_logits(adapter, inputs), own):
        changed.append("logits")
    return (
        not changed,
        f"changed: {', '.join(changed)}" if changed else "parameters, hooks, attention and logits as before",
    )
