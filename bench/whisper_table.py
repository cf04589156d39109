"""From the rows of `bench.whisper` to its tables: what filters do to transcripts, and which words of noisy speech are wrong.

A clip is one segment. A filter keeps or drops its transcript by a number; where that number's threshold is chosen, it is
chosen on the *other* model and on the *other* half of the recordings: the one that drops most clips without words among
those that lose at most one in a hundred speech segments that are at least half right.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from bench.whisper_data import KINDS, SNR
from limelight.benchmarks.compare import compare_blocks
from limelight.benchmarks.scorers.detection import MEASURES
from limelight.benchmarks.scorers.measure import Array, Block, Measure, block, evaluate, share
from limelight.benchmarks.scorers.ranking import cross_fitted
from limelight.benchmarks.scorers.wer import invented_words, transcript_columns
from limelight.calibrating.fit import SEGMENTS_LOST, Objective, Observed, choose
from limelight.errors import DataError

Row = dict[str, Any]
AUROC = MEASURES[0]
NOT_MEASURED = "Not measured yet: `python -m bench.whisper`."
SEGMENTS: dict[str, Callable[[Row], float]] = {  # larger: the sound supports the segment
    "no_speech": lambda r: -r["no_speech"],
    "average log-probability": lambda r: statistics.fmean(r["logprob"]),
    "entropy": lambda r: -mean(r, "entropy"),
    "PMI against silence": lambda r: mean(r, "pmi"),
    "Phi": lambda r: mean(r, "phi"),
    "support (ours)": lambda r: mean(r, "centred"),
    "grounding (z)": lambda r: mean(r, "z"),
}
TUNED = ("no_speech", "average log-probability", "PMI against silence", "support (ours)", "grounding (z)")
OURS = "support (ours)"
WORDS = ("log-probability", "entropy", "PMI against silence", "support (ours)", "grounding (z)")
TOGETHER = (("log-probability", "entropy"), ("log-probability", "grounding (z)"), ("log-probability", "PMI against silence"),
            ("log-probability", "entropy", "support (ours)"), ("log-probability", "entropy", "grounding (z)"))  # fmt: skip
COLUMN = {"log-probability": "logprob", "entropy": "entropy", "PMI against silence": "pmi", "support (ours)": "centred",
          "grounding (z)": "z"}  # fmt: skip


@cache
def _normaliser() -> Any:
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    return EnglishTextNormalizer({})


@cache
def normal(text: str) -> str:
    """Whisper's own English normaliser, without its list of British spellings."""
    return str(_normaliser()(text.replace("-", " "))).strip()


def text_tokens(row: Row) -> list[int]:
    """Indices of the tokens that hold letters or digits."""
    last = len(row["tokens"]) - row["ended"]
    return [i for i in range(last) if any(c.isalnum() for c in row["spelled"][i])]


def mean(row: Row, column: str) -> float:
    """Over the tokens with letters or digits; of a segment without any, a number that no threshold keeps."""
    at = text_tokens(row)
    return statistics.fmean(row[column][i] for i in at) if at else -1e6


def columns_of(row: Row, kept: bool) -> dict[str, float]:
    """Errors of a clip's transcript, which is empty where it is dropped."""
    said = normal(row["said"]) if kept else ""
    reference = normal(row["text"])
    if not reference:
        return {"clips": 1.0, "printed": float(bool(said))}
    found = transcript_columns(reference, said)
    right = transcript_columns(reference, normal(row["said"]))
    heard = right["words"] - right["substitutions"] - right["deletions"]
    return {**found, "lost": 0.0 if kept else heard}


def half_right(row: Row) -> bool:
    found = transcript_columns(normal(row["text"]), normal(row["said"]))
    return found["errors"] <= found["words"] / 2


def threshold(rows: Sequence[Row], score: Callable[[Row], float]) -> float:
    """The threshold of a score on clips with and without words; see the module."""
    known = [(score(r), int(r["kind"] == "speech")) for r in rows if r["kind"] != "speech" or half_right(r)]
    z, label = (np.array(x) for x in zip(*known, strict=True))
    observed = Observed(z.astype(float), np.full(len(z), math.inf), label.astype(np.int64))
    try:
        return choose(observed, Objective("false-flags", SEGMENTS_LOST))[0]
    except DataError:  # whatever it drops, it loses too much speech
        return -math.inf


Filter = Callable[[Row], bool]


