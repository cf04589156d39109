"""A tiny Qwen2.5-VL checkpoint with its real processor, as a folder, planted so that only light is seen.

Black is 0 for the processor, the tower has no biases and its patches do not attend to one another: the embedding of a
black patch is exactly 0, and so is its relevance. Frames of 32 x 48 pixels are 3 x 4 positions, two frames a step.
"""

from __future__ import annotations

from pathlib import Path

import torch

from tests.models.films import qwen2_5_vl
from tests.zoo import ZOO


def save_checkpoint(folder: Path) -> Path:
    model = ZOO["qwen2_5_vl"].build()
    with torch.no_grad():
        for name, weight in model.model.visual.named_parameters():
            if name.endswith("bias") or "attn.proj" in name:
                weight.zero_()
        model.get_output_embeddings().weight[:20] *= 0.01  # the answer is words
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 0
    model.save_pretrained(folder)
    qwen2_5_vl(image_mean=[0.0] * 3, image_std=[1.0] * 3).save_pretrained(folder)
    return folder
