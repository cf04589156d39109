"""Asking a vLLM server that has the library's processor: an answer's request and, beside it, its contrast request.

client = openai.OpenAI(base_url="http://localhost:8000/v1", api_key="none")
reply = chat(client, "MODEL", messages, method="icd", alpha=1.0, max_tokens=64)
"""

from __future__ import annotations

import base64
import io
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from typing import Any

from limelight.engines.requests import METHOD, PAIR, ROLE, SETTINGS, asked
from limelight.errors import SettingError

Message = dict[str, Any]
INSTRUCTION = "You are a confused object detector to provide a fuzzy overview or impression of the image."
MEDIA = ("image_url", "input_audio", "audio_url", "video_url", "image_pil")
STEPS = 1000


def chat(
    client: Any, model: str, messages: Sequence[Message], *, method: str, contrast: Sequence[Message] | None = None,
    settings: Mapping[str, float] | None = None, **options: Any,
) -> Any:  # fmt: skip
    """Send a chat completion with a method, and return the answer's response.

    Args:
        client: an ``openai.OpenAI`` client of the server; ``options``: further arguments of ``chat.completions.create``.
        method: ``flb``, ``vcd``, ``icd``, ``m3id`` or ``aad``.
        contrast: the messages of the contrast request; by default :func:`contrast_messages`.
        settings: the method's settings, such as ``{"alpha": 1.0}``.

    Raises:
        SettingError: unknown method or setting; streaming with a pair (both requests must be read).
    """
    extra = {METHOD: method, **{f"{METHOD}_{k}": v for k, v in (settings or {}).items()}}
    pair = {} if method == "flb" else {PAIR: uuid.uuid4().hex}
    try:
        asked({**extra, **pair})
    except ValueError as error:
        raise SettingError(str(error), hint=f"methods: {', '.join(SETTINGS)}") from error
    if method == "flb":
        return client.chat.completions.create(
            model=model, messages=list(messages), extra_body={"vllm_xargs": extra}, **options
        )
    if options.get("stream"):
        raise SettingError("a pair of requests cannot be streamed", hint="omit stream")
    second = list(contrast) if contrast is not None else contrast_messages(messages, method)

    def ask(role: str, own: Sequence[Message]) -> Any:
        body = {"vllm_xargs": {**extra, **pair, ROLE: role}}
        return client.chat.completions.create(model=model, messages=list(own), extra_body=body, **options)

    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(ask, "contrast", second)
        answer = pool.submit(ask, "answer", list(messages))
        other.result()
        return answer.result()


def contrast_messages(
    messages: Sequence[Message], method: str, *, noise_step: int = 500, seed: int = 0
) -> list[Message]:
    """Return the contrast request's messages: without media (``m3id``), with an instruction before them (``icd``), with noise on
    images (``vcd``), with silence as audio (``aad``).

    Images for ``vcd`` must be ``data:`` addresses, audio for ``aad`` WAV in base64 (``input_audio``): this side distorts them.

    Differs from ``limelight.generate``: noise and silence act on the file, before the model's processor; the instruction is in the
    user's turn, before the media.
    """
    out = deepcopy(list(messages))
    for message in out:
        parts = message.get("content")
        if not isinstance(parts, list) or message.get("role") != "user":
            continue
        if method == "m3id":
            message["content"] = [p for p in parts if p.get("type") not in MEDIA]
        elif method == "icd":
            message["content"] = [{"type": "text", "text": INSTRUCTION}, *parts]
        else:
            message["content"] = [_distorted(p, method, noise_step, seed + i) for i, p in enumerate(parts)]
    if out == list(messages):
        raise SettingError(
            f"{method} has nothing to contrast with in these messages", hint="add an image, or audio for aad"
        )
    return out


def _distorted(part: dict[str, Any], method: str, noise_step: int, seed: int) -> dict[str, Any]:
    if method == "vcd" and part.get("type") == "image_url":
        head, comma, content = str(part["image_url"]["url"]).partition(",")
        if not comma or not head.startswith("data:"):
            raise SettingError(
                "vcd needs images as data: addresses", hint="or pass contrast= with your own noisy image"
            )
        return {"type": "image_url", "image_url": {"url": "data:image/png;base64," + _noisy(content, noise_step, seed)}}
    if method == "aad" and part.get("type") == "input_audio":
        given = part["input_audio"]
        if given.get("format") != "wav":
            raise SettingError("aad needs audio as WAV", hint="or pass contrast= with silence of the same length")
        return {"type": "input_audio", "input_audio": {**given, "data": _silent(given["data"])}}
    return part


def _noisy(content: str, noise_step: int, seed: int) -> str:
    """An image under VCD's diffusion noise (its schedule: a sigmoid of beta from 1e-5 to 5e-3 over 1000 steps)."""
    import numpy as np
    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")
    betas = 1 / (1 + np.exp(-np.linspace(-6, 6, STEPS))) * (0.5e-2 - 1e-5) + 1e-5
    kept = float(np.cumprod(1 - betas)[noise_step])
    pixels = np.asarray(image, dtype=np.float64) / 127.5 - 1
    noise = np.random.default_rng(seed).normal(size=pixels.shape)
    mixed = np.clip(np.sqrt(kept) * pixels + np.sqrt(1 - kept) * noise, -1, 1)
    out = io.BytesIO()
    Image.fromarray(((mixed + 1) * 127.5).round().astype(np.uint8)).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def _silent(content: str) -> str:
    """A WAV file of the same length with zeros."""
    import wave

    with wave.open(io.BytesIO(base64.b64decode(content))) as sound:
        params, frames = sound.getparams(), sound.getnframes()
    out = io.BytesIO()
    with wave.open(out, "wb") as made:
        made.setparams(params)
        made.writeframes(bytes(frames * params.nchannels * params.sampwidth))
    return base64.b64encode(out.getvalue()).decode()
