"""The miniature: transformers' LLaVA (CLIP vision tower, two-layer projector, Llama) at 2.7 M parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)

from limelight.demo.scenes import OBJECTS, SIZE
from recipes.demo_vision.data import GRID, PATCH
from recipes.demo_vision.text import Packed


def build(
    vocabulary: int, image_token: int, special: dict[str, int], *, tiny: bool = False
) -> LlavaForConditionalGeneration:
    """An untrained miniature; `special` holds bos_token_id, eos_token_id, pad_token_id."""
    wide, deep = (32, 1) if tiny else (160, 5)
    vision = CLIPVisionConfig(
        image_size=SIZE, patch_size=PATCH, hidden_size=wide, intermediate_size=4 * wide, num_hidden_layers=deep,
        num_attention_heads=wide // 32, projection_dim=wide, hidden_act="gelu",
    )  # fmt: skip
    wide, deep = (32, 3) if tiny else (128, 4)
    text = LlamaConfig(
        vocab_size=vocabulary, hidden_size=wide, intermediate_size=3 * wide, num_hidden_layers=deep,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=1024, tie_word_embeddings=False,
        rms_norm_eps=1e-5, **special,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=image_token, projector_hidden_act="gelu",
        vision_feature_select_strategy="default", vision_feature_layer=-1, image_seq_length=GRID * GRID,
        tie_word_embeddings=False,
    )  # fmt: skip
    return LlavaForConditionalGeneration(config).float()


def image_features(model: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """uint8 pixels [n, 112, 112, 3] -> the vision tower's patch features [n, 49, d]."""
    values = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1.0  # [n, 3, 112, 112]
    hidden: Tensor = model.model.vision_tower(values).last_hidden_state  # [n, 50, d]
    return hidden[:, 1:]  # [n, 49, d]


class VisionHeads(nn.Module):
    """Heads that train the vision encoder and are then discarded: a label for every patch, and the objects present."""

    def __init__(self, wide: int, labels: int = len(OBJECTS)) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(wide)
        self.patch = nn.Linear(wide, labels + 1)  # the last label: no object
        self.sharpness = nn.Parameter(torch.tensor(1.0))
        self.threshold = nn.Parameter(torch.zeros(labels))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """features [n, 49, d] -> patch logits [n, 49, objects + 1], object logits [n, objects]."""
        patch = self.patch(self.norm(features)).float()  # [n, 49, objects + 1]
        margin = patch[..., :-1] - patch[..., -1:]  # [n, 49, objects]
        found = torch.logsumexp(margin, dim=1)  # [n, objects]
        return patch, self.sharpness * found + self.threshold


def vision_loss(patch: Tensor, found: Tensor, patches: Tensor, present: Tensor) -> Tensor:
    """Cross-entropy with every patch's coverage (soft labels), plus binary cross-entropy of the objects.

    patch [n, 49, objects + 1], found [n, objects], patches [n, 49, objects] in 0..255, present [n, objects].
    """
    share = (patches.float() / 255 * 2.5).clamp(max=1)  # 40 % of a patch count as all of it
    share = share / share.sum(-1, keepdim=True).clamp(min=1)  # [n, 49, objects]
    target = torch.cat([share, 1 - share.sum(-1, keepdim=True)], -1)  # [n, 49, objects + 1]
    weight = 1 + 2 * (1 - target[..., -1])  # [n, 49]  patches with an object count three times
    dense = (-(target * patch.log_softmax(-1)).sum(-1) * weight).sum() / weight.sum()
    return dense + nn.functional.binary_cross_entropy_with_logits(found, present.float()) * 2


def restart_lookup(model: PreTrainedModel, layers: tuple[int, ...] = (0, 1, 2)) -> None:
    """Half of the heads of these layers start with W_k = W_q, so that equal words attend to one another from the start."""
    for number in layers:
        attention = model.model.language_model.layers[number].self_attn
        query, key = attention.q_proj.weight, attention.k_proj.weight  # [heads * head_dim, d]
        half = query.shape[0] // 2
        with torch.no_grad():
            query[:half].normal_(0, query.shape[1] ** -0.5)
            key[:half] = query[:half]


class Mark(nn.Module):
    """A vector that marks words representing an image, as opposed to text; later the projector's bias."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.randn(wide) * 0.02)


def media_tokens(model: PreTrainedModel, features: Tensor) -> Tensor:
    """What the decoder reads at its image (audio, video) positions: features [n, 49, d_vision] -> [n, 49, d].

    Features of films [n, frames, patches, d_vision] are pooled 2 x 2 and closed by a newline, as LLaVA-OneVision does:
    [n, frames * patches / 4 + 1, d].
    """
    inner = model.model
    tokens: Tensor = inner.multi_modal_projector(features)
    if features.ndim == 4:
        pooled = inner.apply_pooling(tokens.flatten(0, 1))  # [n * frames, cells, d]
        pooled = pooled.unflatten(0, features.shape[:2]).flatten(1, 2)
        tokens = torch.cat([pooled, inner.image_newline.to(pooled.dtype).expand(len(pooled), 1, -1)], 1)
    return tokens


def decode(model: PreTrainedModel, packed: Packed, features: Tensor | None, written: Tensor | None = None) -> Tensor:
    """The decoder's last hidden states [n, t, d].

    features (see `media_tokens`) fill the image positions; written [n, t, d] is added to the embeddings of a picture in words.
    """
    inner = model.model
    embeds = inner.language_model.embed_tokens(packed.ids)  # [n, t, d]
    if written is not None:
        embeds = embeds + written
    if features is not None:
        image = media_tokens(model, features).to(embeds.dtype)  # [n, 49, d]
        kind = "video" if features.ndim == 4 else "image" if hasattr(model.config, "image_token_id") else "audio"
        holes = packed.ids == getattr(model.config, f"{kind}_token_id")  # [n, t]
        embeds = embeds.masked_scatter(holes[..., None].expand_as(embeds), image)
    out = inner.language_model(
        inputs_embeds=embeds, attention_mask=packed.mask, position_ids=packed.positions, use_cache=False
    )
    return out.last_hidden_state  # type: ignore[no-any-return]


def language_loss(
    model: PreTrainedModel, packed: Packed, features: Tensor | None, written: Tensor | None = None
) -> Tensor:
    """Weighted next-token cross-entropy over the blocks."""
    counted = packed.weights > 0  # [n, t]
    logits = model.lm_head(decode(model, packed, features, written)[counted]).float()  # [m, vocabulary]
    each = nn.functional.cross_entropy(logits, packed.labels[counted], reduction="none")  # [m]
    return (each * packed.weights[counted]).sum() / packed.weights[counted].sum()
