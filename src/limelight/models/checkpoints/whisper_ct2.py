"""Converting Whisper from CTranslate2's layout (used by faster-whisper): ``model.bin``, ``config.json``, ``tokenizer.json``.

A folder is converted once (:mod:`limelight.models.checkpoints.weights_on_disk`), and is then loaded like any other
transformers checkpoint. The format is that of CTranslate2's ``Model::load`` (binary version 6): little endian; strings with
a 16-bit length that includes a final zero byte; for each variable its name, rank, dimensions, type, and bytes; then aliases.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limelight.errors import ModelError
from limelight.models.checkpoints.formats import Weights, fill
from limelight.models.checkpoints.weights_on_disk import built_once, fingerprint

VERSION = 6
SPEC = "WhisperSpec"
CONVERTER = 1  # of the conversion; increase it when the output changes
HEAD_DIM = 64  # of all published Whisper models, for files that do not contain the number of heads
STEP = 0.02  # seconds between two timestamp tokens
_DTYPES = (torch.float32, torch.int8, torch.int16, torch.int32, torch.float16, torch.bfloat16)
_ACTIVATIONS = {0: "relu", 1: "gelu_new", 2: "silu", 3: "gelu"}
_SCALE = "_scale"  # of a quantised weight: stored integer / scale
_FIXED = {"alibi": 0, "pre_norm": 1, "scale_embeddings": 0, "start_from_zero_embedding": 0}
_NORM = {"gamma": "weight", "beta": "bias"}
_FILES = ("model.bin", "config.json", "tokenizer.json")


@dataclass
class Binary:
    """Contents of a ``model.bin``: variables by name (memory-mapped), and aliases."""

    variables: dict[str, Tensor] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)

    def number(self, name: str) -> int | None:
        """Return a scalar variable, or None."""
        found = self.variables.get(name)
        return None if found is None else int(found)


class _Reader:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8)
        self.at = 0

    def raw(self, count: int) -> Tensor:
        if self.at + count > len(self.data):
            raise ModelError(
                f"{self.path} ends at byte {len(self.data)}, expected {self.at + count} at least",
                hint="the file is cut off; copy it again",
            )
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, kind: str) -> int:
        size = struct.calcsize(f"<{kind}")
        return int(struct.unpack(f"<{kind}", bytes(self.raw(size).tolist()))[0])

    def string(self) -> str:
        return bytes(self.raw(self.number("H")).tolist()).rstrip(b"\0").decode("utf-8")


def read_binary(path: Path) -> Binary:
    """Read a ``model.bin``.

    Raises:
        ModelError: another version, another model than Whisper, an unknown type, or a truncated file.
    """
    reader = _Reader(path)
    version, spec = reader.number("I"), reader.string()
    if version != VERSION or spec != SPEC:
        raise ModelError(
            f"{path} holds {spec!r} in version {version} of CTranslate2's layout, expected {SPEC!r} in version {VERSION}",
            hint="convert it with ct2-transformers-converter of CTranslate2 2.0 or later; only Whisper is read",
        )
    reader.number("I")  # revision of the spec
    out = Binary()
    for _ in range(reader.number("I")):
        name = reader.string()
        shape = [reader.number("I") for _ in range(reader.number("B"))]
        kind, size = reader.number("B"), reader.number("I")
        if kind >= len(_DTYPES):
            raise ModelError(f"{path}: {name} has type {kind}", hint=f"known: 0 to {len(_DTYPES) - 1}")
        dtype = _DTYPES[kind]
        if size != math.prod(shape) * dtype.itemsize:
            raise ModelError(
                f"{path}: {name} has {size} bytes, which do not make {dtype} of shape {shape}",
                hint="the file is damaged; copy it again",
            )
        # a copy: a tensor of another type must start at a multiple of its size
        out.variables[name] = reader.raw(size).clone().view(dtype).reshape(shape)
    for _ in range(reader.number("I")):
        alias = reader.string()
        out.aliases[alias] = reader.string()
    return out


def claims(folder: Path | None, config: Mapping[str, Any]) -> bool:
    """Return whether this is such a checkpoint: by its ``model.bin``, or on the Hub by CTranslate2's config for Whisper."""
    if folder is None:
        return "model_type" not in config and {"alignment_heads", "suppress_ids"} <= set(config)
    path = folder / "model.bin"
    if not path.is_file() or "model_type" in config:
        return False
    with path.open("rb") as opened:
        return SPEC.encode() in opened.read(6 + len(SPEC))


