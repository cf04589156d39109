"""IAT and VAF written out: attention scores changed key by key, forward by forward."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tests.slow_twins import grouped


def iat(model: Any, embeds: Tensor, prompt: int, alpha: float, layers: range) -> list[Tensor]:
    """Logits ``[V]`` after the prompt and after every token; the last query attends more to the answer."""

    def scores(call: grouped.Call, s: Tensor) -> Tensor:
        out = s.clone()
        for key in range(prompt, s.shape[-1]) if call.layer in layers else ():
            out[:, -1, key] = s[:, -1, key] + alpha * s[:, -1, key].abs()
        return out

    return grouped.run(model, embeds, prompt, scores=scores)[0]


def vaf(model: Any, embeds: Tensor, media: list[bool], enhance: float, suppress: float, layers: range) -> list[Tensor]:
    """Logits ``[V]`` after the prompt and after every token; ``media`` says which positions of the prompt are the picture's."""
    first = media.index(True)

    def scores(call: grouped.Call, s: Tensor) -> Tensor:
        out = s.clone()
        for row, query in enumerate(call.at):
            behind = query > first and not (query < len(media) and media[query])
            for key in range(s.shape[-1]) if behind and call.layer in layers else ():
                if key < first:
                    out[:, row, key] = suppress * s[:, row, key]
                elif key < len(media) and media[key]:
                    out[:, row, key] = enhance * s[:, row, key]
        return out

    return grouped.run(model, embeds, len(media), scores=scores)[0]
