"""Reading audio with soundfile, or PyAV where it cannot (m4a, the audio of a video); mono, resampled by soxr."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from limelight.errors import LimelightError, MediaError, MediaWarning, MissingExtraError
from limelight.media.container import contained
from limelight.media.image import IMAGE_SUFFIXES, MAX_SECONDS, VIDEO_SUFFIXES, kind_of, opened, unwrapped
from limelight.media.pixels import is_tensor

Samples = npt.NDArray[np.float32]
MAX_CHANNELS = 64
LOUDEST = 64.0  # floats beyond it are unscaled integers
CANCELLED = 0.01  # the channels cancel each other where their mean has less than this share of their power
TOLERANCE_SECONDS, TOLERANCE = 0.5, 0.02  # tolerated shortfall against the header before a file counts as truncated
BLOCK, UNKNOWN = 1 << 20, 1 << 62  # frames per read; libsndfile's value for an unknown length
ENDLESS = 0x7FFF_0000  # sizes that programs write when the length is not known in advance


def read_audio(
    source: Any,
    rate: int,
    *,
    max_seconds: float = MAX_SECONDS,
) -> Samples:
    """Read mono float32 samples ``[n]`` at ``rate`` Hz from a file, its bytes, ``(samples, rate)``, or samples at ``rate``.

    Also from ``{"array": ..., "sampling_rate": ...}`` and ``{"bytes": ..., "path": ...}``, as in Hugging Face datasets.
    Samples: see :func:`mono`. A file shorter than its header declares is read as far as it goes, with a
    :class:`MediaWarning`.

    Raises:
        MediaError: missing, not audio, empty, too long, or not finite.
        MissingExtraError: soundfile or soxr is not installed (``limelight[audio]``).
    """
    samples, found = read_samples(source, rate, max_seconds=max_seconds)
    return resampled(samples, found, rate)


def read_samples(
    source: Any,
    rate: int | None = None,
    *,
    max_seconds: float = MAX_SECONDS,
    max_samples: int | None = None,
    max_channels: int = MAX_CHANNELS,
    rates: tuple[int, int] | None = None,
    formats: Mapping[str, Sequence[str]] | None = None,
    format: str | None = None,
) -> tuple[Samples, int]:
    """Read mono samples at their native rate, and return that rate too; otherwise like :func:`read_audio`.

    Args:
        rate: assumed for samples that come without one.
        max_samples: over all channels. ``rates``: minimum and maximum.
        formats: the allowed formats: a name, and libsndfile's names for it; PyAV is then not used. ``format``: the
            format that the file must have.
    """
    if isinstance(source, Mapping):
        if source.get("array") is not None:
            source = (source["array"], source.get("sampling_rate", rate))
        else:
            source = unwrapped(source)
    if isinstance(source, tuple) and len(source) == 2:
        samples, found = mono(source[0]), _rate(source[1])
    elif isinstance(source, (np.ndarray, list)) or is_tensor(source):
        samples, found = mono(source), _rate(rate)
    else:
        file, name = opened(source)
        reader = _Reader(file, name, max_seconds, max_samples, max_channels, rates, formats, format)
        read, found = reader.read()
        samples = mono(read)
    _check_length(samples.size / found, max_seconds, "the audio")
    return samples, found


def check_installed() -> None:
    """Raise MissingExtraError where the packages of ``limelight[audio]`` are not installed."""
    for package in ("soundfile", "soxr"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "audio")


def resampled(samples: Samples, found: int, rate: int) -> Samples:
    """Resample mono samples to another rate.

    Raises:
        MediaError: no sample is left. MissingExtraError: soxr is not installed.
    """
    if found == rate:
        return samples
    try:
        import soxr
    except ImportError as error:
        raise MissingExtraError("soxr", "audio") from error
    samples = soxr.resample(samples, found, rate).astype(np.float32)
    if not samples.size:
        raise MediaError(f"no audio is left after resampling to {rate} Hz", hint="pass a longer audio clip")
    return samples


def mono(source: Any) -> Samples:
    """Convert samples ``[n]``, or with channels on the shorter of two axes, to mono float32 (the mean of the channels).

    Integers are PCM: full scale becomes 1; wider integers whose peak fits 16 bits (for int64: 16, 24 or 32 bits) are
    scaled by that width. Channels that cancel each other (the mean has less than a hundredth of their power) are not
    averaged: only the loudest is used, with a :class:`MediaWarning`.

    Raises:
        MediaError: empty, of another shape, not numeric, NaN or infinity, or floats far beyond -1..1.
    """
    if is_tensor(source):
        source = source.detach().cpu()
        source = (source.float() if source.is_floating_point() else source).numpy()
    try:
        samples = _as_float(np.asarray(source))
    except ValueError as error:  # rows of unequal length
        raise MediaError(
            f"the audio is not an array of samples: {error}", hint="expected [samples] or [samples, channels]"
        ) from error
    if not samples.size or samples.ndim not in (1, 2) or (samples.ndim == 2 and min(samples.shape) > MAX_CHANNELS):
        raise MediaError(
            f"the audio is empty or has shape {samples.shape}", hint="expected [samples] or [samples, channels]"
        )
    if not np.isfinite(samples).all():
        raise MediaError("the audio contains NaN or infinity", hint="export it again")
    if (peak := float(np.abs(samples).max())) > LOUDEST:
        raise MediaError(
            f"the samples are floats that reach {peak:g}, expected -1..1",
            hint="divide by full scale (32768 for 16 bits), or pass the integers",
        )
    if samples.ndim == 1:
        return samples
    channels = samples if samples.shape[0] < samples.shape[1] else samples.T
    mixed: Samples = channels.mean(axis=0, dtype=np.float32)
    power = [float(np.square(c, dtype=np.float64).mean()) for c in channels]
    if (
        len(channels) > 1
        and float(np.square(mixed, dtype=np.float64).mean()) < CANCELLED * sum(power) / len(power) ** 2
    ):
        warnings.warn(
            "the channels of the audio cancel each other: only the loudest is used", MediaWarning, stacklevel=3
        )
        first = next(i for i, p in enumerate(power) if p >= 0.99 * max(power))
        return np.ascontiguousarray(channels[first])
    return mixed


def _rate(value: Any) -> int:
    try:
        rate = int(value)
    except (TypeError, ValueError, OverflowError):
        rate = 0
    if rate <= 0:
        raise MediaError(f"a sampling rate of {value} Hz is not valid", hint="pass (samples, rate) with the true rate")
    return rate


def _as_float(samples: npt.NDArray[Any]) -> Samples:
    if samples.dtype.kind in "iu":
        bits = 8 * samples.dtype.itemsize
        if bits > 16 and samples.size:
            peak = max(int(samples.max()), -int(samples.min()) - 1)
            fits = [b for b in (16, 24, 32) if peak < 2 ** (b - 1)] if bits > 32 else [16] * (peak < 2**15)
            bits = fits[0] if fits else bits
        half = 2.0 ** (bits - 1)
        offset = half if samples.dtype.kind == "u" and bits == 8 * samples.dtype.itemsize else 0.0
        return ((samples.astype(np.float64) - offset) / half).astype(np.float32)
    if samples.dtype.kind not in "fb":
        raise MediaError(
            f"samples of type {samples.dtype} are not audio", hint="pass floats in -1..1, or integers (PCM)"
        )
    return samples.astype(np.float32)


def _check_length(seconds: float, most: float, name: str) -> None:
    if seconds > most:
        raise MediaError(
            f"{name} lasts {seconds:.0f} s, the limit is {most:.0f} s",
            hint="split it into pieces (`limelight transcribe` does this automatically)",
        )


@dataclass(frozen=True)
class _Reader:
    """Reader of one audio file with the formats and limits allowed for it."""

    file: Path | io.BytesIO
    name: str
    max_seconds: float
    max_samples: int | None
    max_channels: int
    rates: tuple[int, int] | None
    formats: Mapping[str, Sequence[str]] | None
    format: str | None

    def read(self) -> tuple[npt.NDArray[Any], int]:
        """Return samples ``[n]`` or ``[n, channels]``, and their rate."""
        suffix = self.file.suffix.lower() if isinstance(self.file, Path) else ""
        if suffix in IMAGE_SUFFIXES:
            raise MediaError(f"{self.name} is {kind_of(self.name)}, expected audio", hint="pass it as --image")
        if suffix in VIDEO_SUFFIXES:
            return self._by_av(None)
        try:
            import soundfile
        except ImportError as error:
            raise MissingExtraError("soundfile", "audio") from error
        try:
            return self._by_soundfile(soundfile)
        except (LimelightError, MediaWarning, MemoryError):
            raise
        except Exception as error:  # decoders raise any kind of exception on bad input
            if self.formats is not None:
                kinds = self.format or ", ".join(self.formats)
                raise MediaError(f"the audio cannot be read as {kinds}", hint="convert it to WAV") from error
            return self._by_av(error)

    def _by_soundfile(self, soundfile: Any) -> tuple[npt.NDArray[Any], int]:
        with soundfile.SoundFile(str(self.file) if isinstance(self.file, Path) else self.file) as file:
            rate, channels = int(file.samplerate), int(file.channels)
            self._check_format(str(file.format), rate, channels)
            most = int(self.max_seconds * rate)
            if self.max_samples is not None:
                most = min(most, self.max_samples // channels)
            if file.frames > most and self.formats is None:
                _check_length(file.frames / rate, self.max_seconds, self.name)
            declared = int(file.frames) if file.frames < UNKNOWN else 0
            parts, left = [], most + 1
            while left > 0 and len(block := file.read(frames=min(left, BLOCK), dtype="float32", always_2d=True)):
                parts.append(block)  # in blocks: memory grows with the data present, not with what the header declares
                left -= len(block)
        samples = np.concatenate(parts) if parts else np.zeros((0, channels), np.float32)
        if len(samples) > most:
            raise MediaError(f"the audio lasts more than {most / rate:.0f} s", hint="split it into pieces")
        if len(samples):
            self._check_complete(len(samples) / rate, max(declared, frames_declared(self.file) or 0) / rate)
        return samples, rate

    def _check_format(self, found: str, rate: int, channels: int) -> None:
        if self.formats is not None:
            if self.format is None and found not in sum(map(tuple, self.formats.values()), ()):
                raise MediaError(f"audio format {found} is not accepted", hint=f"one of {', '.join(self.formats)}")
            if self.format is not None and found not in self.formats[self.format]:
                raise MediaError(
                    f"the audio is {found} but was declared as {self.format}", hint="declare its actual format"
                )
        low, high = self.rates or (1, 2**31)
        if not low <= rate <= high or not 1 <= channels <= self.max_channels:
            raise MediaError(
                f"{rate} Hz with {channels} channels is not accepted",
                hint=f"{low} to {high} Hz and at most {self.max_channels} channels",
            )

    def _check_complete(self, seconds: float, declared: float) -> None:
        if declared - seconds > min(TOLERANCE_SECONDS, TOLERANCE * declared):
            warnings.warn(
                f"{self.name} is truncated: {seconds:.2f} s of {declared:.2f} s are present", MediaWarning, stacklevel=6
            )

    def _by_av(self, refused: Exception | None) -> tuple[npt.NDArray[Any], int]:
        """Return samples ``[n, channels]`` of a file's first audio stream; ``refused`` is soundfile's error."""
        reason = f": {refused}" if refused is not None else ""
        try:
            import av
        except ImportError as error:
            if refused is None:
                raise MissingExtraError("av", "video") from error
            raise MediaError(
                f"{self.name} is not audio that soundfile can read{reason}",
                hint="convert it to WAV or FLAC, or pip install 'limelight[video]', whose PyAV reads more formats",
            ) from refused
        parts: list[npt.NDArray[Any]] = []
        rate, count = 1, 0
        try:
            with contained(av, self.file) as container:
                if not container.streams.audio:
                    raise MediaError(f"{self.name} has no audio stream", hint="check the file in a player")
                stream = container.streams.audio[0]
                declared = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
                _check_length((container.duration or 0) / 1e6, self.max_seconds, self.name)
                as_float = av.AudioResampler(format="fltp")
                rate = int(stream.rate)
                for frame in container.decode(stream):
                    for piece in as_float.resample(frame):
                        parts.append(piece.to_ndarray())
                        count += parts[-1].shape[-1]
                    _check_length(count / rate, self.max_seconds, self.name)
        except (LimelightError, MediaWarning, MemoryError):
            raise
        except Exception as error:  # see read
            if not parts:
                raise MediaError(
                    f"{self.name} cannot be read as audio: {error}{reason}", hint="convert it to WAV or FLAC"
                ) from error
            raise MediaError(
                f"{self.name} is corrupt after {count / rate:.1f} s: {error}",
                hint="download the file again, or re-encode it",
            ) from error
        if not parts:
            raise MediaError(f"the audio of {self.name} is empty", hint="check the file in a player")
        if declared - count / rate > TOLERANCE_SECONDS:  # containers round, and codecs drop their first samples
            self._check_complete(count / rate, declared)
        return np.concatenate(parts, axis=-1).T.astype(np.float32), rate


def frames_declared(file: Path | io.BytesIO) -> int | None:
    """Samples per channel declared by the header of a RIFF WAV file; None where unknown (libsndfile corrects it).

    Programs that do not know the length in advance write a size of zero or close to the maximum.
    """
    if isinstance(file, Path):
        with file.open("rb") as handle:
            return _wav_frames(handle.read(65_536))
    return _wav_frames(bytes(file.getbuffer()[:65_536]))


def _wav_frames(head: bytes) -> int | None:
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return None
    at, block = 12, 0
    while at + 8 <= len(head):
        name, size = head[at : at + 4], int.from_bytes(head[at + 4 : at + 8], "little")
        if name == b"fmt " and int.from_bytes(head[at + 8 : at + 10], "little") in (1, 3, 6, 7, 0xFFFE):
            block = int.from_bytes(head[at + 20 : at + 22], "little")
        if name == b"data":
            return size // block if block and 0 < size < ENDLESS else None
        at += 8 + size + size % 2
    return None
