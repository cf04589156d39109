"""Phi-4-multimodal: the text stack holds its own towers and takes token ids; qkv and gate_up are one matrix each."""

import torch
import transformers as hf

from .base import Model, Tensors, Tiny, family, seeded
from .parts import AUDIO, IMAGE, LEAD, TAIL, text


def phi4_multimodal() -> Model:
    vision = dict(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4,
        crop_size=16, image_token_id=IMAGE,
    )  # fmt: skip
    audio = dict(
        hidden_size=16, intermediate_size=24, num_blocks=2, num_attention_heads=2, ext_pw_out_channel=16,
        depthwise_separable_out_channel=16, input_size=16, nemo_conv_channels=8, time_reduction=4,
        bias_max_distance=20, audio_token_id=AUDIO,
    )  # fmt: skip
    words = text("phi4_multimodal", num_key_value_heads=2)
    del words["model_type"]
    return hf.Phi4MultimodalForCausalLM(hf.Phi4MultimodalConfig(vision_config=vision, audio_config=audio, **words))


def media(seed: int) -> Tensors:
    return {
        "image_pixel_values": seeded(seed, 1, 2, 3, 16, 16),
        "image_sizes": torch.tensor([[16, 16]]),
        "image_attention_mask": torch.ones(1, 2, 4, 4, dtype=torch.long),
        "audio_input_features": seeded(seed + 10, 1, 32, 16),
        "audio_embed_sizes": torch.tensor([8]),
    }


ROWS: list[Tiny] = [
    family(
        "phi4_multimodal", phi4_multimodal, (*LEAD, ("image", 13), 33, ("audio", 8), *TAIL),
        {"image": IMAGE, "audio": AUDIO}, media, traits="rmsnorm gated gqa fused_gate_up fused_qkv", decoder="model",
        constant=[3 + i for i in (2, 5, 6, 9, 12)],
        notes="The decoder embeds token ids and places the media itself. Newline and separator embeddings in the "
        "image run. Its towers are modules of the decoder: a switch of its attention reaches them.",
        marks="ids_at_decoder",
    ),
]  # fmt: skip
