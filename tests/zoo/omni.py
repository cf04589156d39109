"""Omni thinkers: sound and image in one prompt, positions in time."""

import transformers as hf

from .base import Model, Tensors, Tiny, family
from .parts import AUDIO, IMAGE, LEAD, MROPE, TAIL, VIDEO, VISION_END, VISION_START, mel, text
from .qwen import image
from .qwen3 import DEEPSTACK, EXPERTS, INTERLEAVED

AUDIO_START, AUDIO_END = 8, 9
TOKENS = {"audio": AUDIO, "image": IMAGE}
SHARED = dict(audio_start_token_id=AUDIO_START, vision_start_token_id=VISION_START, user_token_id=10)
WHISPER = dict(
    num_mel_bins=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=24, d_model=16,
    max_source_positions=32, output_dim=32,
)  # fmt: skip


def qwen2_5_omni() -> Model:
    vision = dict(
        depth=2, hidden_size=16, out_hidden_size=32, num_heads=2, intermediate_size=24, patch_size=4,
        spatial_merge_size=2, temporal_patch_size=2, window_size=16, fullatt_block_indexes=[1],
    )  # fmt: skip
    return hf.Qwen2_5OmniThinkerForConditionalGeneration(
        hf.Qwen2_5OmniThinkerConfig(
            audio_config=WHISPER | {"n_window": 16}, vision_config=vision,
            text_config=text("qwen2_5_omni_text", num_key_value_heads=2, rope_parameters=MROPE),
            audio_token_index=AUDIO, image_token_index=IMAGE, video_token_index=VIDEO, audio_end_token_id=AUDIO_END,
            **SHARED,
        )
    )  # fmt: skip


def qwen3_omni() -> Model:
    words = text(
        "qwen3_omni_moe_text", num_hidden_layers=3, num_key_value_heads=2, head_dim=8, rope_parameters=INTERLEAVED,
        **EXPERTS,
    )  # fmt: skip
    return hf.Qwen3OmniMoeThinkerForConditionalGeneration(
        hf.Qwen3OmniMoeThinkerConfig(
            audio_config=WHISPER | {"n_window": 50, "max_source_positions": 50, "downsample_hidden_size": 4},
            vision_config=dict(DEEPSTACK), text_config=words, audio_token_id=AUDIO, image_token_id=IMAGE,
            video_token_id=VIDEO, **SHARED,
        )
    )  # fmt: skip


def both(seed: int) -> Tensors:
    return mel(seed, valid=64 if seed == 1 else 40, mask="feature_attention_mask") | image(seed)


def prompt(sound: int) -> tuple[int | tuple[str, int], ...]:
    seen = (VISION_START, ("image", 8), VISION_END)
    return (*LEAD, AUDIO_START, ("audio", sound), AUDIO_END, *seen, *TAIL)


ROWS: list[Tiny] = [
    family(
        "qwen2_5_omni_thinker", qwen2_5_omni, prompt(16), TOKENS, both, short=prompt(10),
        traits="rmsnorm gated gqa bias mrope", decoder="model.language_model",
        notes="No logits_to_keep: every forward computes the logits of all positions.",
    ),
    family(
        "qwen3_omni_thinker", qwen3_omni, prompt(8), TOKENS, both, short=prompt(5),
        traits="rmsnorm gated gqa qk_norm mrope deepstack moe", decoder="model.language_model",
        notes="No logits_to_keep. Deepstack for the image only. Position ids are float.",
        marks="decoder_extras",
    ),
]  # fmt: skip
