"""Notebook display of Relevance and Generation as plain HTML without script, which any viewer can show."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from limelight.calibration import spoken
from limelight.errors import MediaError
from limelight.report import heat
from limelight.report.figure import MODALITY_COLOURS, shown
from limelight.report.media import Media
from limelight.report.overlay import unseen
from limelight.report.views import View, stages, views
from limelight.report.waveform import peaks
from limelight.report.word_times import moments
from limelight.report.words import (
    CONTRIBUTIONS,
    known_parts,
    perceptual,
    text_words,
    word_flagged,
    word_parts,
    word_relevance,
    word_support,
    words,
)
from limelight.types import Box, Generation, Relevance

_OTHER = "#47515d"  # of a group that is no modality, such as earlier answers

_LONGEST = 320
_TOKENS = 160
_MOST = 12


def html(value: Any) -> str:
    """Return what a notebook shows of a Relevance, a Generation or a Comparison."""
    if isinstance(value, Relevance):
        return relevance_html(value)
    return generation_html(value) if isinstance(value, Generation) else comparison_html(value)


def relevance_html(relevance: Relevance, pictures: Media | None = None) -> str:
    """Render shares, text tokens coloured by their scores, and each grid as a small heat map (over ``pictures`` if given)."""
    values = heat.scores(relevance)
    text = [i for s in relevance.spans_of("text") for i in range(s.start, s.stop)]
    full = heat.limit(values[text]) if text else 1.0
    parts = [_title(relevance), shares_html(relevance.shares())]
    parts += _maps(relevance, values, pictures or Media())
    cells = [_tinted(relevance.tokens[i], float(values[i]), full) for i in text[-_TOKENS:]]
    left_out = f"… {len(text) - _TOKENS} more … " if len(text) > _TOKENS else ""
    parts.append(f'<p style="line-height:1.8">{left_out}{" ".join(cells)}</p>')
    return _framed(parts)


def _title(relevance: Relevance) -> str:
    if relevance.against is not None:
        return f"<p>why <b>“{escape(relevance.explains)}”</b>, difference of the logits {relevance.logit:+.3g}</p>"
    word = escape(shown(relevance.target_token) if relevance.target_token else f"token {relevance.target}")
    return f"<p><b>“{word}”</b> logit {relevance.logit:.3g}</p>"


def comparison_html(comparison: Any) -> str:
    """Render the answers of a :class:`limelight.decoding.compare.Comparison`, and what decides between the first two that
    differ; a word's own relevance is a click away, in a folded part."""
    answers: Sequence[Generation] = comparison.answers
    rows = "".join(
        f'<tr><th style="text-align:left;padding-right:12px">{escape(a.strategy)}</th>'
        f'<td style="text-align:left">{words_html(a)}</td></tr>'
        for a in answers
    )
    parts = [f'<table style="font-size:1.1em;line-height:1.9">{rows}</table>']
    decision: Relevance | None = comparison.decision
    if decision is None:
        parts.append("<p>The answers are equal.</p>")
    else:
        media = _media_of(answers[0])
        parts += [_title(decision), *_maps(decision, heat.scores(decision), media)]
        rows_of_text = text_words(decision, comparison.prompt.template)[:8]
        full = max((abs(v) for _, v in rows_of_text), default=1.0)
        parts.append("<p>text: " + " ".join(_tinted(t, v, full) + f" {v:+.2g}" for t, v in rows_of_text) + "</p>")
    parts += [
        f"<details><summary>{escape(a.strategy)}: every word of its own</summary>{generation_html(a)}</details>"
        for a in answers
    ]
    return _framed(parts)


def generation_html(generation: Generation, media: Media | None = None) -> str:
    """Render the answer with each word shaded by its media share, with tooltips, and the heat map of the word with the
    largest media share. Without relevance the meter's contributions are used instead, labelled as such.
    ``report.page.save_page`` writes the full interactive page."""
    found = words(generation)
    body = words_html(generation) or "<i>(no words)</i>"
    name = f"<b>{escape(generation.strategy)}</b>: " if generation.strategy else ""
    parts = [f'<p style="font-size:1.15em;line-height:1.9">{name}{body}</p>']
    parts += answer_parts_html(generation)
    plain = [w for w in found if not w.punctuation and word_relevance(generation, w) is not None]
    if plain:
        best = max(plain, key=lambda w: perceptual(word_parts(generation, w)) or 0.0)
        relevance = word_relevance(generation, best)
        if relevance is not None:
            maps = _maps(relevance, heat.scores(relevance), media or _media_of(generation))
            parts += [f"<p>where “{escape(best.text)}” comes from:</p>", *maps] if maps else []
    return _framed(parts)


