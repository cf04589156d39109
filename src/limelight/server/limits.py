"""What one server accepts, in one place. Everything that a client can make grow has a bound here."""

from __future__ import annotations

from dataclasses import dataclass, fields

from limelight.errors import SettingError

MAX_STOPS = 4
MAX_PARTS = 256  # of one message
MAX_METADATA = 16
# Of a JSON body, counted before it is parsed. Escapes are those in its strings.
MAX_JSON_VALUES = 20_000
MAX_JSON_DEPTH = 32
MAX_NUMBER_CHARACTERS = 64
MAX_ESCAPES = 1_000_000
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
        queue: requests that may wait or run beside one that runs; more get 429.
        per_client: how many of them one client address may hold (an IPv6 client is its /64 network); None: a quarter.
        waiting_bytes: of all their bodies.
        timeout: seconds from a request's arrival to the end of its answer.
        body_bytes: of a request's body; ``media_bytes`` of one picture, sound or video, decoded from base64 or fetched.
        body_seconds: for the body to arrive. ``uploads``: bodies that may be arriving at once, ``upload_bytes`` of all.
        send_seconds: for a client to read what is being sent, before its connection is cut.
        idle_seconds: for a connection to send a request, the first or the next.
        connections: open at once; fewer where the process may not open so many descriptors.
        head_bytes: of a request's line and headers; ``headers``: how many there may be.
        media: pictures, sounds and videos of one request.
        pixels: of one picture (told from its header, before anything is decompressed).
        frames: looked at in one video, evenly spaced; ``video_seconds`` and ``frame_pixels`` of one video (told from its
            header and watched while decoding); ``video_pixels`` decoded of one video, over all frames.
        seconds: of one sound; ``samples`` of one sound, all channels together.
        decoded_bytes: of decoded media of all requests; a request that needs more than is left waits until there is room.
        prompt_tokens, new_tokens: of one request.
        batch_tokens: positions of one batch, padding and room for the answers counted.
        fetch_seconds: for one remote picture, redirects included.
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
        """Of the queue, for one client."""
        return max(1, self.queue // 4) if self.per_client is None else self.per_client

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not value > 0:
                raise SettingError(f"{field.name} must be above 0, got {value}", hint="it is a bound of the server")
