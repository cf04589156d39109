"""The table of families in the documentation, from what the tests hold: ``python -m tests.zoo.table`` writes it."""

from __future__ import annotations

from pathlib import Path

from tests.models.test_conformance import HANDED_ON, RAISES
from tests.relevance.forward.test_stream import RAISES as NO_TANGENTS
from tests.zoo import UNBUILDABLE, ZOO, Tiny

PAGE = Path(__file__).resolve().parents[2] / "docs" / "families.md"
COLUMNS = ("attribution", "exact", "cached", "meter", "batch")
# The word a refusal is told by in the tests -> what it means.
WHY: dict[str, str] = {
    "hyper_connection": "several residual streams, mixed anew at every layer; sparse attention",
    "b_proj": "linear-attention layers keep a state instead of keys and values",
    "r_proj": "relative positions and convolutions inside attention",
    "indexer": "sparse attention: an indexer chooses the keys each query sees",
    "mlp": "a gate that is clamped and shifted in line",
    "names no image": "config and processor name no token that stands for the picture",
    "layers of its own kind of cache": "a window that spares the prompt is kept in a cache of the family's own",
    "deepstack": "vision features enter again in deeper layers",
}
WHOLE = "inside `model.generate`: `custom_generate(strategy, parent_model=model)`"
HEAD = """# Families

Written by `python -m tests.zoo.table` from the tables that the tests assert; a test keeps the two in step. Each row is a
tiny random model of transformers' own class (qwen_vl_chat and salmonn: of limelight's). The families are told by their structure: a fine-tune, another size or a
family of the same build that is not listed works the same way, and `limelight models --check NAME_OR_PATH` tells for a
checkpoint at hand.

| column | what a "yes" rests on (for every row, float64 unless the row says otherwise) |
|---|---|
| attribution | logits bit-equal to the model's own, relevance conserved (AttnLRP and CP-LRP), the model left as it was |
| exact | `lime`: greedy at one step, second-order gradients through the rules, tokens of `generate()` |
| cached | `lime-cached`: an update lowers its loss; forward-mode relevance equals the backward route |
| meter | contributions and candidates without a backward pass; the answer is the model's own |
| batch | rows of a left-padded batch equal their own runs |

Where the answer is no, the library raises an error that names what still works: `greedy` and the peers that leave
attention alone, `gradient-input`, or exact mode.

"""


def answers(name: str) -> tuple[dict[str, bool], list[str]]:
    """Column -> yes or no, and the reasons of every no."""
    row: Tiny = ZOO[name]
    attribution = name not in RAISES
    dual = attribution and name not in NO_TANGENTS
    batch = attribution and row.batch is not None
    why = [WHY[RAISES[name][1]]] if not attribution else []
    if attribution and name in NO_TANGENTS:
        why.append(WHY[NO_TANGENTS[name][1]])
    if attribution and row.batch is None:
        why.append(f"no batch: {row.no_batch}")
    if "no_float64" in row.marks and attribution:
        why.append("checked in float32")
    if name in HANDED_ON:
        why.append(WHOLE)
    return dict(zip(COLUMNS, (attribution, attribution, dual, dual, batch), strict=True)), why


def page() -> str:
    """The whole page."""
    rows = {name: answers(name) for name in sorted(ZOO)}
    lines = [HEAD]
    for column in COLUMNS:
        count = sum(found[column] for found, _ in rows.values())
        lines.append(f"- {column}: {count} of {len(rows)} rows\n")
    lines.append(f"\n| row | media | {' | '.join(COLUMNS)} | remarks |\n|{'---|' * (len(COLUMNS) + 3)}\n")
    for name, (found, why) in rows.items():
        media = ", ".join(ZOO[name].modalities) or "image"
        cells = " | ".join("yes" if found[c] else "**no**" for c in COLUMNS)
        remark = "; ".join(dict.fromkeys(why)).replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {name} | {media} | {cells} | {remark} |\n")
    lines.append("\n## Not built\n\nFamilies of transformers' multimodal tables without a row, and why.\n\n")
    reasons: dict[str, list[str]] = {}
    for name, why_not in UNBUILDABLE.items():
        reasons.setdefault(why_not, []).append(name)
    lines += [f"- {', '.join(sorted(names))}: {why_not}\n" for why_not, names in reasons.items()]
    return "".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page())
