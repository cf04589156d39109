"""The command line. Each command is a function in its own module, found by name; heavy imports are inside the functions."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from limelight.cli.options import remember_debug
from limelight.errors import LimelightError

# Command -> its function in limelight.cli.<command>. Commands without a file are omitted.
COMMANDS = (
    "generate",
    "attribute",
    "transcribe",
    "calibrate",
    "demo",
    "models",
    "strategies",
    "bench",
    "tune",
    "audit",
    "report",
    "export_custom_generate",
    "serve",
    "app",
)
USAGE_EXIT = 2


class Commands(TyperGroup):
    """Prints the library's errors as message and hint, with exit code 2; ``--debug`` shows the traceback."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        from limelight.cli.config import defaults

        try:
            extra.setdefault("default_map", defaults(self.commands))
        except LimelightError as error:
            _told(error)
        return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except LimelightError as error:
            if ctx.find_root().meta.get("limelight.debug"):
                raise
            _told(error)


def _told(error: LimelightError) -> NoReturn:
    from limelight.cli.terminal import complain

    complain(error)
    raise typer.Exit(USAGE_EXIT) from error


app = typer.Typer(
    name="limelight",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
)


def _version(value: bool) -> None:
    if value:
        from limelight import __version__

        typer.echo(f"limelight {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug",
            help="Show the traceback of an error, and the messages of other libraries.",
            callback=remember_debug,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Training-free grounding of Hugging Face multimodal LLMs: see where each word comes from, and improve grounding.

    Works with unmodified transformers models: images, audio and video in, text out, with the origin of each word.

    **Start here**

        limelight demo

        limelight generate demo-vision --image photo.png --prompt "Is there a cup in the picture?" --html out.html

        limelight models --check llava-hf/llava-1.5-7b-hf
    """


def _register() -> None:
    for name in COMMANDS:
        if importlib.util.find_spec(f"limelight.cli.{name}") is not None:
            app.command(name.replace("_", "-"))(getattr(importlib.import_module(f"limelight.cli.{name}"), name))


_register()

if __name__ == "__main__":
    app()
