"""The examples that ship with the miniatures, by name."""

from __future__ import annotations

from pathlib import Path

from limelight.errors import DataError

HERE = Path(__file__).parent
# name -> file; the questions are in the examples.json beside each.
EXAMPLES = {
    "hat": "vision/examples/E-wrong-000.png",
    "pig": "vision/examples/C-wrong-002.png",
    "fish": "vision/examples/adversarial-007.png",
    "pizza": "vision/examples/caption-003.png",
    "dog": "audio/examples/E-wrong-000.flac",
    "cow": "audio/examples/E-wrong-002.flac",
    "clock": "audio/examples/C-wrong-020.flac",
}
PREFIX = "example:"


def example(name: str) -> Path:
    """Return the file of an example that ships with the miniatures: an image (``hat``, ``pig``, ``fish``, ``pizza``) for
    ``demo-vision``, or a recording (``dog``, ``cow``, ``clock``) for ``demo-audio``.

    On the command line, ``--image example:hat`` and ``--audio example:dog`` name the same files.

    Raises:
        DataError: there is no such example.

    Example:
        >>> import limelight
        >>> limelight.example("hat").suffix
        '.png'
    """
    if name not in EXAMPLES:
        raise DataError(f"there is no example {name!r}", hint=f"one of {', '.join(EXAMPLES)}")
    return HERE / EXAMPLES[name]


def resolved(file: str | Path) -> Path:
    """Return the path of a file given on the command line, where ``example:hat`` names an example.

    Raises:
        DataError: there is no such example.
    """
    text = str(file)
    return example(text.removeprefix(PREFIX)) if text.startswith(PREFIX) else Path(file)
