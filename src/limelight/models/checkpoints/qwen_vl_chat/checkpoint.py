"""Loading the published checkpoint: names of the weights and the tokenizer file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limelight.errors import ModelError
from limelight.models.checkpoints.formats import Weights, config_of, dtype_of, fill, read_folder

_DECODER = {
    "ln_1": "input_layernorm", "ln_2": "post_attention_layernorm", "attn.c_proj": "self_attn.o_proj",
    "mlp.w1": "mlp.up_proj", "mlp.w2": "mlp.gate_proj", "mlp.c_proj": "mlp.down_proj",
}  # fmt: skip
_TOWER = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}  # fmt: skip
_TOP = {
    "transformer.wte": "language_model.embed_tokens",
    "transformer.ln_f": "language_model.norm",
    "lm_head": "lm_head",
}
_LAYER = re.compile(r"transformer\.h\.(\d+)\.(.+)\.(weight|bias)")
_BLOCK = re.compile(r"transformer\.visual\.transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias)")


def rename(heads: int) -> Any:
    """Return the function from published names to ours; ``heads``: of the vision encoder, whose fused projection is stored
    head by head."""

    def one(name: str, tensor: Tensor) -> Weights:
        layer, block = _LAYER.fullmatch(name), _BLOCK.fullmatch(name)
        stem, _, kind = name.rpartition(".")
        if layer is not None:
            index, part, kind = layer.groups()
            at = f"language_model.layers.{index}"
            if part == "attn.c_attn":
                return [(f"{at}.self_attn.{n}_proj.{kind}", t) for n, t in zip("qkv", tensor.chunk(3), strict=True)]
            return [(f"{at}.{_DECODER.get(part, part)}.{kind}", tensor)]
        if block is not None:
            index, part, kind = block.groups()
            at = f"visual.encoder.layers.{index}"
            if part == "attn.in_proj":  # [heads, (q, k, v), width of a head, ...]
                parts = tensor.reshape(heads, 3, -1, *tensor.shape[1:]).unbind(1)
                return [(f"{at}.self_attn.{n}_proj.{kind}", t.flatten(0, 1)) for n, t in zip("qkv", parts, strict=True)]
            return [(f"{at}.{_TOWER.get(part, part)}.{kind}", tensor)]
        if stem in _TOP:
            return [(f"{_TOP[stem]}.{kind}", tensor)]
        if name.endswith(("rotary_emb.inv_freq", "masked_bias")):
            return []
        return [(name.removeprefix("transformer."), tensor)]

    return one


def claims(folder: Path | None, config: Mapping[str, Any]) -> bool:
    """Return whether this is a first-generation Qwen with a vision encoder."""
    return config.get("model_type") == "qwen" and isinstance(config.get("visual"), Mapping)


def load(folder: Path, dtype: torch.dtype | str = "auto") -> tuple[Any, Any]:
    """Load model and processor from a folder with the published files.

    Raises:
        ModelError: a file or a weight is missing, or the tokenizer's ids are not the config's.
    """
    from transformers import GenerationConfig

    from limelight import compat
    from limelight.models.checkpoints.qwen_vl_chat.config import from_published
    from limelight.models.checkpoints.qwen_vl_chat.model import QwenVLChatForConditionalGeneration
    from limelight.models.checkpoints.qwen_vl_chat.processor import processor_of

    published = config_of(folder)
    config = from_published(published)
    processor = processor_of(folder, config)
    with compat.no_init_weights():
        model = compat.from_config(QwenVLChatForConditionalGeneration, config, dtype_of(dtype, published))
    fill(model, read_folder(folder), rename(config.vision_config.num_attention_heads))  # type: ignore[union-attr]
    tokenizer = processor.tokenizer
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")],
        pad_token_id=tokenizer.pad_token_id,
    )
    if tokenizer.convert_tokens_to_ids("<imgpad>") != config.image_token_id:
        raise ModelError(
            f"<imgpad> is token {tokenizer.convert_tokens_to_ids('<imgpad>')}, the config says {config.image_token_id}",
            hint="config.json and qwen.tiktoken belong to different checkpoints",
        )
    return model.eval(), processor
