"""Per-token scores of an answer, for the detection of invented words."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from limelight.errors import LimelightError

if TYPE_CHECKING:
    from limelight.models.adapter import Adapter
    from limelight.types import Prompt

DIGITS = 6


def composites_of(text: str) -> tuple[str, ...]:
    """Names of composites separated by commas, as they are spelled in the tables.

    Raises:
        SettingError: there is none of that name.
    """
    from limelight.relevance.composites import composite_of

    return tuple(dict.fromkeys(composite_of(n.strip()).name for n in text.split(",") if n.strip()))


def evidence_meta(
    adapter: Adapter,
    messages: Sequence[Mapping[str, Any]],
    tokens: Sequence[int],
    answered: Sequence[bool],
    composites: Sequence[str],
    words: Sequence[str] = (),
) -> dict[str, Any]:
    """Return ``{"text", "ends", "scores"}`` of an answer: its text, where each token ends in it, and name -> one score per
    token.

    ``answered``: which tokens are part of the answer rather than of the reasoning before it, which is context only. A
    missing score (NaN) is None. ``words``: if given, backward passes are made only for the tokens of these words.
    """
    from limelight.grounding.evidence import evidence_of

    kept = [i for i, own in enumerate(answered) if own]
    ids, decode = [tokens[i] for i in kept], adapter.tokenizer.decode
    pieces = [decode(ids[: n + 1], skip_special_tokens=True) for n in range(len(ids))]
    ends = [len(p) for p in pieces]
    only = [kept[n] for n in covering(pieces[-1], ends, words)] if words else None
    found = evidence_of(
        adapter, adapter.prepare(messages), tokens, composites=composites, without=bare(adapter, messages), only=only
    )
    scores = {k: [_rounded(values[i]) for i in kept] for k, values in found.items()}
    return {"text": pieces[-1], "ends": ends, "scores": scores}


def covering(text: str, ends: Sequence[int], words: Sequence[str]) -> list[int]:
    """Return the indices of tokens that overlap any of the words, ignoring case; ``ends``: where each token ends."""
    found: set[int] = set()
    for match in re.finditer(r"\b(?:" + "|".join(map(re.escape, words)) + r")\b", text, re.IGNORECASE):
        starts = [0, *ends[:-1]]
        found |= {n for n, (a, b) in enumerate(zip(starts, ends, strict=True)) if a < match.end() and b > match.start()}
    return sorted(found)


def _rounded(value: float) -> float | None:
    return round(value, DIGITS) if math.isfinite(value) else None


def bare(adapter: Adapter, messages: Sequence[Mapping[str, Any]]) -> Prompt | None:
    """Prepare the messages without their media; None where the model does not accept such a prompt."""
    text = [{**m, "content": [i for i in m["content"] if i["type"] == "text"]} for m in messages]
    try:
        return adapter.prepare(text)
    except LimelightError:
        return None


def probed(adapter: Adapter, model: str, messages: Sequence[Mapping[str, Any]], target: str = "") -> dict[str, float]:
    """Return the shipped probe's score for each word from a miniature's media tokens: the upper bound of detection.

    Scores every object; with ``target``, the object of a question, also "yes" and "no". {} for other models.
    """
    from limelight.demo import films, probe, scenes, sounds
    from limelight.demo.language import NO, YES

    worlds = {"demo-vision": (probe.PROBE_FILE, scenes.OBJECTS)}
    worlds["demo-audio"] = (sounds.VOICES.parent / "probe.safetensors", sounds.EVENTS)
    worlds["demo-video"] = (probe.FILM_PROBE_FILE, films.NAMES)
    if model not in worlds:
        return {}
    import torch

    path, names = worlds[model]
    prompt = adapter.prepare(messages)
    call = adapter.capture(prompt.tensors)
    ids = prompt.tensors["input_ids"][0].tolist()
    media = [i for i, token in enumerate(ids) if token in adapter.placeholders]  # a span may hold its markers too
    reads = probe.FrameProbe if path == probe.FILM_PROBE_FILE else probe.Probe
    with torch.no_grad():
        logits = reads.load(path)(call.embeds[:, media].float())[0]
    logits = logits.amax(0) if logits.ndim == 2 else logits  # the frame that shows it best
    found = {name: float(value) for name, value in zip(names, logits, strict=True)}
    if target in found:
        found |= {YES: found[target], NO: -found[target]}
    return {k: round(v, DIGITS) for k, v in found.items()}
