"""The audio quality table as Markdown."""

from __future__ import annotations

import json
from typing import Any

from bench.quality_audio_data import CAPTION_SETS, CELLS, QUIET_SETS, SPEECH_SETS
from bench.quality_audio_decoders import DECODERS
from bench.quality_table import _head, _interval, _row

BLIND = "control: greedy that never sees the hint"
PROBE = "probe of the audio tokens (ceiling)"


def _named(name: str, row: dict[str, Any], count: int, all_of_them: int) -> str:
    """A control is called one, and a row on fewer questions, captions or phrases says on how many."""
    return (f"control: {name}" if row["control"] else name) + (f" (n = {count})" if count < all_of_them else "")


def render(results: dict[str, Any]) -> str:
    """Accuracy, F1 of "no", summary with paired intervals, captions, speech, settings."""
    rows = [(d.name, results["rows"][d.name]) for d in DECODERS if d.name in results["rows"]]
    named = [(_named(name, row, row["questions"], results["questions"]), row) for name, row in rows]
    out: list[str] = []
    for key, title in (("accuracy", "accuracy"), ("f1_no", 'F1 with "no" as the positive class')):
        out += [f"Yes/no questions: {title}, {results['questions']} questions per cell (test)", ""]
        out.append(_head(["decoder", *[c.replace("/", " ") for c in CELLS]]))
        out.append(_row(PROBE, [f"{results['probe'][c][key]:.3f}" for c in CELLS]))
        out += [_row(name, [f"{row['cells'][c][key]:.3f}" for c in CELLS]) for name, row in named]
        greedy = results["rows"].get("greedy")
        if greedy:
            out.append(_row(BLIND, [f"{greedy['cells']['none/' + c.split('/')[1]][key]:.3f}" for c in CELLS]))
        out.append("")
    out += ["Mixtures of right and wrong hints, paired difference to greedy over all cells, temporal grounding", ""]
    columns = ["90:10", "70:30", "50:50", "AUC, hint fixed", "minus greedy [95 %]", "greedy at the same yes ratio"]
    out.append(_head(["decoder", *columns, "yes ratio", "audio share", "inside the event (chance)"]))
    for name, row in named:
        cells = [row["cells"][c] for c in CELLS]
        same = [c.get("greedy_at_same_yes_ratio") for c in cells]
        out.append(_row(name, [
            *(f"{row['mixtures'][m]:.3f}" for m in ("0.9", "0.7", "0.5")), f"{row['auc_fixed_hint']:.3f}",
            _interval(row.get("text_cells_vs_greedy")), "" if None in same else f"{sum(same) / len(same):.3f}",
            f"{sum(c['yes_ratio'] for c in cells) / len(cells):.2f}", f"{row['image_share']:.2f}",
            "{:.2f} ({:.2f})".format(*row["inside"]),
        ]))  # fmt: skip
    out += ["", f"Captions of clear recordings: CHAIR_s / CHAIR_i / recall, {results['captions']} per set (test)", ""]
    out.append(_head(["decoder", *[f"hint {c}" for c in CAPTION_SETS]]))
    for plain, row in rows:
        if row["captions"]:
            name = _named(plain, row, row["described"], results["captions"])
            cells = ["{chair_s:.3f} / {chair_i:.3f} / {recall:.3f}".format(**row["captions"][c]) for c in CAPTION_SETS]
            out.append(_row(name, cells))
    out += [
        "", f"Transcription: word error rate, and words invented per recording without speech, {results['phrases']} per set (test)", "",
    ]  # fmt: skip
    out.append(_head(["decoder", *SPEECH_SETS, *QUIET_SETS, "broken/clear, errors a phrase minus greedy [95 %]"]))
    for plain, row in rows:
        if row["speech"]:
            name = _named(plain, row, row["transcribed"], results["phrases"])
            rates = [f"{row['speech'][c]['rate']:.3f}" for c in (*SPEECH_SETS, *QUIET_SETS)]
            out.append(_row(name, [*rates, _interval(row["speech"]["broken/clear"].get("errors_vs_greedy"))]))
    missing = [d.name for d in DECODERS if d.name not in results["rows"]]
    out += ["", f"Not measured: {', '.join(missing)}."] if missing else []
    out += ["", "Settings (chosen on dev)", "", _head(["decoder", "settings", "trials", "CPU seconds"])]
    for name, row in named:
        settings = json.dumps({**row["settings"], **row["change"]})
        out.append(_row(name, [settings, str(len(row["trials"]) or 1), f"{row['seconds']:.0f}"]))
    return "\n".join(out)
