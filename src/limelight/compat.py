"""Every name of transformers, torch and accelerate that the library uses beyond their public interface, in one place.

Public is what ``import transformers`` or ``import torch`` shows by a name without a leading underscore; it is imported
where it is needed. Everything else is here: what transformers keeps in its submodules (:data:`PARTS`, imported as
``from limelight.compat import ACT2FN``), and private attributes, parameters and keywords (:data:`PRIVATE`), behind small
functions with plain names. Each is checked when it is first used. Where a missing name would change results without an
error, ``tests/test_compat.py`` fails.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from torch import Tensor, nn

from limelight.errors import IncompatibleError

# As in pyproject.toml: what the suite passes on. Up to transformers 5.22 answers behind a partly filled cache or after a
# prefill in pieces are not generate()'s own; from 5.24 on every model calls its argument past_key_values cache.
SUPPORTED = {"transformers": ">=5.23,<5.24", "torch": ">=2.6", "accelerate": ">=1.3"}

PARTS: Mapping[str, str] = {
    "ACT2FN": "transformers.activations",
    "ALL_STATIC_CACHE_IMPLEMENTATIONS": "transformers.generation.configuration_utils",
    "BaseVideoProcessor": "transformers.video_processing_utils",  # transformers itself shows it beside torchvision only
    "CLIPEncoder": "transformers.models.clip.modeling_clip",
    "CLIPImageProcessorPil": "transformers.models.clip.image_processing_pil_clip",
    "CausalLMOutputWithPast": "transformers.modeling_outputs",
    "ChannelDimension": "transformers.image_utils",
    "GenerateDecoderOnlyOutput": "transformers.generation",
    "GenerationMode": "transformers.generation",
    "Glm4vVideoProcessor": "transformers.models.glm4v.video_processing_glm4v",
    "LlavaNextVideoVideoProcessor": "transformers.models.llava_next_video.video_processing_llava_next_video",
    "LlavaOnevisionVideoProcessor": "transformers.models.llava_onevision.video_processing_llava_onevision",
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": "transformers.models.auto.modeling_auto",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES": "transformers.models.auto.modeling_auto",
    "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES": "transformers.models.auto.modeling_auto",
    "OPENAI_CLIP_MEAN": "transformers.image_utils",
    "OPENAI_CLIP_STD": "transformers.image_utils",
    "PILImageResampling": "transformers.image_utils",
    "PROCESSOR_MAPPING_NAMES": "transformers.models.auto.processing_auto",
    "Qwen3VLVideoProcessor": "transformers.models.qwen3_vl.video_processing_qwen3_vl",
    "SmolVLMVideoProcessor": "transformers.models.smolvlm.video_processing_smolvlm",
    "TO_LANGUAGE_CODE": "transformers.models.whisper.tokenization_whisper",
    "TikTokenConverter": "transformers.convert_slow_tokenizer",
    "VideoLlavaVideoProcessor": "transformers.models.video_llava.video_processing_video_llava",
    "VideoMetadata": "transformers.video_utils",
    "WhisperEncoder": "transformers.models.whisper.modeling_whisper",
    "eager_mask": "transformers.masking_utils",
    "get_anyres_image_grid_shape": "transformers.models.llava_next.modeling_llava_next",
    "get_resize_output_image_size": "transformers.image_transforms",
    "get_size_with_aspect_ratio": "transformers.image_transforms",
    "is_deepspeed_zero3_enabled": "transformers.integrations.deepspeed",
    "is_fsdp_managed_module": "transformers.integrations.fsdp",
    "logits_process": "transformers.generation",
    "mel_filter_bank": "transformers.audio_utils",
    "no_init_weights": "transformers.initialization",
    "sdpa_mask": "transformers.masking_utils",
    "smart_resize": "transformers.models.qwen2_vl.image_processing_pil_qwen2_vl",
    "spectrogram": "transformers.audio_utils",
    "unpad_image": "transformers.models.llava_next.modeling_llava_next",
    "window_function": "transformers.audio_utils",
}


@dataclass(frozen=True)
class Private:
    """How to see that a private name is still there.

    Attributes:
        owner: ``module:Class.function`` that the name belongs to.
        how: it is an ``attribute`` of the owner (an annotation counts), a ``parameter`` of it, or occurs in its ``code``,
            which sets it on something, or uses it as a keyword.
    """

    owner: str
    how: Literal["attribute", "parameter", "code"]


_MIXIN = "transformers:GenerationMixin"
_NEXT = f"{_MIXIN}.prepare_inputs_for_generation"
_KOSMOS = "transformers.models.kosmos2.modeling_kosmos2:Kosmos2TextTransformer"
_MODULE = "torch.nn:Module"
PRIVATE: Mapping[str, Private] = {
    # transformers: generation
    "_expand_inputs_for_generation": Private(_MIXIN, "attribute"),
    "_is_stateful": Private("transformers:PreTrainedModel", "attribute"),
    "_is_user_defined": Private(f"{_MIXIN}._prepare_cache_for_generation", "code"),
    "_mask_length": Private(f"{_MIXIN}.generate", "code"),
    "_pad_token_tensor": Private(f"{_MIXIN}._prepare_special_tokens", "code"),
    "_prefill": Private(_MIXIN, "attribute"),
    "_prepare_cache_for_generation": Private(_MIXIN, "attribute"),
    "_prepare_multimodal_encoder_kwargs_for_generation": Private(_MIXIN, "attribute"),
    "_prepare_position_ids_for_generation": Private(_MIXIN, "attribute"),
    "_update_model_kwargs_for_generation": Private(_MIXIN, "attribute"),
    "is_first_iteration": Private(_NEXT, "parameter"),
    "mm_encoder_outputs": Private(f"{_MIXIN}._prepare_multimodal_encoder_kwargs_for_generation", "code"),
    "next_sequence_length": Private(_NEXT, "parameter"),
    "num_new_tokens": Private(f"{_MIXIN}._update_model_kwargs_for_generation", "parameter"),
    "past_key_values": Private(_NEXT, "parameter"),
    # transformers: models and configs
    "_attn_implementation": Private("transformers:PreTrainedConfig", "attribute"),
    "_attn_implementation_internal": Private("transformers:PreTrainedConfig._attn_implementation", "code"),
    "_from_config": Private("transformers:PreTrainedModel", "attribute"),
    "_prepare_decoder_attention_mask": Private(_KOSMOS, "attribute"),
    "_supports_attention_backend": Private("transformers:PreTrainedModel", "attribute"),
    "_supports_flash_attn": Private("transformers:PreTrainedModel", "attribute"),
    "_supports_sdpa": Private("transformers:PreTrainedModel", "attribute"),
    # transformers: processors
    "get_possibly_dynamic_module": Private("transformers:ProcessorMixin", "attribute"),
    # torch
    "_backward_hooks": Private(_MODULE, "attribute"),
    "_compiled_call_impl": Private(_MODULE, "attribute"),
    "_forward_hooks": Private(_MODULE, "attribute"),
    "_forward_pre_hooks": Private(_MODULE, "attribute"),
    "_modules": Private(_MODULE, "attribute"),
    "_parameters": Private(_MODULE, "attribute"),
    "_orig_mod": Private("torch._dynamo.eval_frame:OptimizedModule.__init__", "code"),
    "_torchdynamo_orig_callable": Private("torch._dynamo.eval_frame:_TorchDynamoContext.__call__", "code"),
    "_version": Private("torch:Tensor", "attribute"),
    # accelerate
    "_hf_hook": Private("accelerate.hooks:add_hook_to_module", "code"),
}
_FOUND: set[str] = set()


def require(*names: str) -> None:
    """Check, once per process, that names of :data:`PRIVATE` exist in the installed release.

    Raises:
        IncompatibleError: one does not.
    """
    for name in names:
        if name in _FOUND:
            continue
        private = PRIVATE[name]
        try:
            there = _is_there(name, private)
        except (ImportError, AttributeError) as error:
            raise missing(name, private.owner) from error
        if not there:
            raise missing(name, private.owner)
        _FOUND.add(name)


def missing(name: str, where: str) -> IncompatibleError:
    """The error for a name that the installed release does not have."""
    library = where.partition(":")[0].partition(".")[0]
    try:
        installed = version(library)
    except PackageNotFoundError:
        installed = "(version unknown)"
    supported = SUPPORTED[library]
    return IncompatibleError(
        f"{library} {installed} has no {name!r} in {where.replace(':', '.')}; limelight supports {library}{supported}",
        hint=f'pip install "{library}{supported}"',
    )


def _is_there(name: str, private: Private) -> bool:
    """
    Raises:
        ImportError, AttributeError: not even its owner is there.
    """
    module, _, path = private.owner.partition(":")
    first, *rest = path.split(".")
    owner: Any = getattr(import_module(module), first)
    for part in rest:
        owner = inspect.getattr_static(owner, part)
        owner = owner.fget if isinstance(owner, property) else getattr(owner, "__func__", owner)
    if private.how == "attribute":
        return hasattr(owner, name) or any(name in vars(c).get("__annotations__", ()) for c in owner.__mro__)
    function = inspect.unwrap(owner)
    if private.how == "parameter":
        return name in inspect.signature(function).parameters
    return any(name in (*code.co_names, *code.co_consts) for code in _code(function.__code__))


def _code(code: Any) -> Iterable[Any]:
    """The code of a function and of those within it."""
    yield code
    for inner in code.co_consts:
        if hasattr(inner, "co_names"):
            yield from _code(inner)


def __getattr__(name: str) -> Any:
    """A name of :data:`PARTS`, imported when first used.

    Raises:
        IncompatibleError: the installed transformers does not have it.
    """
    where = PARTS.get(name)
    if where is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(where), name)
    except AttributeError as error:
        raise missing(name, where) from error
    except ModuleNotFoundError as error:
        if error.name is None or not where.startswith(error.name):  # a package that transformers itself needs
            raise
        raise missing(name, where) from error
    globals()[name] = value
    return value


# --- generation ---------------------------------------------------------------------------------------------------


def pad_token(config: Any) -> Tensor | None:
    """The padding token of a prepared generation config (None: generate() was given none)."""
    require("_pad_token_tensor")
    token: Tensor | None = getattr(config, "_pad_token_tensor", None)
    return token


def mask_length(config: Any) -> int | None:
    """Length of an attention mask of ones that generate() has dropped; None where it dropped none."""
    require("_mask_length")
    length: int | None = getattr(config, "_mask_length", None)
    return length


def is_callers_own(cache: Any) -> bool:
    """Whether the cache was handed to generate() by its caller."""
    require("_is_user_defined")
    return bool(getattr(cache, "_is_user_defined", False))


ENCODED_MEDIA = "mm_encoder_outputs"  # the keyword


def encoded_media(kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """What generate() has encoded in front of decoding: modality -> output of its tower."""
    require(ENCODED_MEDIA)
    return kwargs.get(ENCODED_MEDIA) or {}


def without_encoded_media(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The model's inputs without what :func:`encoded_media` returns."""
    require(ENCODED_MEDIA)
    return {k: v for k, v in kwargs.items() if k != ENCODED_MEDIA}


