"""Plain values and tables of results, and the figure that suits the media."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from limelight.errors import SettingError
from limelight.report.words import grouped, text_words
from tests.report.examples import generation, picture, prompt, relevance, tone


def test_a_generation_as_plain_values_and_as_a_table() -> None:
    said = generation(prompt(("image", 49, (7, 7), None)), [" A", " cup"], strategy="meter", special=["</s>"])
    plain = said.to_dict()
    json.dumps(plain, allow_nan=False)
    assert [w["text"] for w in plain["words"]] == ["A", "cup"]
    assert len(said.to_dict(scores=True)["tokens"]) == len(said.prompt.tokens)
    pytest.importorskip("pandas")
    table = said.to_pandas()
    assert list(table["text"]) == [" A", " cup", "</s>"]
    assert list(table["word"])[:2] == ["A", "cup"]
    assert {"share_image", "contribution_image", "flagged"} <= set(table.columns)


def test_end_markers_do_not_count_in_means() -> None:
    of = prompt(("image", 49, (7, 7), None))
    with_end = generation(of, [" A", " cup"], special=["</s>"])
    without = generation(of, [" A", " cup"])
    assert with_end.said == with_end.steps[:2]
    assert with_end.shares() == without.shares()
    assert generation(of, [], special=["</s>"]).said  # nothing else was generated


def test_a_relevance_as_a_table_and_as_a_figure(tmp_path: Path) -> None:
    found = relevance(prompt(("image", 49, (7, 7), None)), 1, " cup")
    assert found.plot(picture(), path=tmp_path / "a.png").axes
    assert (tmp_path / "a.png").stat().st_size > 1000
    assert found.plot().axes  # without the image: a grid
    sound = relevance(prompt(("audio", 50, None, 0.04)), 1, " dog")
    assert sound.plot(tone()).axes and sound.plot({"audio": [tone()]}).axes
    video = relevance(prompt(("video", 36, (4, 3, 3), None)), 1, "x")
    assert video.plot({"video": [[picture() for _ in range(8)]]}).axes
    with pytest.raises(SettingError, match="over its frames"):
        video.plot()
    with pytest.raises(SettingError, match="no image, audio or video"):
        relevance(prompt(), 1, "x").plot()
    pytest.importorskip("pandas")
    table = found.to_pandas()
    assert len(table) == len(found.tokens)
    assert set(table["modality"]) == {"text", "image"}


def test_pieces_are_joined_to_words_and_template_and_markers_left_out() -> None:
    tokens = ["<s>", "USER", ":", " straw", "berry", " is", "n", "'t", " it", "?"]
    assert [[tokens[i] for i in g] for g in grouped(tokens, range(3, 10))] == [
        [" straw", "berry"], [" is", "n"], ["'t"], [" it"], ["?"],
    ]  # fmt: skip
    assert grouped(["a", "b", "c"], range(3)) == [[0], [1], [2]]  # a tokenizer that writes no spaces
    found = relevance(prompt(("image", 4, (2, 2), None)), 1, "x")
    last = len(found.tokens)
    rows = text_words(found, template=(1, 2, last - 2, last - 1))
    assert rows[0][0] == "cup"
    assert all(text not in ("<s>", "USER", ":", "") for text, _ in rows)
    assert [abs(v) for _, v in rows] == sorted((abs(v) for _, v in rows), reverse=True)
