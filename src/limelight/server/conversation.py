"""From a request's messages to the Hugging Face chat format, in two moves: headers at the door, pixels in the worker."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from limelight.errors import MediaError
from limelight.server import media
from limelight.server.limits import CHARACTERS_A_TOKEN, Limits
from limelight.server.problems import invalid
from limelight.server.remote import Fetcher
from limelight.server.schema import AudioPart, ChatRequest, ImagePart, TextPart, VideoPart
from limelight.server.videos import container_of, decode_video


@dataclass(frozen=True)
class Sound:
    """A sound that is still a file's bytes, of a format that was declared (None: any)."""

    data: bytes
    format: str | None


@dataclass(frozen=True)
class Video:
    """A video that is still a file's bytes, of a container that was declared."""

    data: bytes
    container: str


Content = str | Image.Image | Sound | Video
Turn = tuple[str, list[Content]]


@dataclass(frozen=True)
class Conversation:
    """Turns of words, pictures whose headers were read, and sounds and videos as bytes."""

    turns: Sequence[Turn]

    @property
    def has_media(self) -> bool:
        return any(not isinstance(part, str) for _, parts in self.turns for part in parts)

    @property
    def kinds(self) -> frozenset[str]:
        """Which kinds of media it holds."""
        return frozenset(_kind(part) for _, parts in self.turns for part in parts) - {"text"}

    def messages(self, limits: Limits) -> list[dict[str, Any]]:
        """Decoded, as ``Adapter.prepare`` takes them."""
        return [{"role": role, "content": [_decoded(p, limits) for p in parts]} for role, parts in self.turns]


def _kind(part: Content) -> str:
    named = {str: "text", Sound: "audio", Video: "video"}
    return named.get(type(part), "image")


def _decoded(part: Content, limits: Limits) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if isinstance(part, Sound):
        return {"type": "audio", "audio": media.decode_sound(part.data, part.format, limits)}
    if isinstance(part, Video):
        return {"type": "video", "video": decode_video(part.data, part.container, limits)}
    return {"type": "image", "image": media.decode_picture(part, limits)}


async def read(request: ChatRequest, limits: Limits, fetcher: Fetcher, placeholders: Sequence[str]) -> Conversation:
    """The conversation of a request, its media checked as far as that is cheap.

    Raises:
        ApiError: 400 naming the message: too much text, too many media, a placeholder of the model in the words.
        MediaError: see :mod:`limelight.server.media` and :mod:`limelight.server.remote`.
    """
    turns: list[Turn] = []
    characters = items = 0
    for number, message in enumerate(request.messages):
        role = "system" if message.role == "developer" else message.role
        parts: list[Content] = []
        content = [TextPart(type="text", text=message.content)] if isinstance(message.content, str) else message.content
        for part in content:
            where = f"messages.{number}.content"
            if isinstance(part, TextPart):
                characters += len(part.text)
                if characters > CHARACTERS_A_TOKEN * limits.prompt_tokens:
                    raise invalid("the messages are too long", param=where, code="context_length_exceeded")
                if any(p in part.text for p in placeholders):
                    raise invalid(
                        f"the words hold one of the model's placeholders ({', '.join(placeholders)}); "
                        "send pictures and sounds as content parts",
                        param=where,
                    )
                parts.append(part.text)
                continue
            items += 1
            if items > limits.media:
                raise invalid(
                    f"more than {limits.media} pictures, sounds and videos", param=where, code="too_many_media"
                )
            try:
                parts.append(await _opened(part, limits, fetcher))
            except MediaError as error:
                raise invalid(f"{error.message} ({error.hint})", param=where, code="invalid_media") from error
        turns.append((role, parts))
    if not any(isinstance(p, str) and p.strip() for _, parts in turns for p in parts):
        raise invalid("the messages hold no words", param="messages")
    return Conversation(turns)


async def _opened(part: ImagePart | AudioPart | VideoPart, limits: Limits, fetcher: Fetcher) -> Content:
    if isinstance(part, AudioPart):
        data = await asyncio.to_thread(media.from_base64, part.input_audio.data, limits)
        return Sound(data, part.input_audio.format)
    if isinstance(part, VideoPart):
        if not media.is_data_url(part.video_url.url):
            raise MediaError("not a data URL", hint="send the video as data:video/mp4;base64,...; none is fetched")
        kind, data = await asyncio.to_thread(media.split_data_url, part.video_url.url, "video", limits)
        return Video(data, container_of(kind, data))
    url = part.image_url.url
    if media.is_data_url(url):
        _, data = await asyncio.to_thread(media.split_data_url, url, "image", limits)
    elif url[:8].lower() == "https://":
        data = await fetcher.fetch(url)
    else:
        raise MediaError("neither a data URL nor https", hint="send it as data:image/png;base64,...")
    return await asyncio.to_thread(media.open_picture, data, limits)
