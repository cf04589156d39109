"""A tiny Whisper in CTranslate2's layout, written from a model of transformers by the published format."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers import decoders as tokenizer_decoders
from torch import Tensor
from transformers import WhisperConfig, WhisperForConditionalGeneration

import limelight
from tests.zoo.base import enliven

SPECIAL = (
    "<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>", "<|startoflm|>",
    "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>",
)  # fmt: skip
MARKS = 11
WORDS = 256


def tiny(seed: int = 0, positions: int = 10) -> WhisperForConditionalGeneration:
    torch.manual_seed(seed)
    config = WhisperConfig(
        vocab_size=WORDS + len(SPECIAL) + MARKS, num_mel_bins=8, d_model=16, encoder_layers=2, decoder_layers=3,
        encoder_attention_heads=2, decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=40,
        max_source_positions=positions, max_target_positions=12 if positions == 10 else 64, pad_token_id=WORDS, bos_token_id=WORDS, eos_token_id=WORDS,
        decoder_start_token_id=WORDS + 1, init_std=0.3,
    )  # fmt: skip
    return WhisperForConditionalGeneration(config).eval()


def variables(model: WhisperForConditionalGeneration) -> dict[str, Tensor]:
    """CTranslate2's names and tensors of a model: queries, keys and values fused, zeros where keys have no bias."""
    out: dict[str, Tensor] = {}

    def norm(name: str, module: Any) -> None:
        out[f"{name}/gamma"], out[f"{name}/beta"] = module.weight, module.bias

    def linear(name: str, *modules: Any) -> None:
        out[f"{name}/weight"] = torch.cat([m.weight for m in modules])
        out[f"{name}/bias"] = torch.cat([torch.zeros(m.out_features) if m.bias is None else m.bias for m in modules])

    for stack, module in (("encoder", model.model.encoder), ("decoder", model.model.decoder)):
        heads = getattr(model.config, f"{stack}_attention_heads")
        out[f"{stack}/num_heads"] = torch.tensor(heads, dtype=torch.int16)
        out[f"{stack}/position_encodings/encodings"] = module.embed_positions.weight
        norm(f"{stack}/layer_norm", module.layer_norm)
        for n, layer in enumerate(module.layers):
            at = f"{stack}/layer_{n}"
            own = layer.self_attn
            norm(f"{at}/self_attention/layer_norm", layer.self_attn_layer_norm)
            linear(f"{at}/self_attention/linear_0", own.q_proj, own.k_proj, own.v_proj)
            linear(f"{at}/self_attention/linear_1", own.out_proj)
            if stack == "decoder":
                other = layer.encoder_attn
                norm(f"{at}/attention/layer_norm", layer.encoder_attn_layer_norm)
                linear(f"{at}/attention/linear_0", other.q_proj)
                linear(f"{at}/attention/linear_1", other.k_proj, other.v_proj)
                linear(f"{at}/attention/linear_2", other.out_proj)
            norm(f"{at}/ffn/layer_norm", layer.final_layer_norm)
            linear(f"{at}/ffn/linear_0", layer.fc1)
            linear(f"{at}/ffn/linear_1", layer.fc2)
    for n in (1, 2):
        conv = getattr(model.model.encoder, f"conv{n}")
        out[f"encoder/conv{n}/weight"], out[f"encoder/conv{n}/bias"] = conv.weight, conv.bias
    out["decoder/embeddings/weight"] = model.model.decoder.embed_tokens.weight
    byte = {"activation": 3, "alibi": 0, "pre_norm": 1, "scale_embeddings": 0, "start_from_zero_embedding": 0}
    out |= {f"decoder/{k}": torch.tensor(v, dtype=torch.int8) for k, v in byte.items()}
    out["decoder/alignment_heads"] = torch.tensor([1, 0], dtype=torch.int16)
    return {k: v.detach() for k, v in out.items()}


_TYPES = {torch.float32: 0, torch.int8: 1, torch.int16: 2, torch.int32: 3, torch.float16: 4, torch.bfloat16: 5}


def binary(found: dict[str, Tensor], *, spec: str = "WhisperSpec", version: int = 6) -> bytes:
    """The bytes of a model.bin."""

    def string(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    out = struct.pack("<I", version) + string(spec) + struct.pack("<II", 3, len(found))
    for name, value in sorted(found.items()):
        raw = bytes(value.contiguous().reshape(-1).view(torch.uint8).tolist())
        out += string(name) + struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
        out += struct.pack("<BI", _TYPES[value.dtype], len(raw)) + raw
    return out + struct.pack("<I", 1) + string("decoder/projection/weight") + string("decoder/embeddings/weight")


def quantised(found: dict[str, Tensor], kind: torch.dtype) -> dict[str, Tensor]:
    """Matrices as CTranslate2 stores them quantised: int8 by a scale per row, int16 by one for all."""
    out = dict(found)
    for name, value in found.items():
        if value.ndim < 2 or "position" in name or "conv" in name or not value.is_floating_point():
            continue
        if kind is torch.int8:
            scale = 127 / value.abs().amax(1)
            out[name] = (value * scale[:, None]).round().to(kind)
        else:
            scale = torch.tensor(1023 / float(value.abs().max()))
            out[name] = (value * scale).round().to(kind)
        out[f"{name}_scale"] = scale
    return out


def write(folder: Path, found: dict[str, Tensor], **settings: Any) -> Path:
    """A folder as faster-whisper's: model.bin, config.json, tokenizer.json (without time marks)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.bin").write_bytes(binary(found, **settings))
    config = {"alignment_heads": [[1, 0]], "lang_ids": [WORDS + 2, WORDS + 3], "suppress_ids": [1, 2],
              "suppress_ids_begin": [3, WORDS]}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizer_decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def listening(folder: Path) -> limelight.Adapter:
    """A tiny Whisper of 1500 positions with tokenizer and feature extractor, multilingual; its answers do not end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMELIGHT_CACHE", str(folder / "cache"))
        adapter = limelight.load(write(folder / "tiny", variables(enliven(tiny(positions=1500)))))
    config = adapter.model.generation_config
    config.is_multilingual, config.lang_to_id = True, {"<|en|>": WORDS + 2, "<|de|>": WORDS + 3}
    config.task_to_id = {"transcribe": WORDS + 5, "translate": WORDS + 4}
    config.eos_token_id = config.max_length = None
    return adapter
