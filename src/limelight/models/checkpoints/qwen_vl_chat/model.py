"""The model: vision encoder, resampler with 256 queries per image, and a Qwen decoder (weights map onto Qwen2's)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import Qwen2Model

from limelight.models.checkpoints.base_vlm import MergedModel, within
from limelight.models.checkpoints.qwen_vl_chat.config import QwenVLChatConfig
from limelight.models.checkpoints.qwen_vl_chat.visual import QwenVisual


class QwenVLChatForConditionalGeneration(MergedModel):
    """Qwen-VL-Chat.

    Differs from the published code, which rescales rotary frequencies and queries beyond the trained length of 2048
    positions (dynamic NTK, log-n): here longer sequences raise UnsupportedError.
    """

    config_class = QwenVLChatConfig
    input_modalities = ("image", "text")
    media = ("pixel_values",)
    placeholder = "image_token_id"

    def __init__(self, config: QwenVLChatConfig) -> None:
        super().__init__(config)
        text: Any = config.text_config
        self.visual = QwenVisual(config)
        self.language_model = Qwen2Model(text)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        within(self.language_model, text.max_position_embeddings, "Qwen-VL-Chat was trained on")
        self.post_init()

    def features(self, **media: Any) -> Tensor:
        return self.visual(media["pixel_values"])  # type: ignore[no-any-return]

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        """As transformers' multimodal models: ``pixel_values`` ``[n, 3, side, side]`` in the order of the placeholders."""
        return self.run(
            input_ids, {"pixel_values": pixel_values}, inputs_embeds=inputs_embeds, logits_to_keep=logits_to_keep,
            attention_mask=attention_mask, position_ids=position_ids, past_key_values=past_key_values,
            use_cache=use_cache, **kwargs,
        )  # fmt: skip