def words_html(generation: Generation) -> str:
    """Render the answer's words, coloured by their largest medium with the share as strength, with details as tooltips."""
    pieces: list[str] = []
    which = known_parts(generation)
    for word in words(generation):
        shares = word_parts(generation, word)
        share = perceptual(shares)
        steps = generation.steps[word.start : word.stop]
        details = [f"{v:.0%} {m}" for m, v in shares.items()]
        details += [f"({which})"] if shares else []
        details += ["intervened"] if any(s.intervened for s in steps) else []
        details += [f"{k.replace('_', ' ')} {v:.2f}" for k, v in word_support(generation, word).items()]
        flagged = word_flagged(generation, word)
        details += ["flagged: not supported by the media"] if flagged else []
        relevance = word_relevance(generation, word)
        if relevance is not None:
            details.append(
                "text: "
                + ", ".join(f"{shown(t)} {v:+.2g}" for t, v in text_words(relevance, generation.prompt.template)[:3])
            )
        hue = max((m for m in shares if m != "text" and m in MODALITY_COLOURS), key=shares.__getitem__, default="text")
        shade = f"background:{MODALITY_COLOURS[hue]}{round(0.6 * 255 * share):02x};" if share is not None else ""
        space = " " if word.space and pieces else ""
        title = escape("; ".join(details), quote=True)
        mark = '<sup title="flagged">⚑</sup>' if flagged else ""
        pieces.append(
            f'{space}<span title="{title}" style="{shade}border-radius:3px;padding:1px 2px">{mark}{escape(word.text)}</span>'
        )
    return "".join(pieces) or escape(generation.text)


def answer_parts_html(generation: Generation) -> list[str]:
    """Render the answer's shares as a bar; where no relevance was computed, the meter's contributions, labelled as such."""
    which, rule = known_parts(generation), spoken(generation.flag)
    legend = [f'<p style="font-size:12px;margin:2px 0">⚑ {escape(rule)}</p>'] if rule else []
    if not which:
        return legend
    if which == CONTRIBUTIONS:
        label = f'<p style="font-size:12px;margin:2px 0">each a {which}</p>'
        return [shares_html(generation.contributions()), label, *legend]
    return [shares_html(generation.shares()), *legend]


def shares_html(shares: dict[str, float]) -> str:
    """Render modality shares as a stacked bar."""
    cells = "".join(
        f'<span title="{m} {v:.0%}" style="display:inline-block;width:{100 * v:.2f}%;background:{MODALITY_COLOURS.get(m, _OTHER)};color:#fff;'
        f'overflow:hidden;white-space:nowrap;text-align:center">{f"{m} {v:.0%}" if v > 0.12 else "&nbsp;"}</span>'
        for m, v in shares.items()
    )
    return f'<div style="width:320px;max-width:100%;font-size:12px;line-height:18px;white-space:nowrap">{cells}</div>'


def _media_of(generation: Generation) -> Media:
    try:
        return Media.of(generation.prompt)
    except MediaError:  # the file no longer exists: only the heat is shown
        return Media()


