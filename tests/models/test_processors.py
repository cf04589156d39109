"""Real processors of transformers at tiny size: what they return is what detection and layout are made for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import limelight
from limelight.models.adapter import Adapter
from limelight.relevance.attribute import attribute
from tests.tiny import tokenizer
from tests.zoo import ZOO
from tests.zoo.llava import PINPOINTS


def template(image: str) -> str:
    return (
        "{% for m in messages %}{% for i in m['content'] %}{% if i['type'] == 'text' %} {{ i['text'] }}"
        f"{{% else %}} {image} {{% endif %}}{{% endfor %}}{{% endfor %}} answer"
    )


def llava_next() -> Any:
    from transformers import LlavaNextProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    crop = {"height": 8, "width": 8}
    images = LlavaNextImageProcessorPil(size={"shortest_edge": 8}, crop_size=crop, image_grid_pinpoints=PINPOINTS)
    return LlavaNextProcessor(
        images, tokenizer({"<image>": 5}), patch_size=4, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, image_token="<image>", chat_template=template("<image>"),
    )  # fmt: skip


class Minimal:
    """Tokenizer and real image processor of a family whose own processor cannot be made without torchvision."""

    def __init__(self, images: Any, words: Any, mark: str, chat: str, expand: Callable[[Any, int], str]) -> None:
        self.image_processor, self.tokenizer, self.image_token = images, words, mark
        self.chat_template, self.expand = chat, expand

    def apply_chat_template(self, turns: Any, **kwargs: Any) -> str:
        return self.tokenizer.apply_chat_template(turns, chat_template=self.chat_template, **kwargs)

    def __call__(self, text: list[str], images: list[Any], return_tensors: str) -> dict[str, Any]:
        seen = dict(self.image_processor(images, return_tensors=return_tensors))
        parts = text[0].split(self.image_token)
        assert len(parts) == len(images) + 1
        whole = parts[0] + "".join(self.expand(seen, n) + part for n, part in enumerate(parts[1:]))
        return {**dict(self.tokenizer([whole], return_tensors=return_tensors)), **seen}


def llava_onevision() -> Any:
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

    images = LlavaOnevisionImageProcessorPil(size={"height": 8, "width": 8}, image_grid_pinpoints=PINPOINTS)
    chat = template("<image>")
    return Minimal(images, tokenizer({"<image>": 5, "<video>": 6}), "<image>", chat, lambda seen, n: "<image>" * 14)


def qwen() -> Any:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    images = Qwen2VLImageProcessorPil(
        patch_size=4, temporal_patch_size=2, merge_size=2, size={"shortest_edge": 64, "longest_edge": 1024}
    )
    words = tokenizer({"<|vision_start|>": 3, "<|vision_end|>": 4, "<|image_pad|>": 5, "<|video_pad|>": 6})
    chat, mark = template("<|vision_start|><|image_pad|><|vision_end|>"), "<|image_pad|>"
    return Minimal(images, words, mark, chat, lambda seen, n: mark * int(seen["image_grid_thw"][n].prod() // 4))


def idefics3() -> Any:
    from transformers import Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    images = Idefics3ImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    words = tokenizer({"<image>": 5, "<fake_token_around_image>": 8, "<end_of_utterance>": 9, "<global-img>": 10})
    return Idefics3Processor(images, words, image_seq_len=4, chat_template=template("<image>"))


def paligemma() -> Any:
    from transformers import PaliGemmaProcessor
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    images = SiglipImageProcessorPil(size={"height": 16, "width": 16})
    images.image_seq_length = 16
    return PaliGemmaProcessor(images, tokenizer({"<image>": 5}), chat_template=template("<image>"))


def gemma3() -> Any:
    from transformers import Gemma3Processor
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    images = Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
    marks = {"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<image>"}
    words = tokenizer({"<boi>": 3, "<eoi>": 4, "<image>": 5}, extra_special_tokens=marks)
    return Gemma3Processor(images, words, image_seq_length=4, chat_template=template("<boi>"))


def mistral3() -> Any:
    from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

    images = PixtralImageProcessorPil(patch_size={"height": 8, "width": 8}, size={"longest_edge": 32})
    words = tokenizer({"[IMG]": 5, "[IMG_BREAK]": 9, "[IMG_END]": 10})

    def expand(seen: Any, n: int) -> str:
        rows, columns = (int(side) // 8 for side in seen["image_sizes"][n])
        return "[IMG_BREAK]".join(["[IMG]" * columns] * rows) + "[IMG_END]"

    return Minimal(images, words, "[IMG]", template("[IMG]"), expand)


def audioflamingo3() -> Any:
    from transformers import AudioFlamingo3Processor, WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(feature_size=16)
    extractor.n_samples, extractor.nb_max_frames, extractor.chunk_length = 64 * 160, 64, 0.64
    return AudioFlamingo3Processor(extractor, tokenizer({"<sound>": 7}), chat_template=template("<sound>"))


WIDE, TALL = Image.new("RGB", (40, 20), "red"), Image.new("RGB", (20, 40), "blue")
PICTURES: dict[str, tuple[Callable[[], Any], Any, list[Any]]] = {
    "llava_next": (llava_next, WIDE, [(2, 2), (2, 5)]),
    "llava_next, two": (llava_next, [WIDE, TALL], [(2, 2), (2, 5), (2, 2), (4, 3)]),
    "llava_onevision": (llava_onevision, WIDE, [(2, 2), (2, 5)]),
    "qwen2_vl": (qwen, WIDE, [(2, 5)]),
    "qwen2_5_vl": (qwen, WIDE, [(2, 5)]),
    "qwen2_5_vl, two": (qwen, [WIDE, TALL], [(2, 5), (5, 2)]),
    "idefics3": (idefics3, WIDE, [(2, 2)] * 3),
    "paligemma": (paligemma, WIDE, [(4, 4)]),
    "gemma3": (gemma3, WIDE, [(2, 2)]),
    "gemma3, two": (gemma3, [WIDE, TALL], [(2, 2), (2, 2)]),
    "mistral3": (mistral3, WIDE, [(2, 5)]),
    "mistral3, two": (mistral3, [WIDE, TALL], [(2, 5), (4, 3)]),
}


@pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept:DeprecationWarning"
)  # PaliGemma's, in numpy 2
@pytest.mark.parametrize("case", PICTURES)
def test_pictures_through_the_real_processor(case: str) -> None:
    make, pictures, grids = PICTURES[case]
    adapter = Adapter(ZOO[case.partition(",")[0]].build(), make())
    prompt = adapter.prepare("what is here ?", {"image": pictures})
    assert "labels" not in prompt.tensors
    spans = [s for s in prompt.spans if s.modality == "image"]
    assert [s.grid for s in spans] == grids
    assert prompt.spans[-1].modality == "text"
    count = sum(len(s) for s in spans)
    breaks = sum(s.grid[0] for s in spans if s.grid) if "mistral3" in case else 0
    ids = prompt.tensors["input_ids"][0]
    assert int((ids == 5).sum()) == count - breaks
    _decodes_and_explains(adapter, prompt)


def _decodes_and_explains(adapter: Adapter, prompt: Any) -> None:
    own = adapter.model.generate(**prompt.tensors, max_new_tokens=3, do_sample=False)
    got = limelight.generate(adapter, messages=prompt, max_new_tokens=3)
    assert got.token_ids == tuple(own[0, -3:].tolist())
    relevance = attribute(adapter, prompt.tensors)
    first = got.steps[0].relevance
    assert first is not None
    assert first.spans == relevance.spans == prompt.spans
    torch.testing.assert_close(first.scores, relevance.scores, atol=1e-4, rtol=1e-4)
    optimised = limelight.generate(adapter, messages=prompt, strategy=limelight.lime(steps=2), max_new_tokens=2)
    assert len(optimised.steps) == 2


def test_sound_through_the_real_processor() -> None:
    adapter = Adapter(ZOO["audioflamingo3"].build(), audioflamingo3())
    samples = np.random.default_rng(0).normal(size=8000).astype(np.float32)
    prompt = adapter.prepare("what is here ?", {"audio": (samples, 16000)})
    (sound,) = [s for s in prompt.spans if s.modality == "audio"]
    assert len(sound) * (sound.seconds or 0) == pytest.approx(0.5, abs=0.03)
    _decodes_and_explains(adapter, prompt)
