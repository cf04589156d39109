"""The models and prompts of bench/gpu.py: a 7B model's shape for the GPU, a tiny one to test the program on a CPU."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Any

import torch

PICTURES = {600: 1, 2400: 4}


@dataclass(frozen=True)
class Size:
    """Size of the model, and number of measured tokens."""

    device: str
    dtype: torch.dtype
    text: dict[str, int]
    vision: dict[str, int]
    image: int
    vocabulary: int
    tokens: int
    repeats: int


def seven_b() -> Size:
    text = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    return Size("cuda", torch.bfloat16, text, vision, 336, 32064, 24, 3)


def tiny() -> Size:
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return Size("cpu", torch.float32, text, vision, 28, 320, 3, 2)


def build(size: Size, attention: str = "sdpa") -> Any:
    """A LLaVA of this size with random weights, on the device."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**size.vision, image_size=size.image, patch_size=14),
        text_config=LlamaConfig(**size.text, vocab_size=size.vocabulary, max_position_embeddings=4096),
        image_token_index=size.vocabulary - 1,
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(size.dtype)
        with torch.device(size.device):
            model = LlavaForConditionalGeneration._from_config(config, attn_implementation=attention).eval()
    finally:
        torch.set_default_dtype(before)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.requires_grad_(False)


def prompt(size: Size, batch: int, length: int) -> dict[str, Any]:
    """``batch`` prompts of about ``length`` tokens: pictures first, words after them."""
    patches = (size.image // 14) ** 2
    pictures = PICTURES.get(length, 1)
    words = max(length - pictures * patches, 12)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, size.vocabulary - 2, (batch, words), generator=generator)
    image = torch.full((batch, pictures * patches), size.vocabulary - 1)
    ids = torch.cat([ids[:, :8], image, ids[:, 8:]], dim=1).to(size.device)
    pixels = torch.randn(batch * pictures, 3, size.image, size.image, generator=generator)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels.to(size.device, size.dtype),
    }


def machine(size: Size) -> dict[str, Any]:

    import transformers

    out: dict[str, Any] = {
        "torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version(),
        "dtype": str(size.dtype).removeprefix("torch."), "device": platform.processor() or platform.machine(),
    }  # fmt: skip
    if size.device == "cuda":
        found = torch.cuda.get_device_properties(0)
        out |= {"device": found.name, "memory_bytes": found.total_memory, "cuda": torch.version.cuda}
    return out
