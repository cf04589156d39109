"""Audio families: a Whisper-like encoder over a log-mel spectrogram, a projector, a text model."""

import transformers as hf

from .base import Model, Tiny, family
from .parts import AUDIO, LEAD, TAIL, mel, text

TOKENS = {"audio": AUDIO}
WHISPER = dict(
    num_mel_bins=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=24, d_model=16,
    max_source_positions=32,
)  # fmt: skip


def qwen2_audio() -> Model:
    return hf.Qwen2AudioForConditionalGeneration(
        hf.Qwen2AudioConfig(
            audio_config=dict(WHISPER), text_config=text("qwen2", num_key_value_heads=2), audio_token_index=AUDIO
        )
    )


def audioflamingo3() -> Model:
    audio = dict(
        num_mel_bins=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, hidden_size=16,
        max_source_positions=32,
    )  # fmt: skip
    return hf.AudioFlamingo3ForConditionalGeneration(
        hf.AudioFlamingo3Config(
            audio_config=audio, text_config=text("qwen2", num_key_value_heads=2), audio_token_id=AUDIO
        )
    )


def voxtral() -> Model:
    audio = dict(
        num_mel_bins=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, hidden_size=16,
        max_source_positions=32,
    )  # fmt: skip
    return hf.VoxtralForConditionalGeneration(
        hf.VoxtralConfig(
            audio_config=audio, text_config=text("llama", num_key_value_heads=2, head_dim=12), audio_token_id=AUDIO
        )
    )


FULL, PART = (*LEAD, ("audio", 16), *TAIL), (*LEAD, ("audio", 12), *TAIL)

ROWS: list[Tiny] = [
    family(
        "qwen2_audio", qwen2_audio, FULL, TOKENS,
        lambda seed: mel(seed, valid=64 if seed == 1 else 50, mask="feature_attention_mask"), short=PART,
        traits="rmsnorm gated gqa bias", decoder="model.language_model",
        notes="The second prompt's sound is shorter than its spectrogram.",
    ),
    family(
        "audioflamingo3", audioflamingo3, FULL, TOKENS,
        lambda seed: mel(seed, valid=64 if seed == 1 else 50, mask="input_features_mask"), short=PART,
        traits="rmsnorm gated gqa bias", decoder="model.language_model",
        notes="The second prompt's sound is shorter than its spectrogram.",
    ),
    family(
        "voxtral", voxtral, (*LEAD, ("audio", 8), *TAIL), TOKENS, mel,
        traits="rmsnorm gated gqa", decoder="model.language_model",
    ),
]  # fmt: skip
