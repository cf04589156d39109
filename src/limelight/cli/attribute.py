"""``limelight attribute``: attribution of the words of a generated or given answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limelight.cli import options
from limelight.cli.options import INPUT
from limelight.errors import SettingError

if TYPE_CHECKING:
    from limelight.models.adapter import Adapter
    from limelight.report.media import Media
    from limelight.types import Generation, Prompt


@options.grouped
def attribute(
    model: options.ModelName,
    prompt: options.PromptText,
    image: options.Images = None,
    audio: options.Audios = None,
    video: options.Videos = None,
    frames: options.Frames = None,
    answer: Annotated[
        str | None,
        typer.Option(help="The answer to explain; the model's greedy answer by default. A leading space is added if more likely.", rich_help_panel=INPUT),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="Explain the answer's first token against this answer's: the evidence for one over the other. Needs --answer.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    max_new_tokens: options.MaxNewTokens = 32,
    composite: Annotated[
        str, typer.Option(help="Rules of relevance: attnlrp, cp-lrp, cp-lrp-linear, reslrp, pa-lrp or gradient-input.", rich_help_panel="Relevance")
    ] = "attnlrp",
    sinks: Annotated[
        str,
        typer.Option(help="Positions to exclude from shares and plots, separated by commas, such as 0.", rich_help_panel="Relevance"),
    ] = "",
    through_encoder: Annotated[
        bool,
        typer.Option(
            "--through-encoder",
            help="Carry relevance on through the encoder, to pixels or the sound's own frames or samples: for --overlay and --json.",
            rich_help_panel="Relevance",
        ),
    ] = False,
    as_json: options.AsJson = False,
    overlay: options.Overlay = None,
    word: options.WordChoice = None,
    html: options.Html = None,
    loading: options.Loading = options.Loading(),
    debug: options.Debug = False,
) -> None:  # fmt: skip
    """Show where each word of an answer comes from: the model's own answer, or a text that you give.

    Uses one forward pass for the answer and one backward pass per token. Decoding is not changed.

    **Examples**

        limelight attribute demo-vision --image photo.png --prompt "Is there a cup in the picture?"

        limelight attribute demo-vision --image photo.png -p "Is there a cup in the picture?" --answer "no" --overlay no.png

        limelight attribute demo-vision --image photo.png -p "Is there a cup in the picture?" --answer yes --against no --overlay yes.png

        limelight attribute demo-vision --image photo.png -p "Describe the picture." --word cup --overlay cup.png --html words.html

        limelight attribute llava-hf/llava-1.5-7b-hf --image photo.jpg -p "What is this?" --composite cp-lrp --sinks 0 --json

        limelight attribute demo-vision --image photo.png -p "Describe the picture." --through-encoder --word cup --overlay cup.png
    """
    options.check_outputs(overlay, html, word)
    if through_encoder:
        _check_shown(overlay, html, video, as_json=as_json)
    positions = _positions(sinks)
    if answer is not None and not answer.strip():
        raise SettingError("the answer is empty", hint="give --answer at least one word, or omit it")
    if against is not None and answer is None:
        raise SettingError("--against needs --answer", hint="for example --answer yes --against no")
    from limelight.cli import terminal

    with terminal.quiet():
        from limelight.cli import output
        from limelight.relevance.composites import composite_of

        composite = composite_of(composite).name
        given = options.media_of(image, audio, video, frames)
        adapter = terminal.load(model, loading)
        prepared = adapter.prepare(prompt, given)
        if answer is not None and against is not None:
            generation = decision(adapter, prepared, answer, against, composite, positions, through_encoder)
        else:
            generation = explained(adapter, prepared, answer, max_new_tokens, composite, positions, through_encoder)
        media = output.shown_media(prepared) if overlay is not None or html is not None else None
        drawn = (
            output.draw_word(generation, media, word, overlay) if overlay is not None and media is not None else None
        )
        if html is not None:
            from limelight.report.page import Case, save_page

            save_page(html, Case([generation], media, question=prompt, spell=lambda token: adapter.tokens([token])[0]))
    if as_json:
        files = {name: str(path) for name, path in (("overlay", overlay), ("html", html)) if path is not None}
        if drawn is not None:
            files["word"] = drawn.text
        output.print_json(
            {"model": model, "prompt": prompt, **output.document(generation, scores=True), "files": files}
        )
        return
    terminal.out.print(_table(generation, output.shown_media(prepared)))
    terminal.err.print(terminal.bar(generation.shares()))
    if drawn is not None:
        terminal.err.print(f"{overlay}: relevance of {drawn.text!r} (use --word for another)", markup=False)
    if html is not None:
        terminal.err.print(f"{html}: open it in a browser", markup=False)


def explained(
    adapter: Adapter,
    prompt: Prompt,
    answer: str | None,
    max_new_tokens: int,
    composite: str,
    sinks: Sequence[int],
    through_encoder: bool = False,
) -> Generation:
    """Return a given or generated answer with the relevance of each token.

    Raises:
        SettingError: the answer has no tokens, or a sink is outside the prompt.
    """
    from limelight.cli import terminal
    from limelight.decoding.generate import generate
    from limelight.relevance.attribute import attribute_generated
    from limelight.relevance.composites import COMPOSITES
    from limelight.types import Generation, Step

    _check_inside(sinks, prompt)
    if answer is None:
        with terminal.token_progress(max_new_tokens, "greedy") as moved:
            generation = generate(
                adapter, None, prompt, strategy="greedy", relevance=False, max_new_tokens=max_new_tokens, on_step=moved
            )
        ends = set(getattr(adapter.tokenizer, "all_special_ids", ()))
        steps = (
            generation.steps[:-1]
            if len(generation.steps) > 1 and generation.steps[-1].token in ends
            else generation.steps
        )
        text = generation.text
    else:
        ids = token_ids(adapter, prompt, answer)
        steps = tuple(Step(i, s) for i, s in zip(ids, adapter.tokens(ids), strict=True))
        text = answer.strip()
    tokens = [s.token for s in steps]
    with terminal.err.status(f"relevance: {len(tokens)} backward passes …"):
        found = attribute_generated(
            adapter, prompt.tensors, tokens, composite=COMPOSITES[composite], sinks=sinks, prompt_spans=prompt.spans,
            through_encoder=through_encoder,
        )  # fmt: skip
    rows = tuple(replace(s, relevance=r, shares=r.shares()) for s, r in zip(steps, found, strict=True))
    settings: dict[str, Any] = {"composite": composite, "sinks": tuple(sinks) or None}
    name = "given answer" if answer is not None else "greedy"
    return Generation(text, tuple(tokens), rows, prompt, name, settings)


def decision(
    adapter: Adapter,
    prompt: Prompt,
    answer: str,
    against: str,
    composite: str,
    sinks: Sequence[int],
    through_encoder: bool = False,
) -> Generation:
    """Attribute the first token of one answer against that of another, as an answer of one token.

    Raises:
        SettingError: both start with the same token, or a sink is outside the prompt.
    """
    from limelight.relevance.attribute import attribute as relevance_of
    from limelight.types import Generation, Step

    _check_inside(sinks, prompt)
    found = relevance_of(
        adapter, prompt, answer, against=against, composite=composite, sinks=sinks, through_encoder=through_encoder
    )
    step = Step(found.target, found.target_token, relevance=found, shares=found.shares())
    name = f"rather than {found.against_token.strip()}"
    return Generation(step.text.strip(), (step.token,), (step,), prompt, name, {"composite": composite})


def token_ids(adapter: Adapter, prompt: Prompt, text: str) -> list[int]:
    """Tokenise an answer without special tokens, with a leading space if the model finds that more likely.

    Raises:
        SettingError: it has no tokens.
    """
    from limelight.relevance.targets import answer_ids

    call = adapter.capture(prompt.tensors)
    return answer_ids(adapter, call, call.length - 1, text)


def _check_inside(sinks: Sequence[int], prompt: Prompt) -> None:
    outside = [p for p in sinks if not 0 <= p < len(prompt.tokens)]
    if outside:
        raise SettingError(
            f"position {outside[0]} is outside the prompt of {len(prompt.tokens)} tokens", hint="positions start at 0"
        )


def _check_shown(overlay: Path | None, html: Path | None, video: Sequence[Path] | None, *, as_json: bool) -> None:
    """Relevance of the encoder's input has a place in drawings of pictures and sounds, and in JSON."""
    if html is not None:
        raise SettingError(
            "--through-encoder has no place on the page, which shows the model's positions",
            hint="use --overlay or --json, or leave out --html",
        )
    if overlay is not None and video:
        raise SettingError(
            "--through-encoder is not drawn over frames of a video", hint="use --json, or leave out --through-encoder"
        )
    if overlay is None and not as_json:
        raise SettingError("--through-encoder has no output", hint="add --overlay heat.png or --json")


