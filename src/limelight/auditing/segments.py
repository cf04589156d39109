"""The segments of Whisper's own long-form ``generate``, measured: ``limelight.audit_segments(adapter, audio, output)``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from limelight.auditing.forward import AnsweredPrompt, measure
from limelight.calibration import flag_rule
from limelight.decoding.dual import calibration_of
from limelight.decoding.transcribe import (
    COMPOSITE,
    MAX_SECONDS,
    Segment,
    Transcript,
    is_invented,
    prompt_for,
    segment_means,
    segment_threshold,
    single_audio,
    special_tokens,
)
from limelight.errors import DataError
from limelight.media.audio import read_audio
from limelight.media.truncation import window_seconds
from limelight.models.adapter import wrap
from limelight.models.prompts import sampling_rate
from limelight.types import Generation

SHORTEST = 0.1  # seconds: of a segment whose end is not after its start


def audit_segments(
    model: Any,
    audio: Any,
    output: Any,
    processor: Any = None,
    *,
    language: str | None = None,
    drop_invented: bool | float = False,
) -> Transcript:
    """Measure the segments that Whisper's own ``model.generate(..., return_segments=True)`` gave for one recording.

    Long form, time marks, temperature fallback and thresholds are transformers' own; here each segment's tokens are measured
    against the stretch of audio that its time marks name, in one forward each, as :func:`limelight.audit` does.

    Args:
        model: a Whisper (with ``processor``), or an Adapter.
        audio: the recording, as for :func:`limelight.transcribe`.
        output: what ``generate`` returned, or the list of one recording's segments in it, each with ``start``, ``end`` (seconds)
            and ``tokens``.
        language: of the prompt; by default the one that the model hears in each segment.
        drop_invented: as for :func:`limelight.transcribe`.

    Returns:
        A transcript with a segment per segment; those without text are left out. Time marks and other special tokens are not
        among a segment's steps. Times after the end of the recording are moved to its last 0.1 s.

    Raises:
        DataError: no segments, or those of several recordings.
        SettingError: ``drop_invented`` without a threshold.
        MediaError: see :func:`limelight.transcribe`.

    Example:
        >>> output = adapter.model.generate(features, return_timestamps=True, return_segments=True)  # doctest: +SKIP
        >>> transcript = limelight.audit_segments(adapter, "talk.mp3", output, drop_invented=True)  # doctest: +SKIP
    """
    adapter = wrap(model, processor)
    given = _listed(output)
    rate = sampling_rate(adapter)
    limit = segment_threshold(adapter, drop_invented)
    samples = read_audio(single_audio(audio), rate, max_seconds=MAX_SECONDS)
    seconds = samples.size / rate
    prompt = prompt_for(adapter, None, language)
    special = special_tokens(adapter)
    marks = getattr(adapter.model.generation_config, "no_timestamps_token_id", None)  # the first time mark is behind it
    window = window_seconds(adapter.processor) or 30.0
    kept: list[Segment] = []
    dropped: list[Segment] = []
    for row in given:
        tokens = tuple(int(t) for t in row["tokens"] if int(t) not in special and (marks is None or int(t) < marks))
        if not tokens:
            continue
        # Whisper may mark times in the padding: what it says there is measured against the recording's end
        start = max(0.0, min(float(row["start"]), seconds - SHORTEST))
        stop = min(max(float(row["end"]), start + SHORTEST), start + window, seconds)
        piece = samples[int(start * rate) : int(stop * rate)]
        asked = adapter.prepare(prompt, {"audio": (piece, rate)})
        steps = measure(adapter, [AnsweredPrompt(asked, tokens)], composite=COMPOSITE)[0]
        text = str(adapter.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()
        flag = flag_rule(calibration_of(adapter, COMPOSITE))
        said = Generation(text, tokens, steps, asked, "generate", {"composite": COMPOSITE}, flag)
        means = segment_means(steps, special)
        one = Segment(start, stop, said, True, True, *means, is_invented(text, means, limit))
        (dropped if drop_invented is not False and one.invented else kept).append(one)
    settings = {"strategy": "generate", "composite": COMPOSITE}
    return Transcript(tuple(kept), seconds, prompt, settings, tuple(dropped), limit)


def _listed(output: Any) -> Sequence[Mapping[str, Any]]:
    """The segments of the one recording in what ``generate`` returned."""
    hint = "model.generate(features, return_timestamps=True, return_segments=True); one recording at a time"
    found = output["segments"] if isinstance(output, Mapping) and "segments" in output else output
    if isinstance(found, (list, tuple)) and found and isinstance(found[0], (list, tuple)):
        if len(found) > 1:
            raise DataError(f"expected the segments of one recording, got those of {len(found)}", hint=hint)
        found = found[0]
    rows = isinstance(found, (list, tuple)) and all(
        isinstance(r, Mapping) and {"start", "end", "tokens"} <= set(r) for r in found
    )
    if not rows:
        raise DataError(f"expected segments with start, end and tokens, got {type(output).__name__}", hint=hint)
    return found  # type: ignore[no-any-return]
