"""Families that turn an image into discrete codes or into patches without a tower."""

import torch
import transformers as hf

from .base import Model, Tensors, Tiny, family, seeded
from .parts import IMAGE, LEAD, TAIL, pixels, text

TOKENS = {"image": IMAGE}
CODES = range(100, 116)  # the vocabulary ids of 16 image codes


def chameleon() -> Model:
    vq = dict(
        embed_dim=8, num_embeddings=len(CODES), latent_channels=32, resolution=16, base_channels=32,
        channel_multiplier=[1, 1, 1], num_res_blocks=1,
    )  # fmt: skip
    letters = str.maketrans("0123456789", "ABCDEFGHIJ")
    names = {f"IMGIMG{str(i).translate(letters)}Z": code for i, code in enumerate(CODES)}
    words = text("chameleon", num_key_value_heads=2)
    del words["model_type"]
    return hf.ChameleonForConditionalGeneration(
        hf.ChameleonConfig(vq_config=vq, vocabulary_map=names | {"<image>": IMAGE}, **words)
    )


def emu3() -> Model:
    vq = dict(
        codebook_size=len(CODES), embed_dim=4, latent_channels=4, temporal_downsample_factor=1, base_channels=32,
        channel_multiplier=[1, 1], num_res_blocks=1, attn_resolutions=[], hidden_size=32,
    )  # fmt: skip
    names = {f"<|visual token {i:06d}|>": code for i, code in enumerate(CODES)}
    return hf.Emu3ForConditionalGeneration(
        hf.Emu3Config(
            vq_config=vq, text_config=text("emu3_text_model", num_key_value_heads=2, attention_dropout=0.0),
            vocabulary_map=names | {"<image>": IMAGE, "<|extra_200|>": 11},
        )
    )  # fmt: skip


def fuyu() -> Model:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    words = text("persimmon", hidden_act="relu2", qk_layernorm=True, rope_parameters=rope)
    return hf.FuyuForCausalLM(hf.FuyuConfig(text_config=words, image_size=16, patch_size=4, image_token_id=IMAGE))


def janus() -> Model:
    vision = dict(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4, mlp_ratio=2.0,
        projection_dim=32, num_image_tokens=16,
    )  # fmt: skip
    vq = dict(
        embed_dim=8, num_embeddings=16, latent_channels=32, base_channels=32, channel_multiplier=[1], num_res_blocks=1,
        num_patches=4, projection_dim=32, image_token_embed_dim=32,
    )  # fmt: skip
    return hf.JanusForConditionalGeneration(
        hf.JanusConfig(
            vision_config=vision, vq_config=vq, text_config=text("llama"), image_token_id=IMAGE,
            tie_word_embeddings=False,
        )
    )  # fmt: skip


def sized(seed: int) -> Tensors:
    return {"pixel_values": seeded(seed, 1, 3, 8, 8), "image_sizes": torch.tensor([[8, 8]])}


PROMPT = (*LEAD, ("image", 16), *TAIL)
ROWS: list[Tiny] = [
    family(
        "chameleon", chameleon, PROMPT, TOKENS, pixels, traits="rmsnorm gated gqa qk_norm", decoder="model",
        marks="discrete ids_at_decoder logits_after_head",
        notes="Image codes are word embeddings: no gradient reaches the pixels. Logits of image "
        "codes are set to the lowest number. q and k pass a LayerNorm each head has its own weights of.",
    ),
    family(
        "emu3", emu3, (*LEAD, ("image", 20), *TAIL), TOKENS, sized, traits="rmsnorm gated gqa",
        decoder="model.text_model",
        marks="discrete", constant=[3 + 5 * i + 4 for i in range(4)],
        notes="Image codes are word embeddings: no gradient reaches the pixels. A row of the image ends in a newline.",
    ),
    family(
        "fuyu", fuyu, PROMPT, TOKENS, lambda s: {"pixel_values": seeded(s, 1, 16, 48)},
        traits="layernorm fc12 bias qk_norm fused_qkv", decoder="model.language_model",
        notes="No tower: patches are embedded by one matrix. Takes pixel_values; image_patches is accepted and "
        "ignored.",
    ),
    family("janus", janus, PROMPT, TOKENS, pixels, traits="rmsnorm gated", decoder="model.language_model",
        marks="own_generate",
    ),
]  # fmt: skip