def filters(own: Sequence[Row], other: Sequence[Row]) -> tuple[dict[str, Filter], dict[str, list[float]]]:
    """Name -> whether a row's transcript is kept; and the thresholds of the tuned ones, of either half."""
    limits = {
        name: [threshold([r for r in other if r["fold"] != fold], SEGMENTS[name]) for fold in (0, 1)] for name in TUNED
    }

    def tuned(name: str) -> Filter:
        return lambda r: SEGMENTS[name](r) >= limits[name][r["fold"]]

    found: dict[str, Filter] = {
        "no filter": lambda r: True,
        "Whisper's own rule": lambda r: not (r["no_speech"] > 0.6 and statistics.fmean(r["logprob"]) < -1),
        **{name: tuned(name) for name in TUNED},
    }
    if all("voiced" in r for r in own):
        found["Silero VAD"] = lambda r: r["voiced"] > 0
        found[f"{OURS} + Silero VAD"] = lambda r: r["voiced"] > 0 and tuned(OURS)(r)
    return found, limits


PRINTED = share("prints words", "printed", "clips", higher_is_better=False)
SPOKEN = (
    share("words lost", "lost", "words", higher_is_better=False),
    share("WER", "errors", "words", higher_is_better=False),
)


def measured(rows: Sequence[Row], keep: Filter) -> dict[str, Any]:
    """Printed words of clips without any, by kind too; words lost and error rate at every level of noise."""
    blocks = [_block("all", [r for r in rows if r["kind"] != "speech"], keep, (PRINTED,))]
    blocks += [_block(kind, [r for r in rows if r["kind"] == kind], keep, (PRINTED,)) for kind in KINDS]
    blocks += [
        _block(level(snr), [r for r in rows if r["kind"] == "speech" and r["snr"] == snr], keep, SPOKEN) for snr in SNR
    ]
    return {k: v.to_json() for k, v in evaluate([b for b in blocks if b.ids]).items()}


def level(snr: int | None) -> str:
    return "clean" if snr is None else f"{snr} dB"


def _block(name: str, rows: Sequence[Row], keep: Filter, measures: Sequence[Measure]) -> Block:
    return block(name, [(r["id"], columns_of(r, keep(r))) for r in rows], measures, [r["source"] for r in rows])


def costs(rows: Sequence[Row]) -> dict[str, float]:
    """Process time of a filter with the transcription, by that of the transcription alone."""
    total = {
        k: sum(r["times"].get(k, 0.0) for r in rows)
        for k in ("features", "encoder", "decoder", "ours", "silence", "vad")
    }
    plain = total["features"] + total["encoder"] + total["decoder"]
    found = dict.fromkeys(("no filter", "Whisper's own rule", "no_speech", "average log-probability"), 1.0)
    found["PMI against silence"] = 1 + total["silence"] / plain
    found |= dict.fromkeys((OURS, "grounding (z)"), 1 + total["ours"] / plain)
    found["Silero VAD"] = 1 + total["vad"] / plain
    found[f"{OURS} + Silero VAD"] = 1 + (total["ours"] + total["vad"]) / plain
    return found


def contrasted(rows: Sequence[Row]) -> dict[str, Any]:
    """What contrastive decoders print, beside greedy on the same clips."""
    clips = {r["id"]: r for r in rows if "strategy" not in r}
    found: dict[str, Any] = {}
    for name in dict.fromkeys(r["strategy"] for r in rows if "strategy" in r):
        own = [
            {**clips[r["clip"]], "said": r["said"], "spent": r["seconds"]} for r in rows if r.get("strategy") == name
        ]
        greedy = [clips[r["id"]] for r in own]
        plain = sum(sum(r["times"][k] for k in ("features", "encoder", "decoder")) for r in greedy)
        found[name] = {
            "clips": len(own), "metrics": measured(own, lambda r: True), "greedy": measured(greedy, lambda r: True),
            "cost": round(sum(r["spent"] for r in own) / plain, 2),
        }  # fmt: skip
    return found


# words


def judged(row: Row) -> list[tuple[list[int], bool]]:
    """The words of a transcript: their tokens, and whether they are wrong in this place."""
    groups: list[list[int]] = []
    for i in range(len(row["tokens"]) - row["ended"]):
        if row["spelled"][i].startswith(" ") or not groups:
            groups.append([])
        groups[-1].append(i)
    said = [(normal("".join(row["spelled"][i] for i in g)).split(), g) for g in groups]
    said = [(pieces, g) for pieces, g in said if pieces]
    errors = invented_words(normal(row["text"]), " ".join(p for pieces, _ in said for p in pieces))
    found, at = [], 0
    for pieces, group in said:
        found.append((group, any(errors[at : at + len(pieces)])))
        at += len(pieces)
    return found


