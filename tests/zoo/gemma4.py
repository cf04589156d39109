"""Gemma 4: K/V shared between layers, an input of its own for each layer, experts beside a dense MLP."""

import torch
import transformers as hf

from .base import VOCAB, Model, Tensors, Tiny, family, seeded
from .gemma import QUIET
from .parts import AUDIO, IMAGE, LEAD, TAIL, VIDEO, text

TOKENS = {"image": IMAGE, "video": VIDEO, "audio": AUDIO}
VISION = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
    head_dim=8, pooling_kernel_size=2, patch_size=4, position_embedding_size=16,
)  # fmt: skip
COMMON = dict(num_key_value_heads=2, head_dim=8, global_head_dim=16, sliding_window=8)
LOCAL, GLOBAL = "sliding_attention", "full_attention"


def gemma4(**words: object) -> Model:
    return hf.Gemma4ForConditionalGeneration(
        hf.Gemma4Config(
            vision_config=dict(VISION), audio_config=None, text_config=text("gemma4_text", **COMMON, **words),
            boi_token_id=3, eoi_token_id=4, image_token_id=IMAGE, video_token_id=VIDEO, audio_token_id=AUDIO,
            boa_token_id=8, eoa_token_index=9,
        )
    )  # fmt: skip


def small() -> Model:
    return gemma4(
        num_hidden_layers=4, layer_types=[LOCAL, GLOBAL] * 2, num_kv_shared_layers=2, use_double_wide_mlp=True,
        hidden_size_per_layer_input=8, vocab_size_per_layer_input=VOCAB, final_logit_softcapping=6.0,
    )  # fmt: skip


def experts() -> Model:
    return gemma4(
        num_hidden_layers=2, layer_types=[LOCAL, GLOBAL], hidden_size_per_layer_input=0, attention_k_eq_v=True,
        num_global_key_value_heads=1, enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=16,
        use_bidirectional_attention="vision", final_logit_softcapping=6.0,
    )  # fmt: skip


def image(seed: int) -> Tensors:
    """4 x 4 patches, pooled to 2 x 2 positions."""
    grid = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="xy"), -1).reshape(1, 16, 2)
    return {"pixel_values": seeded(seed, 1, 16, 48), "image_position_ids": grid}


PROMPT = (*LEAD, 3, ("image", 4), 4, *TAIL)
ROWS: list[Tiny] = [
    family(
        "gemma4", small, PROMPT, TOKENS, image, types="mm_token_type_ids", gains=QUIET,
        traits="rmsnorm gated gqa qk_norm sliding sandwich kv_shared per_layer_inputs", decoder="model.language_model",
        notes="The last two layers have no K/V of their own. Inputs enter every layer again through per_layer_inputs, "
        "which a capture has to keep. head_dim differs between local and global layers. logits_to_keep cuts the "
        "positions inside the decoder.",
        marks="decoder_extras logits_after_head",
    ),
    family(
        "gemma4_moe", experts, PROMPT, TOKENS, image, types="mm_token_type_ids", gains=QUIET,
        traits="rmsnorm gated gqa mqa qk_norm sliding sandwich moe prefix_lm", decoder="model.language_model",
        notes="Values of the global layer are its keys before norm and rotation (no v_proj). Image positions see one "
        "another.",
        marks="logits_after_head",
    ),
]  # fmt: skip
