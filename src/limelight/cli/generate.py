"""``limelight generate``: an answer with attribution of its words."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from limelight.cli import options
from limelight.cli.options import DECODING, OUTPUT


@options.grouped
def generate(
    model: options.ModelName,
    prompt: options.PromptText,
    image: options.Images = None,
    audio: options.Audios = None,
    video: options.Videos = None,
    frames: options.Frames = None,
    strategy: options.StrategyName = "greedy",
    settings: options.Settings = None,
    max_new_tokens: options.MaxNewTokens = 64,
    sample: Annotated[
        bool, typer.Option("--sample", help="Sample tokens instead of greedy decoding.", rich_help_panel=DECODING)
    ] = False,
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature.", rich_help_panel=DECODING)] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus sampling probability.", rich_help_panel=DECODING)] = None,
    seed: Annotated[int | None, typer.Option(help="Sampling seed.", rich_help_panel=DECODING)] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            "--compare", help="Another strategy to compare with, as NAME or NAME,key=value,...; repeat for several.",
            rich_help_panel=DECODING,
        ),
    ] = None,
    as_json: options.AsJson = False,
    overlay: options.Overlay = None,
    word: options.WordChoice = None,
    html: options.Html = None,
    meter: Annotated[
        bool,
        typer.Option(
            "--meter/--no-meter", help="For the page, also measure each word's alternatives with the grounding meter.",
            rich_help_panel=OUTPUT,
        ),
    ] = True,
    relevance: Annotated[
        bool,
        typer.Option(
            "--relevance/--no-relevance",
            help="Compute where each word comes from, with any strategy: one backward pass per token. Decoding is faster without.",
            rich_help_panel=OUTPUT,
        ),
    ] = True,
    loading: options.Loading = options.Loading(),
    debug: options.Debug = False,
) -> None:  # fmt: skip
    """Answer a question about images, audio or video, and show where the words come from.

    Decoding is the model's own unless you choose a strategy. The answer goes to stdout, everything else to stderr.

    **Examples**

        limelight generate demo-vision --image photo.png --prompt "Describe the picture." --overlay cup.png --word cup

        limelight generate demo-vision --image photo.png -p "Is there a cup in the picture?" --strategy lime --set lr=1e-2

        limelight generate llava-hf/llava-1.5-7b-hf --image photo.jpg -p "Describe the image." -s lime --html out.html

        limelight generate Qwen/Qwen2-Audio-7B-Instruct --audio street.wav -p "Is there a siren?" --max-new-tokens 8 --json

        limelight generate demo-vision --image photo.png -p "There is no hat. Is there a hat?" --compare relevance-contrastive,alpha=8 --html out.html

        limelight generate demo-vision --image large.png -p "Is there a cup in the picture?" -s look-again --set views=3 --html out.html

        limelight generate demo-vision --image photo.png -p "Describe the picture." --sample --temperature 0.7 --seed 1
    """
    options.check_outputs(overlay, html, word)
    extra = options.sampling(sample, temperature, top_p, seed)
    if not relevance and (overlay is not None or html is not None):
        from limelight.errors import SettingError

        raise SettingError(
            "with --no-relevance there is nothing to draw", hint="omit --no-relevance, or --overlay and --html"
        )
    if html is None and not meter:
        from limelight.errors import SettingError

        raise SettingError("--no-meter only affects the page", hint="add --html out.html")
    from rich.text import Text

    from limelight.cli import terminal

    with terminal.quiet():
        from limelight.cli import output
        from limelight.decoding.compare import Comparison, compared
        from limelight.decoding.explain import explained, watched
        from limelight.decoding.generate import generate as answer
        from limelight.decoding.strategy import capabilities_of

        chosen = options.strategy_of(strategy, settings or [])
        beside = [options.strategy_of(name, given) for name, *given in (c.split(",") for c in compare or [])]
        media = options.media_of(image, audio, video, frames)
        adapter = terminal.load(model, loading)
        long_audio = all(capabilities_of(s).long_audio for s in (chosen, *beside))
        prepared = adapter.prepare(prompt, media, long_audio=long_audio)
        began = time.perf_counter()
        with terminal.token_progress(max_new_tokens, strategy) as moved, options.metered(html is not None and meter):
            generation = answer(
                adapter, None, prepared, strategy=watched(chosen) if html is not None and meter else chosen,
                relevance=None if relevance else False, max_new_tokens=max_new_tokens, on_step=moved, **extra,
            )  # fmt: skip
        if relevance:
            generation = explained(adapter, generation)
        seconds = time.perf_counter() - began
        shown = [generation]
        for other in beside:
            with (
                terminal.token_progress(max_new_tokens, other.name) as moved,
                options.metered(html is not None and meter),
            ):
                more = answer(
                    adapter, None, prepared, strategy=watched(other) if html is not None and meter else other,
                    relevance=None if relevance else False, max_new_tokens=max_new_tokens, on_step=moved, **extra,
                )  # fmt: skip
            shown.append(explained(adapter, more) if relevance else more)
        comparison = compared(adapter, shown) if relevance else Comparison(tuple(shown))
        drawn = None
        if overlay is not None or html is not None:
            seen = output.shown_media(prepared)
            if overlay is not None:
                drawn = output.draw_word(generation, seen, word, overlay)
            if html is not None:
                from limelight.report.page import Case, save_page

                decisions = [d for d in comparison.decisions if d is not None]
                save_page(
                    html,
                    Case(
                        shown,
                        seen,
                        question=prompt,
                        spell=lambda token: adapter.tokens([token])[0],
                        decisions=decisions,
                    ),
                )
    files = {name: str(path) for name, path in (("overlay", overlay), ("html", html)) if path is not None}
    if as_json:
        document = output.document(generation)
        if drawn is not None:
            files["word"] = drawn.text
        if beside:
            document["compared"] = [output.document(g) for g in shown[1:]]
            document["decisions"] = [
                None if d is None else output.decision(d, prepared.template) for d in comparison.decisions
            ]
        output.print_json({"model": model, "prompt": prompt, **document, "seconds": round(seconds, 3), "files": files})
        return
    if beside:
        width = max(len(g.strategy) for g in shown) + 2
        for one in shown:
            terminal.out.print(Text.assemble((f"{one.strategy:{width}}", "bold"), terminal.coloured(one)))
        for found in comparison.decisions:
            if found is not None:
                terminal.err.print(terminal.decision_line(found, prepared.template))
    else:
        terminal.out.print(terminal.coloured(generation))
    if (legend := terminal.legend(generation)) is not None:
        terminal.err.print(legend)
    tokens = len(generation.token_ids)
    terminal.err.print(f"[dim]{generation.strategy}: {tokens} tokens in {seconds:.1f} s[/]")
    parts = terminal.parts_bar(generation)
    if parts is not None:
        terminal.err.print(parts)
    if generation.flag:
        from limelight.calibration import spoken

        terminal.err.print(
            f"⚑ {spoken(generation.flag)}: {sum(s.flagged for s in generation.steps)} of {tokens} tokens", markup=False
        )
    for line in output.view_lines(generation):
        terminal.err.print(line, markup=False)
    changed = sum(s.plain is not None and s.plain != s.token for s in generation.steps)
    if changed:
        terminal.err.print(f"{changed} of {tokens} tokens differ from greedy decoding at the same position")
    if drawn is not None:
        terminal.err.print(f"{overlay}: where {drawn.text!r} comes from (--word draws another)", markup=False)
    if html is not None:
        terminal.err.print(f"{html}: open it in a browser", markup=False)