def words_of(rows: Sequence[Row]) -> tuple[list[str], list[str], Array, dict[str, Array]]:
    """The words of transcripts of noisy speech: ids, sources, wrong or not, and the mean of each score over a word's tokens."""
    ids: list[str] = []
    sources: list[str] = []
    wrong: list[bool] = []
    scores: dict[str, list[float]] = {name: [] for name in WORDS}
    for row in rows:
        if row["kind"] != "speech" or row["snr"] is None:
            continue
        for k, (group, error) in enumerate(judged(row)):
            ids.append(f"{row['id']}#{k}")
            sources.append(row["source"])
            wrong.append(error)
            for name in WORDS:
                scores[name].append(statistics.fmean(row[COLUMN[name]][i] for i in group))
    risks = {k: np.array(v) * (1 if k == "entropy" else -1) for k, v in scores.items()}
    return ids, sources, np.array(wrong, float), risks


def wrong_words(rows: Sequence[Row]) -> dict[str, Any]:
    """AUROC of each score and of logistic regressions that are cross-validated over recordings; paired differences."""
    ids, sources, wrong, risks = words_of(rows)
    clusters = tuple(sources)
    for names in TOGETHER:
        risks[" + ".join(names)] = cross_fitted(np.stack([risks[n] for n in names], 1), wrong, np.array(sources))
    blocks = {k: Block(k, tuple(ids), {"risk": v, "invented": wrong}, (AUROC,), clusters) for k, v in risks.items()}
    found = {k: v.to_json() for k, v in evaluate(list(blocks.values())).items()}
    base = " + ".join(TOGETHER[0])
    pairs = []
    for name in blocks:
        for against in ("log-probability", base):
            if name not in (against, "log-probability"):
                d = compare_blocks(blocks[against], blocks[name])[0]
                pairs.append({"score": name, "minus": against, "value": d.difference, "low": d.low, "high": d.high})
    return {
        "words": len(ids), "wrong": int(wrong.sum()), "recordings": len(set(sources)),
        "scores": {k.removesuffix("/AUROC"): v for k, v in found.items()}, "pairs": pairs,
    }  # fmt: skip


def segments(rows: Sequence[Row]) -> dict[str, Any]:
    """AUROC of each segment score: clips without words against clean speech, and against all speech that is half right."""
    rows = [r for r in rows if text_tokens(r)]
    found: dict[str, Any] = {}
    for against, other in (("clean", [r for r in rows if r["kind"] == "speech" and r["snr"] is None]),
                           ("all", [r for r in rows if r["kind"] == "speech" and half_right(r)])):  # fmt: skip
        units = [*(r for r in rows if r["kind"] != "speech"), *other]
        invented = np.array([float(r["kind"] != "speech") for r in units])
        blocks = [
            Block(name, tuple(r["id"] for r in units), {"risk": -np.array([score(r) for r in units]), "invented": invented},
                  (AUROC,), tuple(r["source"] for r in units))
            for name, score in SEGMENTS.items()
        ]  # fmt: skip
        found[against] = {k.removesuffix("/AUROC"): v.to_json() for k, v in evaluate(blocks).items()}
    return found


