"""Subtitles: what a model said cannot break a cue, in the server's files as in the command line's."""

from __future__ import annotations

import html

from limelight.report.subtitles import LINE, clock, cue, document, marked

SAID = "a <b>bold</b> & brave --> arrow\n\n2\n00:00:00,000 --> 00:00:09,000\nfaked " + "word " * 20


def test_a_cue_is_one_cue() -> None:
    for form in ("srt", "vtt"):
        whole = document([cue(0.0, 1.5, SAID, form, 1), cue(1.5, 3600.25, "next", form, 2)], form)
        assert whole.count("-->") == 2
        blocks = whole.strip().split("\n\n")
        assert len(blocks) == 2 + (form == "vtt")
        assert max(map(len, html.unescape(whole).splitlines())) <= LINE
    assert cue(0.0, 1.5, "x", "srt", 1).startswith("1\n00:00:00,000 --> 00:00:01,500\nx\n")


def test_markup_is_escaped_in_webvtt_alone() -> None:
    said = html.unescape(cue(0.0, 1.0, SAID, "vtt", 1))
    assert "<" not in cue(0.0, 1.0, SAID, "vtt", 1)
    assert "<b>bold</b> & brave" in said
    assert "<b>bold</b> & brave" in cue(0.0, 1.0, SAID, "srt", 1)


def test_flagged_words_are_underlined() -> None:
    pieces = marked(
        "We <met> on Mars, today.", [("We", False), ("<met>", True), ("on", False), ("Mars", True), (",", False)]
    )
    assert pieces == [
        ("We", False), (" ", False), ("<met>", True), (" on", False), (" ", False), ("Mars", True), (",", False), (" today.", False),
    ]  # fmt: skip
    srt, vtt = (document([cue(0.0, 1.0, pieces, form, 1)], form) for form in ("srt", "vtt"))
    assert "We <u><met></u> on <u>Mars</u>, today." in srt
    assert "We <c.flagged>&lt;met&gt;</c> on <c.flagged>Mars</c>, today." in vtt
    assert vtt.startswith("WEBVTT\n\nSTYLE\n::cue(.flagged)")
    assert "STYLE" not in document([cue(0.0, 1.0, "We met", "vtt", 1)], "vtt")
    assert marked("as it is", [("missing", True)]) == [("as it is", False)]
    assert "".join(t for t, _ in pieces) == "We <met> on Mars, today."
    cut = cue(0.0, 1.0, marked("x" * 90, [("x" * 90, True)]), "srt", 1)  # a word longer than a line
    assert cut.count("<u>") == cut.count("</u>") == 1
    assert "\ue000" not in cue(0.0, 1.0, "\ue000 said so \ue001", "srt", 1)


def test_the_clock() -> None:
    assert clock(59.9996) == "00:01:00.000"
    assert clock(3723.0015, ",") == "01:02:03,002"
