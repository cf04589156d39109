"""Models whose generate() hands on to a language model inside (BLIP-2, InstructBLIP): the server answers as the library."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import Image

import limelight
from limelight.models.adapter import Adapter
from limelight.server.state import ServerConfig
from tests.server.conftest import MODEL, alike, ask, example, served
from tests.tiny import built, tokenizer


def processor(name: str) -> Any:
    from transformers import Blip2Processor, InstructBlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    images, words = BlipImageProcessorPil(size={"height": 16, "width": 16}), tokenizer()
    if name == "blip2":
        return Blip2Processor(images, words, num_query_tokens=8)
    return InstructBlipProcessor(images, words, tokenizer(), num_query_tokens=8)


@pytest.mark.parametrize("name", ["blip2", "instructblip"])
@pytest.mark.parametrize("strategy", ["greedy", "relevance-contrastive"])
def test_answers_are_the_librarys(name: str, strategy: str) -> None:
    adapter = Adapter(built(name).model, processor(name))
    question = "what is in the picture ?"
    want = limelight.generate(
        adapter, messages=question, media={"image": Image.open(io.BytesIO(example()))}, strategy=strategy, meter=True,
        relevance=False, max_new_tokens=3,
    )  # fmt: skip
    body = {
        "model": MODEL, "messages": ask(question), "max_tokens": 3,
        "limelight": {"strategy": strategy, "grounding": True},
    }  # fmt: skip
    with served(adapter, ServerConfig(MODEL)) as running, ThreadPoolExecutor(3) as pool:
        for got in pool.map(running.post, [body] * 3):
            assert got.status_code == 200, got.text
            assert got.json()["choices"][0]["message"]["content"] == want.text
            assert alike(got.json()["limelight"]["contributions"], want.contributions())
            assert got.json()["limelight"]["contributions"]["image"] > 0
        streamed = running.post({**body, "stream": True})
        assert "error" not in streamed.text
