"""python -m tools.cli_page: generate docs/cli.md from the commands' help; a test checks that it is up to date."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, get_args

from typer.main import get_command

from limelight.cli.main import app

TARGET = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
HEAD = """# The command line

Written by `python -m tools.cli_page` from what `limelight COMMAND --help` says; a test keeps the two in step.
Answers go to stdout, all else to stderr; an error of the library is a message with a hint and exit code 2 (`--debug`
shows its traceback).
"""


def page() -> str:
    """Return the page as Markdown."""
    commands: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    return HEAD + "".join(_section(name, command) for name, command in commands.items())


def _section(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    usage = " ".join(["limelight", name, "[OPTIONS]", *(_named(a) for a in arguments)])
    parts = [f"\n## limelight {name}\n", f"    {usage}\n", _text(command.help) + "\n"]
    panels: dict[str, list[str]] = {}
    for option in command.params:
        told = option.help or ""
        if option.param_type_name == "argument":
            panels.setdefault("Arguments", []).append(f"- `{_named(option)}`: {told}{_default(option)}")
            continue
        spelled = ", ".join([*option.opts, *option.secondary_opts])
        takes = "" if option.is_flag else f" {_takes(option)}"
        row = f"- `{spelled}{takes}`: {told}{_default(option)}".rstrip(": ")
        panels.setdefault(getattr(option, "rich_help_panel", None) or "Options", []).append(row)
    for panel, rows in panels.items():
        parts.append(f"**{panel}**\n\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _text(told: str | None) -> str:
    return inspect.cleandoc(told or "").replace("\b\n", "")


def _named(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    return name if argument.required else f"[{name}]"


def _takes(option: Any) -> str:
    """Return an option's type (TEXT, INTEGER ...) from its annotation, also inside list[...] and X | None."""
    kind = option.type_descriptor.annotation
    kind = next((a for a in get_args(kind) if a is not type(None)), kind)
    return option.metavar or {str: "TEXT", int: "INTEGER", float: "FLOAT", Path: "PATH"}.get(kind, str(kind).upper())


def _default(option: Any) -> str:
    value = option.default
    if (
        value in (None, False, "", ())
        or value == []
        or option.required
        or callable(value)
        or "Sentinel" in type(value).__name__
    ):
        return ""
    if getattr(option, "is_flag", False):
        return " (on unless turned off)" if option.secondary_opts else ""
    return f" [default: {value}]"


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
