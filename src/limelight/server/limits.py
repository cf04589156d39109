"""The limits of a server. Everything that a client can make grow is bounded here."""

from __future__ import annotations

from dataclasses import dataclass, fields

from limelight.errors import SettingError

MAX_STOPS = 4
MAX_PARTS = 256  # per message
MAX_METADATA = 16
# Per JSON body, counted before parsing. Escapes: those in its strings.
MAX_JSON_VALUES = 20_000
MAX_JSON_DEPTH = 32
MAX_NUMBER_CHARACTERS = 64
MAX_ESCAPES = 1_000_000
MAX_ANSWERS = 8
MAX_MESSAGES = 256
CHARACTERS_PER_TOKEN = 16  # text longer than this times max_prompt_tokens is rejected before tokenisation
# Upper limits for clients on strategy settings that multiply the cost per token.
COSTLY = {"steps": 32, "updates": 16, "beams": 8, "candidates": 16}
MAX_SETTING_CHARACTERS = 1000


@dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Attributes:
        queue: requests that may be queued or running in addition to one running; further ones get 429.
        per_client: requests per client address (IPv6: per /64 network); None: a quarter of the queue.
        waiting_bytes: total size of their bodies.
        timeout: seconds from a request's arrival to the end of its answer.
        body_bytes: per request body; ``media_bytes``: per image, audio or video, decoded from base64 or fetched.
        body_seconds: time for a body to arrive. ``uploads``: bodies arriving concurrently; ``upload_bytes``: their total.
        send_seconds: time for a client to read sent data before it is disconnected.
        idle_seconds: time for a connection to send its first or next request.
        connections: open connections; fewer where the process has fewer descriptors.
        head_bytes: per request line and headers; ``headers``: their number.
        media: images, audio clips and videos per request.
        pixels: per image (checked in the header, before decompression).
        frames: evenly spaced frames used per video; ``video_seconds`` and ``frame_pixels``: per video (checked in the
            header and while decoding); ``video_pixels``: decoded pixels per video, over all frames.
        seconds: per audio clip; ``samples``: per audio clip, over all channels.
        decoded_bytes: decoded media of all requests; a request that needs more than is available waits.
        prompt_tokens, new_tokens: per request.
        batch_tokens: positions per batch, including padding and room for the answers.
        fetch_seconds: per remote image, including redirects.
    """

    queue: int = 32
    per_client: int | None = None
    waiting_bytes: int = 192_000_000
    timeout: float = 120.0
    body_bytes: int = 24_000_000
    body_seconds: float = 30.0
    uploads: int = 64
    upload_bytes: int = 96_000_000
    send_seconds: float = 10.0
    idle_seconds: float = 10.0
    connections: int = 512
    head_bytes: int = 32_768
    headers: int = 100
    media_bytes: int = 12_000_000
    media: int = 8
    pixels: int = 16_000_000
    frames: int = 8
    video_seconds: float = 120.0
    frame_pixels: int = 4_000_000
    video_pixels: int = 1_500_000_000
    seconds: float = 300.0
    samples: int = 32_000_000
    decoded_bytes: int = 512_000_000
    prompt_tokens: int = 8192
    new_tokens: int = 4096
    batch_tokens: int = 32_768
    fetch_seconds: float = 10.0

    @property
    def share(self) -> int:
        """The number of queue places per client."""
        return max(1, self.queue // 4) if self.per_client is None else self.per_client

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not value > 0:
                raise SettingError(f"{field.name} must be above 0, got {value}", hint="set it to a positive number")