def _positions(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(p) for p in text.split(",") if p.strip())
    except ValueError as error:
        raise SettingError(
            f"cannot read --sinks {text!r}", hint="positions separated by commas, such as 0,1"
        ) from error


def _table(generation: Generation, media: Media) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from limelight.cli.output import place
    from limelight.report.figure import shown
    from limelight.report.words import text_words, word_relevance, word_shares, words

    table = Table(box=box.SIMPLE_HEAD, title=Text(generation.text), title_justify="left")
    for name, side in (
        ("#", "right"),
        ("word", "left"),
        ("logit", "right"),
        ("shares", "left"),
        ("strongest support", "left"),
        ("most relevant text", "left"),
    ):
        table.add_column(name, justify="right" if side == "right" else "left", overflow="fold")
    for i, word in enumerate(words(generation), start=1):
        relevance = word_relevance(generation, word)
        if relevance is None:
            continue
        shares = ", ".join(f"{v:.0%} {m}" for m, v in word_shares(generation, word).items() if m != "text")
        tops = ", ".join(f"{shown(t)} {v:+.2g}" for t, v in text_words(relevance, generation.prompt.template)[:3])
        table.add_row(str(i), Text(word.text), f"{relevance.logit:.2f}", shares, place(relevance, media), Text(tops))
    return table
