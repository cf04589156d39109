"""Conversion of a request's messages to the Hugging Face chat format: validated, fetched and decoded before queueing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from limelight.errors import LimelightError, MediaError
from limelight.server import media
from limelight.server.limits import CHARACTERS_PER_TOKEN, Limits
from limelight.server.media import Encoded, Hold, MediaReader
from limelight.server.problems import ApiError, api_error, invalid
from limelight.server.remote import Fetcher
from limelight.server.schema import AudioPart, AuditRequest, ChatRequest, ImagePart, TextPart, VideoPart
from limelight.server.videos import video
from limelight.types import Clip


@dataclass(frozen=True)
class Sound:
    """Mono samples ``[n]`` at ``rate`` Hz."""

    samples: npt.NDArray[np.float32]
    rate: int


Content = str | Image.Image | Sound | Clip
Turn = tuple[str, list[Content]]


@dataclass(frozen=True)
class Conversation:
    """Messages of text, images, audio and videos.

    Attributes:
        warnings: warnings about the media. ``hold``: their memory reservation.
    """

    turns: Sequence[Turn]
    warnings: tuple[str, ...] = ()
    hold: Hold | None = field(default=None, compare=False, repr=False)

    def release(self) -> None:
        """Release the memory reservation at the end of the request."""
        if self.hold is not None:
            self.hold.close()

    @property
    def has_media(self) -> bool:
        return any(not isinstance(part, str) for _, parts in self.turns for part in parts)

    @property
    def kinds(self) -> frozenset[str]:
        """The media types it contains."""
        return frozenset(_kind(part) for _, parts in self.turns for part in parts) - {"text"}

    def messages(self) -> list[dict[str, Any]]:
        """The messages in the form of ``Adapter.prepare``."""
        return [{"role": role, "content": [_item(part) for part in parts]} for role, parts in self.turns]


def _kind(part: Content) -> str:
    named = {str: "text", Sound: "audio", Clip: "video"}
    return named.get(type(part), "image")


def _item(part: Content) -> dict[str, Any]:
    kind = _kind(part)
    return {"type": kind, kind: (part.samples, part.rate) if isinstance(part, Sound) else part}


async def read(
    request: ChatRequest | AuditRequest,
    limits: Limits,
    fetcher: Fetcher,
    placeholders: Sequence[str],
    reader: MediaReader,
    client: str,
    *,
    needs_text: bool = True,
) -> Conversation:
    """Read a request's conversation and decode its media. ``client``: the client whose decoding quota is used.

    ``needs_text``: media alone are refused; encoder-decoders such as Whisper need no text.

    Raises:
        ApiError: 400 naming the message: too much text, too many media, a placeholder of the model in the text, media
            that cannot be read or exceed a limit (:mod:`limelight.server.media`, :mod:`limelight.server.remote`).
    """
    turns: list[tuple[str, list[str | Encoded]]] = []
    characters = items = 0
    for number, message in enumerate(request.messages):
        role = "system" if message.role == "developer" else message.role
        parts: list[str | Encoded] = []
        where = _where(number)
        content = [TextPart(type="text", text=message.content)] if isinstance(message.content, str) else message.content
        for part in content:
            if isinstance(part, TextPart):
                characters += len(part.text)
                if characters > CHARACTERS_PER_TOKEN * limits.prompt_tokens:
                    raise invalid("the messages are too long", param=where, code="context_length_exceeded")
                if any(p in part.text for p in placeholders):
                    raise invalid(
                        f"the text contains one of the model's placeholders ({', '.join(placeholders)}); "
                        "send media as content parts",
                        param=where,
                    )
                parts.append(part.text)
                continue
            items += 1
            if items > limits.media:
                raise invalid(
                    f"more than {limits.media} images, audio clips and videos", param=where, code="too_many_media"
                )
            try:
                parts.append(await _opened(part, limits, fetcher, reader))
            except LimelightError as error:
                raise unreadable(error, where) from error
        turns.append((role, parts))
    text = any(isinstance(p, str) and p.strip() for _, parts in turns for p in parts)
    if not text and (needs_text or not items):
        raise invalid("the messages contain no text", param="messages")
    return await _decoded(turns, reader, client)


async def _decoded(turns: Sequence[tuple[str, list[str | Encoded]]], reader: MediaReader, client: str) -> Conversation:
    """Decode the media one at a time: a request uses one decoder at a time."""
    hold = await reader.reserve([p for _, parts in turns for p in parts if isinstance(p, Encoded)])
    found: list[Turn] = []
    notes: list[str] = []
    try:
        for number, (role, parts) in enumerate(turns):
            content: list[Content] = []
            for part in parts:
                if isinstance(part, str):
                    content.append(part)
                    continue
                try:
                    made = await reader.decode(part, hold, client)
                except LimelightError as error:
                    raise unreadable(error, _where(number)) from error
                notes += made.warnings
                content.append(Sound(*made.value) if part.kind == "audio" else made.value)
            found.append((role, content))
    except BaseException:
        hold.close()
        for _, parts in turns:
            parts.clear()  # an exception that is kept must not keep the files
        raise
    conversation = Conversation(found, tuple(notes), hold)
    hold.bind(conversation)  # in case it is not released explicitly
    return conversation


async def spoken(file: Encoded, words: str, reader: MediaReader, client: str) -> Conversation:
    """Build a conversation of audio and a text prompt.

    Raises:
        ApiError: the audio cannot be read.
    """
    try:
        return await _decoded([("user", [file, words])], reader, client)
    except ApiError as error:
        error.param = "file"
        raise


def unreadable(error: LimelightError, where: str) -> ApiError:
    """Return the API error for media that cannot be read."""
    if isinstance(error, MediaError):
        return invalid(f"{error.message} ({error.hint})", param=where, code="invalid_media")
    return api_error(error)


def _where(number: int) -> str:
    return f"messages.{number}.content"


async def _opened(
    part: ImagePart | AudioPart | VideoPart, limits: Limits, fetcher: Fetcher, reader: MediaReader
) -> Encoded:
    if isinstance(part, AudioPart):
        text, format = part.input_audio.data, part.input_audio.format
        if media.is_data_url(text[:5]):
            _, data = await asyncio.to_thread(media.split_data_url, text, "audio", limits)
        else:
            data = await asyncio.to_thread(media.from_base64, text, limits)
        return media.sound(data, format, limits, reader.rate)
    if isinstance(part, VideoPart):
        if not media.is_data_url(part.video_url.url):
            raise MediaError(
                "not a data URL", hint="send the video as data:video/mp4;base64,...; videos are not fetched"
            )
        kind, data = await asyncio.to_thread(media.split_data_url, part.video_url.url, "video", limits)
        return video(data, kind, limits)
    url = part.image_url.url
    if media.is_data_url(url):
        _, data = await asyncio.to_thread(media.split_data_url, url, "image", limits)
    elif url[:8].lower() == "https://":
        data = await fetcher.fetch(url)
    else:
        raise MediaError("neither a data URL nor an https URL", hint="send it as data:image/png;base64,...")
    return media.picture(data, limits)
