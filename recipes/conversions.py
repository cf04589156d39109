"""The fetched files of SmolLM2 and EfficientNet-Lite2, written as safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from limelight.errors import ModelError
from limelight.models.checkpoints.efficientnet_lite import EfficientNetLite
from limelight.models.checkpoints.formats import pickled
from recipes import gguf_file

_LAYER = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_TOP = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
_CONTROL = 3  # token type of special tokens


def smollm2(source: Path, place: Path) -> None:
    """SmolLM2 from a GGUF file: a Llama with tied embeddings, stored in float16, and its tokenizer.

    Raises:
        ModelError: the file holds another kind of model.
    """
    file = gguf_file.read(source)
    metadata = file.metadata
    if metadata.get("general.architecture") != "llama" or metadata.get("tokenizer.ggml.pre") != "smollm":
        raise ModelError(f"{source} holds no SmolLM2", hint="fetch it again")
    heads, groups = metadata["llama.attention.head_count"], metadata["llama.attention.head_count_kv"]
    state: dict[str, Tensor] = {}
    for name, value in file.tensors.items():
        if name in _TOP:
            state[_TOP[name]] = value
            continue
        _, layer, part, _ = name.split(".")
        if part in ("attn_q", "attn_k"):
            value = _halves(value, heads if part == "attn_q" else groups)
        state[f"model.layers.{layer}.{_LAYER[part]}.weight"] = value
    save_file({n: v.half().contiguous() for n, v in state.items()}, place / "model.safetensors", {"format": "pt"})
    ids = {n: metadata[f"tokenizer.ggml.{n}_token_id"] for n in ("bos", "eos")}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "hidden_size": metadata["llama.embedding_length"],
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "max_position_embeddings": metadata["llama.context_length"],
        "rope_theta": metadata["llama.rope.freq_base"],
        "rms_norm_eps": round(metadata["llama.attention.layer_norm_rms_epsilon"], 9),
        "tie_word_embeddings": True,
        "bos_token_id": ids["bos"],
        "eos_token_id": ids["eos"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
        "dtype": "float32",
    }
    (place / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    _tokenizer(metadata, place)


def _halves(value: Tensor, heads: int) -> Tensor:
    """Rotary pairs from llama.cpp's order (neighbours) into transformers' (halves)."""
    rows, columns = value.shape
    return value.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def _tokenizer(metadata: dict[str, Any], place: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: n for n, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = metadata["tokenizer.ggml.token_type"]
    special = [t for t, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[metadata["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[metadata["tokenizer.ggml.eos_token_id"]],
        pad_token=tokens[metadata["tokenizer.ggml.padding_token_id"]],
        unk_token=tokens[metadata["tokenizer.ggml.unknown_token_id"]],
        model_max_length=metadata["llama.context_length"],
    )
    fast.chat_template = metadata["tokenizer.chat_template"]
    fast.save_pretrained(place)


def efficientnet_lite(source: Path, place: Path) -> None:
    """EfficientNet-Lite2 from the PyTorch port's checkpoint: the features, without the classifier, in float32.

    Raises:
        ModelError: the file holds another network.
    """
    state = pickled(source)
    kept = {n: v.contiguous() for n, v in state.items() if not n.startswith("_fc.") and "num_batches" not in n}
    tower = EfficientNetLite("lite2")
    try:
        tower.load_state_dict(kept | {n: v for n, v in tower.state_dict().items() if "num_batches" in n})
    except RuntimeError as error:
        raise ModelError(f"{source} holds no EfficientNet-Lite2: {error}", hint="fetch it again") from error
    save_file(kept, place / "model.safetensors", {"format": "pt"})
    config = {"model_type": "efficientnet_lite", "size": "lite2"}
    (place / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
