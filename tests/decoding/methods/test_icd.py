from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from limelight.decoding.methods.icd import AUDIO, IMAGE, Icd, icd, place
from limelight.decoding.strategy import GenerationContext
from limelight.errors import SettingError
from limelight.models.adapter import Adapter
from tests.decoding.peers import TOKENS, check_against_twin, double, emitted, inputs_of, run
from tests.slow_twins import icd as twin

WORDS = (60, 61, 62, 63)
FAMILIES = ["llava", "internvl", "gemma3", "qwen2_5_vl", "qwen2_5_vl_video", "qwen2_audio"]


class Tokenizer:
    """Words of one letter to ids; 1 is BOS, 3 a start marker."""

    bos_token_id = 1
    all_special_ids = (1, 2, 3, 4)

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        self.seen.append(text)
        return {"input_ids": list(WORDS) if text.strip() else []}

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


@pytest.mark.parametrize("where", ["user", "front"])
@pytest.mark.parametrize("name", FAMILIES)
def test_equals_the_slow_twin(name: str, where: str) -> None:
    adapter, inputs = double(name), inputs_of(name)
    out = run(adapter, inputs, icd(alpha=0.7, beta=0.05, instruction=WORDS, where=where))
    tokens = emitted(out, inputs)
    ids = inputs["input_ids"][0].tolist()
    bos = adapter.model.generation_config.bos_token_id
    at = min(ids.index(t) for t in adapter.placeholders if t in ids) if where == "user" else int(ids[0] == bos)
    other = twin.told(inputs, WORDS, at)
    wanted = [twin.icd(adapter.model, inputs, other, tokens[:, :t], 0.7, 0.05) for t in range(TOKENS)]
    check_against_twin(out, wanted, rows=1)


def bare_run(ids: list[int], mask: list[int], modality: list[int]) -> GenerationContext:
    adapter: Any = SimpleNamespace(tokenizer=Tokenizer())
    row = [torch.tensor([v]) for v in (ids, mask, modality)]
    return GenerationContext(adapter, row[0], {}, row[2], row[1].bool(), None)  # type: ignore[arg-type]


def test_place_is_in_front_of_the_start_marker_and_behind_bos() -> None:
    assert place(bare_run([0, 1, 40, 3, 5, 5, 4, 41], [0] + [1] * 7, [0, 0, 0, 0, 1, 1, 0, 0]), 0, "user") == 3
    assert place(bare_run([1, 3, 5, 5, 4, 41], [1] * 6, [0, 0, 1, 1, 0, 0]), 0, "user") == 1
    assert place(bare_run([1, 5, 41], [1] * 3, [0, 1, 0]), 0, "user") == 1
    assert place(bare_run([0, 0, 1, 40, 5], [0, 0, 1, 1, 1], [0, 0, 0, 0, 1]), 0, "front") == 3
    assert place(bare_run([0, 40, 5], [0, 1, 1], [0, 0, 1]), 0, "front") == 1


@pytest.mark.parametrize(("name", "text"), [("llava", IMAGE), ("qwen2_audio", AUDIO)])
def test_the_instruction_follows_the_media_and_the_tokenizer_writes_it(name: str, text: str) -> None:
    adapter, inputs = double(name), inputs_of(name)
    tokenizer = Tokenizer()
    known = Adapter(adapter.model, tokenizer)
    said = run(known, inputs, icd(), n=1)
    told = run(adapter, inputs, icd(instruction=WORDS), n=1)
    assert tokenizer.seen == [text]
    assert said.logits is not None
    assert told.logits is not None
    torch.testing.assert_close(said.logits[0], told.logits[0])
    mine = run(known, inputs, icd(instruction="look away"), n=1)
    assert tokenizer.seen[-1] == "look away"
    assert mine.logits is not None


def test_no_tokenizer_no_words() -> None:
    with pytest.raises(SettingError, match="tokenizer"):
        run(double("llava"), inputs_of("llava"), icd())
    with pytest.raises(SettingError, match="returns no tokens"):
        run(Adapter(double("llava").model, Tokenizer()), inputs_of("llava"), icd(instruction=" "))


@pytest.mark.parametrize(
    "wrong", [{"alpha": -1}, {"beta": 2}, {"where": "back"}, {"instruction": ""}, {"instruction": ()}]
)
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="icd"):
        Icd(**wrong)
