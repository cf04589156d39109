"""From messages to one row of tensors, by the model's own chat template and processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from limelight.errors import LimelightError, MediaError, PromptError
from limelight.media.audio import read_audio
from limelight.media.image import read_image
from limelight.media.truncation import check_heard
from limelight.media.video import read_video
from limelight.models.adapter import Adapter
from limelight.models.regions import Process, located, originals, timed
from limelight.models.runtime.machine import machine_failed
from limelight.types import MODALITIES, Clip, Inputs, Prompt

Message = Mapping[str, Any]
_PERCEPTS = ("image", "audio", "video")
SHORT = 0.2  # seconds of sound that may be too few for one position


def prepare(
    adapter: Adapter,
    messages: Sequence[Message] | str,
    media: Mapping[str, Any] | None = None,
    *,
    regions: bool = True,
) -> Prompt:
    """Messages in the Hugging Face chat format, or one user's words with ``media = {"image": [...], "audio": [...]}``.

    A content item is ``{"type": "image", "image": object or file}`` (likewise audio, video) or ``{"type": "text", ...}``.
    Media are decoded once: ``Prompt.media`` holds them as the model was given them, RGB pictures, ``(samples, rate)`` and
    :class:`Clip`. Files are decoded in this process; see :mod:`limelight.media.worker` for files of strangers. With
    ``regions`` the spans say which part of the originals they show, which costs a few runs more of the processor for the
    first prompt with media of these sizes (:mod:`limelight.models.regions`).

    Raises:
        PromptError: nothing was asked, no media, or the processor's placeholders do not match them.
        MediaError: see :mod:`limelight.media.image`.
    """
    if adapter.processor is None:
        raise PromptError(
            "this adapter has no processor, so it cannot read messages", hint="limelight.wrap(model, processor)"
        )
    messages = as_messages(messages, media)
    turns, found = split_media(messages)
    words = [str(i["text"]) for t in turns for i in t["content"] if i["type"] == "text"]
    if not any(w.strip() for w in words):
        raise PromptError(
            "the prompt is empty", hint="ask something: {'type': 'text', 'text': 'What is in the picture?'}"
        )
    if not any(found.values()):
        raise PromptError(
            "the messages hold no picture, sound or video",
            hint="add {'type': 'image', 'image': 'photo.jpg'} to a user message's content, or pass --image",
        )
    unfit = [m for m in _PERCEPTS if found[m] and m not in _accepted(adapter)]
    if unfit:
        raise MediaError(
            f"{type(adapter.model).__name__} takes {', '.join(_accepted(adapter))}, the messages hold {', '.join(unfit)}",
            hint="pass media of a kind the model was made for",
        )
    rate = sampling_rate(adapter)
    found["image"] = [read_image(i) for i in found["image"]]
    found["audio"] = [(read_audio(a, rate), rate) for a in found["audio"]]
    found["video"] = [read_video(v) for v in found["video"]]
    given, process = _tensors(adapter, turns, found)
    tensors = Inputs(adapter.complete(given))
    present = _present(adapter, tensors, found)
    for kind in _PERCEPTS:
        if found[kind] and kind not in present and not (kind == "video" and "image" in present):
            raise PromptError(
                f"the prompt has no {kind} position although {len(found[kind])} {kind} was given",
                hint="the chat template leaves it out; put the model's placeholder into the words",
            )
    spans = adapter.spans(tensors)
    if regions:
        spans = located(spans, process, originals(found["image"], found["video"]), adapter)
        spans = timed(spans, [len(samples) / rate for samples, _ in found["audio"]])
        tensors.spans = spans
    return Prompt(tensors, adapter.words(tensors), spans, {m: v for m, v in found.items() if v})


def _present(adapter: Adapter, tensors: Mapping[str, Any], found: Mapping[str, list[Any]]) -> set[str]:
    """The modalities that have a position."""
    try:
        return {MODALITIES[i] for i in set(adapter.modality_ids(tensors).flatten().tolist())}
    except PromptError as error:
        shortest = min((len(samples) / rate for samples, rate in found["audio"]), default=1.0)
        if shortest >= SHORT:
            raise
        raise MediaError(
            f"a sound of {shortest:.3f} s is too short: the model makes no position of it", hint="pass a longer sound"
        ) from error


def as_messages(messages: Sequence[Message] | str, media: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The chat format, with loose media put in front of the last user turn's words."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": [{"type": "text", "text": messages}]}]
    out: list[dict[str, Any]] = []
    for message in messages:
        if not isinstance(message, Mapping) or "content" not in message:
            raise PromptError(f"not a message: {str(message)[:60]!r}", hint="{'role': 'user', 'content': [...]}")
        content = message["content"]
        items = [{"type": "text", "text": content}] if isinstance(content, str) else [dict(i) for i in content]
        out.append({"role": message.get("role", "user"), "content": items})
    unknown = sorted(set(media or {}) - set(_PERCEPTS))
    if unknown:
        raise PromptError(f"unknown kind of media {', '.join(map(repr, unknown))}", hint="image, audio or video")
    loose = [
        {"type": kind, kind: item}
        for kind in _PERCEPTS
        for item in _listed((media or {}).get(kind))
    ]  # fmt: skip
    users = [m for m in out if m["role"] == "user"]
    if not users:
        raise PromptError("the messages hold no user turn", hint="add {'role': 'user', 'content': [...]}")
    users[-1]["content"] = [*loose, *users[-1]["content"]]
    return out


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def split_media(messages: Sequence[Message]) -> tuple[list[dict[str, Any]], dict[str, list[Any]]]:
    """Turns with bare placeholders, and the media in order."""
    found: dict[str, list[Any]] = {m: [] for m in _PERCEPTS}
    turns = []
    for message in messages:
        items = []
        for item in message["content"]:
            kind = str(item.get("type", "text"))
            if kind == "text":
                items.append({"type": "text", "text": str(item.get("text", ""))})
                continue
            kind = kind.removesuffix("_url")
            if kind not in _PERCEPTS:
                raise PromptError(f"unknown content type {kind!r}", hint="text, image, audio or video")
            source = next((item[k] for k in (kind, "path", "url", f"{kind}_url") if item.get(k) is not None), None)
            if source is None:
                raise PromptError(
                    f"a content item of type {kind} names no {kind}", hint=f"{{'type': {kind!r}, {kind!r}: file}}"
                )
            found[kind].append(source)
            items.append({"type": kind, kind: ""} if kind == "audio" else {"type": kind})
        turns.append({"role": message["role"], "content": items})
    return turns, found


def _accepted(adapter: Adapter) -> tuple[str, ...]:
    """Kinds of media that the processor reads. Frames may have a token of their own, or be pictures (SmolVLM, InternVL)."""
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
    """Hz that the model's feature extractor works at."""
    processor = adapter.processor
    extractor = getattr(processor, "feature_extractor", None) or getattr(processor, "audio_processor", None)
    return int(getattr(extractor, "sampling_rate", 16000))


