"""Settings per kind of task: what is chosen, what a row holds, and the perplexity of a padded batch."""

from typing import Any

import numpy as np
import pytest
import torch
from bench.free_text_trials import TRIALS
from bench.quality import _generate, _surprise
from bench.quality_decoders import BY_NAME

from bench import free_text, free_text_table, quality_data
from limelight.models.loading import packaged

has_model = pytest.mark.skipif(
    not (packaged("demo-vision") / "model.safetensors").exists(), reason="no shipped weights"
)


def trial(alpha: float, chair_s: float, recall: float) -> dict[str, Any]:
    return {"settings": {"alpha": alpha}, "chair_s": chair_s, "recall": recall}


def test_the_fewest_inventions_at_greedys_recall_are_chosen() -> None:
    trials = [trial(1, 0.3, 0.84), trial(2, 0.1, 0.832), trial(4, 0.0, 0.80)]
    assert free_text.chosen_caption(trials, 0.84)["settings"] == {"alpha": 2}
    assert free_text.chosen_caption(trials, 0.95)["settings"] == {"alpha": 1}  # none keeps the recall: the best one


def test_every_decoder_with_settings_has_as_many_trials() -> None:
    assert {len(t) for t in TRIALS.values()} <= {1, 6}
    for name in free_text.decoders("demo-vision"):
        for settings in TRIALS[name]:
            BY_NAME[name].build(settings)


def test_costly_rows_say_on_how_few_captions_they_are_compared() -> None:
    rows = free_text.decoders("demo-vision")
    assert rows["exact LIME (paper)"].few_captions and rows["LRP beam"].few_captions
    assert not [n for n, d in free_text.decoders("demo-audio").items() if d.method == "lime"]  # there it says no number


class Jobs:
    """A bench whose captions are fixed; it keeps what it was asked to run."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.run_of = {"said": [["cup"]], "truth": [["cup"]], "texts": ["cup"], "nll": [0.1]}

    def run(self, jobs: list[tuple[Any, ...]], title: str) -> list[dict[str, Any]]:
        self.asked += jobs
        return [self.run_of] * len(jobs)


def test_few_captions_are_compared_with_greedy_on_the_same_scenes() -> None:
    bench = object.__new__(free_text.FreeText)
    bench.bench, bench.sets, bench.captions, bench.dev = Jobs(), ("none", "E-wrong"), 1000, 150  # type: ignore[assignment]
    bench.rows = free_text.decoders("demo-vision")
    greedy = bench.caption("greedy", None)
    row = bench.caption("exact LIME (paper)", greedy)
    dev, test = bench.rows["exact LIME (paper)"].few_captions or (0, 0)
    asked = {(name, split, n) for _, name, split, _, n, _, _ in bench.bench.asked}  # type: ignore[attr-defined]
    assert ("greedy", "dev", dev) in asked and ("exact LIME (paper)", "dev", dev) in asked
    assert ("exact LIME (paper)", "test", test) in asked
    assert (row["dev"], row["count"], len(row["trials"])) == (dev, test, 6)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A picture of a pig and a pig.", True),
        ("A picture of a pig and a cup.", False),
        ("a dog, then a dog", True),
        ("", False),
    ],
)
def test_a_repeated_content_word(text: str, expected: bool) -> None:
    assert free_text.repeats(text) is expected


def run(said: list[list[str]], truth: list[list[str]]) -> dict[str, Any]:
    return {"said": said, "truth": truth, "texts": [" ".join(s) for s in said], "nll": [0.5] * len(said)}


def test_a_row_and_its_table() -> None:
    truth = [["cup"], ["pig", "hat"], ["cat"], ["dog"]]
    greedy = run([["cup", "fork"], ["pig"], ["cat"], ["dog", "hat"]], truth)
    mine = run([["cup"], ["pig", "hat"], ["cat"], ["dog"]], truth)
    row = free_text.caption_row([mine], greedy)
    assert (row["chair_s"], row["chair_i"], row["recall"]) == (0.0, 0.0, 1.0)
    assert row["invented_vs_greedy"][0] == pytest.approx(-0.5)
    assert row["recall_vs_greedy"][0] == pytest.approx(0.125)
    assert row["perplexity"] == pytest.approx(np.exp(0.5))
    tests = {"none": row, "E-wrong": row}
    found = {"captions_per_set": 4, "captions": {"VCD": {"settings": {"alpha": 1.0}, "test": tests}}, "speech": {}}
    assert "| VCD | alpha 1 | 0.000 | -0.500 [" in free_text_table.render({"demo-vision": found})


@has_model
def test_perplexity_in_a_padded_batch_is_that_of_each_row_alone(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality_data, "CACHE", tmp_path)
    own = quality_data.adapter()
    asked = [*quality_data.caption_set("dev", "none", 2), *quality_data.caption_set("dev", "E-wrong", 2)]
    tensors = quality_data.inputs(asked)
    out = _generate(own, BY_NAME["greedy"], {}, tensors, None, 12)
    together = _surprise(own, tensors, out.sequences)
    start = tensors["input_ids"].shape[1]
    for row, one in enumerate(asked):
        alone = quality_data.inputs([one])
        answer = out.sequences[row, start:].tolist()
        if own.tokenizer.eos_token_id in answer:
            answer = answer[: answer.index(own.tokenizer.eos_token_id) + 1]
        ids = torch.cat([alone["input_ids"], torch.tensor([answer])], dim=1)
        with torch.no_grad():
            given = {**alone, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
            logits = own.model(**given).logits[0, -len(answer) - 1 : -1]
        expected = -torch.log_softmax(logits, -1)[range(len(answer)), answer].mean()
        assert together[row] == pytest.approx(float(expected), abs=1e-4)
