"""GGUF is read as its format says, and the weights land where transformers expects them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from limelight.errors import ModelError
from limelight.models.checkpoints.efficientnet_lite import EfficientNetLite
from recipes import conversions, gguf_file

F32, Q4_1, Q8_0 = 0, 3, 8
KINDS = {"I": 4, "i": 5, "f": 6, "?": 7}


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    """Type and value of a metadata entry."""
    if isinstance(value, str):
        return struct.pack("<I", 8) + _string(value)
    if isinstance(value, list):
        if isinstance(value[0], str):
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_string, value))
        return struct.pack("<IIQ", 9, 5, len(value)) + struct.pack(f"<{len(value)}i", *value)
    kind = "?" if isinstance(value, bool) else "f" if isinstance(value, float) else "I"
    return struct.pack("<I", KINDS[kind]) + struct.pack(f"<{kind}", value)


def write(path: Path, metadata: dict[str, Any], tensors: dict[str, tuple[list[int], int, bytes]]) -> Path:
    """A GGUF file; tensors as (shape, rows first), type, bytes."""
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    out += b"".join(_string(k) + _value(v) for k, v in metadata.items())
    offset, data = 0, b""
    for name, (shape, kind, raw) in tensors.items():
        out += _string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, offset)
        padded = raw + b"\0" * (-len(raw) % 32)
        data, offset = data + padded, offset + len(padded)
    path.write_bytes(out + b"\0" * (-len(out) % 32) + data)
    return path


def test_types_of_blocks(tmp_path: Path) -> None:
    """Against the formulas of the format, written out weight by weight."""
    rng = np.random.default_rng(0)
    plain = rng.normal(size=6).astype(np.float32)
    codes, nibbles = rng.integers(-128, 128, 64), rng.integers(0, 16, 64)
    scales, least = np.array([0.5, 0.25], np.float16), np.array([-1.0, 2.0], np.float16)
    eight = b"".join(scales[b].tobytes() + codes[32 * b : 32 * b + 32].astype(np.int8).tobytes() for b in (0, 1))
    four = b""
    for b in (0, 1):
        own = nibbles[32 * b : 32 * b + 32]
        four += scales[b].tobytes() + least[b].tobytes() + (own[:16] | own[16:] << 4).astype(np.uint8).tobytes()
    path = write(
        tmp_path / "x.gguf",
        {"a": "b", "n": 3, "list": ["x", "yz"], "yes": True},
        {"f": ([2, 3], F32, plain.tobytes()), "e": ([2, 32], Q8_0, eight), "q": ([2, 32], Q4_1, four)},
    )
    found = gguf_file.read(path)
    assert found.metadata == {"a": "b", "n": 3, "list": ["x", "yz"], "yes": True}
    assert torch.equal(found.tensors["f"], torch.from_numpy(plain.reshape(2, 3)))
    for b in (0, 1):
        for i in range(32):
            assert float(found.tensors["e"][b, i]) == float(scales[b]) * codes[32 * b + i]
            assert float(found.tensors["q"][b, i]) == float(scales[b]) * nibbles[32 * b + i] + float(least[b])


def test_damaged_files_are_reported(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", {"a": 1}, {"f": ([4], F32, np.zeros(4, np.float32).tobytes())})
    raw = path.read_bytes()
    for broken, said in ((b"nothing", "no GGUF file"), (raw[:-20], "damaged"), (raw[:40], "damaged")):
        path.write_bytes(broken)
        with pytest.raises(ModelError, match=said):
            gguf_file.read(path)
    odd = write(tmp_path / "y.gguf", {"a": 1}, {"f": ([4], 2, b"\0" * 64)})
    with pytest.raises(ModelError, match="f is of type 2"):
        gguf_file.read(odd)


def _neighbours(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp's order of rotary rows, as its converter writes it."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def test_a_language_model_comes_through(tmp_path: Path) -> None:
    """Logits of the converted model are those of the model that the file was made of; its tokenizer splits digits."""
    torch.manual_seed(0)
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abc123", "Ġ", "ab", "Ġa"]
    config = LlamaConfig(
        vocab_size=len(tokens), hidden_size=128, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True, rope_theta=100000.0, rms_norm_eps=1e-5,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    names = {v: k for k, v in conversions._LAYER.items()}
    tensors: dict[str, tuple[list[int], int, bytes]] = {}
    for name, value in model.model.state_dict().items():
        if name.startswith("layers."):
            _, layer, part = name.removesuffix(".weight").split(".", 2)
            own = names[part]
            if own in ("attn_q", "attn_k"):
                value = _neighbours(value, 2 if own == "attn_q" else 1)
            key = f"blk.{layer}.{own}.weight"
        else:
            key = {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}[name]
        tensors[key] = (list(value.shape), F32, value.contiguous().numpy().tobytes())
    metadata = {
        "general.architecture": "llama", "llama.block_count": 2, "llama.context_length": 64,
        "llama.embedding_length": 128, "llama.feed_forward_length": 64, "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 1, "llama.rope.freq_base": 100000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5, "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 3, *[1] * (len(tokens) - 3)], "tokenizer.ggml.merges": ["a b", "Ġ a"],
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2, "tokenizer.chat_template": "{{ messages[0]['content'] }}",
    }  # fmt: skip
    source = write(tmp_path / "x.gguf", metadata, tensors)
    place = tmp_path / "out"
    place.mkdir()
    conversions.smollm2(source, place)
    found = AutoModelForCausalLM.from_pretrained(place).eval()
    ids = torch.arange(len(tokens))[None]
    with torch.no_grad():
        got, want = found(ids).logits, model(ids).logits
    assert torch.allclose(got, want, atol=2e-3)  # stored in float16
    tokenizer = AutoTokenizer.from_pretrained(place)
    assert tokenizer.tokenize("ab 12<|im_end|>") == ["ab", "Ġ", "1", "2", "<|im_end|>"]
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.chat_template
    with pytest.raises(ModelError, match="holds no SmolLM2"):
        conversions.smollm2(write(tmp_path / "y.gguf", {**metadata, "tokenizer.ggml.pre": "llama"}, tensors), place)


def test_the_tower_comes_through_without_its_classifier(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tower = EfficientNetLite("lite2")
    state = {**tower.state_dict(), "_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}
    torch.save(state, tmp_path / "x.pth")
    conversions.efficientnet_lite(tmp_path / "x.pth", tmp_path)
    kept = load_file(tmp_path / "model.safetensors")
    assert not any(n.startswith("_fc") or "num_batches" in n for n in kept)
    assert all(torch.equal(kept[n], v) for n, v in tower.state_dict().items() if "num_batches" not in n)
    torch.save({n: v for n, v in state.items() if "_conv_head" not in n}, tmp_path / "y.pth")
    with pytest.raises(ModelError, match="holds no EfficientNet-Lite2"):
        conversions.efficientnet_lite(tmp_path / "y.pth", tmp_path)
