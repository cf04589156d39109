"""The examples that ship with the miniatures, by name."""

from __future__ import annotations

from pathlib import Path

from limelight.errors import DataError
from limelight.media.image import kind_of

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
    "pizza-film": "video/examples/what-E-wrong-006.mp4",
    "frog-film": "video/examples/what-E-wrong-004.mp4",
    "hat-film": "video/examples/when-E-wrong-005.mp4",
    "tree-film": "video/examples/order-E-wrong-000.mp4",
}
PREFIX = "example:"


def example(name: str) -> Path:
    """Return the file of an example that ships with the miniatures: an image (``hat``, ``pig``, ``fish``, ``pizza``) for
    ``demo-vision``, a recording (``dog``, ``cow``, ``clock``) for ``demo-audio``, or a film (``pizza-film``, ``frog-film``,
    ``hat-film``, ``tree-film``) for ``demo-video``.

    On the command line, ``--image example:hat``, ``--audio example:dog`` and ``--video example:pizza-film`` name the same files.

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


def resolved(file: str | Path, kind: str | None = None) -> Path:
    """Return the path of a file given on the command line, where ``example:hat`` names an example.

    Args:
        kind: image, audio or video: the kind of example that is expected; None: any.

    Raises:
        DataError: there is no such example, or it is of another kind.
    """
    text = str(file)
    if not text.startswith(PREFIX):
        return Path(file)
    found = example(text.removeprefix(PREFIX))
    if kind is not None and (own := kind_of(str(found))) != kind:
        fitting = [PREFIX + name for name, path in EXAMPLES.items() if kind_of(path) == kind]
        raise DataError(
            f"{text} is {own}, expected {kind}",
            hint=f"one of {', '.join(fitting)}" if fitting else f"pass a {kind} file",
        )
    return found
