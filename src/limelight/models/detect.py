"""Detection from config and processor: the decoder, its heads, the output head's scalars, and placeholder tokens.

Class names are never used. What cannot be detected this way is declared in a file of ``families``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from limelight import compat
from limelight.errors import HookError, NotMultimodalError, PromptError
from limelight.models.inputs.kinds import places
from limelight.models.runtime.attention import CROSS_ATTENTION as CROSS_ATTENTION
from limelight.models.runtime.attention import is_attention as is_attention
from limelight.models.runtime.attention import number, number_of
from limelight.models.runtime.offload import device_of
from limelight.models.runtime.wrappers import unwrapped
from limelight.types import MODALITIES, Modality

_ID_NAMES: dict[Modality, tuple[str, ...]] = {
    "image": ("image_token_id", "image_token_index", "image_id", "im_patch_token_id"),
    "audio": ("audio_token_id", "audio_token_index"),
    "video": ("video_token_id", "video_token_index"),
}


_SUB_CONFIGS: tuple[tuple[str, Modality], ...] = (("vision_config", "image"), ("audio_config", "audio"))


@dataclass(frozen=True)
class DecoderTraits:
    """Sizes of the text stack; heads and their size are those of the first layer where layers differ.

    ``each``: layer index -> (query heads, key/value heads, size of a value head).
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    each: Mapping[int, tuple[int, int, int]] = field(default_factory=dict)

    def group(self, layer: int) -> int:
        """Return the number of query heads per key/value head of one layer."""
        heads, kv_heads, _ = self.each.get(layer, (self.heads, self.kv_heads, 0))
        return heads // kv_heads


