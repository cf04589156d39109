"""``limelight demo``: the shipped miniature hallucinates, and one sees why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from limelight.cli import options


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the overlays and the page.")] = Path("limelight-demo"),
    strategy: Annotated[
        list[str] | None,
        typer.Option("--strategy", "-s", help="A strategy beside greedy; repeat for several. By default lime."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many pictures or recordings.")] = None,
    audio: Annotated[
        bool, typer.Option("--audio", help="The miniature that listens: recordings instead of pictures.")
    ] = False,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Show the shipped miniature being misled, which words misled it, and what LIME changes.

    Held-out pictures (or, with `--audio`, recordings) on which plain greedy decoding errs: greedy and LIME side by side, overlays of the deciding word,
    and one page to open in a browser. Takes a minute or two on two cores; nothing is downloaded.

    **Examples**

        limelight demo

        limelight demo --out demo --strategy lime --strategy relevance-contrastive

        limelight demo --audio --out demo-audio

        limelight demo --limit 3 --json
    """
    from limelight.cli import terminal

    with terminal.quiet():
        from limelight.cli import output
        from limelight.demo.run import as_plain, run_demo

        with terminal.err.status("…") as status:
            done = run_demo(
                out, audio=audio, strategies=tuple(strategy or ("lime",)), limit=limit,
                console=terminal.err if as_json else terminal.out, watch=status.update,
            )  # fmt: skip
        if as_json:
            output.print_json(as_plain(done))
