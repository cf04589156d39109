"""A tiny random Qwen2-Audio checkpoint with its real processor, as a folder: it hears two seconds at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import (
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    WhisperFeatureExtractor,
)

from tests.cli.tiny_llava import SPECIAL, tokenizer
from tests.zoo.base import enliven
from tests.zoo.parts import AUDIO, text
from tests.zoo.sound import WHISPER

WINDOW = 2  # seconds
RATE = 16000
TEMPLATE = (
    "{% for m in messages %}USER : {% for c in m['content'] %}{% if c['type'] == 'audio' %}<start><audio><end> "
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %} ASSISTANT :"
)


def save_checkpoint(folder: Path, seed: int = 0) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        audio = {**WHISPER, "max_source_positions": WINDOW * 50}
        config = Qwen2AudioConfig(
            audio_config=audio,
            text_config=text("qwen2", num_key_value_heads=2, eos_token_id=2),
            audio_token_index=AUDIO,
        )
        model = enliven(Qwen2AudioForConditionalGeneration(config), seed=seed).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight[: len(SPECIAL)] *= 0.01  # the answer is words
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 0
    words = tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["<audio>", "<start>", "<end>"]})
    processor = Qwen2AudioProcessor(
        WhisperFeatureExtractor(feature_size=16, chunk_length=WINDOW), words, chat_template=TEMPLATE,
        audio_token="<audio>", audio_bos_token="<start>", audio_eos_token="<end>",
    )  # fmt: skip
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def speech(*loud: tuple[float, float], seconds: float, rate: int = RATE) -> np.ndarray:
    """Bursts of tone between the given seconds, and nearly silence elsewhere."""
    t = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(0).normal(0, 1e-4, t.size)
    tone = 0.4 * np.sin(2 * np.pi * 300 * t) * (1 + 0.5 * np.sin(2 * np.pi * 4 * t))
    inside = np.zeros(t.size, bool)
    for start, stop in loud:
        inside |= (t >= start) & (t < stop)
    return (tone * inside + noise).astype(np.float32)
