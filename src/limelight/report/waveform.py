"""Waveforms: one word's relevance over the time of an audio clip."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from limelight.errors import SettingError
from limelight.report import heat
from limelight.report.figure import headline, new_figure, save, share_bar, top_words, write
from limelight.report.input_time import STEP, over_time
from limelight.report.word_times import Times, moments, padding, stretch
from limelight.report.words import text_words
from limelight.types import Relevance


def waveform(
    relevance: Relevance,
    samples: npt.NDArray[np.float32] | None,
    rate: int = 16000,
    *,
    index: int = 0,
    word: str | None = None,
    strategy: str = "",
    spectrogram: bool = True,
    top: int = 6,
    template: Collection[int] = (),
    path: str | Path | None = None,
) -> Figure:
    """Draw the waveform and spectrogram with the heat over time, and the signed relevance per position.

    Relevance is per position, that is per time interval, so its colour is the same at all frequencies. The shortest
    interval with half of the support is marked (:func:`limelight.report.word_times.stretch`). Positions of padding after
    the end of the audio are not drawn, but the figure gives their part of the relevance; it also says where the times of
    positions are unknown. Relevance that was carried on through the encoder (``attribute(..., through_encoder=True)``) is drawn
    per 0.1 s of the sound's own input instead.

    Args:
        samples: mono ``[n]`` at ``rate`` Hz; None draws only the relevance.
        index: index of the audio clip in the prompt (of the span, where spans do not name their clip).

    Raises:
        SettingError: there is no such clip, or the samples have the wrong shape.
    """
    every = relevance.spans_of("audio")
    known = [s.interval.source for s in every if s.interval is not None]
    spans = [s for s in every if s.interval is not None and s.interval.source == index] if known else every[index:][:1]
    if index < 0 or not spans:
        count = len(set(known)) if known else len(every)
        raise SettingError(f"no audio clip number {index}: this prompt has {count}", hint="count from 0")
    if samples is not None and (samples.ndim != 1 or not samples.size or rate <= 0):
        raise SettingError(f"samples {samples.shape} at {rate} Hz", hint="pass mono samples [n] and their rate")
    length = samples.size / rate if samples is not None else None
    scores = heat.scores(relevance)
    values = np.concatenate([scores[s.start : s.stop] for s in spans])
    times = np.concatenate([moments(s, length) for s in spans])
    padded = padding(spans, scores)
    values, times = values[times[:, 1] > times[:, 0]], times[times[:, 1] > times[:, 0]]
    if relevance.media_times:
        values, times = _of_input(relevance, index, float(times[-1, 1]))
    full, strength = heat.limit(values), heat.faintness(heat.media_share(relevance))
    spectrogram = spectrogram and samples is not None
    listed = min(top, len(text_words(relevance, template)))
    heights = [1.5, *([1.3] if spectrogram else []), 1.0, 0.3, *([0.3 + 0.19 * listed] if listed else [])]
    figure = new_figure(8.0, sum(heights) + 1.0)
    write(figure.suptitle(headline(relevance, word, strategy), fontsize=10))
    grid = figure.add_gridspec(len(heights), 2, width_ratios=[8, 0.16], height_ratios=heights)
    first = figure.add_subplot(grid[0, 0])
    end = max(length or 0.0, float(times[-1, 1]))
    _heat(first, values, full, times, (-1.05, 1.05), strength)
    if samples is not None:
        _wave(first, samples, rate)
    first.set_ylabel("waveform", fontsize=8)
    first.set_yticks([])
    heat.colour_bar(figure.add_subplot(grid[0, 1]), full, values, strength)
    axes = [first]
    if spectrogram and samples is not None:
        axes.append(figure.add_subplot(grid[1, 0], sharex=first))
        level, top_hz = decibels(samples, rate)
        axes[-1].imshow(
            level, origin="lower", aspect="auto", cmap="gray_r", extent=(0, samples.size / rate, 0, top_hz / 1000)
        )
        _heat(axes[-1], values, full, times, (0, top_hz / 1000), 0.75 * strength)
        axes[-1].set_ylim(0, top_hz / 1000)
        axes[-1].set_ylabel("kHz", fontsize=8)
    bars = figure.add_subplot(grid[len(axes), 0], sharex=first)
    axes.append(bars)
    bars.bar(times.mean(1), values, width=times[:, 1] - times[:, 0], color=_colours(values))
    bars.axhline(0, color="#444", linewidth=0.6)
    bars.set_ylabel("relevance of the input" if relevance.media_times else "relevance", fontsize=8)
    timed = bool(relevance.media_times) or all(s.seconds is not None for s in spans)
    if timed:
        _mark(bars, values, times)
    label = "seconds" if timed else "seconds (positions spread evenly: their times are unknown)"
    label = label if timed or length else "positions (duration unknown)"
    label += f" · {padded:.0%} of the relevance is on padding after the end" if padded > 0.0005 else ""
    bars.set_xlabel(label, fontsize=8)
    for one in axes:
        one.set_xlim(0, end)
        one.tick_params(labelsize=7, length=2)
    for one in axes[:-1]:
        one.tick_params(labelbottom=False)
    share_bar(figure.add_subplot(grid[len(axes), 0]), relevance)
    if listed:
        top_words(figure.add_subplot(grid[len(axes) + 1, 0]), relevance, listed, full, template)
    if path is not None:
        save(figure, path)
    return figure


def _of_input(relevance: Relevance, index: int, end: float) -> tuple[heat.Floats, Times]:
    """The relevance of a sound's input per :data:`limelight.report.input_time.STEP`, up to its end in seconds."""
    values = heat.array(over_time(relevance, STEP, index))[: max(1, math.ceil(end / STEP - 1e-6))]
    edges = np.arange(len(values) + 1) * STEP
    return values, np.stack([edges[:-1], edges[1:]], axis=1)


