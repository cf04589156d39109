"""What a config and a processor can tell: the decoder, its heads, the head's scalars, and which token is what.

Nothing here looks at class names. What cannot be told this way goes into a file of ``families``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limelight.errors import HookError, NotMultimodalError, PromptError
from limelight.types import MODALITIES, Modality

_ID_NAMES: dict[Modality, tuple[str, ...]] = {
    "image": ("image_token_id", "image_token_index", "image_id", "im_patch_token_id"),
    "audio": ("audio_token_id", "audio_token_index"),
    "video": ("video_token_id", "video_token_index"),
}


@dataclass(frozen=True)
class DecoderTraits:
    """Sizes of the text stack."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int


def is_attention(module: nn.Module) -> bool:
    """Attention as transformers writes it: knows its layer and owns projections."""
    if getattr(module, "layer_idx", None) is None:
        return False
    children = {name for name, _ in module.named_children()}
    return any(
        name in children for name in ("q_proj", "qkv_proj", "k_proj", "q_b_proj", "query_key_value", "kv_b_proj")
    )


def find_decoder(model: nn.Module) -> nn.Module:
    """The module that owns the text stack's ``layers``: get_decoder(), then down.

    Raises:
        HookError: there is no such module.
    """
    start = model
    getter = getattr(model, "get_decoder", None)
    if callable(getter):
        found = getter()
        if isinstance(found, nn.Module):
            start = found
    for module in [start, *_breadth_first(start), *_breadth_first(model)]:
        layers = getattr(module, "layers", None)
        if isinstance(layers, nn.ModuleList) and len(layers) and any(is_attention(m) for m in layers.modules()):
            if module is not start and _is_tower(model, module):
                continue
            return module
    raise HookError(
        f"{type(model).__name__} has no decoder with a ModuleList `layers` whose attention knows its layer_idx",
        hint="pass a transformers generation model (…ForConditionalGeneration), not a base model or a wrapper",
    )


def _breadth_first(module: nn.Module) -> Iterator[nn.Module]:
    level = list(module.children())
    while level:
        yield from level
        level = [child for m in level for child in m.children()]


def _is_tower(model: nn.Module, module: nn.Module) -> bool:
    name = next((n for n, m in model.named_modules() if m is module), "")
    return any(part in name for part in ("vision", "visual", "audio", "speech", "tower", "qformer", "encoder"))


def attention_modules(decoder: nn.Module) -> dict[int, nn.Module]:
    """layer_idx -> self-attention module, of the modules inside ``decoder.layers``."""
    found: dict[int, nn.Module] = {}
    layers = decoder.layers
    for module in layers.modules() if isinstance(layers, nn.ModuleList) else ():
        if is_attention(module):
            found.setdefault(int(module.layer_idx), module)  # type: ignore[arg-type]
    return found


def decoder_traits(model: nn.Module, decoder: nn.Module) -> DecoderTraits:
    config: Any = getattr(decoder, "config", None) or model.config
    config = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    heads = int(config.num_attention_heads)
    kv_heads = getattr(config, "num_key_value_heads", None)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return DecoderTraits(
        layers=len(attention_modules(decoder)),
        heads=heads,
        kv_heads=int(kv_heads or heads),
        head_dim=int(head_dim),
        hidden=int(config.hidden_size),
        vocab=int(config.vocab_size),
    )


@dataclass(frozen=True)
class HeadScalars:
    """What happens to the logits after the output embedding: ``cap * tanh(scale * l / cap)``.

    ``rule`` (of relevance) says how a gradient passes the cap: ``(z, value) -> value``.
    """

    scale: float = 1.0
    cap: float | None = None
    rule: Callable[[Tensor, Tensor], Tensor] | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.cap is not None:
            value = torch.tanh(logits / self.cap) * self.cap
            logits = self.rule(logits, value) if self.rule is not None and logits.requires_grad else value
        return logits


def head_scalars(decoder: nn.Module) -> HeadScalars:
    config: Any = decoder.config
    scale = 1.0
    if getattr(config, "logit_scale", None) is not None:
        scale = float(config.logit_scale)
    elif getattr(config, "logits_scaling", None) is not None:
        scale = 1.0 / float(config.logits_scaling)
    cap = getattr(config, "final_logit_softcapping", None)
    return HeadScalars(scale, None if cap is None else float(cap))


def mask_windows(decoder: nn.Module) -> dict[str, int | None]:
    """Key of a ready-made attention mask -> its sliding window."""
    config: Any = decoder.config
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    alone = window if window and not types and getattr(config, "use_sliding_window", True) else None
    return {"": alone, "full_attention": None, "sliding_attention": int(window) if window else None}


def placeholder_ids(model: nn.Module, processor: Any = None) -> dict[int, Modality]:
    """Token id -> modality, from the config (sub-configs included), then the processor.

    Raises:
        NotMultimodalError: neither names a placeholder.
    """
    found: dict[int, Modality] = {}
    configs = [model.config, getattr(model.config, "thinker_config", None)]
    for source in [*configs, processor]:
        if source is None:
            continue
        for modality, names in _ID_NAMES.items():
            for name in names:
                value = getattr(source, name, None)
                if isinstance(value, int) and value >= 0:
                    found.setdefault(value, modality)
    for config in [c for c in configs if c is not None]:
        for key, modality in (("vision_config", "image"), ("audio_config", "audio")):
            sub = getattr(config, key, None)
            value = getattr(sub, f"{modality}_token_id", None)
            if isinstance(value, int) and value >= 0:
                found.setdefault(value, modality)  # type: ignore[arg-type]
    if not found:
        raise NotMultimodalError(
            f"{type(model).__name__} names no image, audio or video token in its config or processor",
            hint="limelight needs a multimodal model; for an unusual one pass modality_ids= (0 text, 1 image, 2 video, 3 audio)",
        )
    return found


def modality_ids(model: nn.Module, inputs: Mapping[str, Any], processor: Any = None) -> Tensor:
    """int64 ``[B, T]``, index into ``MODALITIES``: where each position comes from.

    Order of evidence: a mask from the caller (``modality_ids``), the processor's ``mm_token_type_ids``, token ids.
    """
    given = inputs.get("modality_ids")
    if isinstance(given, Tensor):
        return given.long()
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor):
        raise PromptError(
            "cannot tell which positions are perceptual without input_ids",
            hint="pass input_ids, or modality_ids with 0 text, 1 image, 2 video, 3 audio",
        )
    types = inputs.get("mm_token_type_ids")
    if isinstance(types, Tensor) and types.shape == ids.shape and bool((types > 0).any()):
        return types.long()
    out = torch.zeros_like(ids)
    for token, modality in placeholder_ids(model, processor).items():
        out[ids == token] = MODALITIES.index(modality)
    return out