def convert(folder: Path) -> Path:
    """Return the cached folder with the model in transformers' layout, converting it if necessary."""
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{folder} lacks {', '.join(missing)}",
            hint="faster-whisper's repositories hold all three; tokenizer.json may be copied from openai's Whisper of "
            "the same size",
        )
    key = fingerprint("whisper-ct2", CONVERTER, *(folder / name for name in _FILES))
    return built_once(Path("converted") / f"{folder.resolve().name}-{key}", lambda place: write(folder, place))


def write(folder: Path, place: Path) -> None:
    """Convert ``folder`` into ``place``: model, generation settings, processor.

    Weights are stored in float16 if they were float16 or quantised; the config's dtype is float32, as in OpenAI's
    checkpoints.

    Raises:
        ModelError: a file is missing, damaged, or not Whisper's.
    """
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
    )

    own = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    binary = read_binary(folder / "model.bin")
    tokenizer = _tokenizer(folder, int(binary.variables["decoder/embeddings/weight"].shape[0]))
    config = WhisperConfig(**_sizes(binary), **_ids(tokenizer), dtype="float32")
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
    stored = torch.float32 if binary.variables["decoder/embeddings/weight"].dtype == torch.float32 else torch.float16
    model.to_empty(device="cpu").to(stored)
    model.tie_weights()
    fill(model, dequantised(binary.variables), renamed)
    model.generation_config = GenerationConfig(**_generation(own, tokenizer, config))
    model.save_pretrained(place)
    _say_float32(place / "config.json")
    WhisperProcessor(WhisperFeatureExtractor(feature_size=config.num_mel_bins), tokenizer).save_pretrained(place)


