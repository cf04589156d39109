"""Every name of transformers, torch and accelerate that the library uses beyond their public interface, in one place.

Names without a leading underscore that ``import transformers`` or ``import torch`` provides are public and are imported
where they are needed. Everything else is here: names in submodules of transformers (:data:`PARTS`, imported as
``from limelight.compat import ACT2FN``), and private attributes, parameters and keywords (:data:`PRIVATE`), wrapped in
small functions with plain names. Each is checked at its first use. Where a missing name would change results without an
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

# The versions that the test suite passes on, as in pyproject.toml. Up to transformers 5.22, answers after a partly filled
# cache or a chunked prefill differ from generate()'s; from 5.24 on, models rename the argument past_key_values to cache.
SUPPORTED = {"transformers": ">=5.23,<5.24", "torch": ">=2.6", "accelerate": ">=1.3"}

PARTS: Mapping[str, str] = {
    "ACT2FN": "transformers.activations",
    "ALL_STATIC_CACHE_IMPLEMENTATIONS": "transformers.generation.configuration_utils",
    "BaseModelOutput": "transformers.modeling_outputs",
    "BaseVideoProcessor": "transformers.video_processing_utils",  # public only if torchvision is installed
    "CLIPEncoder": "transformers.models.clip.modeling_clip",
    "CLIPImageProcessorPil": "transformers.models.clip.image_processing_pil_clip",
    "CausalLMOutputWithPast": "transformers.modeling_outputs",
    "ChannelDimension": "transformers.image_utils",
    "GenerateBeamDecoderOnlyOutput": "transformers.generation",
    "DynamicLayer": "transformers.cache_utils",
    "DynamicSlidingWindowLayer": "transformers.cache_utils",
    "GenerateDecoderOnlyOutput": "transformers.generation",
    "GenerationMode": "transformers.generation",
    "Glm4vVideoProcessor": "transformers.models.glm4v.video_processing_glm4v",
    "LlavaNextVideoVideoProcessor": "transformers.models.llava_next_video.video_processing_llava_next_video",
    "LlavaOnevisionVideoProcessor": "transformers.models.llava_onevision.video_processing_llava_onevision",
    "LlavaMultiModalProjector": "transformers.models.llava.modeling_llava",
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
    """How to check that a private name still exists.

    Attributes:
        owner: ``module:Class.function`` that the name belongs to.
        how: the name is an ``attribute`` of the owner (or an annotation), a ``parameter`` of it, or occurs in its
            ``code`` (as an attribute that it sets, or as a keyword).
    """

    owner: str
    how: Literal["attribute", "parameter", "code"]


_MIXIN = "transformers:GenerationMixin"
_NEXT = f"{_MIXIN}.prepare_inputs_for_generation"
_KOSMOS = "transformers.models.kosmos2.modeling_kosmos2:Kosmos2TextTransformer"
_MODULE = "torch.nn:Module"
PRIVATE: Mapping[str, Private] = {
    # transformers: generation
    "_beam_search": Private(_MIXIN, "attribute"),
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
    """Check once per process that names of :data:`PRIVATE` exist in the installed release, or raise IncompatibleError."""
    for name in names:
        if name in _FOUND:
            continue
        private = PRIVATE[name]
        try:
            exists = _exists(name, private)
        except (ImportError, AttributeError) as error:
            raise missing(name, private.owner) from error
        if not exists:
            raise missing(name, private.owner)
        _FOUND.add(name)


def missing(name: str, where: str) -> IncompatibleError:
    """Build the error for a name that the installed release does not have."""
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


def _exists(name: str, private: Private) -> bool:
    """Return whether the name exists; raises ImportError or AttributeError if its owner does not exist either."""
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
    """Yield a code object and those of its nested functions."""
    yield code
    for inner in code.co_consts:
        if hasattr(inner, "co_names"):
            yield from _code(inner)


def __getattr__(name: str) -> Any:
    """Import a name of :data:`PARTS` at its first use.

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
        if error.name is None or not where.startswith(error.name):  # an optional dependency of transformers is missing
            raise
        raise missing(name, where) from error
    globals()[name] = value
    return value


def _read(owner: Any, name: str) -> Any:
    require(name)
    return getattr(owner, name, None)


def pad_token(config: Any) -> Tensor | None:
    """Return the padding token of a prepared generation config (None: generate() was given none)."""
    return _read(config, "_pad_token_tensor")  # type: ignore[no-any-return]


def mask_length(config: Any) -> int | None:
    """Return the length of an all-ones attention mask that generate() has dropped; None if it has dropped none."""
    return _read(config, "_mask_length")  # type: ignore[no-any-return]


def is_user_cache(cache: Any) -> bool:
    """Return whether the cache was passed to generate() by its caller."""
    return bool(_read(cache, "_is_user_defined"))


ENCODED_MEDIA = "mm_encoder_outputs"  # a keyword argument of the model


