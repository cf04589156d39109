"""Overlay, waveform, contact sheet: what is drawn where, and what is refused."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from limelight.errors import SettingError
from limelight.report.figure import save, shown
from limelight.report.frames import contact_sheet, frame_grids
from limelight.report.media import Media
from limelight.report.overlay import overlay
from limelight.report.views import frame_of
from limelight.report.waveform import decibels, peaks, waveform
from limelight.report.word_times import word_interval
from limelight.types import Interval, Region, Relevance, Span
from tests.report.examples import AFTER, picture, prompt, relevance, tone


def texts(figure: Figure) -> str:
    found = [t.get_text() for t in figure.texts] + ([figure.get_suptitle()] if figure.get_suptitle() else [])
    for axes in figure.axes:
        found += [axes.get_title(), axes.get_xlabel(), axes.get_ylabel(), *(t.get_text() for t in axes.texts)]
        found += [t.get_text() for t in axes.get_yticklabels()]
    return "\n".join(found)


def of_image() -> Relevance:
    return relevance(prompt(("image", 49, (7, 7), None)), 3, " cup", logit=7.25)


def test_overlay_shows_word_shares_units_and_top_words(tmp_path: Path) -> None:
    path = tmp_path / "o.png"
    figure = overlay(of_image(), picture(), strategy="lime", path=path)
    told = texts(figure)
    assert "“cup”" in told
    assert "(lime)" in told
    assert "7.25" in told
    assert "relevance (logit)" in told
    assert "image " in told
    assert "text 2" in told
    assert "\ncup" in told
    with Image.open(path) as written:
        assert written.size[0] > 400
    drawn = next(a for a in figure.axes if a.images).images[0].get_array()
    assert drawn.shape[2] == 3
    red = np.asarray(drawn, np.int32)[..., 0] - np.asarray(drawn, np.int32)[..., 2]
    disc = red[: red.shape[0] // 2, : red.shape[1] // 2].mean()
    assert disc > red[red.shape[0] // 2 :, red.shape[1] // 2 :].mean() + 10


def test_overlay_of_several_pictures_tiles_and_unknown_layouts() -> None:
    two = relevance(prompt(("image", 16, (4, 4), None), ("image", 16, (4, 4), None)), 1, "x")
    assert "image 2" in texts(overlay(two, [picture(), picture(60, 90)]))
    tiles = relevance(prompt(*[("image", 16, (4, 4), None)] * 5, placed=False), 1, "x")
    assert "tile 5 of 5" in texts(overlay(tiles, picture()))
    unplaced = texts(overlay(relevance(prompt(("image", 16, (4, 4), None), placed=False), 1, "x"), picture()))
    assert "16 positions in order (location in the image unknown)" in unplaced
    flat = relevance(prompt(("image", 10, None, None)), 1, "x")
    assert "10 positions in order (layout unknown)" in texts(overlay(flat, picture(), top=0))


def test_overlay_of_a_centre_crop_paints_where_the_processor_looked() -> None:
    """One cell of the middle of a wide picture: its heat lies there, none elsewhere, and the margins are darkened."""
    crop = Region(0, (400, 100), (150, 0, 250, 100))
    spans = (Span(0, 16, "image", (4, 4), region=crop), Span(16, 17, "text"))
    scores = torch.zeros(17)
    scores[5] = 1.0  # row 1, column 1: 175 to 200 across, 25 to 50 down
    found = Relevance(scores, ("x",) * 17, spans, 1)
    plain = Image.new("RGB", (400, 100), (150, 150, 150))
    figure = overlay(found, plain, top=0)
    drawn = np.asarray(next(a for a in figure.axes if a.images).images[0].get_array(), np.int32)
    height, width = drawn.shape[:2]
    red = drawn[..., 0] - drawn[..., 2]
    y, x = np.unravel_index(red.argmax(), red.shape)
    assert (x / width * 400, y / height * 100) == pytest.approx((187.5, 37.5), abs=6)
    outside = np.ones(red.shape, bool)
    outside[:, width * 3 // 8 : width * 5 // 8] = False
    assert red[outside].max() <= 0
    assert drawn[outside].max() < 100 < drawn[height - 4, width // 2].min()  # the crop is as bright as the picture
    assert "dark: not seen by the model (75%)" in texts(figure)
    sum_inside = sum(float(s.abs().sum()) for s, _ in found.on_image())
    assert sum_inside == pytest.approx(1.0)


def test_the_waveform_omits_padding_and_notes_it() -> None:
    samples, rate = tone()
    spans = (Span(0, 20, "audio", None, 0.25, interval=Interval(0, 0.0, 2.0)), Span(20, 21, "text"))
    scores = torch.zeros(21)
    scores[[3, 15]] = torch.tensor([1.0, 3.0])
    figure = waveform(Relevance(scores, ("x",) * 21, spans, 1), samples, rate, top=0)
    bars = next(a for a in figure.axes if a.get_ylabel() == "relevance")
    assert len(bars.patches) == 8
    assert bars.get_xlim() == pytest.approx((0, 2.0))
    assert "75% of the relevance is on padding after the end" in texts(figure)
    assert "half of the support: 0.75–1.00 s" in texts(figure)
    unknown = (Span(0, 20, "audio"), Span(20, 21, "text"))
    told = texts(waveform(Relevance(scores, ("x",) * 21, unknown, 1), samples, rate, top=0))
    assert "positions spread evenly: their times are unknown" in told


def test_waveform_of_a_sound_in_windows() -> None:
    samples, rate = tone()
    spans = (
        Span(0, 4, "audio", None, 0.25, interval=Interval(0, 0.0, 2.0)),
        Span(4, 8, "audio", None, 0.25, interval=Interval(0, 1.0, 2.0)),
        Span(8, 9, "text"),
    )
    scores = torch.arange(9.0)
    figure = waveform(Relevance(scores, ("x",) * 9, spans, 1), samples, rate, top=0)
    bars = next(a for a in figure.axes if a.get_ylabel() == "relevance")
    assert [p.get_height() for p in bars.patches] == pytest.approx(scores[:8].tolist())
    assert bars.patches[-1].get_x() == pytest.approx(1.75)


def test_contact_sheet_of_cropped_frames() -> None:
    region = Region(0, (112, 112), (28, 0, 84, 112), ((0, 1), (2,)))
    spans = (Span(0, 18, "video", (2, 3, 3), region=region), Span(18, 19, "text"))
    told = texts(contact_sheet(Relevance(torch.ones(19), ("x",) * 19, spans, 1), [picture()] * 3))
    assert "frames 1–2" in told
    assert "frame 3" in told
    assert "dark: not seen by the model (50%)" in told
    bare = texts(contact_sheet(relevance(prompt(("video", 18, (2, 3, 3), None)), 1, "x"), [picture()] * 4))
    assert "visible part of the frame unknown" in bare


def test_overlay_takes_words_literally() -> None:
    figure = overlay(
        relevance(prompt(("image", 4, (2, 2), None), after=[*AFTER[:-3], " $x^{", " ?", ":"]), 1, " $y$"),
        picture(),
        top=20,
    )
    figure.canvas.draw()  # a lone dollar sign would be a parse error
    assert "$y$" in texts(figure)


def test_a_script_the_font_lacks_does_not_warn(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(overlay(of_image(), picture(), word="猫"), tmp_path / "cat.svg")


def test_what_overlay_refuses(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="no image positions"):
        overlay(relevance(prompt(("audio", 5, None, 0.04)), 1, "x"), picture())
    with pytest.raises(SettingError, match="cannot write"):
        overlay(of_image(), picture(), path=tmp_path / "o.txt")
    with pytest.raises(SettingError, match="no folder"):
        overlay(of_image(), picture(), path=tmp_path / "none" / "o.png")


def test_waveform(tmp_path: Path) -> None:
    samples, rate = tone()
    found = relevance(prompt(("audio", 50, None, 0.04)), 1, " bell")
    figure = waveform(found, samples, rate, path=tmp_path / "w.png")
    assert (tmp_path / "w.png").stat().st_size > 1000
    told = texts(figure)
    assert "kHz" in told
    assert "seconds" in told
    assert "audio" in told
    bars = next(a for a in figure.axes if a.get_ylabel() == "relevance")
    span = found.spans_of("audio")[0]
    assert [p.get_height() for p in bars.patches] == pytest.approx(found.scores[span.start : span.stop].tolist())
    assert bars.get_xlim() == pytest.approx((0, 2.0))
    start, stop = word_interval(found) or (0, 0)
    assert f"half of the support: {start:.2f}–{stop:.2f} s" in told
    spectrogram = next(a for a in figure.axes if a.get_ylabel() == "kHz")
    assert [i.get_extent() for i in spectrogram.images] == [[0, 2.0, 0, 4.0]] * 2  # the sound, and the heat on it
    assert "strongly\nfor" in told and "strongly\nagainst" in told
    bare = waveform(relevance(prompt(("audio", 50, None, None)), 1, "x"), None, top=0)
    assert "duration unknown" in texts(bare)
    with pytest.raises(SettingError, match="no audio clip number 1"):
        waveform(found, samples, rate, index=1)
    with pytest.raises(SettingError, match="samples"):
        waveform(found, samples[None], rate)


def test_spectrogram_finds_the_tone_and_peaks_the_loud_part() -> None:
    samples, rate = tone()
    level, top = decibels(samples, rate)
    assert top == rate / 2
    loudest = np.unravel_index(level.argmax(), level.shape)
    assert loudest[0] / level.shape[0] * top == pytest.approx(440, abs=60)
    assert loudest[1] / level.shape[1] == pytest.approx(0.6, abs=0.06)
    assert level.max() == pytest.approx(0, abs=0.01)
    pairs = peaks(samples, 100)
    assert pairs.shape == (100, 2)
    assert np.abs(pairs).max() == 1
    assert (pairs[:, 1] >= pairs[:, 0]).all()
    assert peaks(np.zeros(5, np.float32), 10).shape == (5, 2)


def test_contact_sheet() -> None:
    found = relevance(prompt(("video", 36, (4, 3, 3), None)), 1, " runs")
    figure = contact_sheet(found, [picture() for _ in range(8)])
    told = texts(figure)
    assert "frames 1–2" in told
    assert "frames 7–8" in told
    parts = [float(line.split(": ")[1].rstrip("%")) for line in told.split("\n") if line.startswith("frames")]
    assert sum(parts) == pytest.approx(100, abs=2)
    assert parts == sorted(parts)  # the example's heat grows with time
    singles = relevance(prompt(*[("image", 9, (3, 3), None)] * 3, placed=False), 1, "x")
    assert [label for _, label, _ in frame_grids(singles, [picture()] * 3)] == ["frame 1", "frame 2", "frame 3"]


def test_what_contact_sheet_refuses() -> None:
    found = relevance(prompt(("video", 36, None, None)), 1, "x")
    with pytest.raises(SettingError, match="layout"):
        contact_sheet(found, [picture()] * 2)
    with pytest.raises(SettingError, match="no frames"):
        contact_sheet(found, [])
    with pytest.raises(SettingError, match="no video number"):
        contact_sheet(of_image(), [picture()] * 3, index=0)


@pytest.mark.parametrize(("grids", "frames"), [(4, 8), (8, 8), (3, 8), (5, 3), (1, 7)])
def test_frames_of_grids_cover_the_video(grids: int, frames: int) -> None:
    rows = [frame_of(t, grids, frames) for t in range(grids)]
    assert all(0 <= f < frames for f, _ in rows)
    assert [f for f, _ in rows] == sorted(f for f, _ in rows)


def test_tokens_are_shown_readably() -> None:
    assert shown(" cup") == "cup"
    assert shown("\n") == "⏎"
    assert shown("  ") == "'  '"
    assert len(shown("x" * 60)) == 24


def test_overlay_takes_decoded_media() -> None:
    assert "“cup”" in texts(overlay(of_image(), Media([picture(200, 100)], [(0.25, 0, 0.75, 1)])))