def results(rows: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """Everything, of every model that was measured; thresholds need two."""
    models: dict[str, Any] = {}
    plain = {m: [r for r in found if "strategy" not in r] for m, found in rows.items()}
    for model, own in plain.items():
        other = next((v for m, v in plain.items() if m != model and v), None)
        if not own or other is None:
            continue
        keep, limits = filters(own, other)
        price = costs(own)
        models[model] = {
            "clips": len(own), "without words": sum(r["kind"] != "speech" for r in own),
            "filters": [{"name": n, "metrics": measured(own, k), "cost": round(price[n], 2), "thresholds": _finite(limits.get(n))}
                        for n, k in keep.items()],
            "contrastive": contrasted(rows[model]), "segments": segments(own), "words": wrong_words(own),
        }  # fmt: skip
    return {"models": models}


def _finite(limits: Sequence[float] | None) -> list[float | None] | None:
    return None if limits is None else [round(t, 4) if math.isfinite(t) else None for t in limits]


# Markdown


def table(found: Mapping[str, Any]) -> str:
    """All tables."""
    return "\n\n".join([filters_table(found), segments_table(found), words_table(found)])


def filters_table(found: Mapping[str, Any]) -> str:
    if not found["models"]:
        return NOT_MEASURED
    lines: list[str] = []
    for model, own in found["models"].items():
        lines += [
            f"**{model}**: {own['without words']} clips without words, {own['clips'] - own['without words']} of speech",
            "",
            "| filter | print words, of clips without any | words lost: clean | 10 dB | 5 dB | 0 dB | WER: clean / 10 / 5 / 0 dB | cost |",
            "|---|---|---|---|---|---|---|---|",
            *(_filter_row(f["name"], f["metrics"], f["cost"]) for f in own["filters"]),
        ]
        for name, c in own["contrastive"].items():
            lines.append(_contrast_row(f"{name} ({c['clips']} clips)", c["metrics"], c["cost"]))
            lines.append(_contrast_row("greedy on these clips", c["greedy"], 1.0))
        lines.append("")
    return "\n".join(lines).strip()


def _filter_row(name: str, m: Mapping[str, Any], cost: float) -> str:
    lost = [_percent(m[k]) if (k := f"{level(s)}/words lost") in m else "-" for s in SNR]
    return f"| {name} | {_percent(m['all/prints words'])} | {' | '.join(lost)} | {_rates(m)} | {cost:.2f} |"


def _contrast_row(name: str, m: Mapping[str, Any], cost: float) -> str:
    return f"| {name} | {_percent(m['all/prints words'])} | | | | | {_rates(m)} | {cost:.2f} |"


def _rates(m: Mapping[str, Any]) -> str:
    keys = [f"{level(s)}/WER" for s in SNR]
    return " / ".join(f"{100 * m[k]['value']:.1f}" if k in m else "-" for k in keys)


def kinds_table(
    found: Mapping[str, Any], shown: Sequence[str] = ("no filter", "Whisper's own rule", "no_speech", OURS)
) -> str:
    """Share of the clips of each kind that print words."""
    if not found["models"]:
        return NOT_MEASURED
    lines = ["| clips without words | " + " | ".join(f"{m}: {n}" for m in found["models"] for n in shown) + " |"]
    lines.append("|" + "---|" * (1 + len(shown) * len(found["models"])))
    for kind in KINDS:
        cells = []
        for own in found["models"].values():
            by_name = {f["name"]: f["metrics"] for f in own["filters"]}
            cells += [f"{100 * by_name[n][f'{kind}/prints words']['value']:.0f} %" for n in shown]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def segments_table(found: Mapping[str, Any]) -> str:
    """AUROC of segment scores."""
    if not found["models"]:
        return NOT_MEASURED
    models = list(found["models"])
    lines = [
        "| segment score, AUROC | "
        + " | ".join(f"{m}: against {a} speech" for m in models for a in ("clean", "all"))
        + " |"
    ]
    lines.append("|" + "---|" * (1 + 2 * len(models)))
    for name in SEGMENTS:
        cells = [_number(found["models"][m]["segments"][a][name]) for m in models for a in ("clean", "all")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def words_table(found: Mapping[str, Any]) -> str:
    """AUROC of word scores on noisy speech."""
    if not found["models"]:
        return NOT_MEASURED
    models = found["models"]
    heads = [
        f"{m} ({w['words']} words, {w['wrong']} wrong)" for m, w in ((m, own["words"]) for m, own in models.items())
    ]
    lines = [f"| word score, AUROC | {' | '.join(heads)} |", "|" + "---|" * (1 + len(models))]
    for name in next(iter(models.values()))["words"]["scores"] if models else ():
        lines.append(f"| {name} | {' | '.join(_number(own['words']['scores'][name]) for own in models.values())} |")
    lines.append("")
    for model, own in models.items():
        for p in own["words"]["pairs"]:
            if p["score"] in (" + ".join(TOGETHER[-1]), " + ".join(TOGETHER[-2])):
                lines.append(
                    f"- {model}, {p['score']} minus {p['minus']}: {p['value']:+.3f} [{p['low']:+.3f}, {p['high']:+.3f}]"
                )
    return "\n".join(lines).strip()


def _percent(metric: Mapping[str, Any]) -> str:
    value = f"{100 * metric['value']:.1f}"
    return value if metric["low"] is None else f"{value} [{100 * metric['low']:.1f}, {100 * metric['high']:.1f}]"


def _number(metric: Mapping[str, Any]) -> str:
    return f"{metric['value']:.3f}" + ("" if metric["low"] is None else f" [{metric['low']:.3f}, {metric['high']:.3f}]")
