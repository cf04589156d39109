from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from limelight.decoding.methods.vaf import Vaf, vaf
from limelight.errors import SettingError
from limelight.models.runtime.attention import AttentionHook, attention_hooks
from tests.decoding.peers import (
    CLOSE,
    FAMILIES,
    TOKENS,
    check_alone_and_in_a_batch,
    check_deep_twin,
    check_refusals,
    deep,
    deep_inputs,
    double,
    emitted,
    inputs_of,
    media_places,
    run,
)
from tests.slow_twins import scores as twin
from tests.slow_twins.full import forward


@pytest.mark.parametrize("kind", ["single", "other"])
@pytest.mark.parametrize("layers", [range(2, 4), range(1), None])
def test_equals_the_slow_twin(layers: range | None, kind: str) -> None:
    more = {} if layers is None else {"start": layers.start, "stop": layers.stop}
    chosen, strategy = layers or range(1, 3), vaf(enhance=2.5, suppress=0.4, **more)
    check_deep_twin(strategy, lambda model, x, media: twin.vaf(model, x, media, 2.5, 0.4, chosen), kind=kind)


class Uncached(AttentionHook):
    """The change for every query of text behind the media, in one forward of the whole sequence."""

    def __init__(self, media: Tensor, real: Tensor, enhance: float, suppress: float) -> None:
        self.media, self.real, self.enhance, self.suppress = media, real, enhance, suppress

    def scores(self, layer: int, scores: Tensor) -> Tensor:
        keys = scores.shape[-1]
        if scores.shape[-2] != keys or keys < self.media.shape[1]:
            return scores
        out = scores.clone()
        for row, media in enumerate(self.media.tolist()):
            first = media.index(True)
            for query in range(first, keys):
                if query < len(media) and media[query]:
                    continue
                for key in range(len(media)):
                    factor = self.enhance if media[key] else self.suppress if key < first and self.real[row, key] else 1
                    if float(scores[row, 0, query, key]) > torch.finfo(scores.dtype).min / 2:
                        out[row, :, query, key] = factor * scores[row, :, query, key]
        return out


@pytest.mark.parametrize("name", FAMILIES)
def test_token_by_token_equals_one_forward(name: str) -> None:
    adapter, inputs = double(name), inputs_of(name, "batch")
    out = run(adapter, inputs, vaf(enhance=2.0, suppress=0.5, start=0, stop=2), n=2)
    tokens = emitted(out, inputs)
    hook = Uncached(media_places(adapter, inputs), inputs["attention_mask"].bool(), 2.0, 0.5)
    assert out.logits is not None
    for t in range(2):
        with adapter.routed(), attention_hooks(hook):
            wanted = forward(adapter.model, inputs, tokens[:, :t]).logits[:, -1]
        torch.testing.assert_close(out.logits[t], wanted, **CLOSE)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_alone_and_in_a_batch(name: str) -> None:
    check_alone_and_in_a_batch(name, vaf(enhance=3.0, suppress=0.2, start=0), n=TOKENS)


def test_published_layers() -> None:
    adapter = deep()
    for settings in ({"start": 1, "stop": 3}, {}):
        assert torch.equal(
            run(adapter, deep_inputs(), vaf(**settings)).sequences, run(adapter, deep_inputs(), vaf()).sequences
        )


def test_what_it_cannot_do() -> None:
    check_refusals(vaf(), vaf(start=0, stop=5))


@pytest.mark.parametrize(
    "wrong", [{"enhance": 0.5}, {"suppress": 1.5}, {"suppress": -1}, {"start": -1}, {"start": 3, "stop": 3}]
)
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="vaf"):
        Vaf(**wrong)
