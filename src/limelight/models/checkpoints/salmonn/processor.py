"""Processor: Whisper's spectrogram, BEATs' filter bank, and one placeholder per window."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import BatchFeature

from limelight.compat import mel_filter_bank, spectrogram, window_function
from limelight.errors import PromptError

SPEECH = "<SpeechHere>"
RATE, BINS, MEAN, SPREAD = 16000, 128, 15.41663, 2 * 6.55582  # of the published filter banks
# The published prompts, "USER: <Speech><SpeechHere></Speech> question\nASSISTANT:".
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}ASSISTANT: {% elif m['role'] == 'user' %}USER: {% endif %}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for i in m['content'] %}"
    "{% if i['type'] == 'audio' %}<Speech><SpeechHere></Speech> {% else %}{{ i['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '</s>' if m['role'] == 'assistant' else '\n' }}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@cache
def _filters() -> npt.NDArray[np.float64]:
    """Return Kaldi's mel filters ``[257, 128]``; the lowest are narrower than a bin and empty, as in BEATs' training."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="At least one mel filter has all zero values")
        found: npt.NDArray[np.float64] = mel_filter_bank(
            num_frequency_bins=257, num_mel_filters=BINS, min_frequency=20, max_frequency=RATE // 2, sampling_rate=RATE,
            norm=None, mel_scale="kaldi", triangularize_in_mel_space=True,
        )  # fmt: skip
    return found


def filter_bank(samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Compute Kaldi's log filter bank ``[frames, 128]`` (25 ms every 10 ms), normalised as in BEATs' training."""
    bank = spectrogram(
        np.asarray(samples, dtype=np.float64) * 2**15, window_function(400, "povey", periodic=False), frame_length=400,
        hop_length=160, fft_length=512, power=2.0, center=False, preemphasis=0.97, mel_filters=_filters(), log_mel="log",
        mel_floor=1.192092955078125e-07, remove_dc_offset=True,
    ).T  # fmt: skip
    return np.asarray((bank - MEAN) / SPREAD, dtype=np.float32)


class SalmonnProcessor:
    """``processor(text=[...], audio=[...])`` -> input_ids, attention_mask, input_features, fbank, fbank_mask.

    Audio shorter than a second is padded with silence, as in the published code; audio longer than Whisper's window is cut.
    """

    def __init__(self, tokenizer: Any, feature_extractor: Any, positions: int) -> None:
        self.tokenizer, self.feature_extractor, self.positions = tokenizer, feature_extractor, positions

    def __call__(
        self, text: Sequence[str], audio: Sequence[Any] = (), return_tensors: str = "pt", **kwargs: Any
    ) -> BatchFeature:
        written = sum(t.count(SPEECH) for t in text)
        if written != len(audio):
            raise PromptError(
                f"{len(audio)} audio inputs for {written} {SPEECH} in the text", hint="use the chat template"
            )
        rows = [self._ids(t) for t in text]
        width = max(map(len, rows))
        pad = int(self.tokenizer.pad_token_id)
        out: dict[str, Any] = {
            "input_ids": torch.tensor([[pad] * (width - len(r)) + r for r in rows]),
            "attention_mask": torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows]),
        }
        if audio:
            out |= self._sounds([np.asarray(a, dtype=np.float32) for a in audio])
        return BatchFeature(out)

    def _ids(self, text: str) -> list[int]:
        """Tokenise the text before and after an audio input separately, as in the published code."""
        placeholder = int(self.tokenizer.unk_token_id)
        ids = [int(self.tokenizer.bos_token_id)]
        for n, piece in enumerate(text.split(SPEECH)):
            words = self.tokenizer(piece, add_special_tokens=False)["input_ids"] if piece else []
            if placeholder in words:
                raise PromptError(
                    f"the tokenizer cannot encode {piece!r}: its unknown token is the audio placeholder",
                    hint="use other words",
                )
            ids += [placeholder] * (self.positions if n else 0) + list(words)
        return ids

    def _sounds(self, sounds: list[npt.NDArray[np.float32]]) -> dict[str, torch.Tensor]:
        most = int(self.feature_extractor.n_samples)
        sounds = [np.pad(s, (0, max(0, RATE - len(s))))[:most] for s in sounds]
        features = self.feature_extractor(sounds, sampling_rate=RATE, return_tensors="pt")["input_features"]
        banks = [torch.from_numpy(filter_bank(s)) for s in sounds]
        frames = 1 + (most - 400) // 160
        fbank = torch.stack([torch.nn.functional.pad(b, (0, 0, 0, frames - len(b))) for b in banks])
        mask = torch.stack([torch.arange(frames) < len(b) for b in banks])
        return {"input_features": features, "fbank": fbank, "fbank_mask": mask.long()}
