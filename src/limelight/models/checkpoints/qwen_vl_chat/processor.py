"""Processor: the tokenizer from ``qwen.tiktoken``, CLIP's image preprocessing, 256 placeholders per image."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import BatchFeature, PreTrainedTokenizerFast

from limelight.compat import CLIPImageProcessorPil, TikTokenConverter
from limelight.errors import ModelError, PromptError

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)),
    "<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>",
)  # fmt: skip
# As the published ``from_list_format`` and ``make_context``: images are numbered over the whole conversation.
TEMPLATE = (
    "{% set ns = namespace(n=0) %}"
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for i in m['content'] %}"
    "{% if i['type'] == 'image' %}{% set ns.n = ns.n + 1 %}Picture {{ ns.n }}: <img></img>\n"
    "{% else %}{{ i['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class _Ranks(TikTokenConverter):  # type: ignore[misc]
    """transformers' converter, reading the file here, because it would need the package tiktoken."""

    @staticmethod
    def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
        try:
            lines = Path(tiktoken_url).read_bytes().splitlines()
            pairs = [line.split() for line in lines if line.strip()]
            return {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
        except (OSError, ValueError, binascii.Error) as error:
            raise ModelError(f"cannot read {tiktoken_url}: {error}", hint="copy all files of the checkpoint") from error


def tokenizer_of(path: Path) -> PreTrainedTokenizerFast:
    """Convert the published tokenizer to a fast one.

    Raises:
        ModelError: the file is missing or is not a list of ranks.
    """
    from tokenizers import normalizers

    inner = _Ranks(str(path), pattern=PATTERN, extra_special_tokens=list(SPECIAL)).converted()
    inner.normalizer = normalizers.NFC()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, padding_side="left", eos_token="<|endoftext|>", pad_token="<|endoftext|>",
        chat_template=TEMPLATE, clean_up_tokenization_spaces=False,
    )  # fmt: skip


class QwenVLChatProcessor:
    """``processor(text=[...], images=[...])`` -> input_ids, attention_mask, pixel_values."""

    def __init__(self, tokenizer: Any, image_processor: Any, positions: int) -> None:
        self.tokenizer, self.image_processor, self.positions = tokenizer, image_processor, positions

    def __call__(
        self, text: Sequence[str], images: Sequence[Any] = (), return_tensors: str = "pt", **kwargs: Any
    ) -> BatchFeature:
        written = sum(t.count("<img></img>") for t in text)
        if written != len(images):
            raise PromptError(
                f"{len(images)} images for {written} <img></img> in the text", hint="use the chat template"
            )
        filled = [t.replace("<img></img>", f"<img>{'<imgpad>' * self.positions}</img>") for t in text]
        out = dict(self.tokenizer(filled, padding=True, return_tensors=return_tensors, add_special_tokens=False))
        out.pop("token_type_ids", None)
        if images:
            out["pixel_values"] = self.image_processor(list(images), return_tensors=return_tensors)["pixel_values"]
        return BatchFeature(out)


def processor_of(folder: Path, config: Any) -> QwenVLChatProcessor:
    """Build the processor with the published settings: the whole image, resized to a square."""
    side = int(config.vision_config.image_size)
    pixels = CLIPImageProcessorPil(
        do_resize=True, size={"height": side, "width": side}, do_center_crop=False, do_convert_rgb=True
    )
    return QwenVLChatProcessor(tokenizer_of(folder / "qwen.tiktoken"), pixels, config.image_seq_length)
