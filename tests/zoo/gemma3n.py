"""Gemma 3n: several residual streams (AltUp), low-rank side branches, an input for each layer, K/V shared by layers."""

import torch
import transformers as hf

from .base import Model, Tensors, Tiny, family, seeded
from .gemma4 import GLOBAL, LOCAL
from .parts import LEAD, TAIL, pixels, text
from .stand_in import without_timm

IMAGE, AUDIO = 101, 109  # ids from 100 on are a vision vocabulary, from 108 on an audio vocabulary


def gemma3n() -> Model:
    words = text(
        "gemma3n_text", num_hidden_layers=4, layer_types=[LOCAL, GLOBAL] * 2, num_key_value_heads=2, head_dim=8,
        num_kv_shared_layers=2, sliding_window=8, hidden_size_per_layer_input=8, vocab_size_per_layer_input=100,
        laurel_rank=4, altup_num_inputs=3, activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.0],
        final_logit_softcapping=6.0,
    )  # fmt: skip
    audio = dict(
        vocab_size=20, vocab_offset=108, input_feat_size=16, hidden_size=16, conf_num_attention_heads=2,
        conf_num_hidden_layers=1, sscp_conv_channel_size=[8, 4],
    )  # fmt: skip
    config = hf.Gemma3nConfig(
        text_config=words, audio_config=audio, vision_config=dict(hidden_size=16, vocab_size=8, vocab_offset=100),
        vision_soft_tokens_per_image=4, audio_soft_tokens_per_image=4, image_token_id=IMAGE, audio_token_id=AUDIO,
        boi_token_id=3, eoi_token_id=4, boa_token_id=8, eoa_token_id=9,
    )  # fmt: skip
    with without_timm("gemma3n", config):
        return hf.Gemma3nForConditionalGeneration(config)


def seen_and_heard(seed: int) -> Tensors:
    """A picture of four positions, and 64 frames of sound: four positions, too."""
    frames = {"input_features": seeded(seed, 1, 64, 16), "input_features_mask": torch.ones(1, 64, dtype=torch.bool)}
    return pixels(seed) | frames


ROWS: list[Tiny] = [
    family(
        "gemma3n", gemma3n, (*LEAD, 3, ("image", 4), 4, 8, ("audio", 4), 9, *TAIL), {"image": IMAGE, "audio": AUDIO},
        seen_and_heard,
        traits="rmsnorm gated gqa qk_norm sliding sandwich kv_shared per_layer_inputs streams",
        decoder="model.language_model",
        notes="A patch embedding stands in for the MobileNet tower. Hidden states have a leading axis of streams.",
        marks="decoder_extras logits_after_head",
    ),
]  # fmt: skip
