"""Defaults of options from ``limelight.toml`` and from environment variables."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limelight.errors import SettingError

FILE = "limelight.toml"
VARIABLE, PREFIX = "LIMELIGHT_CONFIG", "LIMELIGHT_"
EVERY = "default"  # the table for all commands
Names = Mapping[str, Mapping[str, str]]  # command -> spelling of an option -> name of its parameter


def defaults(commands: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """Return command -> parameter -> default, from the configuration file and, above it, from environment variables.

    Args:
        commands: the commands of the program by name, with their ``params``.

    Raises:
        SettingError: the file cannot be read, or names an unknown command or option.
    """
    environ = os.environ if environ is None else environ
    names = {name: _spellings(command) for name, command in commands.items()}
    multiple = {(n, p.name) for n, c in commands.items() for p in c.params if getattr(p, "multiple", False)}
    path = config_file(environ)
    found = {name: dict[str, Any]() for name in commands}
    if path is not None:
        _apply(found, names, _read(path), path)
    for command, spelled in names.items():
        for variable in (PREFIX, f"{PREFIX}{command.upper()}_"):
            for option, parameter in spelled.items():
                if (value := environ.get(variable + option.upper())) is not None:
                    found[command][parameter] = [value] if (command, parameter) in multiple else value
    return {name: values for name, values in found.items() if values}


def config_file(environ: Mapping[str, str] | None = None) -> Path | None:
    """Return the configuration file: ``$LIMELIGHT_CONFIG``, else ``limelight.toml`` in this folder or the nearest above it,
    else the user's; None where there is none.

    Raises:
        SettingError: ``$LIMELIGHT_CONFIG`` names no file.
    """
    environ = os.environ if environ is None else environ
    if VARIABLE in environ:
        if not environ[VARIABLE]:
            return None
        path = Path(environ[VARIABLE]).expanduser()
        if not path.is_file():
            raise SettingError(
                f"there is no file {str(path)!r}", hint=f"{VARIABLE} names it; unset it, or create the file"
            )
        return path
    here = Path.cwd()
    home = Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "limelight" / FILE
    return next((p for p in (*(folder / FILE for folder in (here, *here.parents)), home) if p.is_file()), None)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise SettingError(
            f"cannot read {path}: {error}", hint=f"write TOML, or set {VARIABLE}= to ignore it"
        ) from error


def _apply(found: dict[str, dict[str, Any]], names: Names, tables: Mapping[str, Any], path: Path) -> None:
    for command, options in tables.items():
        if (command != EVERY and command not in names) or not isinstance(options, Mapping):
            raise SettingError(
                f"{path}: {command!r} is not a command", hint=f"one table each for {EVERY}, {', '.join(names)}"
            )
    for command in sorted(tables, key=lambda name: name != EVERY):  # a command's own table comes above the default
        for option, value in tables[command].items():
            spelled = option.replace("-", "_")
            takers = [n for n in (names if command == EVERY else (command,)) if spelled in names[n]]
            if not takers:
                raise SettingError(
                    f"{path}: [{command}] has no option {option!r}",
                    hint=f"see limelight {'' if command == EVERY else command} --help",
                )
            for taker in takers:
                found[taker][names[taker][spelled]] = value


def _spellings(command: Any) -> dict[str, str]:
    """Return how the options of a command may be spelled, without dashes in front."""
    out: dict[str, str] = {}
    for parameter in command.params:
        if parameter.param_type_name != "option" or parameter.name in ("help", "debug"):
            continue
        for spelled in parameter.opts:
            if spelled.startswith("--"):
                out[spelled[2:].replace("-", "_")] = parameter.name
    return out