def find_decoder(model: nn.Module) -> nn.Module:
    """Return the module with the text decoder's ``layers``, searching from get_decoder() downwards.

    Raises:
        HookError: there is no such module.
    """
    start = model = unwrapped(model)
    getter = getattr(model, "get_decoder", None)
    if callable(getter):
        found = getter()
        if isinstance(found, nn.Module):
            start = unwrapped(found)
    for module in [start, *_breadth_first(start), *_breadth_first(model)]:
        layers = getattr(module, "layers", None)
        if isinstance(layers, nn.ModuleList) and len(layers) and any(is_attention(m) for m in layers.modules()):
            if module is not start and _is_tower(model, module):
                continue
            found = unwrapped(module)
            return found if isinstance(found, nn.Module) else module
    raise HookError(
        f"{type(model).__name__} has no decoder with a ModuleList `layers` whose attention has a layer_idx",
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
    """Number -> attention module, of the modules inside ``decoder.layers``.

    The number is the ``layer_idx``; cross-attention beside the self-attention of a layer gets ``L`` more, L layers.
    """
    found: dict[int, nn.Module] = {}
    layers = decoder.layers
    if not isinstance(layers, nn.ModuleList):
        return found
    beside = {m for n, m in layers.named_modules() if n.endswith(CROSS_ATTENTION)}
    known = [m for m in layers.modules() if is_attention(m)]
    for module in known:
        index = int(module.layer_idx)  # type: ignore[arg-type]
        if module in beside and any(m is not module and m.layer_idx == index and m not in beside for m in known):
            number(module, len(layers) + index)
        found.setdefault(number_of(module) or 0, module)
    return found


def decoder_traits(model: nn.Module, decoder: nn.Module) -> DecoderTraits:
    """Read the sizes from the attention modules (configs may contain values that the model does not use)."""
    config: Any = getattr(decoder, "config", None) or model.config
    config = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    each = {layer: _head_sizes(module, config) for layer, module in sorted(attention_modules(decoder).items())}
    heads, kv_heads, head_dim = next(iter(each.values()))
    layers = sum(n < len(decoder.layers) for n in each)  # type: ignore[arg-type]
    return DecoderTraits(layers, heads, kv_heads, head_dim, int(config.hidden_size), int(config.vocab_size), each)


def _head_sizes(module: Any, config: Any) -> tuple[int, int, int]:
    """Return (query heads, key/value heads, size of a value head) of one attention module."""
    width = next((int(c.in_features) for n, c in module.named_children() if n in ("o_proj", "out_proj", "dense")), 0)
    dim = getattr(module, "head_dim", None) or getattr(module, "v_head_dim", None)
    heads = width // int(dim) if dim and width else int(config.num_attention_heads)
    groups = getattr(module, "num_key_value_groups", None)
    keys = getattr(module, "k_proj", None)
    if not groups and dim and keys is not None:
        groups = heads * int(dim) // int(keys.out_features)
    return heads, heads // int(groups or 1), int(dim or config.hidden_size // heads)


@dataclass(frozen=True)
class HeadScalars:
    """Scaling of the logits after the output embedding: ``cap * tanh(scale * l / cap)``.

    ``rule``: relevance rule for the gradient through the cap, ``(z, value) -> value``. ``divisor``: the model divides by
    it, and ``scale`` is its inverse (the two differ in the last bit). ``barred``: ids whose logit the model sets to the
    minimum (image codes, in text generation).
    """

    scale: float = 1.0
    cap: float | None = None
    rule: Callable[[Tensor, Tensor], Tensor] | None = None
    divisor: float | None = None
    barred: Tensor | None = field(default=None, compare=False)

    def __call__(self, logits: Tensor) -> Tensor:
        if self.divisor is not None:
            logits = logits / self.divisor
        elif self.scale != 1.0:
            logits = logits * self.scale
        if self.cap is not None:
            value = torch.tanh(logits / self.cap) * self.cap
            logits = self.rule(logits, value) if self.rule is not None and logits.requires_grad else value
        if self.barred is not None:
            logits = logits.index_fill(-1, self.barred.to(logits.device), torch.finfo(logits.dtype).min)
        return logits


_SCALARS: WeakKeyDictionary[nn.Module, HeadScalars] = WeakKeyDictionary()


def head_scalars(model: nn.Module, decoder: nn.Module, head: nn.Module, avoid: Iterable[int] = ()) -> HeadScalars:
    """Return the scalars named in the config, restricted to those that the model actually applies to its logits.

    A config may contain a scale that a wrapper class never applies, so one text token (not in ``avoid``) is run through
    the model and compared, once per model, if the config names any.

    Raises:
        HookError: the model processes its logits in some other way.
    """
    config: Any = decoder.config
    scale, by, cap = (_named(config, n) for n in ("logit_scale", "logits_scaling", "final_logit_softcapping"))
    scale = _named(config, "output_multiplier") if scale is None else scale
    if scale is None and by is None and cap is None and not getattr(config, "vocabulary_map", None):
        return HeadScalars()
    if model in _SCALARS:
        return _SCALARS[model]
    scales = dict.fromkeys(
        ((1.0, None), *(((scale, None),) if scale else ()), *(((1.0 / by, by), (by, None)) if by and by != 1 else ()))
    )
    kept: list[Tensor] = []
    handle = head.register_forward_hook(lambda *a: kept.append(a[-1]))
    token = next(i for i in itertools.count(1) if i not in set(avoid))
    try:
        with torch.no_grad():
            ids = torch.tensor([[token]], device=device_of(head))
            want = model(input_ids=ids, use_cache=False).logits[:, -1]
    finally:
        handle.remove()
    if not bool(torch.isfinite(want).all()):
        return HeadScalars(cap=cap)  # users of the logits raise an error
    tolerance = 1e-5 if want.dtype in (torch.float32, torch.float64) else 2e-2
    lowest = (want == torch.finfo(want.dtype).min).all(0).nonzero()[:, 0]
    barred = lowest if len(lowest) else None
    for candidate in (HeadScalars(s, c, None, d, barred) for c in dict.fromkeys((cap, None)) for s, d in scales):
        got = candidate(kept[-1][:, -1]) if kept else want + 1
        if torch.allclose(got.float(), want.float(), rtol=tolerance, atol=tolerance):
            _SCALARS[model] = candidate
            return candidate
    raise HookError(
        f"{type(model).__name__} does something to its logits that its config's "
        f"logit_scale={scale}, logits_scaling={by}, final_logit_softcapping={cap} do not explain",
        hint="report this family (its head needs a line in limelight/models/detect.py); the model's own generate() works",
    )


def _named(config: Any, name: str) -> float | None:
    value = getattr(config, name, None)
    return None if value is None else float(value)


def placeholder_ids(model: nn.Module, processor: Any = None) -> dict[int, Modality]:
    """Map placeholder token ids to modalities, from the config (sub-configs included), then the processor; empty if
    neither names one (a text-only model, or one whose ``modality_ids`` must be passed)."""
    found: dict[int, Modality] = {}
    configs = [model.config, getattr(model.config, "thinker_config", None)]
    for config in [c for c in configs if c is not None]:
        found |= {i: m for i, m in _named_ids(config).items() if i not in found}
        for key, modality in _SUB_CONFIGS:
            value = getattr(getattr(config, key, None), f"{modality}_token_id", None)
            if isinstance(value, int) and value >= 0:
                found.setdefault(value, modality)
    # The processor is used only for modalities missing in the config: Gemma3's names the start-of-image token image_token_id.
    known = set(found.values())
    found |= {i: m for i, m in _named_ids(processor).items() if i not in found and m not in known}
    return found


def _named_ids(source: Any) -> dict[int, Modality]:
    """Map token ids to modalities for the placeholders named by a config or processor."""
    found: dict[int, Modality] = {}
    for modality, names in _ID_NAMES.items():
        for name in names:
            value = getattr(source, name, None)
            if isinstance(value, int) and value >= 0:
                found.setdefault(value, modality)
    return found


MODALITY_IDS = (
    "modality_ids [batch, positions] among the inputs (0 text, 1 image, 2 video, 3 audio), to generate() as "
    "custom_generate(strategy, modality_ids=...)"
)


def check_ids(ids: Tensor, name: str, count: int | None, placeholders: Iterable[int]) -> None:
    """Check the shape and range of a prompt's token ids, the argument ``name``.

    Args:
        count: number of ids that the model embeds (None: unknown).
        placeholders: ids that need not be among them.

    Raises:
        PromptError: an empty prompt, or an id that the model does not have.
    """
    if ids.ndim != 2 or ids.shape[1] == 0:
        raise PromptError(
            f"expected {name} [batch, tokens] with at least one token, got {tuple(ids.shape)}",
            hint="tokenise a non-empty prompt with the processor",
        )
    if count is None or (int(ids.min()) >= 0 and int(ids.max()) < count):
        return
    outside = {t for t in ids.flatten().tolist() if not 0 <= t < count} - set(placeholders)
    if outside:
        raise PromptError(
            f"expected token ids from 0 to {count - 1} in {name}, got {', '.join(map(str, sorted(outside)[:4]))}",
            hint="the tokenizer or processor belongs to another model",
        )


def known_tokens(tokenizer: Any) -> int | None:
    """Return the first id without a token in the tokenizer (further rows of the embeddings are padding), or None."""
    vocabulary = getattr(tokenizer, "get_vocab", None)
    return max(vocabulary().values(), default=-1) + 1 or None if vocabulary is not None else None


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Return the ids of a tokenizer's special tokens, those included that have no role (Whisper's tasks and languages)."""
    added = getattr(tokenizer, "added_tokens_decoder", None) or {}
    named = getattr(tokenizer, "all_special_ids", None) or ()
    return frozenset(int(i) for i in named) | {int(i) for i, t in added.items() if getattr(t, "special", False)}


def nameless(model: nn.Module, media: Iterable[str]) -> NotMultimodalError:
    """Build the error for a model that was given media whose positions cannot be detected."""
    return NotMultimodalError(
        f"{type(model).__name__} names no image, audio or video token in its config or processor, so the positions of "
        f"{', '.join(media)} cannot be detected",
        hint=f"pass {MODALITY_IDS}; where generate() delegates to an inner language model, "
        "custom_generate(strategy, parent_model=model)",
    )


def media_tensors(inputs: Mapping[str, Any]) -> list[str]:
    """Return the names of inputs that contain media: pixels, features, their encodings, or prepared embeddings."""
    words = ("mask", "position", "cache", "past_key_values")
    return [
        k
        for k, v in inputs.items()
        if (isinstance(v, Tensor) and v.is_floating_point() and v.ndim > 1 and not any(w in k for w in words))
        or (k == compat.ENCODED_MEDIA and v)
    ]


def _checked(given: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """Validate a caller's ``modality_ids`` and return them as int64."""
    whole = next((x for x in (inputs.get("inputs_embeds"), inputs.get("input_ids")) if isinstance(x, Tensor)), given)
    if given.ndim != 2 or given.shape != whole.shape[:2]:
        raise PromptError(
            f"modality_ids {tuple(given.shape)} do not match a prompt of {tuple(whole.shape[:2])}",
            hint="one entry for each row and position",
        )
    ids = given.long()
    if bool(((ids < 0) | (ids >= len(MODALITIES)) | (ids != given)).any()):
        raise PromptError(
            f"modality_ids hold {sorted(set(given.flatten().tolist()))[:9]}",
            hint=", ".join(f"{i} {name}" for i, name in enumerate(MODALITIES)),
        )
    return ids


