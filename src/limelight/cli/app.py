"""``limelight app``: a browser app for one model."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from limelight.cli import options
from limelight.errors import MissingExtraError, SettingError

NETWORK = "Network"


@options.grouped
def app(
    model: options.ModelName = "demo-vision",
    host: Annotated[str, typer.Option(help="Address to listen on.", rich_help_panel=NETWORK)] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, rich_help_panel=NETWORK)] = 7860,
    share: Annotated[
        str, typer.Option(help="on: create a public link through Gradio's servers.", rich_help_panel=NETWORK)
    ] = "off",
    meter: Annotated[
        bool,
        typer.Option("--meter/--no-meter", help="Colour words while they are generated; a few models have no meter."),
    ] = True,
    loading: options.Loading = options.Loading(),
    debug: options.Debug = False,
) -> None:
    """Open a browser app: upload an image, audio or video, ask a question, and compare one or two strategies.

    Words are coloured by the meter while they are generated; then a page shows every word's heat map, which can be saved.
    One question runs at a time. Nothing leaves this machine except with --share on. Needs the extra `app`.

    **Examples**

        limelight app demo-vision

        limelight app Qwen/Qwen2-Audio-7B-Instruct --device cuda --dtype bfloat16 --port 8080
    """
    if share not in ("on", "off"):
        raise SettingError(f"--share must be on or off, got {share!r}", hint="off is the default")
    from limelight.app.temporary import temporary_folder

    with temporary_folder() as folder, _ended_by_signals():
        # Gradio reads both at import.
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ.setdefault("GRADIO_TEMP_DIR", str(folder / "gradio"))
        try:
            from starlette.middleware import Middleware

            from limelight.app.blocks import CSS, build, theme
            from limelight.server.guard import Guard, host_names
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package in ("", "limelight"):
                raise
            raise MissingExtraError(package, "app") from error
        from limelight.app.backend import Backend
        from limelight.cli import terminal
        from limelight.media import worker

        with terminal.quiet():
            worker.start()
            backend = Backend(
                terminal.load(model, loading),
                meter=meter,
            )
            known = _known()
        blocks = build(
            backend,
            options.strategy_of,
            known,
            name=options.public_name(model),
            folder=folder,
            examples=_examples(model),
        )
        terminal.err.print(f"http://{host}:{port} (Ctrl-C to stop)", markup=False)
        # With a public link the Host header is a name of Gradio's.
        guard = [] if share == "on" else [Middleware(Guard, hosts=host_names(host))]
        try:
            blocks.launch(
                server_name=host, server_port=port, share=share == "on", quiet=True, show_error=False, theme=theme(), css=CSS,
                max_file_size="200mb", ssr_mode=False, footer_links=[], app_kwargs={"middleware": guard},
            )  # fmt: skip
        except OSError as error:
            raise SettingError(f"cannot listen on {host}:{port}: {error}", hint="choose another --port") from error


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Raise SystemExit on SIGTERM and SIGHUP, so that cleanup runs."""

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    found = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        found = []
    before = [(number, signal.signal(number, end)) for number in found]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _known() -> dict[str, str]:
    """Map each strategy to a description of its settings and their defaults."""
    import inspect

    from limelight.decoding.registry import strategies

    def shown(value: Any) -> str:
        return (
            "…"
            if value is inspect.Parameter.empty
            else str(value).lower()
            if value in (None, True, False)
            else str(value)
        )

    listed = {name: options.settings_of(factory) for name, factory in strategies().items()}
    return {n: ", ".join(f"{k}={shown(v)}" for k, v in s.items()) or "no settings" for n, s in listed.items()}


def _examples(model: str) -> list[tuple[str, str]]:
    """Return the example files and questions shipped with a miniature."""
    from limelight.demo.outcome import AUDIO, VIDEO, VISION

    homes = {
        "demo-vision": (VISION / "examples", "image"),
        "demo-audio": (AUDIO / "examples", "audio"),
        "demo-video": (VIDEO / "examples", "video"),
    }
    if model not in homes:
        return []
    folder, kind = homes[model]
    rows = json.loads((folder / "examples.json").read_text(encoding="utf-8"))["examples"][:4]
    return [(str(folder / row[kind]), row["text"]) for row in rows]