def encoded_and_repeated(model: Any, media: Mapping[str, Any], ids: Tensor, times: int) -> dict[str, Any]:
    """Media encoded once by the model's towers and repeated for ``times`` rows per prompt, as generate() does."""
    require("_prepare_multimodal_encoder_kwargs_for_generation", "_expand_inputs_for_generation", ENCODED_MEDIA)
    encoded = model._prepare_multimodal_encoder_kwargs_for_generation(dict(media))
    _, repeated = model._expand_inputs_for_generation(expand_size=times, input_ids=ids, **encoded)
    return dict(repeated)


def empty_cache(model: Any, config: Any, rows: int, longest: int) -> dict[str, Any]:
    """The keyword that holds a new cache of the kind that ``config`` asks for, for ``longest`` positions."""
    require("_prepare_cache_for_generation", "past_key_values")
    from transformers.generation import GenerationMode

    made: dict[str, Any] = {}
    model._prepare_cache_for_generation(config, made, GenerationMode.GREEDY_SEARCH, rows, longest)
    return made


def counted_positions(model: Any, ids: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
    """Position ids of a prompt, as generate() counts them."""
    require("_prepare_position_ids_for_generation")
    positions: Tensor = model._prepare_position_ids_for_generation(ids, dict(kwargs))
    return positions


def prefill(model: Any, ids: Tensor, config: Any, kwargs: dict[str, Any]) -> Any:
    """The output of generate()'s own prefill, which goes on behind a filled cache and reads in chunks if asked to."""
    require("_prefill", "past_key_values")
    return model._prefill(ids, config, kwargs)


def next_inputs(
    model: Any, ids: Tensor, kwargs: Mapping[str, Any], *, count: int | None, first: bool
) -> dict[str, Any]:
    """Inputs of the next forward: of the last ``count`` ids, or of all (None). ``first``: media are read."""
    require("next_sequence_length", "is_first_iteration", "past_key_values")
    made: dict[str, Any] = model.prepare_inputs_for_generation(
        ids, next_sequence_length=count, is_first_iteration=first, **kwargs
    )
    return made


def updated(model: Any, output: Any, kwargs: dict[str, Any], new: int = 1) -> dict[str, Any]:
    """The model's inputs after a forward whose ``output`` is given, with room for ``new`` tokens."""
    require("_update_model_kwargs_for_generation", "num_new_tokens")
    made: dict[str, Any] = model._update_model_kwargs_for_generation(
        output, kwargs, is_encoder_decoder=bool(model.config.is_encoder_decoder), num_new_tokens=new
    )
    return made


def takes_one_token_at_a_time(model: Any) -> bool:
    """Whether the model keeps a state instead of keys, or makes further inputs for each token in a way of its own."""
    from transformers import GenerationMixin

    require("_update_model_kwargs_for_generation", "_is_stateful")
    own = type(model)._update_model_kwargs_for_generation is not GenerationMixin._update_model_kwargs_for_generation
    return own or bool(getattr(model, "_is_stateful", False))


# --- models ---------------------------------------------------------------------------------------------------------


def attention_implementation(config: Any) -> str | None:
    """The attention function that a config names (None: not named yet, or not a config of transformers)."""
    require("_attn_implementation")
    name: str | None = getattr(config, "_attn_implementation", None)
    return name


def names_attention(config: Any) -> bool:
    """Whether this is a config by which modules choose their attention function."""
    require("_attn_implementation")
    return hasattr(config, "_attn_implementation")


def swap_attention_implementation(config: Any, name: str | None) -> str | None:
    """Set the attention function of this config alone (not of those inside it); returns what it was."""
    require("_attn_implementation", "_attn_implementation_internal")
    before: str | None = config._attn_implementation_internal
    config._attn_implementation_internal = name
    return before


def makes_its_own_mask(decoder: nn.Module) -> bool:
    """Whether the decoder builds its attention mask itself, from one of shape ``[B, T]`` (Kosmos-2)."""
    return hasattr(decoder, "_prepare_decoder_attention_mask")


def built(cls: Any, config: Any, dtype: Any) -> Any:
    """A new model of ``config``."""
    require("_from_config")
    return cls._from_config(config, dtype=dtype)


# --- modules of torch -----------------------------------------------------------------------------------------------


COMPILED_CALL = "_compiled_call_impl"  # in vars(module): what module.compile() has made of its call


def children(module: nn.Module) -> dict[str, nn.Module | None]:
    """The modules directly inside; unlike ``named_children`` without a generator, for walks at every token."""
    return module._modules


def inside_compiled(module: nn.Module) -> nn.Module | None:
    """The module that ``torch.compile`` has wrapped; None where this is not such a wrapper."""
    if "torch._dynamo" not in sys.modules:
        return None
    require("_orig_mod")
    return module._modules.get("_orig_mod")


def uncompiled_function(function: Any) -> Any:
    """The function that ``torch.compile`` has wrapped; None where this is not such a wrapper."""
    require("_torchdynamo_orig_callable")
    return getattr(function, "_torchdynamo_orig_callable", None)


def parameters(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """The module's own parameters, without a generator as :func:`children`."""
    return module._parameters


def forward_hooks(module: nn.Module) -> int:
    """Number of hooks that run before and after the module's forward."""
    return len(module._forward_hooks) + len(module._forward_pre_hooks)


def all_hooks(module: nn.Module) -> int:
    """Number of the module's hooks, those of the backward pass included."""
    return forward_hooks(module) + len(module._backward_hooks)


def changes(tensor: Tensor) -> int:
    """How often the tensor has been written to in place."""
    return tensor._version


def accelerate_hook(module: nn.Module) -> Any:
    """The hook by which accelerate loads and offloads the module's weights, or None."""
    hook = vars(module).get("_hf_hook")
    if hook is not None:
        require("_hf_hook")
    return hook
