"""``limelight demo``: hallucinations of the shipped miniature, and their explanation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from limelight.cli import options


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the overlays and the page.")] = Path("limelight-demo"),
    strategy: Annotated[
        list[str] | None,
        typer.Option("--strategy", "-s", help="A strategy to compare with greedy; repeat for several. Default: lime."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of images or recordings.")] = None,
    audio: Annotated[
        bool, typer.Option("--audio", help="Use the audio miniature: recordings instead of images.")
    ] = False,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Show how the prompt misleads the shipped miniature, which words are responsible, and what LIME changes.

    Compares greedy decoding and LIME on held-out images (or, with `--audio`, recordings) on which greedy decoding errs; writes overlays of the
    deciding word and one page to open in a browser. Takes a minute or two on two cores; nothing is downloaded.

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
                console=terminal.err if as_json else terminal.out, on_progress=status.update,
            )  # fmt: skip
        if as_json:
            output.print_json(as_plain(done))
