"""``limelight app``: a small app in the browser over one model."""

from __future__ import annotations

import json
import os
from typing import Annotated, Any

import typer

from limelight.cli import options
from limelight.errors import MissingExtraError, SettingError

NETWORK = "Network"


def app(
    model: options.ModelName = "demo-vision",
    host: Annotated[str, typer.Option(help="Address to listen on.", rich_help_panel=NETWORK)] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, rich_help_panel=NETWORK)] = 7860,
    share: Annotated[
        str, typer.Option(help="on: a public link through Gradio's servers. off: none.", rich_help_panel=NETWORK)
    ] = "off",
    meter: Annotated[
        bool, typer.Option("--meter/--no-meter", help="Colour words as they come; a few models have no meter.")
    ] = True,
    device: options.Device = None,
    dtype: options.Dtype = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    debug: options.Debug = False,
) -> None:
    """Open a small app: hand in a picture, sound or video, ask, choose one or two strategies, and watch.

    Words are coloured by the meter while they come; then the page shows every word's heat map, to keep as a file.
    One question runs at a time. Nothing is sent anywhere unless you say --share on. Needs the extra `app`.

    **Examples**

        limelight app demo-vision

        limelight app Qwen/Qwen2-Audio-7B-Instruct --device cuda --dtype bfloat16 --port 8080
    """
    if share not in ("on", "off"):
        raise SettingError(f"--share takes on or off, got {share!r}", hint="off is the default")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read by gradio when it is imported
    try:
        from limelight.app.blocks import CSS, build, theme
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "limelight"):
            raise
        raise MissingExtraError(package, "app") from error
    from limelight.app.desk import Desk
    from limelight.cli import terminal

    with terminal.quiet():
        desk = Desk(terminal.load(model, dtype, device, trust_remote_code), meter=meter)
        known = _known()
    blocks = build(desk, options.strategy_of, known, name=model, examples=_examples(model))
    terminal.err.print(f"http://{host}:{port} (Ctrl-C ends it)", markup=False)
    try:
        blocks.launch(
            server_name=host, server_port=port, share=share == "on", quiet=True, show_error=False, theme=theme(), css=CSS,
            max_file_size="200mb", ssr_mode=False, footer_links=[],
        )  # fmt: skip
    except OSError as error:
        raise SettingError(f"cannot listen on {host}:{port}: {error}", hint="choose another --port") from error


def _known() -> dict[str, str]:
    """Strategy -> its settings with their defaults, in words."""
    import inspect

    from limelight.decoding.registry import strategies

    def told(value: Any) -> str:
        return (
            "…"
            if value is inspect.Parameter.empty
            else str(value).lower()
            if value in (None, True, False)
            else str(value)
        )

    listed = {name: options.settings_of(factory) for name, factory in strategies().items()}
    return {n: ", ".join(f"{k}={told(v)}" for k, v in s.items()) or "no settings" for n, s in listed.items()}


def _examples(model: str) -> list[tuple[str, str]]:
    """Pictures or recordings, and questions, that ship with a miniature."""
    from limelight.demo.outcome import AUDIO, VISION

    homes = {"demo-vision": (VISION / "examples", "image"), "demo-audio": (AUDIO / "examples", "audio")}
    if model not in homes:
        return []
    folder, kind = homes[model]
    rows = json.loads((folder / "examples.json").read_text(encoding="utf-8"))["examples"][:4]
    return [(str(folder / row[kind]), row["text"]) for row in rows]