def decibels(
    samples: npt.NDArray[np.float32], rate: int, *, columns: int = 600
) -> tuple[npt.NDArray[np.float32], float]:
    """Compute a spectrogram ``[frequencies, columns]`` in decibels from 0 (loudest) to -70, and its top frequency in Hz."""
    size = max(16, 2 ** int(np.log2(max(rate * 0.032, 16))))
    padded = np.pad(samples, (size // 2, size))
    starts = np.linspace(0, max(samples.size - 1, 0), min(columns, max(1, samples.size // (size // 4) + 1))).astype(int)
    frames = np.stack([padded[s : s + size] for s in starts]) * np.hanning(size)  # [columns, size]
    power = np.abs(np.fft.rfft(frames, axis=1)).T ** 2
    level = 10 * np.log10(power / max(float(power.max()), 1e-12) + 1e-7)
    return level.astype(np.float32), rate / 2


def peaks(samples: npt.NDArray[np.float32], bins: int = 800) -> npt.NDArray[np.float32]:
    """Return the lowest and highest sample ``[bins, 2]`` of each bin, scaled to -1..1 by the loudest."""
    edges = np.linspace(0, samples.size, min(bins, samples.size) + 1).astype(int)
    low, high = np.minimum.reduceat(samples, edges[:-1]), np.maximum.reduceat(samples, edges[:-1])
    scale = np.float32(max(float(np.abs(samples).max()), 1e-9))
    return np.stack([low, high], -1).astype(np.float32) / scale


def _wave(axes: Any, samples: npt.NDArray[np.float32], rate: int) -> None:
    pairs = peaks(samples)
    seconds = np.linspace(0, samples.size / rate, len(pairs))
    axes.fill_between(seconds, pairs[:, 0], pairs[:, 1], color="#222", linewidth=0.3)
    axes.set_ylim(-1.05, 1.05)


def _heat(
    axes: Any, values: heat.Floats, full: float, times: Times, height: tuple[float, float], strength: float = 1.0
) -> None:
    extent = (float(times[0, 0]), float(times[-1, 1]), *height)
    axes.imshow(heat.rgba(values[None], full, strength), extent=extent, aspect="auto", interpolation="bilinear")


def _mark(axes: Any, values: heat.Floats, times: Times) -> None:
    """Draw a bracket over the shortest interval with half of the support within this clip."""
    found = stretch(values, times)
    if found is None:
        return
    top = float(max(values.max(), 0.0))
    axes.set_ylim(min(float(values.min()), 0.0) * 1.1, top * 1.45)
    axes.annotate(
        "",
        (found[0], top * 1.12),
        (found[1], top * 1.12),
        arrowprops={
            "arrowstyle": "|-|,widthA=0.25,widthB=0.25",
            "color": "#444",
            "linewidth": 1,
            "shrinkA": 0,
            "shrinkB": 0,
        },
    )
    right = sum(found) < float(times[0, 0] + times[-1, 1])
    axes.text(
        found[1] if right else found[0],
        top * 1.12,
        f"  half of the support: {found[0]:.2f}–{found[1]:.2f} s  ",
        fontsize=7,
        va="center",
        ha="left" if right else "right",
    )


def _colours(values: heat.Floats) -> list[tuple[float, float, float]]:
    return [(c[0] / 255, c[1] / 255, c[2] / 255) for c in (heat.SUPPORTS if v >= 0 else heat.AGAINST for v in values)]
