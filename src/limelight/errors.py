"""Every error the library raises on purpose.

    LimelightError
    ├── InputError                what was handed in cannot be used
    │   ├── MediaError            a picture, sound or video is missing, corrupt, too large or of the wrong kind
    │   ├── PromptError           the prompt is empty, or its placeholders do not match the media
    │   └── SettingError          a setting is out of range, or two settings exclude each other
    ├── ModelError                the model cannot be worked on
    │   ├── NotMultimodalError    no perceptual placeholder tokens could be found in model or processor
    │   ├── UnknownKindError      a norm, MLP, activation or attention of a kind no rule covers
    │   ├── HookError             something that had to be attached did not bind
    │   ├── NotFiniteError        NaN or infinity in weights, logits or relevance
    │   └── NotDifferentiableError  no gradient can pass (quantised layers, inference tensors)
    ├── UnsupportedError          a combination that has no meaning or no implementation (beams, a cache kind)
    ├── IncompatibleError         an installed release of transformers, torch or accelerate lacks what is needed
    ├── DataError                 a benchmark's files are missing or malformed
    └── MissingExtraError         an optional dependency is not installed

Each carries ``hint``: what to do next, in one sentence. ``str(error)`` shows message and hint.

Warnings are for what was done and may not be what was meant:

    LimelightWarning
    └── MediaWarning              a picture, sound or video was taken otherwise than as a whole
"""

from __future__ import annotations


class LimelightError(Exception):
    """Base of the tree. ``hint`` says what to do next."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class InputError(LimelightError):
    """What was handed in cannot be used."""


class MediaError(InputError):
    """A picture, sound or video is missing, corrupt, too large or of the wrong kind."""


class PromptError(InputError):
    """The prompt is empty, or its placeholders do not match the media."""


class SettingError(InputError, ValueError):
    """A setting is out of range, or two settings exclude each other."""


class ModelError(LimelightError):
    """The model cannot be worked on."""


class NotMultimodalError(ModelError):
    """No perceptual placeholder tokens could be found in model or processor."""


class UnknownKindError(ModelError):
    """A norm, MLP, activation or attention of a kind no rule covers."""


class HookError(ModelError):
    """Something that had to be attached did not bind."""


class NotFiniteError(ModelError):
    """NaN or infinity in weights, logits or relevance."""


class NotDifferentiableError(ModelError):
    """No gradient can pass (quantised layers, inference tensors)."""


class UnsupportedError(LimelightError):
    """A combination that has no meaning or no implementation here."""


class IncompatibleError(LimelightError):
    """An installed release of transformers, torch or accelerate lacks something private that is relied on."""


class DataError(LimelightError):
    """A benchmark's files are missing or malformed."""


class MissingExtraError(LimelightError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"this needs the package {package!r}, which is not installed",
            hint=f"pip install 'limelight[{extra}]'",
        )


class LimelightWarning(UserWarning):
    """Base of the library's warnings: the work was done, and something about it should be known."""


class MediaWarning(LimelightWarning):
    """A file that is cut short, of which only the first picture is looked at, or whose values had to be guessed."""
