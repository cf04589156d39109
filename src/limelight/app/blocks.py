"""The app's Gradio interface: the question on the left, the streamed answer and the report page on the right."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from limelight.app.backend import Backend, Question
from limelight.decoding.strategy import Strategy
from limelight.errors import LimelightError
from limelight.media.image import kind_of
from limelight.report.notebook import answer_parts_html, words_html
from limelight.types import Generation

Choose = Callable[[str, Sequence[str]], Strategy]  # (name, ["key=value", ...]) -> Strategy
NOTHING = "(none)"
PLACEHOLDERS = {
    "image": "What is in the image?",
    "video": "What is in the video?",
    "audio": "What can be heard in the audio?",
}
FONTS = ("system-ui", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
CSS = """
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 260px), 1fr)); gap: 12px; }
.answers section { border: 1px solid var(--border-color-primary); border-radius: 10px; padding: 10px 14px; }
.answers h3 { font-size: .95rem; margin: 0 0 4px; } .answers .answer-text { font-size: 1.15em; line-height: 1.9; min-height: 2em; margin: 0 0 6px; }
.error { border: 2px solid #b3261e; border-radius: 10px; padding: 10px 14px; } .error b { color: #b3261e; }
.dark .error b { color: #ff8a8f; } .answers .status { grid-column: 1 / -1; margin: 0; opacity: .8; font-size: .85rem; }
footer { display: none !important; }
"""


def theme() -> Any:
    """Return the app's theme, with system fonts only, so that nothing is downloaded."""
    return gr.themes.Base(primary_hue="teal", neutral_hue="slate", font=FONTS, font_mono=("ui-monospace", "monospace"))


def build(
    backend: Backend,
    choose: Choose,
    known: Mapping[str, str],
    *,
    name: str,
    folder: Path,
    examples: Sequence[Any] = (),
) -> gr.Blocks:
    """Build the app for one model.

    Args:
        choose: creates a strategy from its name and settings; raises a LimelightError.
        known: strategy -> description of its settings.
        folder: where a page is written before Gradio copies it; Gradio deletes its copy after an hour.
        examples: rows of (file, question) offered as examples, files of one kind.
    """
    blocks: gr.Blocks = gr.Blocks(
        title=f"limelight · {name}", analytics_enabled=False, fill_width=True, delete_cache=(600, 3600)
    )
    with blocks:
        gr.Markdown(
            f"## Where do the words come from?\nAnswers by `{name}`. Stronger colour: more of the word comes from the image, audio or video."
        )
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                hint = PLACEHOLDERS.get(next(iter(backend.modalities), ""), "")
                words = gr.Textbox(label="Question", lines=2, placeholder=hint, submit_btn=False)
                with gr.Row():
                    go, stop = gr.Button("Ask", variant="primary"), gr.Button("Stop")
                parts = [_upload(m, alone=len(backend.modalities) == 1) for m in backend.modalities]
                if examples and parts:
                    rows = [list(e) for e in examples]
                    shown = parts[backend.modalities.index(kind_of(rows[0][0]))]
                    gr.Examples(rows, [shown, words], label="Held-out questions of the miniature", examples_per_page=4)
                with gr.Accordion("Strategies", open=False):
                    first, first_set = _strategy("Strategy", known, "greedy")
                    second, second_set = _strategy(
                        "Compare with", {NOTHING: "", **known}, "relevance-contrastive", "preset=questions"
                    )
                with gr.Accordion("Length and sampling", open=False):
                    length = gr.Slider(1, 512, 64, step=1, label="Maximum new tokens")
                    sample = gr.Checkbox(label="Sample", value=False)
                    temperature = gr.Slider(0.1, 2, 1.0, step=0.05, label="Temperature (sampling only)")
                    seed = gr.Slider(0, 1000, 0, step=1, precision=0, label="Seed (sampling only)")
            with gr.Column(scale=5, min_width=320):
                live = gr.HTML(_waiting(), label="answers")
                download = gr.DownloadButton("Download the page", visible=False)
                page = gr.HTML("")

        def ask(*given: Any) -> Iterator[tuple[Any, Any, Any]]:
            files = dict(zip(backend.modalities, given, strict=False))
            question, a, a_set, b, b_set, n, sampled, temp, number = given[len(parts) :]
            try:
                strategies = [choose(k, _lines(v)) for k, v in ((a, a_set), (b, b_set)) if k != NOTHING]
                settings: dict[str, Any] = {"max_new_tokens": int(n)}
                if sampled:
                    settings |= {"do_sample": True, "temperature": float(temp), "top_k": 0, "seed": int(number)}
                media = {m: [f] for m, f in files.items() if f}
                turn = 0
                for progress in backend.ask(Question(question or "", media, strategies, settings)):
                    shown = answers_html(progress.answers, progress.status)
                    if not progress.page:
                        yield shown, gr.skip(), gr.skip()
                        continue
                    with tempfile.TemporaryDirectory(dir=folder) as place:
                        target = Path(place) / "where-the-words-come-from.html"
                        target.write_text(progress.page, encoding="utf-8")
                        yield shown, framed(progress.page, turn), gr.update(value=str(target), visible=True)
                    turn += 1
            except LimelightError as error:
                yield error_html(error), "", gr.update(visible=False)

        inputs = [*parts, words, first, first_set, second, second_set, length, sample, temperature, seed]
        answering = gr.on(
            [go.click, words.submit], ask, inputs, [live, page, download], api_name="ask", concurrency_limit=4
        )
        stop.click(None, cancels=[answering])
    blocks.queue(max_size=16)
    return blocks


def _upload(modality: str, *, alone: bool) -> Any:
    buttons = ["download"]  # not Gradio's defaults: one of them uploads the file to a public forum
    if modality == "image":
        # image_mode=None: the original file; Gradio would decode it in this process and drop transparency
        return gr.Image(
            type="filepath", image_mode=None, label="Image", height=190, sources=["upload", "clipboard"], buttons=buttons
        )  # fmt: skip
    if modality == "audio":
        return gr.Audio(type="filepath", label="Audio", sources=["upload"], buttons=buttons)
    return gr.Video(label="Video", height=190 if alone else 160, sources=["upload"], buttons=buttons)


def _strategy(label: str, known: Mapping[str, str], value: str, given: str = "") -> tuple[Any, Any]:
    with gr.Group():
        name = gr.Dropdown(list(known), value=value, label=label)
        settings = gr.Textbox(
            given,
            label=f"{label}: settings",
            lines=1,
            max_lines=6,
            info=known.get(value, ""),
            placeholder="key=value, one per line",
        )
        name.change(lambda n: gr.update(info=known[n], value=""), name, settings, api_visibility="private")
    return name, settings


def _lines(text: str | None) -> list[str]:
    return [line.strip() for line in (text or "").splitlines() if line.strip()]


def answers_html(answers: Sequence[Generation], status: str) -> str:
    """Render the answers so far side by side."""
    sections = "".join(
        f'<section aria-label="{escape(a.strategy, quote=True)}"><h3>{escape(a.strategy)}</h3>'
        f'<p class="answer-text">{words_html(a)}</p>{"".join(answer_parts_html(a))}</section>'
        for a in answers
    )
    return f'<div class="answers">{sections}<p class="status" role="status">{escape(status)}</p></div>'


def error_html(error: LimelightError) -> str:
    hint = f"<br>{escape(error.hint)}" if error.hint else ""
    return f'<div class="error" role="alert"><b>{escape(error.message)}</b>{hint}</div>'


def framed(page: str, turn: int = 0) -> str:
    """Embed the page in an iframe that may only run scripts.

    Pages of successive turns are in different elements: Gradio would write the next page into the iframe that is still
    loading the last one, which sometimes leaves it blank.
    """
    around = ("div", "section")[turn % 2]
    return (
        f'<{around}><iframe title="Where the words come from" sandbox="allow-scripts" srcdoc="{escape(page, quote=True)}" '
        'style="width:100%;height:min(1100px,92vh);border:1px solid var(--border-color-primary);border-radius:10px">'
        f"</iframe></{around}>"
    )


def _waiting() -> str:
    return (
        '<p class="status">The answer appears here word by word, followed by the page with each word\'s heat map.</p>'
    )
