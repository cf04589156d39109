"""bench.whisper: thresholds come from the other model and the other half, labels and filters do what the table says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bench.whisper_table import filters, judged, kinds_table, measured, results, table, threshold, wrong_words

from bench import whisper_data, whisper_table


def row(kind: str, i: int, said: str, text: str = "", snr: int | None = None, support: float = 0.0) -> dict[str, Any]:
    words = said.split()
    spelled = [f" {w}" for w in words] + ["<|endoftext|>"]
    values = [support] * len(words) + [9.0]
    return {
        "id": f"{kind} {i} {snr}", "kind": kind, "source": f"{kind} {i}", "fold": i % 2, "seconds": 2.0, "snr": snr, "noise": "",
        "text": text, "said": said, "tokens": list(range(len(spelled))), "spelled": spelled, "ended": True, "no_speech": 0.9 - support / 10,
        "logprob": [-0.1 * len(words)] * len(spelled), "entropy": values, "pmi": values, "phi": values, "z": values, "centred": values,
        "rival": [None] * len(spelled), "voiced": float(kind == "speech"),
        "times": {"features": 0.1, "encoder": 0.7, "decoder": 0.2, "ours": 0.2, "silence": 0.1, "vad": 0.01},
    }  # fmt: skip


def rows(seed: int, shift: float = 0.0) -> list[dict[str, Any]]:
    """Clips without words with a support around 1, speech around 6; some words of it are wrong at lower support."""
    rng = np.random.default_rng(seed)
    found = [
        row(kind, i, "thank you", support=1 + shift + 0.1 * rng.normal())
        for kind in whisper_data.KINDS
        for i in range(6)
    ]
    for snr in whisper_data.SNR:
        for i in range(12):
            wrong = snr is not None and i % 3 == 0
            said = "please hold the dine" if wrong else "please hold the line"
            one = row("speech", i, said, "please hold the line", snr, support=6 + shift + 0.1 * rng.normal())
            if wrong:
                for column in ("logprob", "z", "centred", "pmi"):
                    one[column] = [*one[column][:3], one[column][3] - 3, one[column][4]]
            found.append(one)
    return found


def test_a_threshold_separates_and_is_chosen_on_the_other_model_and_half() -> None:
    one, other = rows(0), rows(1, shift=2.0)
    assert 1.5 < threshold(one, whisper_table.SEGMENTS[whisper_table.OURS]) < 5.5
    keep, limits = filters(one, other)
    assert all(3.5 < t < 7.5 for t in limits[whisper_table.OURS])  # of the other model
    changed = [
        {**r, "centred": [5.0] * len(r["centred"])} if r["fold"] == 0 and r["kind"] != "speech" else r for r in other
    ]
    moved = filters(one, changed)[1][whisper_table.OURS]
    assert moved[0] == limits[whisper_table.OURS][0]  # half 0 is judged by what half 1 chose
    assert moved[1] != limits[whisper_table.OURS][1]
    assert {"no filter", "Whisper's own rule", "Silero VAD"} <= set(keep)


def test_what_filters_do() -> None:
    found = rows(0)
    nothing, all_of_it = (measured(found, lambda r, kept=kept: kept) for kept in (True, False))
    assert nothing["all/prints words"]["value"] == 1
    assert nothing["music/prints words"]["n"] == 6
    assert nothing["clean/words lost"]["value"] == nothing["clean/WER"]["value"] == 0
    assert nothing["5 dB/WER"]["value"] == pytest.approx(4 / 48)
    assert all_of_it["all/prints words"]["value"] == 0
    assert all_of_it["clean/words lost"]["value"] == all_of_it["clean/WER"]["value"] == 1
    assert all_of_it["0 dB/words lost"]["value"] == pytest.approx(44 / 48)  # the words that were right


def test_words_are_judged_in_their_place() -> None:
    one = row("speech", 0, "Press 2, please.", "press two please")
    one["spelled"] = [" Press", " 2", ",", " ple", "ase", ".", "<|endoftext|>"]
    one["tokens"] = list(range(7))
    assert judged(one) == [([0], False), ([1, 2], False), ([3, 4, 5], False)]
    assert [wrong for _, wrong in judged({**one, "text": "press ten please"})] == [False, True, False]
    assert [wrong for _, wrong in judged({**one, "text": ""})] == [True] * 3
    scores = wrong_words(rows(0))
    assert scores["wrong"] == 12
    assert scores["scores"]["log-probability"]["value"] == scores["scores"][whisper_table.OURS]["value"] == 1
    assert scores["scores"]["entropy"]["value"] == pytest.approx(0.5, abs=0.2)


def test_tables() -> None:
    found = results({"whisper-tiny.en": rows(0), "whisper-base": rows(1)})
    text = table(found)
    for name in ("no filter", "Silero VAD", whisper_table.OURS, "Whisper's own rule"):
        assert f"| {name} |" in text
    assert "| music |" in kinds_table(found)
    own = {f["name"]: f for f in found["models"]["whisper-base"]["filters"]}
    assert own[whisper_table.OURS]["cost"] == 1.2
    assert own[whisper_table.OURS]["metrics"]["all/prints words"]["value"] == 0
    assert results({"whisper-tiny.en": rows(0), "whisper-base": []}) == {"models": {}}


def test_sounds_without_packages() -> None:
    rng = np.random.default_rng(0)
    for kind in ("hum", "white noise", "pink noise", "room noise", "breath", "cough"):
        sound = whisper_data.at_level(whisper_data._sound(kind, rng, 32_000), -30)
        assert sound.shape == (32_000,) and sound.dtype == np.float32 and np.isfinite(sound).all()
    level = 10 * np.log10(np.mean(whisper_data.at_level(rng.standard_normal(16_000).astype(np.float32), -30) ** 2))
    assert level == pytest.approx(-30, abs=0.1)
    low, high = (np.abs(np.fft.rfft(whisper_data.coloured(rng, 16_000, 1.0)))[k : k + 100].mean() for k in (100, 4000))
    assert low > 3 * high
