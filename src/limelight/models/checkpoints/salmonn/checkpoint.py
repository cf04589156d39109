"""The published checkpoint: a folder with ``salmonn*.pth``, ``BEATs*.pt``, and the folders of a Vicuna and a Whisper."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limelight.errors import ModelError
from limelight.models.checkpoints.formats import Weights, config_of, dtype_of, fill, pickled, read_file
from limelight.models.runtime.machine import machine_failed

LORA_ALPHA = 32.0  # from the published configuration; the rank follows from the weights
_LORA = re.compile(r"llama_model\.base_model\.model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight")
_BEATS = {"encoder.layer_norm": "encoder_norm", "encoder.pos_conv.0": "pos_conv"}
_BIAS = "self_attn.relative_attention_bias.weight"


def claims(folder: Path | None, config: Mapping[str, Any]) -> bool:
    """Return whether this is a folder without config.json that contains ``salmonn*.pth``."""
    return folder is not None and not config and any(folder.glob("salmonn*.pth"))


def bridge_name(name: str, tensor: Tensor) -> Weights:
    """Convert a published name to that in :class:`Bridge` (BLIP-2's Q-Former is a BERT without the text feed-forward)."""
    if name.startswith("llama_model.") or name.endswith("position_ids"):
        return []
    name = name.replace("speech_Qformer.bert.embeddings.LayerNorm", "qformer.layernorm")
    name = name.replace("speech_Qformer.bert.", "qformer.").replace("attention.self.", "attention.attention.")
    return [(name, tensor)]


def beats_name(name: str, tensor: Tensor) -> Weights:
    """Convert a published name to that in :class:`Beats`; :func:`whole` has already merged the weight norm."""
    if name.startswith("predictor."):
        return []  # the classifier of AudioSet
    if name.endswith(_BIAS):  # one shared table, stored for every layer
        return [("relative_attention_bias.weight", tensor)] if name == f"encoder.layers.0.{_BIAS}" else []
    stem, _, kind = name.rpartition(".")
    return [(f"{_BEATS.get(stem, stem.removeprefix('encoder.'))}.{kind}", tensor)]


def whole(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Merge the weight norm: ``g * v / |v|``, with the norm of each kernel tap."""
    out = {n: t for n, t in weights.items() if not n.endswith(("weight_g", "weight_v"))}
    for name, v in weights.items():
        if name.endswith("weight_v"):
            g = weights[name.removesuffix("v") + "g"]
            out[name.removesuffix("_v")] = g * v / v.float().pow(2).sum((0, 1), keepdim=True).sqrt().to(v.dtype)
    return out


def merge_lora(decoder: nn.Module, weights: Mapping[str, Tensor], alpha: float = LORA_ALPHA) -> int:
    """Merge LoRA, ``W += alpha / rank * B A``, and return the number of adapted matrices.

    Raises:
        ModelError: an adapter lacks its other half, or there is no matching matrix.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        match = _LORA.fullmatch(name)
        if match is not None:
            found.setdefault(match[1], {})[match[2]] = tensor
        elif name.startswith("llama_model."):
            raise ModelError(f"do not know where {name} belongs", hint="expected LoRA weights of a Llama")
    for place, pair in found.items():
        try:
            weight = decoder.get_submodule(place).weight
            update = alpha / pair["A"].shape[0] * (pair["B"].float() @ pair["A"].float())
            with torch.no_grad():
                weight += update.to(weight)  # type: ignore[arg-type,operator]
        except (AttributeError, KeyError, RuntimeError) as error:
            if machine_failed(error):
                raise
            raise ModelError(f"the adapter of {place} does not fit: {error}", hint="another Vicuna?") from error
    return len(found)


def parts(folder: Path) -> dict[str, Path]:
    """Return the paths of the four parts.

    Raises:
        ModelError: a part is missing or ambiguous.
    """
    inner = {p: str(config_of(p).get("model_type", "")) for p in sorted(folder.iterdir()) if p.is_dir()}
    found = {
        "salmonn*.pth": sorted(folder.glob("salmonn*.pth")),
        "BEATs*.pt": sorted(folder.glob("BEATs*.pt")),
        "a folder with a Vicuna (model_type llama)": [p for p, kind in inner.items() if kind == "llama"],
        "a folder with a Whisper (model_type whisper)": [p for p, kind in inner.items() if kind == "whisper"],
    }
    wrong = [f"{what} ({len(files)} found)" for what, files in found.items() if len(files) != 1]
    if wrong:
        raise ModelError(
            f"expected exactly one of each part in {folder}, but: {'; '.join(wrong)}",
            hint="put salmonn_v1.pth, BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt, vicuna and whisper-large-v2 there",
        )
    return dict(zip(("salmonn", "beats", "llama", "whisper"), (f[0] for f in found.values()), strict=True))


def load(folder: Path, dtype: torch.dtype | str = "auto") -> tuple[Any, Any]:
    """Load model and processor from a folder with the published parts.

    Raises:
        ModelError: a part or a weight is missing or does not fit.
    """
    from transformers import (
        AutoTokenizer,
        Blip2QFormerConfig,
        GenerationConfig,
        LlamaForCausalLM,
        WhisperFeatureExtractor,
        WhisperModel,
    )

    from limelight.models.checkpoints.salmonn.config import BeatsConfig, SalmonnConfig
    from limelight.models.checkpoints.salmonn.model import SalmonnForConditionalGeneration
    from limelight.models.checkpoints.salmonn.processor import TEMPLATE, SalmonnProcessor

    where = parts(folder)
    kind = dtype_of(dtype, config_of(where["llama"]))
    try:
        tokenizer = AutoTokenizer.from_pretrained(where["llama"])
        extractor = WhisperFeatureExtractor.from_pretrained(where["whisper"])
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(
            f"no usable tokenizer or feature extractor: {str(error).splitlines()[0]}",
            hint="a Vicuna with tokenizer.model alone needs `pip install sentencepiece protobuf`",
        ) from error
    llama = LlamaForCausalLM.from_pretrained(where["llama"], dtype=kind)
    whisper = WhisperModel.from_pretrained(where["whisper"], dtype=kind)
    own, heard = dict(read_file(where["salmonn"])), pickled(where["beats"])
    merge_lora(llama.model, {n: t for n, t in own.items() if n.startswith("llama_model.")})
    query = own.get("speech_query_tokens")
    layers = {n.split(".")[4] for n in own if n.startswith("speech_Qformer.bert.encoder.layer.")}
    if query is None or not layers:
        raise ModelError(f"{where['salmonn'].name} holds no Q-Former", hint="copy the checkpoint again")
    beats = _beats_config(heard.get("cfg", {}), BeatsConfig)
    dense = own.get("speech_Qformer.bert.encoder.layer.0.intermediate_query.dense.weight")
    config = SalmonnConfig(
        text_config=llama.config,
        audio_config=whisper.config,
        beats_config=beats,
        qformer_config=Blip2QFormerConfig(
            hidden_size=query.shape[-1],
            num_hidden_layers=len(layers),
            num_attention_heads=max(1, query.shape[-1] // 64),  # BERT's
            intermediate_size=4 * query.shape[-1] if dense is None else dense.shape[0],
            encoder_hidden_size=whisper.config.d_model + beats.encoder_embed_dim,
            cross_attention_frequency=1,
        ),
        queries=query.shape[1],
        audio_token_id=int(tokenizer.unk_token_id),
    )
    with torch.device("meta"):
        model = SalmonnForConditionalGeneration(config)
    model.language_model, model.lm_head, model.speech_encoder = llama.model, llama.lm_head, whisper.encoder
    for part in (model.beats, model.bridge):
        part.to_empty(device="cpu").to(kind)
    bridge = {n: t for n, t in own.items() if not n.startswith("llama_model.")}
    fill(model.bridge, bridge.items(), bridge_name)
    fill(model.beats, whole(heard["model"]).items(), beats_name)
    tokenizer.padding_side, tokenizer.pad_token, tokenizer.chat_template = "left", tokenizer.eos_token, TEMPLATE
    ends = tokenizer.eos_token_id
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=ends, pad_token_id=ends
    )
    return model.eval(), SalmonnProcessor(tokenizer, extractor, config.audio_seq_length)


def _beats_config(published: Mapping[str, Any], kind: Any) -> Any:
    """Convert the ``cfg`` of a BEATs checkpoint.

    Raises:
        ModelError: a variant that no published checkpoint uses.
    """
    odd = {
        name: published.get(name)
        for name, usual in (
            ("layer_norm_first", False),
            ("activation_fn", "gelu"),
            ("relative_position_embedding", True),
        )
        if published.get(name, usual) != usual
    }
    if odd:
        raise ModelError(f"BEATs with {odd} is not covered", hint="use BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt")
    names = set(kind.__annotations__)
    return kind(**{name: value for name, value in published.items() if name in names})
