"""Config of the model, converted from the published config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import CLIPVisionConfig, PreTrainedConfig, Qwen2Config

from limelight.errors import ModelError


class QwenVLChatConfig(PreTrainedConfig):  # type: ignore[misc]
    """A Qwen2 decoder, a CLIP tower without class token, and a resampler with ``image_seq_length`` queries.

    ``output_dim`` is the width of the resampler, ``image_token_id`` the ``<imgpad>`` between ``<img>`` and ``</img>``.
    """

    model_type = "qwen_vl_chat"
    sub_configs_defaults = {"text_config": Qwen2Config, "vision_config": CLIPVisionConfig}  # noqa: RUF012 - transformers' way

    text_config: dict[str, Any] | PreTrainedConfig | None = None
    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    output_dim: int = 4096
    resampler_heads: int = 32
    image_seq_length: int = 256
    image_token_id: int = 151859
    initializer_range: float = 0.02


def from_published(config: Mapping[str, Any], *, head_width: int = 128) -> QwenVLChatConfig:
    """Convert the published config.json (``model_type`` "qwen" with a ``visual`` part).

    Args:
        head_width: of the resampler's heads, fixed in the published code.

    Raises:
        ModelError: a setting that changes the computation and is not supported.
    """
    visual = config["visual"]
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    odd = [
        name for name, usual in (("no_bias", True), ("scale_attn_weights", True)) if config.get(name, usual) != usual
    ]
    if odd or int(config.get("kv_channels", hidden // heads)) * heads != hidden or config.get("rotary_pct", 1.0) != 1.0:
        raise ModelError(
            f"unusual settings of the Qwen decoder: {', '.join(odd) or 'kv_channels or rotary_pct'}",
            hint="only the layout of Qwen-VL and Qwen-VL-Chat is supported",
        )
    text = {
        "vocab_size": config["vocab_size"],
        "hidden_size": hidden,
        "intermediate_size": int(config["intermediate_size"]) // 2,  # it counts gate and up together
        "num_hidden_layers": config["num_hidden_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "hidden_act": "silu",
        "max_position_embeddings": config["seq_length"],
        "rms_norm_eps": config["layer_norm_epsilon"],
        "rope_parameters": {"rope_type": "default", "rope_theta": float(config.get("rotary_emb_base", 10000))},
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        "use_sliding_window": False,
    }
    vision = {
        "hidden_size": visual["width"],
        "intermediate_size": int(visual["width"] * visual["mlp_ratio"]),
        "num_hidden_layers": visual["layers"],
        "num_attention_heads": visual["heads"],
        "image_size": visual["image_size"],
        "patch_size": visual["patch_size"],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
    }
    return QwenVLChatConfig(
        text_config=Qwen2Config(**text),
        vision_config=CLIPVisionConfig(**vision),
        output_dim=visual["output_dim"],
        resampler_heads=max(1, int(visual["output_dim"]) // head_width),
        image_seq_length=int(visual.get("n_queries", 256)),
        image_token_id=int(visual["image_start_id"]) + 2,
    )