def dequantised(variables: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights, without scalars; integers are divided by their scales (per row, or one for the whole matrix)."""
    for name, value in variables.items():
        if value.ndim == 0 or name.endswith(_SCALE) or name == "decoder/alignment_heads":
            continue
        scale = variables.get(name + _SCALE)
        if scale is not None:
            value = value.float() / scale.float().reshape(*scale.shape, *[1] * (value.ndim - scale.ndim))
        elif not value.is_floating_point():
            raise ModelError(
                f"{name} holds {value.dtype} without {name}{_SCALE}", hint="the file is damaged; convert it again"
            )
        yield name, value


def renamed(name: str, value: Tensor) -> Weights:
    """Convert a name and tensor of CTranslate2 to those of transformers, splitting fused projections.

    Raises:
        ModelError: an unknown name, or a nonzero bias of the keys (Whisper has none).
    """
    stack, _, rest = name.partition("/")
    parts = rest.split("/")
    at = f"model.{stack}"
    if parts == ["position_encodings", "encodings"]:
        return [(f"{at}.embed_positions.weight", value)]
    if parts == ["embeddings", "weight"]:
        return [(f"{at}.embed_tokens.weight", value)]
    if parts[0] in ("conv1", "conv2"):
        return [(f"{at}.{parts[0]}.{parts[1]}", value)]
    if parts[0] == "layer_norm":
        return [(f"{at}.layer_norm.{_NORM[parts[1]]}", value)]
    if parts[0].startswith("layer_") and len(parts) == 4:
        _, block, part, kind = parts
        at = f"{at}.layers.{parts[0].removeprefix('layer_')}"
        if block == "ffn":
            if part == "layer_norm":
                return [(f"{at}.final_layer_norm.{_NORM[kind]}", value)]
            return [(f"{at}.fc{int(part[-1]) + 1}.{kind}", value)]
        block = {"self_attention": "self_attn", "attention": "encoder_attn"}[block]
        if part == "layer_norm":
            return [(f"{at}.{block}_layer_norm.{_NORM[kind]}", value)]
        projections = _PROJECTIONS[block][int(part[-1])]
        pieces = value.chunk(len(projections))
        if kind == "bias" and "k_proj" in projections and bool(pieces[projections.index("k_proj")].any()):
            raise ModelError(f"{name} has a bias for keys", hint="Whisper has none; this is another model")
        return [
            (f"{at}.{block}.{projection}.{kind}", piece)
            for projection, piece in zip(projections, pieces, strict=True)
            if (projection, kind) != ("k_proj", "bias")
        ]
    raise ModelError(f"do not know where {name} belongs", hint="expected Whisper in CTranslate2's layout")


_PROJECTIONS = {
    "self_attn": (("q_proj", "k_proj", "v_proj"), ("out_proj",)),
    "encoder_attn": (("q_proj",), ("k_proj", "v_proj"), ("out_proj",)),
}


def _sizes(binary: Binary) -> dict[str, Any]:
    variables = binary.variables
    odd = {
        f"{stack}/{name}": found
        for stack in ("encoder", "decoder")
        for name, usual in _FIXED.items()
        if (found := binary.number(f"{stack}/{name}")) not in (None, usual)
    }
    activation = binary.number("decoder/activation")
    if odd or (activation is not None and activation not in _ACTIVATIONS):
        raise ModelError(
            f"{SPEC} with {odd or {'decoder/activation': activation}}", hint="no published Whisper has that"
        )
    vocabulary, width = variables["decoder/embeddings/weight"].shape
    out: dict[str, Any] = {
        "vocab_size": vocabulary,
        "d_model": width,
        "num_mel_bins": variables["encoder/conv1/weight"].shape[1],
        "max_source_positions": variables["encoder/position_encodings/encodings"].shape[0],
        "max_target_positions": variables["decoder/position_encodings/encodings"].shape[0],
        "activation_function": _ACTIVATIONS[3 if activation is None else activation],
    }
    for stack in ("encoder", "decoder"):
        out[f"{stack}_layers"] = len(
            {n.split("/")[1] for n in variables if n.startswith(f"{stack}/layer_") and n.count("/") > 2}
        )
        out[f"{stack}_attention_heads"] = binary.number(f"{stack}/num_heads") or width // HEAD_DIM
        out[f"{stack}_ffn_dim"] = variables[f"{stack}/layer_0/ffn/linear_0/weight"].shape[0]
    return out


def _tokenizer(folder: Path, vocabulary: int) -> Any:
    """Load the tokenizer and add the timestamp tokens, which the file does not contain."""
    from transformers import AddedToken, WhisperTokenizer

    try:
        tokenizer = WhisperTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"cannot read {folder / 'tokenizer.json'}: {str(error).splitlines()[0]}", hint="copy it again"
        ) from error
    known = len(tokenizer)
    if known > vocabulary or _special(tokenizer, "<|startoftranscript|>") is None:
        raise ModelError(
            f"{folder / 'tokenizer.json'} has {known} tokens, model.bin has {vocabulary}",
            hint="this tokenizer is of another model",
        )
    marks = [AddedToken(f"<|{n * STEP:.2f}|>", special=False, normalized=False) for n in range(vocabulary - known)]
    if "<|0.00|>" not in tokenizer.get_vocab():
        tokenizer.add_tokens(marks)
    return tokenizer


def _special(tokenizer: Any, token: str) -> int | None:
    found = tokenizer.get_vocab().get(token)
    return None if found is None else int(found)


def _ids(tokenizer: Any) -> dict[str, Any]:
    end = _special(tokenizer, "<|endoftext|>")
    start = _special(tokenizer, "<|startoftranscript|>")
    return {"decoder_start_token_id": start, "bos_token_id": end, "eos_token_id": end, "pad_token_id": end}


def _generation(own: Mapping[str, Any], tokenizer: Any, config: Any) -> dict[str, Any]:
    """Build the generation config that Whisper's own generate() needs."""
    # English-only Whispers have GPT-2's vocabulary, whose last token is 50256; the others have one more
    multilingual = int(config.vocab_size) >= 51865
    languages = {tokenizer.convert_ids_to_tokens(int(i)): int(i) for i in own.get("lang_ids", [])}
    tasks = {n: _special(tokenizer, f"<|{n}|>") for n in ("transcribe", "translate")}
    out: dict[str, Any] = {
        **_ids(tokenizer),
        "max_length": config.max_target_positions,
        "no_timestamps_token_id": _special(tokenizer, "<|notimestamps|>"),
        "prev_sot_token_id": _special(tokenizer, "<|startofprev|>"),
        "max_initial_timestamp_index": 50,
        "return_timestamps": False,
        "is_multilingual": multilingual,
        "suppress_tokens": own.get("suppress_ids"),
        "begin_suppress_tokens": own.get("suppress_ids_begin"),
        "alignment_heads": own.get("alignment_heads"),
    }
    if multilingual:
        out |= {"lang_to_id": languages, "task_to_id": {k: v for k, v in tasks.items() if v is not None}}
    return {k: v for k, v in out.items() if v is not None}


def _say_float32(path: Path) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n", encoding="utf-8")
