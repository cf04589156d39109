"""Handling of transformers' ``generate`` options under this library's decoding methods.

Every option that transformers honours is honoured or refused, never dropped. ``FIELDS`` lists the handling of every field
of ``GenerationConfig``; a test fails when a release of transformers adds a field that is missing here.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any

from limelight.compat import ALL_STATIC_CACHE_IMPLEMENTATIONS
from limelight.decoding.strategy import GenerationContext
from limelight.errors import SettingError, UnsupportedError

PREPARED = "generate() acts on it before the decoding method is called: lengths, rows, special tokens, caches"
PROCESSOR = "arrives as a logits processor"
CRITERION = "arrives as a stopping criterion"
LOOP = "the token loop acts on it"
STRATEGY = "each strategy acts on it or refuses it"
IDLE = "belongs to a mode that is refused (beams, assistants); has no effect without that mode, as in transformers"
NOTE = "metadata, not an option"
REFUSED = "refused"

FIELDS: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "max_length", "max_new_tokens", "num_return_sequences", "pad_token_id", "bos_token_id", "decoder_start_token_id",
            "max_cache_len", "cache_config", "disable_compile", "stop_strings",
        ),
        PREPARED,
    ),
    **dict.fromkeys(
        (
            "min_length", "min_new_tokens", "temperature", "top_k", "top_p", "top_h", "min_p", "typical_p", "epsilon_cutoff",
            "eta_cutoff", "repetition_penalty", "encoder_repetition_penalty", "no_repeat_ngram_size",
            "encoder_no_repeat_ngram_size", "bad_words_ids", "forced_bos_token_id", "forced_eos_token_id",
            "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens",
            "sequence_bias", "guidance_scale", "watermarking_config", "renormalize_logits",
        ),
        PROCESSOR,
    ),
    **dict.fromkeys(("max_time", "eos_token_id"), CRITERION),
    **dict.fromkeys(("do_sample", "num_beams", "output_scores", "output_logits", "return_dict_in_generate"), LOOP),
    **dict.fromkeys(
        ("use_cache", "cache_implementation", "prefill_chunk_size", "length_penalty", "early_stopping"), STRATEGY
    ),
    **dict.fromkeys(
        (
            "num_beam_groups", "diversity_penalty", "low_memory", "num_assistant_tokens", "num_assistant_tokens_schedule",
            "assistant_confidence_threshold", "assistant_ensemble_weight", "assistant_lookbehind", "target_lookbehind",
            "max_matching_ngram_size", "speculation_type", "continuous_batching_config",
        ),
        IDLE,
    ),
    **dict.fromkeys(("_from_model_config", "transformers_version"), NOTE),
    **dict.fromkeys(
        (
            "penalty_alpha", "dola_layers", "force_words_ids", "constraints", "prompt_lookup_num_tokens",
            "assistant_early_exit", "use_mtp", "is_assistant", "token_healing", "compile_config", "output_attentions",
            "output_hidden_states",
        ),
        REFUSED,
    ),
}  # fmt: skip

# Refused fields -> the feature they request, and the alternative.
_INSTEAD: Mapping[str, tuple[str, str]] = {
    "penalty_alpha": ("contrastive search", "leave penalty_alpha out, or call generate() without custom_generate"),
    "dola_layers": ("transformers' DoLa", "leave it out and use the strategy dola(layers=...)"),
    "force_words_ids": ("constrained beam search", "leave it out; prefix_allowed_tokens_fn and sequence_bias work"),
    "constraints": ("constrained beam search", "leave it out; prefix_allowed_tokens_fn and sequence_bias work"),
    "prompt_lookup_num_tokens": ("assisted decoding", "leave it out: it only affects speed"),
    "assistant_early_exit": ("assisted decoding", "leave it out: it only affects speed"),
    "use_mtp": ("assisted decoding", "leave it out: it only affects speed"),
    "is_assistant": ("the role of an assistant model", "leave it out"),
    "token_healing": ("a modified prompt", "heal the prompt beforehand: model.heal_tokens(ids, tokenizer)"),
    "compile_config": (
        "a compiled forward",
        "leave it out; limelight.load(...) accepts models compiled with torch.compile",
    ),
    "output_attentions": ("attentions", "run model(**inputs) on the finished sequence"),
    "output_hidden_states": ("hidden states", "run model(**inputs) on the finished sequence"),
}
_ONLY_WITH_A_DICT = ("output_attentions", "output_hidden_states")

_WHISPERS_OWN = (
    "return_timestamps", "return_segments", "return_token_timestamps", "language", "task", "prompt_ids", "prompt_condition_type",
    "condition_on_prev_tokens", "no_speech_threshold", "logprob_threshold", "compression_ratio_threshold", "time_precision",
)  # fmt: skip

# Arguments that generate() does not pass on to custom decoding methods; this library's wrappers check them.
_KEPT_BACK: Mapping[str, tuple[str, str]] = {
    "assistant_model": ("assisted decoding", "leave it out: it only affects speed"),
    "assistant_tokenizer": ("assisted decoding", "leave it out: it only affects speed"),
    "synced_gpus": ("rows that continue until every process has finished", "leave it out: models sharded by FSDP or ZeRO-3 are not supported"),
    "trust_remote_code": ("a decoding method from the Hub", "leave it out"),
    "custom_generate": ("another decoding method", "leave it out, or call model.generate"),
}  # fmt: skip


def check_config(config: Any) -> None:
    """Raise UnsupportedError for the first option that no strategy supports."""
    for name, (what, hint) in _INSTEAD.items():
        value = getattr(config, name, None)
        enabled = value is not None and value is not False
        if name == "penalty_alpha":
            enabled = value is not None and value > 0
        if name in _ONLY_WITH_A_DICT:  # otherwise transformers discards them
            enabled = enabled and bool(getattr(config, "return_dict_in_generate", False))
        if enabled:
            raise UnsupportedError(
                f"{name}={value!r} requests {what}, which limelight's decoding does not support", hint=hint
            )


def check_arguments(given: Mapping[str, Any], model: Any = None) -> None:
    """Raise UnsupportedError for arguments that generate() would drop with a custom method, or act on before calling it, and
    SettingError for a ``max_new_tokens`` that is no positive integer."""
    most = given.get("max_new_tokens")
    if most is not None and (isinstance(most, bool) or not isinstance(most, Integral) or most < 1):
        raise SettingError(f"expected a positive integer as max_new_tokens, got {most!r}", hint="max_new_tokens=64")
    for name, (what, hint) in _KEPT_BACK.items():
        if given.get(name) is not None and given[name] is not False:
            raise UnsupportedError(f"{name} requests {what}, which limelight's decoding does not support", hint=hint)
    configs = (given.get("generation_config"), getattr(model, "generation_config", None))
    if given.get("token_healing") or any(getattr(c, "token_healing", None) for c in configs):
        what, hint = _INSTEAD["token_healing"]
        raise UnsupportedError(f"token_healing requests {what}, which limelight's decoding does not support", hint=hint)
    if "paged" in (given.get("cache_implementation"), *(getattr(c, "cache_implementation", None) for c in configs)):
        raise UnsupportedError(
            'cache_implementation="paged" makes generate() use continuous batching, without any strategy',
            hint="leave it out; `limelight serve` batches requests",
        )


def check_encoder_decoder(config: Any, model: Any) -> None:
    """Raise UnsupportedError for options under which transformers decodes encoder-decoders wrongly or not at all."""
    size = getattr(config, "prefill_chunk_size", None)
    if size is not None:
        raise UnsupportedError(
            f"prefill_chunk_size={size!r}: the prompt of {type(model).__name__}, an encoder-decoder, is not read in chunks",
            hint="leave prefill_chunk_size out",
        )


def check_whisper_options(given: Mapping[str, Any]) -> None:
    """Raise UnsupportedError for options of Whisper's own generate(), which plain decoding would ignore."""
    for name in (*_WHISPERS_OWN, "temperature"):
        value = given.get(name)
        if value is None or value is False or (name == "temperature" and not isinstance(value, (tuple, list))):
            continue
        raise UnsupportedError(
            f"{name}={value!r} is an option of Whisper's own generate(), which is not called here",
            hint="the prompt names language and task (limelight.transcribe takes language=); for time marks, long form and "
            "temperature fallback call model.generate(..., custom_generate=limelight.custom_generate(strategy)), or measure its "
            "result with limelight.audit_segments",
        )


