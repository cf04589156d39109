"""The newest vision families: sparse and compressed attention, several residual streams, further Qwen-like towers."""

import transformers as hf

from .base import Model, Tensors, Tiny, family, seeded
from .gemma4 import GLOBAL, LOCAL
from .glm import IDS as GLM_IDS
from .glm import VISION as GLM_VISION
from .parts import IMAGE, LEAD, MROPE, TAIL, VIDEO, counted, patches, text
from .qwen import IDS, PROMPT, TOKENS, image
from .qwen3 import DEEPSTACK, EXPERTS, HYBRID, INTERLEAVED, VISION
from .recent import MULTIPLIERS, navit, side_by_side
from .tower import BREAK, END, PIXTRAL, wide

MLA = dict(
    kv_lora_rank=12, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=8, n_routed_experts=4, num_experts_per_tok=2,
    n_shared_experts=1, moe_intermediate_size=16, mlp_layer_types=["dense", "sparse"], index_topk=64,
    index_head_dim=8, index_n_heads=2,
)  # fmt: skip


def qwen4_exp() -> Model:
    words = text(
        "qwen4_exp_text",
        **HYBRID,
        **EXPERTS,
        shared_expert_intermediate_size=16,
        hc_count=2,
        hc_lowrank=8,
        indexer_n_heads=2,
        indexer_kv_heads=1,
        indexer_head_dim=8,
        indexer_budget=64,
        indexer_compress_ratio=2,
    )
    return hf.Qwen4ExpForConditionalGeneration(hf.Qwen4ExpConfig(vision_config=dict(VISION), text_config=words, **IDS))


def glm5_next() -> Model:
    words = text(
        "glm5_next_text", **MLA | {"qk_rope_head_dim": 0}, q_lora_rank=16, linear_head_dim=8, linear_num_heads=4,
        hc_mult=2, layer_types=["linear_attention", "full_attention"], index_kpool=2,
    )  # fmt: skip
    vision = GLM_VISION | {"projection_intermediate_size": 24}
    return hf.Glm5NextForConditionalGeneration(hf.Glm5NextConfig(vision_config=vision, text_config=words, **GLM_IDS))


def mistral_large4() -> Model:
    words = text("mistral_large4_text", **MLA, final_logit_softcapping=8.0)
    return hf.MistralLarge4ForConditionalGeneration(
        hf.MistralLarge4Config(vision_config=dict(PIXTRAL), text_config=words, image_token_index=IMAGE)
    )


def cohere_compass() -> Model:
    words = text(
        "cohere_compass_text", num_hidden_layers=3, num_key_value_heads=2, sliding_window=8, logit_scale=0.75,
        layer_types=[LOCAL, LOCAL, GLOBAL], rope_parameters={LOCAL: dict(INTERLEAVED), GLOBAL: dict(INTERLEAVED)},
    )  # fmt: skip
    return hf.CohereCompassForConditionalGeneration(
        hf.CohereCompassConfig(vision_config=dict(DEEPSTACK), text_config=words, **IDS)
    )


def cosmos3_edge() -> Model:
    vision = dict(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, patch_size=4, num_patches=16
    )
    words = text("cosmos3_edge_text", num_key_value_heads=2, head_dim=8, hidden_act="relu2", rope_parameters=MROPE)
    return hf.Cosmos3EdgeForConditionalGeneration(
        hf.Cosmos3EdgeConfig(vision_config=vision, text_config=words, projector_hidden_size=32, **IDS)
    )


def cosmos3_omni() -> Model:
    words = text("qwen3_vl_text", num_hidden_layers=3, num_key_value_heads=2, head_dim=8, rope_parameters=INTERLEAVED)
    vision = DEEPSTACK | {"model_type": "qwen3_vl_vision"}
    return hf.Cosmos3OmniForConditionalGeneration(hf.Cosmos3OmniConfig(vision_config=vision, text_config=words, **IDS))


def lfm3_vl() -> Model:
    vision = dict(
        hidden_size=16, intermediate_size=24, patch_size=4, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, layer_types=["conv", "full_attention"],
    )  # fmt: skip
    words = text(
        "lfm3", num_hidden_layers=3, num_key_value_heads=2, head_dim=8, conv_L_cache=3, sliding_window=8,
        layer_types=["conv", LOCAL, GLOBAL],
    )  # fmt: skip
    return hf.Lfm3VlForConditionalGeneration(
        hf.Lfm3VlConfig(vision_config=vision, text_config=words, projector_hidden_size=32, **IDS)
    )


def hyperclovax_vision_v2() -> Model:
    vision = dict(
        model_type="qwen2_5_vl_vision", depth=2, hidden_size=16, out_hidden_size=24, num_heads=2, intermediate_size=24,
        patch_size=4, window_size=16, fullatt_block_indexes=[1],
    )  # fmt: skip
    words = text("hyperclovax", num_key_value_heads=2, **MULTIPLIERS)
    return hf.HyperCLOVAXVisionV2ForConditionalGeneration(
        hf.HyperCLOVAXVisionV2Config(
            vision_config=vision, text_config=words, image_token_id=IMAGE, video_token_id=VIDEO
        )
    )


def minicpm_vision() -> dict[str, object]:
    return dict(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4,
        insert_layer_id=0, window_kernel_size=(2, 2),
    )  # fmt: skip


def minicpmv4_7() -> Model:
    return hf.MiniCPMV4_7ForConditionalGeneration(
        hf.MiniCPMV4_7Config(
            vision_config=minicpm_vision(), text_config=text("qwen3_5_text", **HYBRID), insert_layer_id=0,
            image_size=16, image_token_id=IMAGE, video_token_id=VIDEO, image_start_id=3, image_end_id=4,
            slice_start_id=8, slice_end_id=9, newline_id=10,
        )
    )  # fmt: skip


