"""``limelight strategies``: the decoding strategies and their settings."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from typing import Any

from limelight.cli import options


def strategies(as_json: options.AsJson = False, debug: options.Debug = False) -> None:
    """List the decoding strategies, each with its settings and their defaults.

    Every strategy also accepts after=TEXT (or a token id): it intervenes only after that text has been generated, such as
    after=</think> for a reasoning model.

    A setting with default none uses the model family's value from the paper's table (see `limelight models`).

    **Examples**

        limelight strategies

        limelight generate demo-vision --image photo.png -p "Is there a cup?" --strategy lime --set lr=1e-2 --set steps=4
    """
    from limelight.cli import output, terminal
    from limelight.decoding.registry import strategies as known
    from limelight.decoding.strategy import capabilities_of

    rows = {name: (first_paragraph(factory), options.settings_of(factory)) for name, factory in known().items()}
    if as_json:
        output.print_json(
            {
                n: {
                    "about": a,
                    "settings": {k: _default(v) for k, v in s.items()},
                    "capabilities": asdict(capabilities_of(known()[n]())),
                }
                for n, (a, s) in rows.items()
            }
        )
        return
    for name, (about, settings) in rows.items():
        terminal.out.print(f"[bold]{name}[/]  {about}")
        listed = "  ".join(f"{k}={_spelled(v)}" for k, v in settings.items())
        if listed:
            terminal.out.print(f"    {listed}", markup=False)
        terminal.out.print(f"    [dim]{', '.join(_spoken(capabilities_of(known()[name]())))}[/]")


def first_paragraph(factory: Any) -> str:
    """Return the first paragraph of a factory's docstring."""
    return " ".join((inspect.getdoc(factory) or "").split("\n\n")[0].split()).replace("``", "")


def _spoken(claimed: Any) -> list[str]:
    """Describe capabilities in words."""
    words = {
        "works in batches": claimed.batches,
        "needs media": claimed.needs_media,
        "needs gradients": claimed.gradients,
        "runs a second prompt": claimed.second_prompt,
        "continues from a filled cache": claimed.continues_cache,
        "supports the meter": bool(claimed.meter),
        "supports beam search": claimed.beams,
    }
    return [text for text, true in words.items() if true]


def _default(value: Any) -> Any:
    from limelight.cli.terminal import plain_value

    return None if value is inspect.Parameter.empty else plain_value(value)


def _spelled(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return "(needed)"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
