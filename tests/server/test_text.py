"""Text as it grows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from limelight.server.text import GrowingText

PIECES = [" a", "b ", "\n", "end", "en", "d", "é", " ", "x", "de"]


def text(stops: Sequence[str] = ()) -> GrowingText:
    return GrowingText(lambda ids: "".join(PIECES[i] for i in ids), stops)


@given(
    st.lists(st.integers(0, len(PIECES) - 1), max_size=12),
    st.lists(st.sampled_from(["end", "de", "x", "a b"]), max_size=2),
)
def test_deltas_join_to_the_text_before_the_first_stop(ids: list[int], stops: list[str]) -> None:
    growing = text(stops)
    said = ""
    for i in ids:
        said += growing.push(i)
        if growing.stopped:
            break
    said += growing.finish()
    whole = "".join(PIECES[i] for i in growing.ids)
    cuts = [whole.find(s) for s in stops if s in whole]
    assert growing.stopped == bool(cuts)
    assert said == (whole[: min(cuts)] if cuts else whole).strip()


def test_a_stop_string_is_never_shown_in_part() -> None:
    growing = text(["end"])
    assert [growing.push(i) for i in (0, 4)] == ["a", ""]
    assert growing.push(5) == ""
    assert growing.stopped
    growing = text(["end"])
    assert [growing.push(i) for i in (0, 4, 8)] == ["a", "", "enx"]


@pytest.mark.parametrize("half", [b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98"])
def test_incomplete_characters_are_held_back(half: bytes) -> None:
    whole = {b"\xc3": "é", b"\xe2\x82": "€", b"\xf0\x9f\x98": "😀"}[half].encode()
    pieces = [b"a", half, whole[len(half) :]]
    growing = GrowingText(lambda ids: b"".join(pieces[i] for i in ids).decode(errors="replace"))
    assert [growing.push(i) for i in range(3)] == ["a", "", whole.decode()]


CORPUS = [
    "a small black cat sits on the table , and it 's happy . they do n't . ' x !",
    "Grüße, 你好 世界 🙂 café naïve",
]
BYTES = [f"<0x{i:02X}>" for i in range(256)]
KINDS: dict[str, tuple[Any, Any, Any, Any]] = {
    "byte level": (
        models.BPE(), pre_tokenizers.ByteLevel(), decoders.ByteLevel(),
        trainers.BpeTrainer(vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False),
    ),
    "metaspace": (
        models.BPE(unk_token="<unk>"), pre_tokenizers.Metaspace(), decoders.Metaspace(),
        trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>"], show_progress=False),
    ),
    "byte fallback": (
        models.BPE(byte_fallback=True, unk_token="<unk>"), pre_tokenizers.Metaspace(),
        decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        ),
        trainers.BpeTrainer(vocab_size=380, special_tokens=["<unk>", *BYTES], show_progress=False),
    ),
    "word pieces": (
        models.WordPiece(unk_token="[UNK]"), pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(cleanup=False),
        trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]"], show_progress=False),
    ),
}  # fmt: skip


class Shouting(PreTrainedTokenizerFast):
    """A tokenizer with a decode of its own."""

    def decode(self, token_ids: Any, **kwargs: Any) -> Any:
        return str(super().decode(token_ids, **kwargs)).replace("a", "A")


@cache
def tokenizer(kind: str, tidies: bool = False, cls: type[Any] = PreTrainedTokenizerFast) -> Any:
    model, pre, decoder, trainer = KINDS[kind]
    backend = Tokenizer(model)
    backend.pre_tokenizer, backend.decoder = pre, decoder
    backend.train_from_iterator(CORPUS, trainer)
    return cls(tokenizer_object=backend, clean_up_tokenization_spaces=tidies)


def ids_of(made: Any, seed: int) -> list[int]:
    rng = random.Random(seed)
    if seed % 2:
        return list(made(rng.choice(CORPUS))["input_ids"])
    return [rng.randrange(len(made)) for _ in range(40)]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("kind", "tidies", "cls", "streams"),
    [
        *((kind, False, PreTrainedTokenizerFast, True) for kind in KINDS),
        ("word pieces", True, PreTrainedTokenizerFast, False),
        ("byte level", False, Shouting, False),
    ],
)
def test_deltas_join_to_what_the_tokenizer_decodes(kind: str, tidies: bool, cls: Any, streams: bool, seed: int) -> None:
    made = tokenizer(kind, tidies, cls)
    growing, ids = GrowingText.of(made), ids_of(made, seed)
    assert (growing.step is not None) == streams
    deltas = [growing.push(i) for i in ids]
    assert "".join(deltas) + growing.finish() == made.decode(ids, skip_special_tokens=True).strip()
    assert seed % 2 == 0 or sum(map(bool, deltas)) > len(ids) // 4  # a sentence is told as it grows, not at the end


def test_a_broken_stream_falls_back_to_decoding_everything() -> None:
    made = tokenizer("byte level")
    ids = ids_of(made, 1)
    growing = GrowingText.of(made)
    said = "".join(growing.push(i) for i in ids[:8])
    growing.step = lambda _: 1 / 0  # type: ignore[assignment,return-value]
    said += "".join(growing.push(i) for i in ids[8:])
    assert said + growing.finish() == made.decode(ids).strip()