def check_shards(model: Any) -> None:
    """Raise UnsupportedError if generate() would synchronise several processes (``synced_gpus``)."""
    import torch

    from limelight.compat import is_deepspeed_zero3_enabled, is_fsdp_managed_module

    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not distributed or torch.distributed.get_world_size() < 2:
        return
    if is_deepspeed_zero3_enabled() or is_fsdp_managed_module(model):
        raise UnsupportedError(
            "the model is sharded over several processes, whose rows would have to finish together",
            hint='load it with device_map="auto" in one process',
        )


def refuse(context: GenerationContext, method: str, *options: str) -> None:
    """Raise UnsupportedError if the call sets one of ``options``, which ``method`` does not support.

    ``use_cache``: False; ``prefill_chunk_size``: a chunked prefill; ``cache_implementation``: a cache type other than the
    default (static caches have the same contents, so they are allowed).
    """
    config = context.config
    static = set(ALL_STATIC_CACHE_IMPLEMENTATIONS) - {"offloaded_static"}
    usual = (None, "dynamic", *static)
    found: dict[str, Any] = {
        "use_cache": False if getattr(config, "use_cache", None) is False else None,
        "prefill_chunk_size": getattr(config, "prefill_chunk_size", None),
        "cache_implementation": next(
            (k for k in (getattr(config, "cache_implementation", None),) if k not in usual), None
        ),
    }
    for name in options:
        if found[name] is not None:
            raise UnsupportedError(
                f"{method} cannot decode with {name}={found[name]!r}", hint=f"leave {name} out, or use greedy()"
            )


def stop_strings_of(given: Mapping[str, Any], model: Any) -> Any:
    """Return the stop strings from generate()'s arguments, the caller's config or the model's, or None."""
    if given.get("stop_strings") is not None:
        return given["stop_strings"]
    for config in (given.get("generation_config"), getattr(model, "generation_config", None)):
        strings = getattr(config, "stop_strings", None)
        if strings is not None:
            return strings
    return None


def one_answer(given: Mapping[str, Any], model: Any = None) -> None:
    """Raise UnsupportedError if the call, its config or the model's config requests several answers per prompt."""
    config = given.get("generation_config")
    counts = (given.get("num_return_sequences"), getattr(config, "num_return_sequences", None))
    own = getattr(getattr(model, "generation_config", None), "num_return_sequences", None)
    if (next((n for n in (*counts, own) if n is not None), None) or 1) != 1:
        raise UnsupportedError(
            "limelight.generate returns a single answer", hint="call it once per seed, or use model.generate"
        )
