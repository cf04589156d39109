"""Converting messages to one row of tensors with the model's chat template and processor."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from limelight.errors import LimelightError, MediaError, PromptError
from limelight.media.arguments import by_kind, decoded
from limelight.media.arguments import item as as_medium
from limelight.media.audio import read_audio
from limelight.media.image import read_image
from limelight.media.truncation import SHORT, check_not_truncated, window_seconds
from limelight.media.video import read_video
from limelight.models import encoder_prompts
from limelight.models.regions import Process, located, originals, timed
from limelight.models.runtime.machine import machine_failed
from limelight.models.template import template_positions
from limelight.types import MODALITIES, Clip, Inputs, Prompt

if TYPE_CHECKING:
    from limelight.models.adapter import Adapter

Message = Mapping[str, Any]
_MEDIA_KINDS = ("image", "audio", "video")
_TYPED = re.compile(r"""\[['"]type['"]\]|\.type\b""")  # in templates that read content items
_NAMES = {  # in the chat formats of Hugging Face and OpenAI
    "image_url": "image", "input_image": "image", "audio_url": "audio", "input_audio": "audio", "video_url": "video",
    "input_video": "video", "input_text": "text", "output_text": "text",
}  # fmt: skip


def prepare(
    adapter: Adapter,
    messages: Sequence[Message] | Message | str,
    media: Any = None,
    *,
    regions: bool = True,
    long_audio: bool = False,
) -> Prompt:
    """Prepare messages in the Hugging Face chat format, or one user message as text, with optional media.

    A content item is ``{"type": "image", "image": object or file}`` (likewise audio, video) or ``{"type": "text", ...}``;
    OpenAI's ``image_url``, ``input_audio``, ``audio_url`` and ``video_url`` are accepted too. ``media`` are
    ``{"image": x or [x, ...], ...}`` or values whose kind can be detected (:mod:`limelight.media.arguments`); they fill the
    items without an object (``{"type": "image"}``), and the rest is placed before the last user turn's text. Media are
    decoded once: ``Prompt.media`` contains them as passed to the model, as RGB images, ``(samples, rate)`` and
    :class:`Clip`. Files are decoded in this process; see :mod:`limelight.media.worker` for untrusted files. With
    ``regions``, spans contain the part of the originals that they cover, which costs a few more runs of the processor for
    the first prompt with media of these sizes (:mod:`limelight.models.regions`). With ``long_audio``, of audio longer than
    the model's window the tensors contain the first window, and ``Prompt.media`` all of it, for strategies that read it
    piece by piece; otherwise it is refused.

    Raises:
        PromptError: the prompt is empty, or the processor's placeholders do not match the media.
        MediaError: media whose kind cannot be detected, or that cannot be read; see :mod:`limelight.media.image`.
    """
    if adapter.processor is None:
        raise PromptError(
            "this adapter has no processor, so it cannot read messages", hint="limelight.wrap(model, processor)"
        )
    messages = as_messages(messages, media)
    turns, found = split_media(messages)
    if adapter.encoder is not None:
        return encoder_prompts.prepare(adapter, adapter.encoder, turns, found)
    words = [str(i["text"]) for t in turns for i in t["content"] if i["type"] == "text"]
    if not any(w.strip() for w in words):
        raise PromptError(
            "the prompt is empty", hint="ask something: {'type': 'text', 'text': 'What is in the picture?'}"
        )
    unfit = [m for m in _MEDIA_KINDS if found[m] and m not in _accepted(adapter)]
    if unfit:
        raise MediaError(
            f"{type(adapter.model).__name__} takes {', '.join(_accepted(adapter)) or 'text'}, "
            f"the messages contain {', '.join(unfit)}",
            hint="pass media of a kind the model supports",
        )
    rate = sampling_rate(adapter)
    found["image"] = [read_image(i) for i in found["image"]]
    found["audio"] = [(read_audio(a, rate), rate) for a in found["audio"]]
    found["video"] = [read_video(v) for v in found["video"]]
    films = [whole_patch(v, getattr(adapter.processor, "video_processor", None)) for v in found["video"]]
    window = window_seconds(adapter.processor) if long_audio else None
    sounds = found["audio"] if window is None else [(s[: round(window * rate)], rate) for s, rate in found["audio"]]
    given, process = _tensors(adapter, turns, {**found, "video": films, "audio": sounds})
    tensors = Inputs(adapter.complete(given))
    present = _present(adapter, tensors, found)
    for kind in _MEDIA_KINDS:
        if found[kind] and kind not in present and not (kind == "video" and "image" in present):
            raise PromptError(
                f"the prompt has no {kind} position although {len(found[kind])} {kind} was given",
                hint="the chat template omits it; put the model's placeholder into the text",
            )
    spans = adapter.spans(tensors)
    if regions:
        spans = located(spans, process, originals(found["image"], films), adapter)
        spans = timed(spans, [len(samples) / rate for samples, _ in sounds])
        tensors.spans = spans
    tokens = adapter.words(tensors)
    tensors.template = template_positions(tokens, spans, words)
    kept = {m: v for m, v in found.items() if v}
    return Prompt(tensors, tokens, spans, kept, messages, tensors.template)


def _present(adapter: Adapter, tensors: Mapping[str, Any], found: Mapping[str, list[Any]]) -> set[str]:
    """Return the modalities that have a position."""
    try:
        return {MODALITIES[i] for i in set(adapter.modality_ids(tensors).flatten().tolist())}
    except PromptError as error:
        shortest = min((len(samples) / rate for samples, rate in found["audio"]), default=1.0)
        if shortest >= SHORT:
            raise
        raise MediaError(
            f"audio of {shortest:.3f} s is too short: the model has no position for it", hint="pass longer audio"
        ) from error


def as_messages(messages: Sequence[Message] | Message | str, media: Any) -> list[dict[str, Any]]:
    """Normalise to the chat format, inserting the separately given media into the messages."""
    check_one(messages)
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    elif isinstance(messages, Mapping):
        messages = [messages]
    elif not isinstance(messages, (list, tuple)):
        raise PromptError(
            f"expected messages, got {type(messages).__name__}", hint="words, or [{'role': 'user', 'content': [...]}]"
        )
    out: list[dict[str, Any]] = []
    for message in messages:
        if not isinstance(message, Mapping) or "content" not in message:
            raise PromptError(f"not a message: {str(message)[:60]!r}", hint="{'role': 'user', 'content': [...]}")
        out.append({"role": message.get("role", "user"), "content": _items(message["content"])})
    users = [m for m in out if m["role"] == "user"]
    if not users:
        raise PromptError("the messages contain no user turn", hint="add {'role': 'user', 'content': [...]}")
    loose = by_kind(media)
    for message in out:
        message["content"] = [_filled(i, loose) for i in message["content"]]
    front = [{"type": kind, kind: medium} for kind, left in loose.items() for medium in left]
    users[-1]["content"] = [*front, *users[-1]["content"]]
    return out


def check_one(messages: Any) -> None:
    """Raise PromptError for several requests at once."""
    several = isinstance(messages, (list, tuple)) and len(messages) > 0
    if several and (
        all(isinstance(m, (list, tuple)) for m in messages) or all(isinstance(m, (str, Prompt)) for m in messages)
    ):
        raise PromptError(
            f"expected one request, got a list of {len(messages)}",
            hint="limelight.generate_many(model, processor, requests) answers several",
        )


def _items(content: Any) -> list[dict[str, Any]]:
    """Return the items of a message's content; bare text and bare media get their type."""
    if content is None:
        return []
    items = []
    for i in content if isinstance(content, (list, tuple)) else [content]:
        if isinstance(i, Mapping) and "type" in i:
            items.append(dict(i))
        elif isinstance(i, Mapping) and isinstance(i.get("text"), str):
            items.append({"type": "text", "text": i["text"]})
        elif isinstance(i, str):
            items.append({"type": "text", "text": i})
        else:
            items += [{"type": kind, kind: medium} for kind, found in by_kind(i).items() for medium in found]
    return items


def _kind(content: Mapping[str, Any]) -> str:
    """Return ``text`` or a modality, from the accepted names of a content item's type."""
    named = str(content.get("type", "text"))
    return _NAMES.get(named, named)


def _source(content: Mapping[str, Any], kind: str) -> Any:
    """Return the media object of a content item, or None if it is to be taken from the separately given media."""
    names = (kind, "path", "url", f"{kind}_url", f"input_{kind}", "base64", "data")
    name = next((n for n in names if content.get(n) is not None), None)
    if name is None:
        return None
    return decoded(content[name]) if name in ("base64", "data") and isinstance(content[name], str) else content[name]


def _filled(content: dict[str, Any], loose: dict[str, list[Any]]) -> dict[str, Any]:
    kind = _kind(content)
    if loose.get(kind) and _source(content, kind) is None:
        return {"type": kind, kind: loose[kind].pop(0)}
    return content


def split_media(messages: Sequence[Message]) -> tuple[list[dict[str, Any]], dict[str, list[Any]]]:
    """Split messages into turns with bare placeholders, and the media in order."""
    found: dict[str, list[Any]] = {m: [] for m in _MEDIA_KINDS}
    turns = []
    for message in messages:
        items = []
        for item in message["content"]:
            kind = _kind(item)
            if kind == "text":
                items.append({"type": "text", "text": str(item.get("text") or "")})
                continue
            if kind not in _MEDIA_KINDS:
                raise PromptError(f"unknown content type {kind!r}", hint="text, image, audio or video")
            source = _source(item, kind)
            if source is None:
                raise PromptError(
                    f"a content item of type {kind} names no {kind}",
                    hint=f"{{'type': {kind!r}, {kind!r}: file}}, or the {kind} beside the messages: media={{{kind!r}: ...}}",
                )
            found[kind].append(as_medium(kind, source))
            items.append({"type": kind, kind: ""} if kind == "audio" else {"type": kind})
        turns.append({"role": message["role"], "content": items})
    return turns, found


def _accepted(adapter: Adapter) -> tuple[str, ...]:
    """Return the media kinds that the processor accepts. Frames may have their own token, or be images (SmolVLM, InternVL)."""
    processor = adapter.processor
    parts = {
        "image": ("image_processor",),
        "audio": ("feature_extractor", "audio_processor"),
        "video": ("video_processor", "image_processor"),
    }
    kinds = set(adapter.placeholders.values())
    if "image" in kinds and getattr(processor, "video_processor", None) is not None:
        kinds.add("video")
    return tuple(
        m for m, names in parts.items() if m in kinds and any(getattr(processor, n, None) is not None for n in names)
    )


def sampling_rate(adapter: Adapter) -> int:
    """Return the sampling rate of the model's feature extractor in Hz."""
    processor = adapter.processor
    extractor = getattr(processor, "feature_extractor", None) or getattr(processor, "audio_processor", None)
    return int(getattr(extractor, "sampling_rate", 16000))


def _tensors(
    adapter: Adapter, turns: list[dict[str, Any]], found: dict[str, list[Any]]
) -> tuple[dict[str, Any], Process]:
    """Return the processor's output on the model's device, and a function that processes other media in the same prompt."""
    processor = adapter.processor
    text = rendered(adapter, turns)
    arguments: dict[str, Any] = {}
    if found["image"]:
        arguments["images"] = found["image"]
    if found["audio"]:
        arguments["audio"] = [samples for samples, _ in found["audio"]]
        arguments["sampling_rate"] = found["audio"][0][1]
    if found["video"]:
        arguments["videos"] = [np.stack([np.asarray(f) for f in clip.frames]) for clip in found["video"]]
        if getattr(processor, "video_processor", None) is not None:
            metadata = [video_metadata(clip) for clip in found["video"]]
            # return_metadata: time tokens are built from it
            arguments["videos_kwargs"] = {
                "video_metadata": metadata, "do_sample_frames": False, "return_metadata": True,
            }  # fmt: skip
    bos = getattr(adapter.tokenizer, "bos_token", None)
    templated = processor is adapter.tokenizer and getattr(processor, "chat_template", None)
    if templated or (bos and text.startswith(bos)):  # as their own apply_chat_template does
        arguments["add_special_tokens"] = False
    try:
        out = processor(text=[text], return_tensors="pt", **arguments)
    except LimelightError:
        raise
    except (ValueError, TypeError, RuntimeError, IndexError, KeyError) as error:
        if machine_failed(error):
            raise
        raise PromptError(
            f"the model's processor rejected the prompt: {error}",
            hint="check number and kind of media against the placeholders",
        ) from error
    if found["audio"]:
        check_not_truncated(lambda changed: processor(text=[text], return_tensors="pt", **arguments | {"audio": changed}),
                    arguments["audio"], out, arguments["sampling_rate"], processor)  # fmt: skip
    device, dtype = adapter.device, adapter.model.dtype
    out = {
        k: v for k, v in dict(out).items() if k not in ("labels", "video_metadata")
    }  # PaliGemma's returns them for prompts too
    moved = {k: v.to(device) if hasattr(v, "to") else v for k, v in out.items()}

    def process(images: list[Any], videos: list[Any]) -> Mapping[str, Any]:
        other = {**({"images": images} if images else {}), **({"videos": videos} if videos else {})}
        made: Mapping[str, Any] = processor(text=[text], return_tensors="pt", **arguments | other)
        return made

    return (
        {k: v.to(dtype) if hasattr(v, "is_floating_point") and v.is_floating_point() else v for k, v in moved.items()},
        process,
    )


def whole_patch(clip: Clip, processor: Any) -> Clip:
    """Extend a clip to the model's minimum number of frames by repeating the last one, as Qwen2-VL's own processor does
    (Qwen3-VL's raises an error)."""
    lost = int(getattr(processor, "temporal_patch_size", None) or 1) - len(clip)
    if lost <= 0:
        return clip
    frames, seconds = clip.frames + clip.frames[-1:] * lost, clip.seconds + clip.seconds[-1:] * lost
    return Clip(frames, seconds, clip.fps, clip.length)


def video_metadata(clip: Clip) -> Any:
    """Return the frames' times in the form that transformers' processors expect: frame numbers and frames per second."""
    from limelight.compat import VideoMetadata

    step = (clip.seconds[-1] - clip.seconds[0]) / (len(clip) - 1) if len(clip) > 1 else 1.0
    fps = clip.fps or (1 / step if step else 1.0)
    first = clip.frames[0]
    return VideoMetadata(
        total_num_frames=max(len(clip), round(clip.length * fps)), fps=fps, width=first.width, height=first.height,
        duration=clip.length, video_backend="pyav", frames_indices=[round(s * fps, 3) for s in clip.seconds],
    )  # fmt: skip


def rendered(adapter: Adapter, turns: list[dict[str, Any]], *, finished: bool = False) -> str:
    """Render the turns with the model's chat template, with one placeholder per medium and the start of the answer;
    ``finished``: without the start of an answer."""
    processor = adapter.processor
    for owner in (processor, adapter.tokenizer):
        if template := getattr(owner, "chat_template", None):
            if owner is adapter.tokenizer and not _TYPED.search(str(template)):  # a text-only template
                turns = [{**t, "content": _joined(processor, [t])} for t in turns]
            return str(owner.apply_chat_template(turns, tokenize=False, add_generation_prompt=not finished))
    return _joined(processor, turns)


def _joined(processor: Any, turns: Sequence[Message]) -> str:
    """Return the text of the turns, with the processor's placeholder for each medium."""
    # Q-Former processors (BLIP-2, InstructBLIP) put their query tokens in front themselves.
    named = () if getattr(processor, "num_query_tokens", None) else _MEDIA_KINDS
    marks = {m: getattr(processor, f"{m}_token", None) for m in named}
    parts = [i["text"] if i["type"] == "text" else str(marks.get(i["type"]) or "") for t in turns for i in t["content"]]
    return "\n".join(p for p in parts if p)