def modality_ids(model: nn.Module, inputs: Mapping[str, Any], processor: Any = None) -> Tensor:
    """Return the modality of each position: int64 ``[B, T]``, indices into ``MODALITIES``.

    Sources, in order: the caller's mask (``modality_ids``), the processor's (:mod:`limelight.models.inputs.position_mask`),
    its ``mm_token_type_ids``, token ids. A prompt without media is all 0.

    Raises:
        PromptError: there is no source, or the caller's mask is invalid or does not match the shape of ids or embeddings.
        NotMultimodalError: neither config nor processor names a placeholder, but there are media, or embeddings that may
            contain them.
    """
    given = inputs.get("modality_ids")
    if isinstance(given, Tensor):
        return _checked(given, inputs)
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor):
        raise PromptError(
            "cannot detect the media positions without input_ids",
            hint=f"pass input_ids together with inputs_embeds, or {MODALITY_IDS}",
        )
    if (marked := places(inputs)) is not None:
        return marked
    types = inputs.get("mm_token_type_ids")
    if isinstance(types, Tensor) and types.shape == ids.shape and bool((types > 0).any()):
        return types.long()
    out = torch.zeros_like(ids)
    known = placeholder_ids(model, processor)
    if not known and (found := media_tensors(inputs)):
        raise nameless(model, found)
    for token, modality in known.items():
        out[ids == token] = MODALITIES.index(modality)
    return out


_QUERIES = re.compile(r"(^|\.)(latents|latent_query|quer(y|ies)(_tokens)?|query_\w+_resolution\.weight)$")


def learned_queries(model: Any, decoder: Any) -> tuple[int, bool] | None:
    """Return the number of a resampler's learned queries per image, which attend to all of it (Q-Former, perceiver,
    attention pooling), and whether they have grid positions; None without a resampler.

    The smallest number, if there are several sets.
    """
    text = {id(p) for p in decoder.parameters()}
    found = [
        (int(p.shape[-2]), hasattr(model.get_submodule(name.rpartition(".")[0]), "pos_embed"))
        for name, p in model.named_parameters()
        if _QUERIES.search(name) and id(p) not in text and 2 <= p.ndim <= 3 and p.shape[-2] > 1
    ]
    return min(found, default=None)
