"""smol-vision's tables: ratios with intervals, decoders that build, and a page that stands without results."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bench.quality_rows import fixed_hint_auc, fixed_hint_difference
from bench.quality_smol_decoders import BY_NAME, RAISED
from bench.smol_vision import KINDS, interval, table

from bench import free_text, free_text_table, quality_smol
from bench import quality_smol_data as data
from limelight.models.checkpoints.weights_on_disk import missing_parts


def test_a_ratio_of_sums_is_within_its_interval_which_narrows() -> None:
    rng = np.random.default_rng(0)
    below = rng.integers(1, 5, 400)
    top = rng.binomial(below, 0.7)
    value, low, high = interval(top, below)
    assert value == pytest.approx(top.sum() / below.sum()) and low < value < high
    few = interval(top[:50], below[:50])
    assert high - low < few[2] - few[1]
    assert interval([1.0, 1.0], [1.0, 1.0]) == (1.0, 1.0, 1.0)


def test_every_row_builds_with_every_setting() -> None:
    for decoder in BY_NAME.values():
        assert len(decoder.grid) <= 4
        for settings in decoder.grid if decoder.name != RAISED else ():
            decoder.build(settings)
    rows = free_text.decoders("smol-vision")
    assert {"greedy", "relevance-contrastive, z", "VCD", "M3ID", "PAI", "AvisC"} <= set(rows)
    assert "exact LIME (paper)" not in rows  # of questions alone


def test_what_a_caption_names() -> None:
    assert data.mentioned("The picture shows two dogs, a cup and a camera.") == {"cup", "camera"}


def test_the_tables_name_what_is_missing() -> None:
    sight = {"scenes": 2, "words": 5.0, "by_noun": {"hat": [0.5, 4], "cup": [1.0, 2]}}
    sight |= dict.fromkeys(("recall", "CHAIR_i", "CHAIR_s", *KINDS), (0.5, 0.4, 0.6))
    found = table({"sights": {"clear": sight}})
    assert "| clear | 2 | 0.50 [0.40, 0.60] |" in found and found.endswith("hat 0.50 (4), cup 1.00 (2).")
    cell = {"accuracy": 0.75, "yes_ratio": 0.5}
    row = {
        "cells": dict.fromkeys(data.CELLS, cell), "mixtures": {"0.7": 0.8}, "auc_fixed_hint": 0.9, "settings": {},
        "control": False, "questions": 10,
    }  # fmt: skip
    shown = quality_smol.render({"questions": 10, "rows": {"greedy": row}})
    assert "| greedy (n = 10) |" in shown and f"Not measured: {RAISED}, sampled" in shown


def test_inputs_are_padded_on_the_left_and_hold_the_images() -> None:
    if missing_parts("smol-vision"):
        pytest.skip("the weights were not fetched (make real)")
    from PIL import Image

    image = Image.new("RGB", (320, 320))
    asked = [data.Asked("a", "Is there a hat in the picture?", image, True), data.Asked("b", "Hat?", image, False)]
    tensors = data.inputs(asked)
    mark = data.adapter().model.config.image_token_id
    assert (tensors["input_ids"] == mark).sum(1).tolist() == [25, 25]
    assert tensors["attention_mask"][:, -1].tolist() == [1, 1] and tensors["attention_mask"][1, 0] == 0
    yes, no = data.yes_no_ids()
    assert yes != no


def test_the_short_table_holds_both_prompts() -> None:
    number = (-0.2, -0.3, -0.1)
    test = {"chair_s": 0.5, "recall": 0.8, "invented_vs_greedy": number, "recall_vs_greedy": number}
    rows = {name: {"test": {"none": test, "E-wrong": test}} for name in ("greedy", "VCD")}
    found = free_text_table.short({"captions": rows}).splitlines()
    assert found[0].count("CHAIR_s") == 2 and len(found) == 4
    assert found[2] == "| greedy | 0.50 |  | 0.80 |  | 0.50 |  | 0.80 |  |"
    assert found[3].count("-0.200 [-0.300, -0.100]") == 4


def test_costly_decoders_are_tried_on_fewer_questions_of_dev(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = quality_smol.Questions(1, 60, 0, quality_smol.WORLD, quality_smol.DEV)
    asked: list[tuple[Any, ...]] = []

    def run(jobs: list[tuple[Any, ...]], title: str) -> list[dict[str, Any]]:
        asked.extend(jobs)
        return [{"yes": [True], "truth": [True]}] * len(jobs)

    monkeypatch.setattr(bench, "run", run)
    rows = quality_smol.BY_NAME
    for name, count in (("exact LIME (paper)", 10), ("VCD", quality_smol.DEV)):
        asked.clear()
        bench.choose(rows[name], {})
        assert {job[4] for job in asked} == {count}
        assert len(asked) == len(rows[name].grid) * len(quality_smol.TEXT_CELLS)


def test_raising_yes_reads_greedys_answers_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def run(self: Any, jobs: list[tuple[Any, ...]], title: str) -> list[dict[str, Any]]:
        asked.extend(jobs)
        return [
            {"margin": [-3.0, -0.7, 1.0], "yes": [False, False, True], "truth": [True, True, False], "unparsed": 1}
        ] * len(jobs)

    monkeypatch.setattr(quality_smol.Bench, "run", run)
    bench = quality_smol.Questions(1, 3, 0, quality_smol.WORLD, 3)
    settings, trials = bench.choose(BY_NAME[RAISED], {})
    assert {job[1:3] for job in asked} == {("greedy", "dev")} and asked[0][5] == {}
    assert settings == {"logits": 4.0} and [round(t["dev_70_30"], 2) for t in trials] == [0.0, 0.33, 0.33, 0.67]
    assert quality_smol.raised(run(bench, [()], "")[0], 1.0)["margin"] == [-2.0, pytest.approx(0.3), 2.0]
    assert quality_smol.raised(run(bench, [()], "")[0], 1.0)["yes"] == [False, True, True]


def test_the_difference_of_aucs_is_paired() -> None:
    rng = np.random.default_rng(0)
    truth = [bool(i % 2) for i in range(40)]

    def answers(sight: float) -> dict[str, list[dict[str, Any]]]:
        return {
            c: [{"truth": truth, "margin": [sight * t + float(rng.normal()) for t in truth]}] for c in data.TEXT_CELLS
        }

    blind, seeing = answers(0.0), answers(2.0)
    assert fixed_hint_difference(seeing, seeing, 20) == [0.0, 0.0, 0.0]
    value, low, high = fixed_hint_difference(seeing, blind, 100)
    assert 0.2 < low < value < high
    assert value == pytest.approx(fixed_hint_auc(seeing) - fixed_hint_auc(blind))
    few = {c: [{k: v[:20] for k, v in r[0].items()}] for c, r in seeing.items()}
    shorter = {c: [{k: v[:20] for k, v in r[0].items()}] for c, r in blind.items()}
    assert fixed_hint_difference(few, blind, 10)[0] == pytest.approx(fixed_hint_auc(few) - fixed_hint_auc(shorter))
