"""``limelight demo``: hallucinations of the shipped miniature, and their explanation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from limelight.cli import options


@contextmanager
def one_thread() -> Iterator[None]:
    """Run PyTorch on one thread inside the block: a miniature is fastest so, by far where other programs are running."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the overlays and the page.")] = Path("limelight-demo"),
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            "--strategy",
            "-s",
            help="A strategy to compare with greedy; repeat for several. Default: relevance-contrastive, vcd and lime.",
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Number of questions.")] = 3,
    audio: Annotated[
        bool, typer.Option("--audio", help="Use the audio miniature: recordings instead of images.")
    ] = False,
    video: Annotated[bool, typer.Option("--video", help="Use the video miniature: films instead of images.")] = False,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Show how a prompt misleads a model, which words are responsible, and which strategies look at the image all the same.

    Asks the shipped miniature three questions on held-out images (or, with `--audio`, recordings, with `--video`, films) with
    several strategies, then lets it describe one. Prints a verdict on each, and writes a page to open in a browser. Takes less
    than 30 seconds on a free core; nothing is downloaded.

    **Examples**

        limelight demo

        limelight demo --strategy relevance-contrastive --strategy avisc --limit 8

        limelight demo --audio --out demo-audio

        limelight demo --video --out demo-video

        limelight demo --json
    """
    from limelight.cli import terminal

    with terminal.quiet():
        from limelight.cli import output
        from limelight.demo.run import STRATEGIES, as_plain, run_demo

        with terminal.err.status("…") as status, one_thread():
            done = run_demo(
                out, audio=audio, video=video, strategies=tuple(strategy or STRATEGIES), limit=limit,
                console=terminal.err if as_json else terminal.out, on_progress=status.update,
            )  # fmt: skip
        if as_json:
            output.print_json(as_plain(done))