def _maps(relevance: Relevance, values: heat.Floats, media: Media) -> list[str]:
    shown_views = [v for v in views(relevance.spans, media) if v.span.grid is not None or v.kind == "audio"]
    if not shown_views:
        return []
    full = heat.limit(np.concatenate([v.cells(values).ravel() for v in shown_views]))
    share = heat.media_share(relevance)
    strength = heat.faintness(share)
    pictures: list[str] = []
    for together in stages(shown_views[:_MOST]):
        view = together[0]
        if view.source is not None and view.kind == "image":
            parts = [(v.cells(values), v.box) for v in together]
            note = unseen(view, [v.box for v in together])
            label = f"{view.label} ({note})" if note else view.label
            pictures.append(_image(heat_picture(parts, full, media.pictures[view.source], strength), label))
            continue
        for t, grid in enumerate(view.cells(values).reshape(-1, *view.grid[-2:])[:_MOST]):
            source, label, box = None, view.label, view.box
            if view.source is not None and view.steps:
                frame, label = view.steps[t]
                source = media.frames(view.source)[frame]
            elif view.source is not None and view.kind == "audio":
                source = wave_picture(*media.sounds[view.source])
                seconds = media.sounds[view.source][0].size / media.sounds[view.source][1]
                label = f"{view.label}, {seconds:.1f} s"
                parts = [_audible(v, v.cells(values), seconds) for v in together]
                pictures.append(_image(heat_picture(parts, full, source, strength), label))
                break
            pictures.append(_image(heat_picture([(grid, box)], full, source, strength), label))
    return ["<div>" + " ".join(pictures) + "</div>", _scale(full, share)]


def _scale(full: float, share: float) -> str:
    """Return the legend of the maps: the ends of the scale in words and numbers, and how much the media contribute."""
    (r1, g1, b1), (r2, g2, b2) = heat.AGAINST, heat.SUPPORTS
    ramp = f"linear-gradient(90deg,rgb({r1},{g1},{b1}),#fff,rgb({r2},{g2},{b2}))"
    return (
        f'<p style="font-size:12px;margin:2px 0">strongly against {-full:+.2g} <span style="display:inline-block;width:90px;'
        f"height:10px;border:1px solid #999;background:{ramp}\"></span> {full:+.2g} strongly for · media's part of the "
        f"relevance: {share:.0%} ({heat.named(share)})</p>"
    )


def _audible(view: View, cells: heat.Floats, seconds: float) -> tuple[heat.Floats, Box]:
    """Return the scores of an audio clip without padding, and their box in its image."""
    times = moments(view.span, seconds)
    real = times[:, 1] > times[:, 0]
    return cells.reshape(1, -1)[:, real], (times[0, 0] / seconds, 0.0, times[-1, 1] / seconds, 1.0)


def wave_picture(samples: heat.Floats, rate: int, size: tuple[int, int] = (_LONGEST, 80)) -> Image.Image:
    """Draw a waveform in black on white."""
    picture = Image.new("RGB", size, "white")
    pencil, middle = ImageDraw.Draw(picture), size[1] / 2
    pairs = peaks(samples, size[0])
    for i, (low, high) in enumerate(pairs):
        x = round(i * size[0] / len(pairs))
        pencil.line((x, middle * (1 - 0.95 * high), x, middle * (1 - 0.95 * low)), fill="black")
    return picture


def heat_picture(
    parts: Sequence[tuple[heat.Floats, Box]], full: float, source: Image.Image | None, strength: float = 1.0
) -> Image.Image:
    """Draw grids over their image, each in its box; without an image, the first grid on white."""
    if source is not None:
        small = source.copy()
        factor = _LONGEST / max(small.size)
        small = small.resize((max(1, round(small.width * factor)), max(1, round(small.height * factor))))
        return heat.blend(small, parts, full, strength)
    grid = parts[0][0]
    rows, columns = grid.shape
    cell = max(1, min(24, _LONGEST // max(rows, columns)))
    coloured = Image.fromarray(heat.rgba(grid, full, strength)).resize(
        (columns * cell, max(rows * cell, 12)), Image.Resampling.NEAREST
    )
    return Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured).convert("RGB")


def _image(picture: Image.Image, label: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="relevance, {escape(label, quote=True)}" src="data:image/png;base64,{data}" style="max-width:320px;margin:4px 0">'


def _tinted(token: str, value: float, full: float) -> str:
    colour = heat.SUPPORTS if value >= 0 else heat.AGAINST
    strength = min(1.0, abs(value) / full) * 0.6
    return (
        f'<span title="{value:+.3g}" style="background:rgba({colour[0]},{colour[1]},{colour[2]},{strength:.3f});'
        f'border-radius:3px;padding:0 2px">{escape(shown(token))}</span>'
    )


def _framed(parts: list[str]) -> str:
    return '<div style="font-family:system-ui,sans-serif;max-width:760px">' + "".join(parts) + "</div>"
