"""The report page: one self-contained HTML file that shows where each word came from when it is hovered."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup

from limelight.errors import SettingError
from limelight.report.figure import MODALITY_COLOURS, checked
from limelight.report.heat import AGAINST, OPACITY, SUPPORTS
from limelight.report.looks import looks
from limelight.report.media import Media
from limelight.report.payload import Case, case_payload
from limelight.report.playable import bounded
from limelight.types import Generation

_NAMES = {"image": "image", "audio": "audio", "video": "video"}


def render_page(
    cases: Case | Generation | Sequence[Case | Generation], *, title: str = "Where the words come from", note: str = ""
) -> str:
    """Render the page as a string. It is self-contained: no script, style, font, image or audio is fetched.

    Audio can be played, up to :data:`limelight.report.playable.LARGEST` characters in total; longer clips are only shown,
    with a note.

    Args:
        cases: answers to show; several answers to one prompt form one :class:`Case`.
        note: a short text under the title.
    """
    rows = [
        c if isinstance(c, Case) else Case([c]) for c in ([cases] if isinstance(cases, (Case, Generation)) else cases)
    ]
    if not rows:
        raise SettingError("a page needs at least one case", hint="render_page(generation)")
    payload = [case_payload(c) for c in rows]
    bounded([sound for p in payload for sound in p["media"]["sounds"]])
    data, heat = _packed(payload)
    return str(
        template("page.html.j2").render(
            title=title,
            note=note,
            cases=[_head(c, p) for c, p in zip(rows, payload, strict=True)],
            data=data,
            heat=heat,
            style=Markup(_source("page.css")),
            script=Markup(_source("page.js")),
            modalities=MODALITY_COLOURS,
            media={v["kind"]: _NAMES[v["kind"]] for p in payload for v in p["views"]},
            flags=list(dict.fromkeys(c["flag"] for p in payload for c in p["columns"] if c["flag"])),
            marks={m for p in payload for c in p["columns"] for w in c["words"] for m in "dgf" if m in w},
        )
    )


def save_page(
    path: str | Path,
    cases: Case | Generation | Sequence[Case | Generation],
    *,
    title: str = "Where the words come from",
    note: str = "",
) -> Path:
    """Write :func:`render_page` to a file.

    Raises:
        SettingError: the file name does not end in .html, or its folder does not exist.

    Example:
        >>> save_page("answer.html", generation)  # doctest: +SKIP
        >>> save_page("both.html", Case([plain, lime], truth="no"))  # doctest: +SKIP
    """
    target = checked(path, frozenset({".html", ".htm"}))
    target.write_text(render_page(cases, title=title, note=note), encoding="utf-8")
    return target


def save_result(path: str | Path, result: Any) -> Path:
    """Write the page of a Generation, or of a Comparison with its decisions, titled with the user's question."""
    answers = [result] if isinstance(result, Generation) else result.answers
    decisions = [] if isinstance(result, Generation) else [d for d in result.decisions if d is not None]
    return save_page(path, Case(answers, question=question_of(answers[0]), decisions=decisions))


def question_of(generation: Generation) -> str:
    """Return the user's text of a prompt, as far as it is known: its text without the chat template."""
    prompt = generation.prompt
    if not prompt.template:
        return ""
    text = [i for s in prompt.spans if s.modality == "text" for i in range(s.start, s.stop) if i not in prompt.template]
    pieces = [prompt.tokens[i] for i in text]
    spaced = any(p[:1].isspace() and p.strip() for p in pieces)
    return " ".join(("" if spaced else " ").join(pieces).split()) if not spaced else "".join(pieces).strip()


def _head(case: Case, payload: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of a case that are rendered as HTML, readable without script."""
    media = case.media if case.media is not None else Media.of(case.generations[0].prompt)
    answers = len(case.generations)
    return {
        "decisions": [c["words"][0] for c in payload["columns"][answers:]],
        "title": case.title,
        "question": case.question,
        "truth": case.truth,
        "note": case.note,
        "columns": [
            {
                "name": c["name"],
                "settings": c["settings"],
                "right": c.get("right"),
                "shares": c["shares"],
                "contributions": c["contributions"],
                "by_meter": c["by_meter"],
                "looks": looks(g, media),
                "text": g.text,
                "words": [_spoken(w, "co" if c["by_meter"] else "sh") for w in c["words"]],
            }
            for g, c in zip(case.generations, payload["columns"], strict=False)
        ],
    }


def _spoken(word: dict[str, Any], key: str) -> dict[str, Any]:
    """Add a word's screen reader text; ``key``: the values that it is shaded by."""
    shares = {m: v for m, v in word.get(key, {}).items() if m != "text"}
    parts = [word["t"], *(f"{v:.0%} {m}" for m, v in shares.items())]
    if word.get("d"):
        parts.append("differs from the other answer")
    if "g" in word:
        parts.append(f"greedy decoding gives {word['g'].strip()}")
    if word.get("f"):
        parts.append("flagged: not supported by the media")
    return {
        **word,
        "spoken": ", ".join(parts),
        "hue": max(shares.keys() & set(_NAMES), key=shares.__getitem__, default=""),
    }


def _packed(payload: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """Encode the page's data as deflated JSON and all heat as deflated int8, both in base64: safe inside a script element.

    The JSON has only the length of each word's heat; the page slices it from the single block, in order.
    """
    heat = bytearray()
    for word in (w for case in payload for column in case["columns"] for w in column["words"] if "h" in w):
        one = base64.b64decode(word["h"])
        heat += one
        word["h"] = len(one)
    colours = {"supports": SUPPORTS, "against": AGAINST, "opacity": OPACITY}
    text = json.dumps(
        {"cases": payload, "colours": colours}, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    )
    return _deflated(text.encode()), _deflated(bytes(heat))


def _deflated(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 9)).decode("ascii")


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("limelight.report", "assets"),
        autoescape=select_autoescape(default=True, default_for_string=True, enabled_extensions=("html", "j2")),
        trim_blocks=True,
        lstrip_blocks=True,
    )


def template(name: str) -> Any:
    return _environment().get_template(name)


@cache
def _source(name: str) -> str:
    return (Path(__file__).parent / "assets" / name).read_text(encoding="utf-8")


__all__ = ["Case", "render_page", "save_page"]