def minicpm_ocr() -> Model:
    return hf.MiniCPMOcrForConditionalGeneration(
        hf.MiniCPMOcrConfig(
            vision_config=minicpm_vision(), text_config=text("qwen3", num_key_value_heads=2, head_dim=8),
            insert_layer_id=0, image_size=16, image_token_id=IMAGE, video_token_id=VIDEO, downsample_mode="16x",
        )
    )  # fmt: skip


def muse_glimmer() -> Model:
    vision = dict(
        patch_size=4, pos_emb_height=4, pos_emb_width=4, num_attention_heads=2, num_hidden_layers=2, hidden_size=16,
        intermediate_size=24,
    )  # fmt: skip
    words = text(
        "muse_glimmer_text", num_key_value_heads=2, head_dim=8, sliding_window=8, layer_types=[LOCAL, GLOBAL],
        qk_scale_factor=1.5, output_multiplier=0.7, final_logit_softcapping=8.0,
    )  # fmt: skip
    return hf.MuseGlimmerForConditionalGeneration(
        hf.MuseGlimmerConfig(
            vision_config=vision, text_config=words, image_token_id=IMAGE, video_token_id=VIDEO, out_hidden_size=64,
            projector_hidden_size=32,
        )
    )  # fmt: skip


def deepseek_ocr2() -> Model:
    sam = dict(
        hidden_size=16, output_channels=8, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=4,
        window_size=4, global_attn_indexes=[1], mlp_dim=24, downsample_channels=[8, 16],
    )  # fmt: skip
    encoder = dict(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
    )
    words = text(
        "deepseek_ocr2_text", num_key_value_heads=2, n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2,
        moe_intermediate_size=16, mlp_layer_types=["dense", "sparse"],
    )  # fmt: skip
    return hf.DeepseekOcr2ForConditionalGeneration(
        hf.DeepseekOcr2Config(
            vision_config=dict(sam_config=sam, encoder_config=encoder), text_config=words, image_token_id=IMAGE,
            tie_word_embeddings=False,
        )
    )  # fmt: skip


def flat(seed: int) -> Tensors:
    """Patches of one frame."""
    return patches(seed, 1, 4, 8, dim=48)


DECODER = "model.language_model"
TYPES = "mm_token_type_ids"
ROWS: list[Tiny] = [
    family(
        "qwen4_exp", qwen4_exp, PROMPT, TOKENS, image, types=TYPES, gains={"lm_head": 2.0},
        notes="Two residual streams; the norms stand inside the hyper-connections that mix them.",
        traits="gated gqa qk_norm mrope linear_attention moe sparse streams", decoder=DECODER,
    ),
    family(
        "glm5_next", glm5_next, PROMPT, TOKENS, image, traits="rmsnorm gated moe mla linear_attention sparse streams",
        decoder=DECODER,
    ),
    family(
        "mistral_large4", mistral_large4, (*LEAD, ("image", 3), BREAK, ("image", 3), END, *TAIL), {"image": IMAGE},
        wide, extra=counted, traits="rmsnorm gated moe mla sparse", decoder=DECODER,
        marks="logits_after_head",
    ),
    family(
        "cohere_compass", cohere_compass, PROMPT, TOKENS, image, types=TYPES,
        traits="layernorm gated gqa sliding parallel multipliers mrope deepstack", decoder=DECODER,
        marks="decoder_extras logits_after_head",
    ),
    family(
        "cosmos3_edge", cosmos3_edge, PROMPT, TOKENS, flat, types=TYPES, traits="rmsnorm fc12 gqa mrope",
        decoder=DECODER,
    ),
    family(
        "cosmos3_omni", cosmos3_omni, PROMPT, TOKENS, image, types=TYPES,
        traits="rmsnorm gated gqa qk_norm mrope deepstack", decoder=DECODER,
        marks="decoder_extras",
    ),
    family(
        "lfm3_vl", lfm3_vl, PROMPT, TOKENS, image,
        traits="rmsnorm gated gqa qk_norm sliding linear_attention sandwich", decoder=DECODER,
    ),
    family(
        "hyperclovax_vision_v2", hyperclovax_vision_v2, PROMPT, TOKENS, image, gains={"embed_tokens": 0.7},
        traits="rmsnorm gated gqa multipliers sandwich", decoder=DECODER,
        marks="logits_after_head",
    ),
    family(
        "minicpmv4_7", minicpmv4_7, (*LEAD, 3, ("image", 4), 4, *TAIL), TOKENS, navit, combine=side_by_side,
        types=TYPES, traits="rmsnorm_1p gated gqa qk_norm mrope linear_attention", decoder=DECODER,
    ),
    family(
        "minicpm_ocr", minicpm_ocr, (*LEAD, ("image", 4), *TAIL), TOKENS, navit, combine=side_by_side,
        traits="rmsnorm gated gqa qk_norm", decoder=DECODER,
    ),
    family(
        "muse_glimmer", muse_glimmer, PROMPT, TOKENS, image,
        traits="rmsnorm rmsnorm_1p gated gqa qk_norm sliding sandwich", decoder=DECODER,
        marks="logits_after_head",
    ),
    family(
        "deepseek_ocr2", deepseek_ocr2, (*LEAD, ("image", 145), *TAIL), {"image": IMAGE},
        lambda s: {"pixel_values": seeded(s, 1, 3, 32, 32)}, constant=[147], traits="rmsnorm gated gqa moe",
        decoder=DECODER,
    ),
]  # fmt: skip
