"""Q-Former families: query tokens read the image, the text model reads the queries."""

import torch
import transformers as hf
from torch import Tensor

from .base import VOCAB, Model, Tensors, Tiny, family, seeded
from .parts import IMAGE, LEAD, TAIL, VIDEO, pixels, text

VISION = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4
)
QFORMER = dict(
    vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
    encoder_hidden_size=16, cross_attention_frequency=1, max_position_embeddings=32,
)  # fmt: skip
OPT = text("opt", ffn_dim=48, word_embed_proj_dim=32, tie_word_embeddings=False)


def blip2() -> Model:
    return hf.Blip2ForConditionalGeneration(
        hf.Blip2Config(
            vision_config=dict(VISION), qformer_config=dict(QFORMER), text_config=dict(OPT), num_query_tokens=8,
            image_token_index=IMAGE,
        )
    )  # fmt: skip


def instructblip() -> Model:
    return hf.InstructBlipForConditionalGeneration(
        hf.InstructBlipConfig(
            vision_config=dict(VISION), qformer_config=dict(QFORMER), text_config=text("llama"), num_query_tokens=8,
            image_token_index=IMAGE,
        )
    )  # fmt: skip


def instructblipvideo() -> Model:
    return hf.InstructBlipVideoForConditionalGeneration(
        hf.InstructBlipVideoConfig(
            vision_config=dict(VISION), qformer_config=dict(QFORMER), text_config=text("llama"), num_query_tokens=4,
            video_token_index=VIDEO,
        )
    )  # fmt: skip


def asked(ids: Tensor, mask: Tensor) -> Tensors:
    """The Q-Former reads the question too."""
    question = torch.tensor([[11, 12, 13]]).expand(ids.shape[0], -1)
    return {"qformer_input_ids": question, "qformer_attention_mask": torch.ones_like(question)}


FIRST = (("image", 8), *LEAD, *TAIL)
OWN_GENERATE = "Overrides generate(): the text model generates, from inputs_embeds, and knows no image."
ROWS: list[Tiny] = [
    family(
        "blip2", blip2, FIRST, {"image": IMAGE}, pixels, short=FIRST[:-1],
        traits="layernorm fc12 bias qformer", decoder="language_model.model.decoder", notes=OWN_GENERATE,
        marks="own_generate",
    ),
    family(
        "instructblip", instructblip, FIRST, {"image": IMAGE}, pixels, short=FIRST[:-1], extra=asked,
        traits="rmsnorm gated qformer", decoder="language_model.model", notes=OWN_GENERATE,
        marks="own_generate",
    ),
    family(
        "instructblipvideo", instructblipvideo, (("video", 8), *LEAD, *TAIL), {"video": VIDEO},
        lambda seed: {"pixel_values": seeded(seed, 1, 2, 3, 16, 16)}, short=(("video", 8), *LEAD, *TAIL[1:]),
        extra=asked, traits="rmsnorm gated qformer", decoder="language_model.model", notes=OWN_GENERATE,
        marks="own_generate",
    ),
]  # fmt: skip
