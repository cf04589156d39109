"""A tiny random LLaVA checkpoint with a real processor, as a folder that the command line can load."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.zoo.base import enliven
from tests.zoo.parts import CLIP, IMAGE, text

SPECIAL = ("<pad>", "<s>", "</s>", "<start>", "<end>", "<image>", "<video>", "<audio>", "<unk>")
VOCABULARY = (
    "USER ASSISTANT : , . ? ! a the is are there it in on of and no yes not what where how many cup dog tree red blue "
    "picture photo see you can do describe this that left right big small one two three cat horse book key hat"
)
TEMPLATE = (
    "{% for m in messages %}USER : {% for c in m['content'] %}{% if c['type'] == 'image' %}<image> "
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %} ASSISTANT :"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level word list of 128 entries: its words carry their leading space, anything else is unknown."""
    core = Tokenizer(models.WordLevel({}, unk_token="<unk>"))
    spelled = [w for word in VOCABULARY.split() for w in ("Ġ" + word, word)]
    listed = [*SPECIAL, *spelled][:128]
    listed += [f"Ġfill{i}" for i in range(128 - len(listed))]
    core.model = models.WordLevel({w: i for i, w in enumerate(listed)}, unk_token="<unk>")
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        padding_side="left", extra_special_tokens={"image_token": "<image>"}, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def save_checkpoint(folder: Path, seed: int = 0) -> Path:
    """Model and processor files in ``folder``: pictures of 16 x 16 pixels, 4 x 4 image tokens."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LlavaConfig(
            vision_config=dict(CLIP),
            text_config=text("llama", eos_token_id=2),
            image_token_index=IMAGE,
            image_seq_length=16,
        )
        model = enliven(LlavaForConditionalGeneration(config), seed=seed).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight[: len(SPECIAL)] *= 0.01  # the answer is words
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 0
    size = {"height": 16, "width": 16}
    images = CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_convert_rgb=True
    )
    processor = LlavaProcessor(
        images, tokenizer(), patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )  # fmt: skip
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
