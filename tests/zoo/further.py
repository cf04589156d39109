"""Families with unusual text stacks: relative positions by convolution, gated residuals, mixed attention."""

import torch
import transformers as hf

from .base import VOCAB, Model, Tensors, Tiny, family, seeded
from .gemma4 import GLOBAL, LOCAL
from .parts import AUDIO, IMAGE, LEAD, TAIL, VIDEO, patches, text
from .qwen import image

TOKENS = {"image": IMAGE}
PROMPT = (*LEAD, ("image", 8), *TAIL)
DECODER = "model.language_model"


def unlimited_ocr() -> Model:
    sam = dict(
        hidden_size=16, output_channels=8, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=4,
        window_size=4, global_attn_indexes=[1], mlp_dim=24, downsample_channels=[8, 16],
    )  # fmt: skip
    encoder = dict(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    words = text(
        "unlimited_ocr_text", n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2,
        moe_intermediate_size=16, mlp_layer_types=["dense", "sparse"], sliding_window=8,
    )  # fmt: skip
    return hf.UnlimitedOcrForConditionalGeneration(
        hf.UnlimitedOcrConfig(
            vision_config=dict(sam_config=sam, encoder_config=encoder), text_config=words, image_token_id=IMAGE,
            tie_word_embeddings=False,
        )
    )  # fmt: skip


def muse_spark() -> Model:
    vision = dict(
        patch_size=4, pos_emb_height=4, pos_emb_width=4, num_attention_heads=2, num_hidden_layers=2, hidden_size=16,
        intermediate_size=24,
    )  # fmt: skip
    audio = dict(patch_sizes=[4, 2], hidden_sizes=[8, 16], depths=[1, 1], num_hidden_layers=2, out_hidden_size=32)
    words = text(
        "muse_spark_text", num_key_value_heads=2, head_dim=8, sliding_window=8, layer_types=[LOCAL, GLOBAL],
        qk_scale_factor=1.5, output_multiplier=0.7, final_logit_softcapping=8.0, num_local_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=16, moe_hidden_size=16, mlp_layer_types=["dense", "sparse"],
    )  # fmt: skip
    return hf.MuseSparkForConditionalGeneration(
        hf.MuseSparkConfig(
            vision_config=vision, audio_config=audio, text_config=words, image_token_id=IMAGE, video_token_id=VIDEO,
            audio_token_id=AUDIO, out_hidden_size=64, projector_hidden_size=32,
        )
    )  # fmt: skip


def dots3_note() -> Model:
    vision = dict(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, patch_size=4,
        moe_intermediate_size=16, mlp_layer_types=["dense", "dense"], num_local_experts=2, num_experts_per_tok=1,
        adapter_in_dim=16, adapter_out_dim=32,
    )  # fmt: skip
    audio = dict(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, feature_size=16,
        downsample_hidden_size=4, adapter_input_size=16, adapter_out_dim=32,
    )  # fmt: skip
    words = text(
        "dots3_note_text", kv_lora_rank=12, q_lora_rank=16, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=8,
        head_dim=12, n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1, moe_intermediate_size=16,
        shared_experts_intermediate_size=16, mlp_layer_types=["dense", "sparse"], index_topk=64, index_head_dim=8,
        index_n_heads=2,
    )  # fmt: skip
    return hf.Dots3NoteForConditionalGeneration(
        hf.Dots3NoteConfig(
            vision_config=vision, audio_config=audio, text_config=words, image_token_id=IMAGE, video_token_id=VIDEO,
            audio_token_id=AUDIO,
        )
    )  # fmt: skip


INKLING = dict(
    head_dim=8, num_key_value_heads=2, swa_num_attention_heads=4, swa_num_key_value_heads=2, swa_head_dim=8,
    sliding_window_size=8, d_rel=4, rel_extent=16, conv_kernel_size=3, n_routed_experts=4, num_experts_per_tok=2,
    moe_intermediate_size=16, route_scale=1.0, unpadded_vocab_size=VOCAB,
)  # fmt: skip


def inkling() -> Model:
    words = text(
        "inkling_text", **INKLING, layer_types=["hybrid_sliding", "hybrid"], mlp_layer_types=["dense", "sparse"],
        n_shared_experts=1, logits_mup_width_multiplier=1.0,
    )  # fmt: skip
    return hf.InklingForConditionalGeneration(
        hf.InklingConfig(
            text_config=words, audio_config=dict(n_mel_bins=8, mel_vocab_size=16, text_hidden_size=32),
            vision_config=dict(text_hidden_size=32, patch_size=8, hidden_size=16, num_hidden_layers=2),
            image_token_id=IMAGE, audio_token_id=AUDIO,
        )
    )  # fmt: skip


def inkling2() -> Model:
    words = text("inkling2_text", **INKLING, layer_types=["hybrid_sliding", "hybrid"], log_scaling_n_floor=64)
    vision = dict(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, patch_size=4,
        posemb_grid_size=4, projection_hidden_dim=32, text_hidden_size=32,
    )  # fmt: skip
    return hf.Inkling2ForConditionalGeneration(
        hf.Inkling2Config(text_config=words, vision_config=vision, image_token_id=IMAGE)
    )


def nemotron_h_omni() -> Model:
    vision = dict(
        model_type="radio", hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2.0, patch_size=4,
        image_size=16, max_img_size=16, num_cls_tokens=1, num_registers=1, video_temporal_patch_size=2,
    )  # fmt: skip
    words = text(
        "nemotron_h", num_key_value_heads=2, head_dim=8, layers_block_type=["mamba", "attention", "moe"],
        ssm_state_size=8, mamba_num_heads=4, mamba_head_dim=8, n_groups=2, chunk_size=8, n_routed_experts=4,
        moe_intermediate_size=16, moe_shared_expert_intermediate_size=16, num_experts_per_tok=2,
    )  # fmt: skip
    words.pop("num_hidden_layers")
    return hf.NemotronH_Omni_Reasoning_V3(
        hf.NemotronH_Omni_Reasoning_V3_Config(
            vision_config=vision, text_config=words, audio_config=None, projector_hidden_size=32,
            vision_hidden_size=16, image_token_id=IMAGE, video_token_id=VIDEO, audio_token_id=AUDIO,
        )
    )  # fmt: skip


def packed(seed: int) -> Tensors:
    return {"pixel_values": seeded(seed, 32, 48), "image_grid_hw": torch.tensor([[4, 8]])}


def merged_grid(seed: int) -> Tensors:
    return {"pixel_values": seeded(seed, 8, 8, 8, 3), "image_grid_thw": torch.tensor([[1, 2, 4]])}


ROWS: list[Tiny] = [
    family(
        "unlimited_ocr", unlimited_ocr, (*LEAD, ("image", 7), *TAIL), TOKENS,
        lambda s: {"pixel_values": seeded(s, 1, 3, 32, 32)}, constant=[5, 8, 9],
        traits="rmsnorm gated moe sliding", decoder=DECODER,
    ),
    family(
        "muse_spark", muse_spark, PROMPT, TOKENS, image,
        traits="rmsnorm rmsnorm_1p norm_other gated gqa qk_norm sliding sandwich moe",
        decoder=DECODER, notes="Three kinds of RMSNorm (one scales its input), gates on both residuals.",
        marks="logits_after_head",
    ),
    family(
        "dots3_note", dots3_note, PROMPT, TOKENS, lambda s: patches(s, 1, 4, 8, dim=48),
        traits="rmsnorm gated moe mla sparse", decoder=DECODER,
    ),
    family(
        "inkling", inkling, (*LEAD, ("image", 4), *TAIL), TOKENS, lambda s: {"pixel_values": seeded(s, 4, 2, 8, 8, 3)},
        traits="rmsnorm gated gqa qk_norm sliding moe", decoder=DECODER,
        notes="Attention gets a position_bias to add to the scores.",
    ),
    family(
        "inkling2", inkling2, PROMPT, TOKENS, merged_grid, traits="rmsnorm gated gqa sliding sandwich moe",
        decoder=DECODER, marks="no_float64 logits_after_head",
        notes="Attention gets position_bias and sinks. The router computes in float32 and cannot take float64 weights.",
    ),
    family(
        "nemotron_h_omni", nemotron_h_omni, PROMPT, TOKENS, packed, traits="rmsnorm gqa moe linear_attention",
        decoder="language_model.model", marks="no_float64",
        notes="A layer is one mixer: Mamba, attention or experts. Logits are cast to float32.",
    ),
]  # fmt: skip
