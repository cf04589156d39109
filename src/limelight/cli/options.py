"""Shared options of the commands, parsing of ``--set``, and checks before any long work."""

from __future__ import annotations

import ast
import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from limelight.errors import ModelError, SettingError, UnsupportedError

if TYPE_CHECKING:
    from limelight.decoding.strategy import Strategy

INPUT, OUTPUT, DECODING, LOADING = "Input", "Output", "Decoding", "Loading"


def remember_debug(context: typer.Context, value: bool) -> bool:
    """Accept ``--debug`` anywhere on the command line."""
    if context.parent is None:  # the program's own option is read first
        _debug[0] = False
    if value:
        context.find_root().meta["limelight.debug"] = _debug[0] = True
    return value


_debug = [False]


def debugging() -> bool:
    """Whether the command that runs was given ``--debug``."""
    return _debug[0]


ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A shipped miniature (demo-vision, demo-audio, demo-video), fetched weights (whisper-base, smol-vision), a checkpoint folder, or a Hub name.",
    ),
]
Images = Annotated[
    list[Path] | None,
    typer.Option(
        "--image", help="Image file, or a shipped one such as example:hat; repeat for several.", rich_help_panel=INPUT
    ),
]
Audios = Annotated[
    list[Path] | None,
    typer.Option(
        "--audio", help="Audio file, or a shipped one such as example:dog; repeat for several.", rich_help_panel=INPUT
    ),
]
Videos = Annotated[
    list[Path] | None, typer.Option("--video", help="Video file; repeat for several.", rich_help_panel=INPUT)
]
Frames = Annotated[
    int | None,
    typer.Option("--frames", min=1, help="Number of evenly spaced video frames; 8 by default.", rich_help_panel=INPUT),
]
PromptText = Annotated[str, typer.Option("--prompt", "-p", help="The prompt or question.", rich_help_panel=INPUT)]
StrategyName = Annotated[
    str,
    typer.Option("--strategy", "-s", help="Decoding strategy; see `limelight strategies`.", rich_help_panel=DECODING),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting of the strategy, key=value; repeat for several.", rich_help_panel=DECODING),
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Maximum length of the answer.", rich_help_panel=DECODING)]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document, and nothing else, to stdout.", rich_help_panel=OUTPUT)
]
Overlay = Annotated[
    Path | None,
    typer.Option(
        help="Draw one word's relevance over the image (or waveform, or frames) into this file: png, pdf, svg, jpg, webp.",
        rich_help_panel=OUTPUT,
    ),
]
WordChoice = Annotated[
    str | None,
    typer.Option(
        "--word",
        help="The word to draw: its text, or its number (1 is the first, -1 the last). "
        "By default the one with the largest share from the media.",
        rich_help_panel=OUTPUT,
    ),
]
Html = Annotated[
    Path | None,
    typer.Option("--html", help="Write one self-contained page with every word's heat map.", rich_help_panel=OUTPUT),
]
Debug = Annotated[
    bool,
    typer.Option(
        "--debug",
        help="Show the traceback of an error, and the messages of other libraries.",
        callback=remember_debug,
        is_eager=True,
    ),
]


