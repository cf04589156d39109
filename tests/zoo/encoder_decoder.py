"""Encoder-decoders: the media are read by an encoder, whose states the decoder reads by cross-attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf

from .base import PAD, VOCAB, Model, Tensors, enliven, missing_classes, seeded, to_model

START = 2


@dataclass(frozen=True)
class Paired:
    """A tiny random encoder-decoder.

    ``media(seed)`` are the encoder's inputs of one row, ``prompt`` the decoder's ids. ``states``: how many its encoder
    makes of them. ``unequal``: prompts of unequal length may share a batch.
    """

    name: str
    make: Callable[[], Model]
    media: Callable[[int], Tensors]
    modality: str
    states: int
    unequal: bool = True
    prompt: tuple[int, ...] = (START, 11, 12, 13)
    notes: str = ""

    @property
    def missing(self) -> frozenset[str]:
        """Classes that the installed transformers does not have."""
        return missing_classes(self.make)

    def build(self) -> Model:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = enliven(self.make()).eval()
        for part in (model.generation_config, model.config):
            part.decoder_start_token_id, part.pad_token_id, part.eos_token_id = START, PAD, None
        model.generation_config.max_length = model.generation_config.forced_eos_token_id = None
        return model

    def inputs(self, model: Model, row: int = 0) -> Tensors:
        ids = self.prompt if row == 0 or not self.unequal else self.prompt[:1] + self.prompt[2:]
        return to_model(model, {**self.media(row + 1), "decoder_input_ids": torch.tensor([ids])})

    def batch(self, model: Model) -> Tensors:
        rows = [self.inputs(model, row) for row in (0, 1)]
        longest = max(r["decoder_input_ids"].shape[1] for r in rows)
        out = {k: torch.cat([r[k] for r in rows]) for k in rows[0] if k != "decoder_input_ids"}
        padded = [longest - r["decoder_input_ids"].shape[1] for r in rows]
        pad = torch.nn.functional.pad
        out["decoder_input_ids"] = torch.cat(
            [pad(r["decoder_input_ids"], (n, 0), value=PAD) for r, n in zip(rows, padded, strict=True)]
        )
        ones = [torch.ones_like(r["decoder_input_ids"]) for r in rows]
        out["decoder_attention_mask"] = torch.cat([pad(r, (n, 0)) for r, n in zip(ones, padded, strict=True)])
        return out


def _words(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCAB, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 3, "decoder_start_token_id": START,
        **more,
    }  # fmt: skip


def whisper() -> Model:
    return hf.WhisperForConditionalGeneration(
        hf.WhisperConfig(**_words(
            num_mel_bins=8, d_model=16, encoder_layers=2, decoder_layers=3, encoder_attention_heads=2,
            decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=40, max_source_positions=10,
            max_target_positions=32,
        ))
    )  # fmt: skip


def moonshine() -> Model:
    return hf.MoonshineForConditionalGeneration(
        hf.MoonshineConfig(**_words(
            hidden_size=32, intermediate_size=40, encoder_num_hidden_layers=2, decoder_num_hidden_layers=3,
            encoder_num_attention_heads=4, decoder_num_attention_heads=4, encoder_num_key_value_heads=4,
            decoder_num_key_value_heads=4, max_position_embeddings=64,
        ))
    )  # fmt: skip


def speech_to_text() -> Model:
    return hf.Speech2TextForConditionalGeneration(
        hf.Speech2TextConfig(**_words(
            d_model=16, encoder_layers=2, decoder_layers=3, encoder_attention_heads=2, decoder_attention_heads=4,
            encoder_ffn_dim=24, decoder_ffn_dim=40, max_source_positions=64, max_target_positions=32,
            input_feat_per_channel=8, conv_channels=16, num_conv_layers=2, conv_kernel_sizes=[3, 3],
        ))
    )  # fmt: skip


def donut() -> Model:
    """Swin and MBart: Donut and Nougat."""
    encoder = hf.DonutSwinConfig(
        image_size=[16, 32], patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=2
    )
    decoder = hf.MBartConfig(**_words(
        d_model=16, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=24, max_position_embeddings=32,
        scale_embedding=True, add_final_layer_norm=True, is_decoder=True, add_cross_attention=True,
        is_encoder_decoder=False,
    ))  # fmt: skip
    return _vision(encoder, decoder)


def moonshine_streaming() -> Model:
    encoder = dict(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        sliding_windows=((16, 4), (16, 0)),
    )
    return hf.MoonshineStreamingForConditionalGeneration(
        hf.MoonshineStreamingConfig(**_words(
            encoder_config=encoder, hidden_size=32, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4,
            max_position_embeddings=64,
        ))
    )  # fmt: skip


def canary() -> Model:
    encoder = dict(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_mel_bins=8,
        subsampling_factor=2,
        subsampling_conv_channels=4,
        conv_kernel_size=3,
        max_position_embeddings=64,
    )
    decoder = _words(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=24,
        max_position_embeddings=32,
        head_dim=4,
    )
    del decoder["decoder_start_token_id"]
    return hf.CanaryForConditionalGeneration(
        hf.CanaryConfig(
            encoder_config=encoder,
            decoder_config=decoder,
            decoder_start_token_id=START,
            pad_token_id=PAD,
            vocab_size=VOCAB,
        )
    )


def pp_formulanet() -> Model:
    words = _words(
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        decoder_ffn_dim=24,
        max_position_embeddings=32,
        dropout=0.0,
    )
    vision = dict(
        hidden_size=16,
        output_channels=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=4,
        window_size=2,
        global_attn_indexes=(1,),
        mlp_dim=24,
        post_conv_in_channels=8,
        post_conv_mid_channels=12,
        post_conv_out_channels=16,
        decoder_hidden_size=16,
    )
    return hf.PPFormulaNetForConditionalGeneration(hf.PPFormulaNetConfig(text_config=words, vision_config=vision))


def trocr() -> Model:
    encoder = hf.ViTConfig(image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                           intermediate_size=24)  # fmt: skip
    decoder = hf.TrOCRConfig(**_words(
        d_model=16, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=24, max_position_embeddings=32,
        cross_attention_hidden_size=16, is_decoder=True, add_cross_attention=True, is_encoder_decoder=False,
    ))  # fmt: skip
    return _vision(encoder, decoder)


def _vision(encoder: Any, decoder: Any) -> Model:
    config = hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id, config.vocab_size = START, PAD, VOCAB
    return hf.VisionEncoderDecoderModel(config)


def cohere_asr() -> Model:
    encoder = dict(
        model_type="parakeet_encoder",
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_mel_bins=8,
        subsampling_factor=2,
        subsampling_conv_channels=4,
        conv_kernel_size=3,
        max_position_embeddings=64,
    )
    return hf.CohereAsrForConditionalGeneration(
        hf.CohereAsrConfig(**_words(
            encoder_config=encoder, hidden_size=16, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=24, max_position_embeddings=32,
        ))
    )  # fmt: skip


PAIRED: dict[str, Paired] = {
    row.name: row
    for row in (
        Paired("whisper", whisper, lambda s: {"input_features": seeded(s, 1, 8, 20)}, "audio", 10),
        Paired("moonshine", moonshine, lambda s: {"input_values": seeded(s, 1, 4000)}, "audio", 9),
        Paired("speech_to_text", speech_to_text, lambda s: {
            "input_features": seeded(s, 1, 24, 8), "attention_mask": torch.ones(1, 24, dtype=torch.long)}, "audio", 6),
        Paired("cohere_asr", cohere_asr, lambda s: {
            "input_features": seeded(s, 1, 24, 8), "attention_mask": torch.ones(1, 24, dtype=torch.long)}, "audio", 12),
        Paired("canary", canary, lambda s: {
            "input_features": seeded(s, 1, 24, 8), "attention_mask": torch.ones(1, 24, dtype=torch.long)}, "audio", 12),
        Paired("moonshine_streaming", moonshine_streaming, lambda s: {
            "input_values": seeded(s, 1, 4000), "attention_mask": torch.ones(1, 4000, dtype=torch.long)}, "audio", 13),
        Paired("donut", donut, lambda s: {"pixel_values": seeded(s, 1, 3, 16, 32)}, "image", 8, unequal=False),
        Paired("pp_formulanet", pp_formulanet, lambda s: {"pixel_values": seeded(s, 1, 3, 32, 32)}, "image", 4, unequal=False),
        Paired("trocr", trocr, lambda s: {"pixel_values": seeded(s, 1, 3, 16, 16)}, "image", 5, unequal=False),
    )
}  # fmt: skip
