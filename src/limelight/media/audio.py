"""Reading sound: soundfile first, PyAV for what it cannot read (m4a, the sound of a video); mono, resampled by soxr."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
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
LOUDEST = 64.0  # floats beyond it are integers that nobody scaled
CANCELLED = 0.01  # the mean of the channels holds less than this part of their power: they cancel one another
SLACK_SECONDS, SLACK = 0.5, 0.02  # how much less than a header says is no sign of a file cut short
BLOCK, UNKNOWN = 1 << 20, 1 << 62  # frames read at once; libsndfile's word for a length that it cannot tell
ENDLESS = 0x7FFF_0000  # sizes that programs write when they do not know how long a sound will be


def read_audio(
    source: Any,
    rate: int,
    *,
    max_seconds: float = MAX_SECONDS,
) -> Samples:
    """Mono float32 samples ``[n]`` at ``rate`` Hz, from a file, a file's bytes, ``(samples, rate)``, or samples at ``rate``.

    Also ``{"array": ..., "sampling_rate": ...}`` and ``{"bytes": ..., "path": ...}``, as Hugging Face's datasets have
    them. Samples: see :func:`mono`. A file that ends before its header says gives what is there, with a
    :class:`MediaWarning`.

    Raises:
        MediaError: missing, not sound, empty, too long, or not finite.
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
    """Mono samples at the rate they have, and that rate; for the rest see :func:`read_audio`.

    Args:
        rate: of samples that come without one.
        max_samples: all channels together. ``rates``: least and greatest.
        formats: what may be read: a name, and libsndfile's names of it; then nothing is read by PyAV. ``format``: the
            name that it must have.
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
    _check_length(samples.size / found, max_seconds, "the sound")
    return samples, found


def resampled(samples: Samples, found: int, rate: int) -> Samples:
    """Mono samples at another rate.

    Raises:
        MediaError: nothing is left. MissingExtraError: soxr is not installed.
    """
    if found == rate:
        return samples
    try:
        import soxr
    except ImportError as error:
        raise MissingExtraError("soxr", "audio") from error
    samples = soxr.resample(samples, found, rate).astype(np.float32)
    if not samples.size:
        raise MediaError(f"nothing of the sound is left at {rate} Hz", hint="pass a longer sound")
    return samples


def mono(source: Any) -> Samples:
    """Samples ``[n]``, or of channels on one of two axes (the shorter one), as their mean in float32.

    Integers are PCM: full scale becomes 1; those of more than 16 bits whose peak fits 16 bits (or, of int64, 24 or 32 bits) are
    taken as such. Channels that cancel one another (the mean holds less than a hundredth of their power) are not averaged:
    the loudest alone is taken, with a :class:`MediaWarning`.

    Raises:
        MediaError: empty, of another shape, not numbers, NaN or infinity, or floats far beyond -1..1.
    """
    if is_tensor(source):
        source = source.detach().cpu()
        source = (source.float() if source.is_floating_point() else source).numpy()
    try:
        samples = _as_float(np.asarray(source))
    except ValueError as error:  # rows of unequal length
        raise MediaError(
            f"the sound is no array of samples: {error}", hint="expected [samples] or [samples, channels]"
        ) from error
    if not samples.size or samples.ndim not in (1, 2) or (samples.ndim == 2 and min(samples.shape) > MAX_CHANNELS):
        raise MediaError(
            f"the sound is empty or has shape {samples.shape}", hint="expected [samples] or [samples, channels]"
        )
    if not np.isfinite(samples).all():
        raise MediaError("the sound holds NaN or infinity", hint="export it again")
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
            "the channels of the sound cancel one another: the loudest alone is taken", MediaWarning, stacklevel=3
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
        raise MediaError(
            f"a sampling rate of {value} Hz makes no sense", hint="pass (samples, rate) with the true rate"
        )
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
            f"samples of type {samples.dtype} are no sound", hint="pass floats in -1..1, or integers (PCM)"
        )
    return samples.astype(np.float32)


def _check_length(seconds: float, most: float, name: str) -> None:
    if seconds > most:
        raise MediaError(
            f"{name} lasts {seconds:.0f} s, the limit is {most:.0f} s",
            hint="cut it into pieces (`limelight transcribe` does so by itself)",
        )


class _Reader:
    """One file, and what it may be."""

    def __init__(
        self,
        file: Path | io.BytesIO,
        name: str,
        max_seconds: float,
        max_samples: int | None,
        max_channels: int,
        rates: tuple[int, int] | None,
        formats: Mapping[str, Sequence[str]] | None,
        format: str | None,
    ) -> None:
        self.file, self.name, self.max_seconds, self.formats, self.format = file, name, max_seconds, formats, format
        self.max_samples, self.max_channels, self.rates = max_samples, max_channels, rates

    def read(self) -> tuple[npt.NDArray[Any], int]:
        """Samples ``[n]`` or ``[n, channels]``, and their rate."""
        suffix = self.file.suffix.lower() if isinstance(self.file, Path) else ""
        if suffix in IMAGE_SUFFIXES:
            raise MediaError(f"{self.name} is {kind_of(self.name)}, expected sound", hint="pass it as --image")
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
        except Exception as error:  # a decoder fed with anything raises anything
            if self.formats is not None:
                kinds = self.format or ", ".join(self.formats)
                raise MediaError(f"not sound that can be read as {kinds}", hint="convert it to WAV") from error
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
            told = int(file.frames) if file.frames < UNKNOWN else 0
            parts, left = [], most + 1
            while left > 0 and len(block := file.read(frames=min(left, BLOCK), dtype="float32", always_2d=True)):
                parts.append(block)  # in blocks: memory is taken for what is there, not for what a header promises
                left -= len(block)
        samples = np.concatenate(parts) if parts else np.zeros((0, channels), np.float32)
        if len(samples) > most:
            raise MediaError(f"the sound lasts more than {most / rate:.0f} s", hint="cut it into pieces")
        if len(samples):
            self._check_whole(len(samples) / rate, max(told, frames_declared(self.file) or 0) / rate)
        return samples, rate

    def _check_format(self, found: str, rate: int, channels: int) -> None:
        if self.formats is not None:
            if self.format is None and found not in sum(map(tuple, self.formats.values()), ()):
                raise MediaError(
                    f"sound of the kind {found} is not read here", hint=f"one of {', '.join(self.formats)}"
                )
            if self.format is not None and found not in self.formats[self.format]:
                raise MediaError(f"the sound is {found}, declared as {self.format}", hint="declare the format it has")
        low, high = self.rates or (1, 2**31)
        if not low <= rate <= high or not 1 <= channels <= self.max_channels:
            raise MediaError(
                f"{rate} Hz with {channels} channels is not accepted",
                hint=f"{low} to {high} Hz and at most {self.max_channels} channels",
            )

    def _check_whole(self, seconds: float, told: float) -> None:
        if told - seconds > min(SLACK_SECONDS, SLACK * told):
            warnings.warn(
                f"{self.name} is cut short: {seconds:.2f} s of {told:.2f} s are there", MediaWarning, stacklevel=6
            )

    def _by_av(self, refused: Exception | None) -> tuple[npt.NDArray[Any], int]:
        """Samples ``[n, channels]`` of the first sound stream of a file; ``refused`` is what soundfile said of it."""
        said = f": {refused}" if refused is not None else ""
        try:
            import av
        except ImportError as error:
            if refused is None:
                raise MissingExtraError("av", "video") from error
            raise MediaError(
                f"{self.name} is not sound that soundfile can read{said}",
                hint="convert it to WAV or FLAC, or pip install 'limelight[video]', whose PyAV reads more formats",
            ) from refused
        parts: list[npt.NDArray[Any]] = []
        rate, count = 1, 0
        try:
            with contained(av, self.file) as container:
                if not container.streams.audio:
                    raise MediaError(f"{self.name} has no sound in it", hint="check the file in a player")
                stream = container.streams.audio[0]
                told = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
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
                    f"{self.name} is not sound that can be read: {error}{said}", hint="convert it to WAV or FLAC"
                ) from error
            raise MediaError(
                f"{self.name} breaks off after {count / rate:.1f} s: {error}",
                hint="get the file again, or re-encode it",
            ) from error
        if not parts:
            raise MediaError(f"the sound of {self.name} is empty", hint="check the file in a player")
        if told - count / rate > SLACK_SECONDS:  # containers round, and codecs drop their first samples
            self._check_whole(count / rate, told)
        return np.concatenate(parts, axis=-1).T.astype(np.float32), rate


def frames_declared(file: Path | io.BytesIO) -> int | None:
    """How many samples a channel the header of a RIFF WAV promises; None where it does not say (libsndfile mends it).

    A size of zero, or close to the largest, is what programs write that do not know how long the sound will be.
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
