"""Families whose text stack reads the image by cross-attention: the prompt holds no placeholder positions."""

import torch
import transformers as hf
from torch import Tensor

from .base import Model, Tensors, Tiny, family, seeded
from .parts import IMAGE, LEAD, TAIL, text


def mllama() -> Model:
    vision = dict(
        hidden_size=16, num_hidden_layers=2, num_global_layers=1, attention_heads=2, intermediate_size=24,
        vision_output_dim=48, image_size=16, patch_size=8, intermediate_layers_indices=[0, 1],
    )  # fmt: skip
    words = text("mllama_text_model", num_hidden_layers=3, num_key_value_heads=2, cross_attention_layers=[1])
    return hf.MllamaForConditionalGeneration(
        hf.MllamaConfig(vision_config=vision, text_config=words, image_token_index=IMAGE)
    )


def tiled(seed: int) -> Tensors:
    """Two tiles side by side, the other two of four empty."""
    mask = torch.tensor([[[1, 1, 0, 0]]])
    return {
        "pixel_values": seeded(seed, 1, 1, 4, 3, 16, 16) * mask[..., None, None, None],
        "aspect_ratio_ids": torch.tensor([[2]]),
        "aspect_ratio_mask": mask,
    }


def seen_from(ids: Tensor, mask: Tensor) -> Tensor:
    """1 from the image token on. Shape: (B, S)."""
    return ((ids == IMAGE).cumsum(1) > 0).long()


def mllama_mask(ids: Tensor, mask: Tensor) -> Tensors:
    tiles = torch.tensor([1, 1, 0, 0])
    return {"cross_attention_mask": seen_from(ids, mask)[:, :, None, None] * tiles}


def idefics() -> Model:
    vision = dict(
        embed_dim=16, image_size=16, intermediate_size=24, patch_size=4, num_hidden_layers=2, num_attention_heads=2
    )
    perceiver = dict(resampler_n_latents=4, resampler_depth=1, resampler_n_heads=2, resampler_head_dim=8)
    words = text("idefics")
    del words["model_type"], words["num_key_value_heads"]
    return hf.IdeficsForVisionText2Text(
        hf.IdeficsConfig(
            vision_config=vision, perceiver_config=perceiver, use_resampler=True, cross_layer_interval=1,
            qk_layer_norms=True, **words,
        )
    )  # fmt: skip


ROWS: list[Tiny] = [
    family(
        "mllama", mllama, (1, IMAGE, 31, 32, *TAIL), {"image": IMAGE}, tiled, extra=mllama_mask,
        short=(1, IMAGE, 32, *TAIL), traits="rmsnorm gated gqa qk_norm cross_attention",
        decoder="model.language_model", notes="Layer 1 is a cross-attention layer; its q and k are normalised.",
        marks="ids_at_decoder",
    ),
    family(
        "idefics", idefics, (*LEAD, IMAGE, *TAIL), {}, lambda s: {"pixel_values": seeded(s, 1, 1, 3, 16, 16)},
        extra=lambda ids, mask: {"image_attention_mask": seen_from(ids, mask)[..., None]},
        traits="rmsnorm gated cross_attention", decoder="model", marks="reads_before_layers ids_at_decoder",
        notes="Gated cross-attention blocks (q and k normalised) stand beside the layers, in "
        "gated_cross_attn_layers, and "
        "share their layer_idx.",
    ),
]  # fmt: skip
