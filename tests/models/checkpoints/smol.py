"""A cache folder with a tiny language model and a random tower in the places of the published ones, and what is shipped."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from recipes.real_vision.text import DESCRIBE, caption, question
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from limelight.models.checkpoints.efficientnet_lite import EfficientNetLite
from limelight.models.checkpoints.smol_vision import LANGUAGE, TOWER

WORDS = ("animal", "ball", "bird", "cake", "cup", "flag", "hat", "house")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    texts = [
        *(caption([a, b]) for a in WORDS for b in WORDS),
        *map(question, WORDS),
        *DESCRIBE,
        "Yes. No. user assistant",
    ]
    core.train_from_iterator(texts * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|endoftext|>",
        chat_template=TEMPLATE,
    )  # fmt: skip


def write(cache: Path) -> None:
    """The two published models, tiny and random, as ``make real`` would have put them into the cache."""
    torch.manual_seed(0)
    language, tower = cache / "weights" / LANGUAGE, cache / "weights" / TOWER
    own = tokenizer()
    config = LlamaConfig(
        vocab_size=len(own), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(language)
    own.save_pretrained(language)
    tower.mkdir(parents=True)
    state = {n: v for n, v in EfficientNetLite("lite2").state_dict().items() if "num_batches" not in n}
    save_file(state, tower / "model.safetensors", {"format": "pt"})
    (tower / "config.json").write_text(json.dumps({"model_type": "efficientnet_lite", "size": "lite2"}))
