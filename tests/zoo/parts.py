"""Small sub-configs and media that several families share."""

from typing import Any

import torch
from torch import Tensor

from .base import PAD, VOCAB, Tensors, seeded

CLIP = dict(
    model_type="clip_vision_model", hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
    image_size=16, patch_size=4, projection_dim=16,
)  # fmt: skip
SIGLIP = dict(
    model_type="siglip_vision_model", hidden_size=16, intermediate_size=24, num_hidden_layers=2,
    num_attention_heads=2, image_size=16, patch_size=4, vision_use_head=False,
)  # fmt: skip
TEXT = dict(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=4, max_position_embeddings=256, pad_token_id=PAD, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
MROPE = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}  # for head_dim 8

VISION_START, VISION_END, IMAGE, VIDEO, AUDIO = 3, 4, 5, 6, 7
LEAD, TAIL = (1, 31, 32), (41, 42, 43, 44, 45)


def text(model_type: str, **changes: Any) -> dict[str, Any]:
    """The config of a two-layer text model, hidden size 32, four heads."""
    return TEXT | {"model_type": model_type} | changes


def counted(ids: Tensor, mask: Tensor) -> Tensors:
    """Positions that start behind the padding, for a family that uses them for more than their differences."""
    return {} if bool(mask.all()) else {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def pixels(seed: int) -> Tensors:
    """One image of 16 x 16 pixels, as most towers want it."""
    return {"pixel_values": seeded(seed, 1, 3, 16, 16)}


def patches(seed: int, *grid: int, dim: int) -> Tensors:
    """One image as rows of flattened patches with its (time, height, width) grid, as Qwen's towers want it."""
    t, h, w = grid
    return {"pixel_values": seeded(seed, t * h * w, dim), "image_grid_thw": torch.tensor([list(grid)])}


def mel(seed: int, frames: int = 64, valid: int = 64, mask: str | None = None, bins: int = 16) -> Tensors:
    """One log-mel spectrogram of `frames` columns of which `valid` hold sound."""
    features = seeded(seed, 1, bins, frames)
    features[..., valid:] = 0
    out = {"input_features": features}
    if mask is not None:
        out[mask] = (torch.arange(frames) < valid).long()[None]
    return out
