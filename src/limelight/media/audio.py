"""Reading sound: soundfile first, PyAV for what it cannot read (m4a, the sound of a video); mono, resampled by soxr."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from limelight.errors import MediaError, MissingExtraError
from limelight.media.image import IMAGE_SUFFIXES, MAX_SECONDS, VIDEO_SUFFIXES, existing, kind_of

Samples = npt.NDArray[np.float32]
MAX_CHANNELS = 64


def read_audio(source: Any, rate: int, *, max_seconds: float = MAX_SECONDS) -> Samples:
    """Mono float32 samples ``[n]`` at ``rate`` Hz, from a file, ``(samples, rate)``, or samples at ``rate`` already.

    Samples are ``[n]`` or have channels on one of two axes (the shorter one), which are averaged. Integers are taken as
    PCM: full scale becomes 1.

    Raises:
        MediaError: missing, not sound, empty, too long, or not finite.
        MissingExtraError: soundfile or soxr is not installed (``limelight[audio]``).
    """
    if isinstance(source, tuple) and len(source) == 2:
        samples, found = _as_float(np.asarray(source[0])), int(source[1])
    elif isinstance(source, np.ndarray):
        samples, found = _as_float(source), rate
    else:
        samples, found = _decode(existing(source), max_seconds)
    if found <= 0:
        raise MediaError(
            f"a sampling rate of {found} Hz makes no sense", hint="pass (samples, rate) with the true rate"
        )
    if samples.ndim == 2 and samples.size and min(samples.shape) <= MAX_CHANNELS:
        samples = samples.mean(axis=0 if samples.shape[0] < samples.shape[1] else 1)
    if samples.ndim != 1 or samples.size == 0:
        raise MediaError(
            f"the sound is empty or has shape {samples.shape}", hint="expected [samples] or [samples, channels]"
        )
    if not np.isfinite(samples).all():
        raise MediaError("the sound holds NaN or infinity", hint="export it again")
    _check_length(samples.size / found, max_seconds, "the sound")
    if found != rate:
        try:
            import soxr
        except ImportError as error:
            raise MissingExtraError("soxr", "audio") from error
        samples = soxr.resample(samples, found, rate).astype(np.float32)
        if not samples.size:
            raise MediaError(f"nothing of the sound is left at {rate} Hz", hint="pass a longer sound")
    return samples


def _as_float(samples: npt.NDArray[Any]) -> Samples:
    if samples.dtype.kind in "iu":
        half = 2.0 ** (8 * samples.dtype.itemsize - 1)
        return ((samples.astype(np.float64) - (half if samples.dtype.kind == "u" else 0.0)) / half).astype(np.float32)
    if samples.dtype.kind not in "fb":
        raise MediaError(
            f"samples of type {samples.dtype} are no sound", hint="pass floats in -1..1, or integers (PCM)"
        )
    return samples.astype(np.float32)


def _check_length(seconds: float, most: float, name: str) -> None:
    if seconds > most:
        raise MediaError(
            f"{name} lasts {seconds:.0f} s, the limit is {most:.0f} s",
            hint="cut it into pieces (`limelight transcribe` does so by itself)",
        )


def _decode(path: Path, max_seconds: float) -> tuple[Samples, int]:
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise MediaError(f"{path.name} is {kind_of(path)}, expected sound", hint="pass it as --image")
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return _decode_by_av(path, max_seconds, None)
    try:
        import soundfile
    except ImportError as error:
        raise MissingExtraError("soundfile", "audio") from error
    try:
        _check_length(soundfile.info(str(path)).duration, max_seconds, path.name)
        samples, rate = soundfile.read(str(path), dtype="float32", always_2d=False)
    except soundfile.SoundFileError as error:
        return _decode_by_av(path, max_seconds, error)
    return samples, int(rate)


def _decode_by_av(path: Path, max_seconds: float, refused: Exception | None) -> tuple[Samples, int]:
    """Samples ``[n, channels]`` of the first sound stream of a file; ``refused`` is what soundfile said of it."""
    said = f": {refused}" if refused is not None else ""
    try:
        import av
    except ImportError as error:
        if refused is None:
            raise MissingExtraError("av", "video") from error
        raise MediaError(
            f"{path.name} is not sound that soundfile can read{said}",
            hint="convert it to WAV or FLAC, or pip install 'limelight[video]', whose PyAV reads more formats",
        ) from refused
    parts: list[npt.NDArray[Any]] = []
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise MediaError(f"{path.name} has no sound in it", hint="check the file in a player")
            stream = container.streams.audio[0]
            _check_length((container.duration or 0) / 1e6, max_seconds, path.name)
            as_float = av.AudioResampler(format="fltp")
            rate, count = int(stream.rate), 0
            for frame in container.decode(stream):
                for piece in as_float.resample(frame):
                    parts.append(piece.to_ndarray())
                    count += parts[-1].shape[-1]
                _check_length(count / rate, max_seconds, path.name)
    except (av.FFmpegError, ValueError) as error:
        if not parts:
            raise MediaError(
                f"{path.name} is not sound that can be read: {error}{said}", hint="convert it to WAV or FLAC"
            ) from error
        raise MediaError(
            f"{path.name} breaks off after {count / rate:.1f} s: {error}", hint="get the file again, or re-encode it"
        ) from error
    if not parts:
        raise MediaError(f"the sound of {path.name} is empty", hint="check the file in a player")
    return np.concatenate(parts, axis=-1).T.astype(np.float32), rate