@dataclass(frozen=True)
class Loading:
    """How a model is loaded: arguments of ``limelight.load``."""

    device: Annotated[
        str | None, typer.Option(help="Device, such as cpu, cuda or cuda:1.", rich_help_panel=LOADING)
    ] = None
    dtype: Annotated[
        str,
        typer.Option(
            help="Data type, such as float32 or bfloat16; the checkpoint's by default.", rich_help_panel=LOADING
        ),
    ] = "auto"
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a Hub name.", rich_help_panel=LOADING)
    ] = None
    device_map: Annotated[
        str | None,
        typer.Option(
            help="How to place the model's parts, such as auto; instead of --device.", rich_help_panel=LOADING
        ),
    ] = None
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code from the checkpoint.", rich_help_panel=LOADING)
    ] = False

    @property
    def given(self) -> dict[str, Any]:
        """The arguments of ``limelight.load``, without those that are None."""
        return {k: v for k, v in asdict(self).items() if v is not None}


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take groups of options: a parameter whose type is a dataclass becomes one option per field."""
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for parameter in inspect.signature(command).parameters.values():
        hint = hints[parameter.name]
        if not is_dataclass(hint):
            parameters.append(parameter.replace(annotation=hint))
            continue
        groups[parameter.name] = hint
        own = get_type_hints(hint, include_extras=True)
        parameters += [
            inspect.Parameter(f.name, parameter.kind, default=f.default, annotation=own[f.name]) for f in fields(hint)
        ]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        made = {name: group(**{f.name: values.pop(f.name) for f in fields(group)}) for name, group in groups.items()}
        command(**values, **made)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def media_of(
    image: Sequence[Path] | None, audio: Sequence[Path] | None, video: Sequence[Path] | None, frames: int | None = None
) -> dict[str, Any]:
    """Return files by modality in the form of ``Adapter.prepare``; videos are read to frames.

    Called before a model is loaded: a file that is missing or cannot be read should not cost the minutes of loading.

    Raises:
        SettingError: ``frames`` without a video.
        MediaError: a file is missing, or an image or video cannot be read.
        MissingExtraError: audio without ``limelight[audio]``.
    """
    from limelight.media.image import existing, read_image
    from limelight.media.video import FRAMES, read_video

    if frames is not None and not video:
        raise SettingError("--frames would have no effect", hint="add --video FILE, or omit it")
    from limelight.demo.example import resolved

    media: dict[str, Any] = {}
    if image:
        media["image"] = [str(resolved(p, "image")) for p in image]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # shown when the prompt is prepared
            for file in media["image"]:
                read_image(file)
    if audio:
        from limelight.media.audio import check_installed

        check_installed()
        media["audio"] = [str(existing(resolved(p, "audio"))) for p in audio]
    if video:
        media["video"] = [read_video(resolved(v, "video"), frames or FRAMES) for v in video]
    return media


def assignments(pairs: Sequence[str]) -> dict[str, Any]:
    """Parse ``["lr=1e-2", "layers=[0,1]"]`` to values: Python literals, ``none``, ``true``, ``false``, else text.

    Raises:
        SettingError: no equals sign, or a duplicate key.
    """
    out: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise SettingError(f"cannot read the setting {pair!r}", hint="write --set key=value, such as --set lr=1e-2")
        if key in out:
            raise SettingError(f"the setting {key!r} is given twice", hint="remove one of them")
        out[key] = literal(text.strip())
    return out


def literal(text: str) -> Any:
    named = {"none": None, "null": None, "true": True, "false": False}
    if text.lower() in named:
        return named[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return tuple(value) if isinstance(value, list) else value


def settings_of(factory: Any) -> dict[str, Any]:
    """Return the settings of a strategy's factory with their defaults (``inspect.Parameter.empty`` where none)."""
    return {
        name: parameter.default
        for name, parameter in inspect.signature(factory).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


def strategy_of(name: str, pairs: Sequence[str]) -> Strategy:
    """Create a strategy from ``--strategy``, which is NAME or NAME,key=value,..., and ``--set``.

    Raises:
        SettingError: unknown name or setting (with the nearest known one), or a value out of range.
    """
    from limelight.decoding.registry import strategies, strategy

    name, *beside = name.split(",")
    pairs = [*beside, *pairs]
    known = strategies()
    if name not in known:
        raise SettingError(f"unknown strategy {name!r}", hint=_nearest(name, known) + "see `limelight strategies`")
    given, allowed = assignments(pairs), {**settings_of(known[name]), "after": None}
    for key in given:
        if key not in allowed:
            listed = ", ".join(allowed) or "no settings"
            raise SettingError(f"{name} has no setting {key!r}", hint=_nearest(key, allowed) + f"{name} has {listed}")
    return strategy(name, **given)


def _nearest(wrong: str, known: Mapping[str, Any]) -> str:
    near = get_close_matches(wrong, list(known), n=1)
    return f"did you mean {near[0]}? " if near else ""


def sampling(
    sample: bool, temperature: float | None, top_p: float | None, seed: int | None, flag: str = "--sample"
) -> dict[str, Any]:
    """Build the generation arguments for sampling.

    Raises:
        SettingError: a sampling setting without ``--sample``, or out of range.
    """
    given = {"--temperature": temperature, "--top-p": top_p, "--seed": seed}
    idle = [name for name, value in given.items() if value is not None]
    if not sample:
        if idle:
            raise SettingError(f"{', '.join(idle)} would have no effect", hint=f"add {flag}, or omit it")
        return {}
    if temperature is not None and temperature <= 0:
        raise SettingError(f"--temperature must be above 0, got {temperature}", hint=f"omit {flag} for greedy decoding")
    if top_p is not None and not 0 < top_p <= 1:
        raise SettingError(f"--top-p must be in (0, 1], got {top_p}", hint="1 keeps every token")
    return {
        "do_sample": True,
        "temperature": 1.0 if temperature is None else temperature,
        "top_p": 1.0 if top_p is None else top_p,
        "top_k": 0,
        "seed": seed,
    }


@contextmanager
def metered(meter: bool) -> Iterator[None]:
    """Add a hint on ``--no-meter`` to errors of models without meter support."""
    try:
        yield
    except (ModelError, UnsupportedError) as error:
        if not meter:
            raise
        hint = "if the meter does not support this model, use --no-meter"
        raise type(error)(error.message, hint=f"{error.hint}; {hint}" if error.hint else hint) from error


def check_outputs(overlay: Path | None, html: Path | None, word: str | None) -> None:
    """Raise, before the model is loaded, when an output cannot be written or an option has no effect."""
    from limelight.report.figure import checked

    if overlay is not None:
        checked(overlay)
    if html is not None:
        checked(html, frozenset({".html", ".htm"}))
    if word is not None and overlay is None:
        raise SettingError("--word chooses what --overlay draws", hint="add --overlay out.png")


def public_name(model: str) -> str:
    """Return a model's name for clients: the id of a Hub checkpoint, or a folder's name without its path."""
    folder = Path(model).expanduser()
    if folder.is_dir() or folder.is_absolute():
        return folder.resolve().name or "model"
    return model