def encoded_media(kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the media that generate() has encoded before decoding: modality -> output of its encoder."""
    require(ENCODED_MEDIA)
    return kwargs.get(ENCODED_MEDIA) or {}


def without_encoded_media(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model's inputs without the encoded media."""
    require(ENCODED_MEDIA)
    return {k: v for k, v in kwargs.items() if k != ENCODED_MEDIA}


def encode_and_repeat(model: Any, media: Mapping[str, Any], ids: Tensor, times: int) -> dict[str, Any]:
    """Run the media encoders once and repeat their outputs for ``times`` rows per prompt, as generate() does."""
    require("_prepare_multimodal_encoder_kwargs_for_generation", "_expand_inputs_for_generation", ENCODED_MEDIA)
    encoded = model._prepare_multimodal_encoder_kwargs_for_generation(dict(media))
    _, repeated = model._expand_inputs_for_generation(expand_size=times, input_ids=ids, **encoded)
    return dict(repeated)


def empty_cache(model: Any, config: Any, rows: int, longest: int, states: Any = None) -> dict[str, Any]:
    """Return the keyword argument with a new cache of the kind set in ``config``, for ``longest`` positions (and the
    encoder's ``states``)."""
    require("_prepare_cache_for_generation", "past_key_values")
    from transformers.generation import GenerationMode

    made: dict[str, Any] = {} if states is None else {"encoder_outputs": states}
    model._prepare_cache_for_generation(config, made, GenerationMode.GREEDY_SEARCH, rows, longest)
    made.pop("encoder_outputs", None)
    return made


def position_ids(model: Any, ids: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
    """Return the position ids of a prompt as generate() computes them."""
    require("_prepare_position_ids_for_generation")
    positions: Tensor = model._prepare_position_ids_for_generation(ids, dict(kwargs))
    return positions


def prefill(model: Any, ids: Tensor, config: Any, kwargs: dict[str, Any]) -> Any:
    """Run generate()'s own prefill, which continues a partly filled cache and can process the prompt in chunks."""
    require("_prefill", "past_key_values")
    return model._prefill(ids, config, kwargs)


def beam_search(model: Any, *given: Any) -> Any:
    """generate()'s own beam search on ``model``, which is its own cache; ``given``: ids, processors, criteria, config."""
    require("_beam_search", "_prefill")
    return model._beam_search(*given, use_cache=True, past_key_values=model)


def next_inputs(
    model: Any, ids: Tensor, kwargs: Mapping[str, Any], *, count: int | None, first: bool
) -> dict[str, Any]:
    """Return the inputs of the next forward pass: for the last ``count`` ids, or for all (None). ``first``: with media."""
    require("next_sequence_length", "is_first_iteration", "past_key_values")
    made: dict[str, Any] = model.prepare_inputs_for_generation(
        ids, next_sequence_length=count, is_first_iteration=first, **kwargs
    )
    return made


def update_kwargs(model: Any, output: Any, kwargs: dict[str, Any], new: int = 1) -> dict[str, Any]:
    """Return the model's inputs after a forward pass with this ``output``, extended for ``new`` tokens."""
    require("_update_model_kwargs_for_generation", "num_new_tokens")
    made: dict[str, Any] = model._update_model_kwargs_for_generation(
        output, kwargs, is_encoder_decoder=bool(model.config.is_encoder_decoder), num_new_tokens=new
    )
    return made


def takes_one_token_at_a_time(model: Any) -> bool:
    """Return whether the model is recurrent (a state instead of keys), or computes further inputs for each token."""
    from transformers import GenerationMixin

    require("_update_model_kwargs_for_generation", "_is_stateful")
    own = type(model)._update_model_kwargs_for_generation is not GenerationMixin._update_model_kwargs_for_generation
    return own or bool(getattr(model, "_is_stateful", False))


# --- models ---------------------------------------------------------------------------------------------------------


def attention_implementation(config: Any) -> str | None:
    """Return the name of a config's attention function (None: not set yet, or not a config of transformers)."""
    return _read(config, "_attn_implementation")  # type: ignore[no-any-return]


def names_attention(config: Any) -> bool:
    """Return whether this is a config from which modules take their attention function."""
    require("_attn_implementation")
    return hasattr(config, "_attn_implementation")


def swap_attention_implementation(config: Any, name: str | None) -> str | None:
    """Set the attention function of this config, but not of its sub-configs, and return the previous one."""
    require("_attn_implementation", "_attn_implementation_internal")
    before: str | None = config._attn_implementation_internal
    config._attn_implementation_internal = name
    return before


def makes_its_own_mask(decoder: nn.Module) -> bool:
    """Return whether the decoder builds its attention mask itself from a mask ``[B, T]`` (Kosmos-2)."""
    return hasattr(decoder, "_prepare_decoder_attention_mask")


def from_config(cls: Any, config: Any, dtype: Any) -> Any:
    """Create an untrained model from its config."""
    require("_from_config")
    return cls._from_config(config, dtype=dtype)


# --- modules of torch -----------------------------------------------------------------------------------------------


COMPILED_CALL = "_compiled_call_impl"  # in vars(module): its call, compiled by module.compile()


def children(module: nn.Module) -> dict[str, nn.Module | None]:
    """Return the direct children; faster than ``named_children`` for code that runs at every token."""
    return module._modules


def uncompiled_module(module: nn.Module) -> nn.Module | None:
    """Return the module wrapped by ``torch.compile``; None if this is not such a wrapper."""
    if "torch._dynamo" not in sys.modules:
        return None
    require("_orig_mod")
    return module._modules.get("_orig_mod")


def uncompiled_function(function: Any) -> Any:
    """Return the function wrapped by ``torch.compile``; None if this is not such a wrapper."""
    return _read(function, "_torchdynamo_orig_callable")


def parameters(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """Return the module's own parameters, as fast as :func:`children`."""
    return module._parameters


def count_forward_hooks(module: nn.Module) -> int:
    """Return the number of hooks that run before and after the module's forward."""
    return len(module._forward_hooks) + len(module._forward_pre_hooks)


def count_hooks(module: nn.Module) -> int:
    """Return the number of the module's hooks, including those of the backward pass."""
    return count_forward_hooks(module) + len(module._backward_hooks)


def version_of(tensor: Tensor) -> int:
    """Return the tensor's version counter, which counts in-place writes."""
    return tensor._version


def accelerate_hook(module: nn.Module) -> Any:
    """Return the hook with which accelerate loads and offloads the module's weights, or None."""
    hook = vars(module).get("_hf_hook")
    if hook is not None:
        require("_hf_hook")
    return hook
