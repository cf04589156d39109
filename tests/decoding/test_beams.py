from __future__ import annotations

import pytest
import torch

from limelight.decoding.beams import choose, fork
from limelight.errors import UnsupportedError
from limelight.models.runtime.cached_decoder import Stream
from tests.decoding.peers import CLOSE, double, inputs_of
from tests.slow_twins.full import last_logits


def test_beams_go_their_own_ways() -> None:
    adapter, inputs = double("qwen2_5_vl"), inputs_of("qwen2_5_vl", "batch")
    prepared = dict(inputs)
    ids = prepared.pop("input_ids")
    with torch.no_grad():
        prepared["position_ids"] = adapter.model._prepare_position_ids_for_generation(
            ids, {**prepared, "input_ids": ids}
        )
        base = Stream.fresh(adapter, ids, prepared)
        base.next(None)
        beams = fork(base, [1, 1, 0])
        beams.next(torch.tensor([70, 71, 72]))
        choose(beams, [2, 0, 0])
        got = beams.next(torch.tensor([80, 81, 82]))
        said = torch.tensor([[70, 81], [72, 80]])  # of rows 1 and 0
        wanted = last_logits(adapter.model, inputs, said.flip(0))
        torch.testing.assert_close(got[:2], wanted, **CLOSE)
        assert not torch.allclose(got[1], got[2])
        again = base.next(torch.tensor([72, 70]))
        torch.testing.assert_close(again, last_logits(adapter.model, inputs, torch.tensor([[72], [70]])), **CLOSE)


def test_an_undeclared_input_is_named() -> None:
    """A guess by its shape could give one row's values to another."""
    adapter, inputs = double("llava"), inputs_of("llava", "single")
    prepared = dict(inputs)
    with torch.no_grad():
        stream = Stream.fresh(adapter, prepared.pop("input_ids"), prepared)
        stream.next(None)
        stream.kwargs["odd_ids"] = torch.zeros(1, 3)
        with pytest.raises(UnsupportedError, match="odd_ids") as caught:
            choose(stream, [0, 0])
    assert caught.value.hint
