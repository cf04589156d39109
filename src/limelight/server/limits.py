"""What one server accepts, in one place. Everything that a client can make grow has a bound here."""

from __future__ import annotations

from dataclasses import dataclass, fields

from limelight.errors import SettingError

MAX_STOPS = 4
MAX_ANSWERS = 8
MAX_MESSAGES = 256
CHARACTERS_A_TOKEN = 16  # text longer than this times max_prompt_tokens is refused before it is tokenised
# Settings of strategies that multiply the work of a token: a client may not ask for more.
COSTLY = {"steps": 32, "updates": 16, "beams": 8, "candidates": 16}
MAX_SETTING_CHARACTERS = 1000


@dataclass(frozen=True)
class Limits:
    """Bounds of a server.

    Attributes:
        queue: requests in the house beside the running one (being read, fetched or waiting); more get 429.
        per_client: how many of them one client address may hold.
        timeout: seconds from a request's arrival to the end of its answer.
        body_bytes: of a request's body; ``media_bytes`` of one picture, sound or video, decoded from base64 or fetched.
        body_seconds: for the body to arrive.
        media: pictures, sounds and videos of one request.
        pixels: of one picture (told from its header, before anything is decompressed).
        frames: looked at in one video, evenly spaced; ``video_seconds`` and ``frame_pixels`` of one video (told from its
            header and watched while decoding); ``video_pixels`` decoded of one video, over all frames.
        seconds: of one sound; ``samples`` of one sound, all channels together.
        prompt_tokens, new_tokens: of one request.
        batch_tokens: positions of one batch, padding and room for the answers counted.
        fetch_seconds: for one remote picture, redirects included.
    """

    queue: int = 32
    per_client: int = 32
    timeout: float = 120.0
    body_bytes: int = 24_000_000
    body_seconds: float = 30.0
    media_bytes: int = 12_000_000
    media: int = 8
    pixels: int = 16_000_000
    frames: int = 8
    video_seconds: float = 120.0
    frame_pixels: int = 4_000_000
    video_pixels: int = 1_500_000_000
    seconds: float = 300.0
    samples: int = 32_000_000
    prompt_tokens: int = 8192
    new_tokens: int = 1024
    batch_tokens: int = 32_768
    fetch_seconds: float = 10.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise SettingError(
                    f"{field.name} must be above 0, got {getattr(self, field.name)}", hint="it is a bound of the server"
                )