def _tensors(
    adapter: Adapter, turns: list[dict[str, Any]], found: dict[str, list[Any]]
) -> tuple[dict[str, Any], Process]:
    """The processor's output on the model's device, and the processor for other media in the same prompt."""
    processor = adapter.processor
    text = _text(adapter, turns)
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
    if bos and text.startswith(bos):
        arguments["add_special_tokens"] = False
    try:
        out = processor(text=[text], return_tensors="pt", **arguments)
    except LimelightError:
        raise
    except (ValueError, TypeError, RuntimeError, IndexError, KeyError) as error:
        if machine_failed(error):
            raise
        raise PromptError(
            f"the model's processor refused the prompt: {error}",
            hint="check number and kind of media against the placeholders",
        ) from error
    if found["audio"]:
        check_heard(lambda changed: processor(text=[text], return_tensors="pt", **arguments | {"audio": changed}),
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


def video_metadata(clip: Clip) -> Any:
    """When each frame was shown, as transformers' processors take it: frame number divided by frames a second."""
    from transformers.video_utils import VideoMetadata

    step = (clip.seconds[-1] - clip.seconds[0]) / (len(clip) - 1) if len(clip) > 1 else 1.0
    fps = clip.fps or (1 / step if step else 1.0)
    first = clip.frames[0]
    return VideoMetadata(
        total_num_frames=max(len(clip), round(clip.length * fps)), fps=fps, width=first.width, height=first.height,
        duration=clip.length, video_backend="pyav", frames_indices=[round(s * fps, 3) for s in clip.seconds],
    )  # fmt: skip


def _text(adapter: Adapter, turns: list[dict[str, Any]]) -> str:
    processor = adapter.processor
    for owner in (processor, adapter.tokenizer):
        if getattr(owner, "chat_template", None):
            return str(owner.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    # Q-Former processors (BLIP-2, InstructBLIP) put their query tokens in front themselves.
    named = () if getattr(processor, "num_query_tokens", None) else _PERCEPTS
    marks = {m: getattr(processor, f"{m}_token", None) for m in named}
    parts = [i["text"] if i["type"] == "text" else str(marks.get(i["type"]) or "") for t in turns for i in t["content"]]
    return "\n".join(p for p in parts if p)
