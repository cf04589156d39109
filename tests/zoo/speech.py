"""Speech and music families built on a text model: Granite, GLM, Qwen 3 and further ones."""

import torch
import transformers as hf

from .base import Model, Tensors, Tiny, family, seeded
from .parts import AUDIO, LEAD, TAIL, mel, text

TOKENS = {"audio": AUDIO}


ENCODER = dict(
    input_dim=16, num_layers=2, hidden_dim=16, feedforward_mult=2, num_heads=2, dim_head=8, output_dim=8,
    context_size=8, max_pos_emb=16, conv_kernel_size=3, conv_expansion_factor=1,
)  # fmt: skip
GRANITE = text(
    "granite", num_key_value_heads=2, embedding_multiplier=2.0, residual_multiplier=0.6, attention_multiplier=0.3,
    logits_scaling=1.25,
)  # fmt: skip


def projector(width: int) -> dict[str, object]:
    """A Q-Former that reads features of size `width`."""
    return dict(
        model_type="blip_2_qformer", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        encoder_hidden_size=width, cross_attention_frequency=1,
    )  # fmt: skip


def granite_speech() -> Model:
    return hf.GraniteSpeechForConditionalGeneration(
        hf.GraniteSpeechConfig(
            encoder_config=dict(ENCODER), projector_config=projector(16), text_config=dict(GRANITE),
            audio_token_index=AUDIO, downsample_rate=2, window_size=4, has_lora_adapter=False,
            tie_word_embeddings=False,
        )
    )  # fmt: skip


def granite_speech_plus() -> Model:
    return hf.GraniteSpeechPlusForConditionalGeneration(
        hf.GraniteSpeechPlusConfig(
            encoder_config=ENCODER | {"cat_hidden_layers": [1]}, projector_config=projector(32),
            text_config=dict(GRANITE), audio_token_index=AUDIO, downsample_rate=2, window_size=4,
            has_lora_adapter=False, tie_word_embeddings=False,
        )
    )  # fmt: skip


def windows(seed: int) -> Tensors:
    """16 frames: four windows of two query positions each; the second prompt's sound ends after six of the eight."""
    return {
        "input_features": seeded(seed, 1, 16, 16),
        "input_features_mask": (torch.arange(8) < (8 if seed == 1 else 6))[None],
    }


def glmasr() -> Model:
    audio = dict(
        hidden_size=16, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_mel_bins=16,
        max_position_embeddings=64,
    )  # fmt: skip
    return hf.GlmAsrForConditionalGeneration(
        hf.GlmAsrConfig(
            audio_config=audio, text_config=text("llama", num_key_value_heads=2), audio_token_id=AUDIO,
            tie_word_embeddings=False,
        )
    )  # fmt: skip


def qwen3_asr() -> Model:
    audio = dict(
        num_mel_bins=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=24, d_model=16, n_window=50,
        n_window_infer=100, output_dim=32, downsample_hidden_size=4,
    )  # fmt: skip
    return hf.Qwen3ASRForConditionalGeneration(
        hf.Qwen3ASRConfig(
            audio_config=audio, text_config=text("qwen3", num_key_value_heads=2, head_dim=8), audio_token_id=AUDIO,
            pad_token_id=0, eos_token_id=2, tie_word_embeddings=False,
        )
    )  # fmt: skip


def musicflamingo() -> Model:
    audio = dict(
        model_type="audioflamingo3_encoder", num_mel_bins=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, hidden_size=16,
        max_source_positions=32,
    )  # fmt: skip
    return hf.MusicFlamingoForConditionalGeneration(
        hf.MusicFlamingoConfig(
            audio_config=audio, text_config=text("qwen2", num_key_value_heads=2), audio_token_id=AUDIO,
            rope_parameters={"rope_type": "default", "rope_theta": 1200, "partial_rotary_factor": 0.5},
        )
    )  # fmt: skip


def moss_transcribe_diarize() -> Model:
    audio = dict(
        num_mel_bins=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, hidden_size=16,
        max_source_positions=32,
    )  # fmt: skip
    return hf.MossTranscribeDiarizeForConditionalGeneration(
        hf.MossTranscribeDiarizeConfig(
            audio_config=audio, text_config=text("qwen3", num_key_value_heads=2, head_dim=8), audio_token_id=AUDIO,
            tie_word_embeddings=False,
        )
    )  # fmt: skip


def fun_asr_nano() -> Model:
    audio = dict(
        num_mel_bins=8, num_stacked_frames=2, hidden_size=16, num_attention_heads=2, intermediate_size=24,
        num_hidden_layers=2, num_timestamp_prediction_layers=1, fsmn_kernel_size=3,
    )  # fmt: skip
    adaptor = dict(
        hidden_size=32, num_attention_heads=2, intermediate_size=8, num_hidden_layers=1, projector_hidden_size=32
    )
    return hf.FunAsrNanoForConditionalGeneration(
        hf.FunAsrNanoConfig(
            audio_config=audio, adaptor_config=adaptor, text_config=text("qwen3", num_key_value_heads=2, head_dim=8),
            audio_token_id=AUDIO, tie_word_embeddings=False,
        )
    )  # fmt: skip


def stacked(seed: int) -> Tensors:
    """Eight stacks of two frames; the second prompt's sound ends after six."""
    mask = (torch.arange(8) < (8 if seed == 1 else 6)).long()[None]
    return {"input_features": seeded(seed, 1, 8, 16) * mask[..., None], "input_features_mask": mask}


def prompt(n: int) -> tuple[int | tuple[str, int], ...]:
    return (*LEAD, ("audio", n), *TAIL)


ROWS: list[Tiny] = [
    family(
        "granite_speech", granite_speech, prompt(8), TOKENS, windows, short=prompt(6),
        traits="rmsnorm gated gqa multipliers qformer", decoder="model.language_model",
        marks="own_generate",
    ),
    family(
        "glmasr", glmasr, prompt(8), TOKENS,
        lambda seed: mel(seed, valid=64 if seed == 1 else 48, mask="input_features_mask"), short=prompt(6),
        traits="rmsnorm gated gqa", decoder="model.language_model",
    ),
    family(
        "qwen3_asr", qwen3_asr, prompt(13), TOKENS,
        lambda seed: mel(seed, 100, 100 if seed == 1 else 40, "input_features_mask"), short=prompt(5),
        traits="rmsnorm gated gqa qk_norm", decoder="model.language_model",
    ),
    family(
        "granite_speech_plus", granite_speech_plus, prompt(8), TOKENS, windows, short=prompt(6),
        traits="rmsnorm gated gqa multipliers qformer", decoder="model.language_model",
        marks="own_generate",
    ),
    family(
        "musicflamingo", musicflamingo, prompt(16), TOKENS,
        lambda seed: mel(seed, valid=64 if seed == 1 else 50, mask="input_features_mask"), short=prompt(12),
        traits="rmsnorm gated gqa bias", decoder="model.language_model",
    ),
    family(
        "moss_transcribe_diarize", moss_transcribe_diarize, prompt(8), TOKENS,
        lambda seed: mel(seed, valid=64 if seed == 1 else 46, mask="input_features_mask"), short=prompt(6),
        traits="rmsnorm gated gqa qk_norm", decoder="model.language_model",
    ),
    family(
        "fun_asr_nano", fun_asr_nano, prompt(8), TOKENS, stacked, short=prompt(6),
        traits="rmsnorm gated gqa qk_norm", decoder="model.language_model",
    ),
]  # fmt: skip
