"""The exceptions and warnings of the library.

    LimelightError
    ├── InputError                the input cannot be used
    │   ├── MediaError            an image, audio or video is missing, corrupt, too large or of the wrong kind
    │   ├── PromptError           the prompt is empty, or its placeholders do not match the media
    │   └── SettingError          a setting is out of range, or two settings exclude each other
    ├── ModelError                the model cannot be used
    │   ├── NotMultimodalError    no media placeholder tokens could be found in model or processor
    │   ├── UnknownKindError      a norm, MLP, activation or attention without a relevance rule
    │   ├── HookError             a required hook could not be attached
    │   ├── NotFiniteError        NaN or infinity in weights, logits or relevance
    │   └── NotDifferentiableError  gradients cannot be computed (quantised layers, inference tensors)
    ├── UnsupportedError          an unsupported combination (beams, a cache type)
    ├── IncompatibleError         the installed transformers, torch or accelerate lacks a required feature
    ├── DataError                 a benchmark's files are missing or malformed
    └── MissingExtraError         an optional dependency is not installed

Each has a ``hint``: what to do next, in one sentence. ``str(error)`` shows message and hint.

Warnings report results that may not be what was intended:

    LimelightWarning
    ├── MediaWarning              an image, audio or video was not used completely or unchanged
    └── LimelightDeprecationWarning  a public name or setting that will go; names its successor
"""

from __future__ import annotations


class LimelightError(Exception):
    """Base class of all errors. ``hint`` says what to do next."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class InputError(LimelightError):
    """The input cannot be used."""


class MediaError(InputError):
    """An image, audio or video is missing, corrupt, too large or of the wrong kind."""


class PromptError(InputError):
    """The prompt is empty, or its placeholders do not match the media."""


class SettingError(InputError, ValueError):
    """A setting is out of range, or two settings exclude each other."""


class ModelError(LimelightError):
    """The model cannot be used."""


class NotMultimodalError(ModelError):
    """No media placeholder tokens could be found in model or processor."""


class UnknownKindError(ModelError):
    """A norm, MLP, activation or attention without a relevance rule."""


class HookError(ModelError):
    """A required hook could not be attached."""


class NotFiniteError(ModelError):
    """NaN or infinity in weights, logits or relevance."""


class NotDifferentiableError(ModelError):
    """Gradients cannot be computed (quantised layers, inference tensors)."""


class UnsupportedError(LimelightError):
    """An unsupported combination."""


class IncompatibleError(LimelightError):
    """The installed transformers, torch or accelerate lacks a private feature that the library relies on."""


class DataError(LimelightError):
    """A benchmark's files are missing or malformed."""


class MissingExtraError(LimelightError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"the package {package!r} is required but not installed",
            hint=f"pip install 'limelight[{extra}]'",
        )


class LimelightWarning(UserWarning):
    """Base class of the library's warnings: the operation succeeded with a caveat."""


class MediaWarning(LimelightWarning):
    """A file is truncated, only its first image is used, or its value range had to be guessed."""


class LimelightDeprecationWarning(LimelightWarning, FutureWarning):
    """A public name or setting that keeps working for at least one minor release; the message names its successor."""
