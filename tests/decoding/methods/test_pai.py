from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from limelight.decoding.instruments import chosen_layers, in_proportion, key_places
from limelight.decoding.methods.greedy import greedy
from limelight.decoding.methods.pai import PUBLISHED, Pai, pai
from limelight.errors import HookError, SettingError, UnsupportedError
from limelight.models.adapter import Adapter
from limelight.models.runtime.attention import AttentionHook, attention_hooks
from tests.decoding.peers import (
    CLOSE,
    TOKENS,
    check_against_twin,
    deep,
    deep_inputs,
    double,
    emitted,
    inputs_of,
    media_places,
    plain_tokens,
    run,
)
from tests.slow_twins import pai as twin
from tests.slow_twins.full import forward
from tests.tiny import fresh, snapshot


def level(x: Tensor) -> Tensor:
    return torch.log_softmax(x, dim=-1)


@pytest.mark.parametrize("first_token", ["released", "boosted"])
@pytest.mark.parametrize("layers", [range(2, 4), range(1, 2)])
def test_equals_the_slow_twin(layers: range, first_token: str) -> None:
    adapter, inputs = deep(), deep_inputs()
    stop = None if layers.stop == 4 else layers.stop
    settings: dict[str, Any] = {"alpha": 0.4, "gamma": 1.3, "beta": 0.05, "start": layers.start, "stop": stop}
    out = run(adapter, inputs, pai(**settings, first_token=first_token))
    tokens = emitted(out, inputs)
    places = media_places(adapter, inputs)
    late = first_token == "released"
    wanted = [
        twin.pai(adapter.model, inputs, places, tokens[:, :t], 0.4, 1.3, 0.05, layers, late=late) for t in range(TOKENS)
    ]
    out.logits = tuple(level(x) for x in out.logits or ())
    check_against_twin(out, [level(w) for w in wanted], rows=1)


def test_the_released_codes_first_token_knows_guidance_only() -> None:
    """There the flag that the guidance switches is set before the prompt's forward and cleared behind it."""
    adapter, inputs = double("qwen2_audio"), inputs_of("qwen2_audio", "batch")

    def first(**settings: Any) -> Tensor:
        return (run(adapter, inputs, pai(**settings), n=1).logits or ())[0]

    assert pai() == pai(first_token="released")
    torch.testing.assert_close(first(alpha=0.9, gamma=1.5), first(alpha=0, gamma=1.5))
    assert not torch.allclose(first(alpha=0.9, gamma=1.5, first_token="boosted"), first(alpha=0, gamma=1.5))
    raised = first(alpha=0.9, gamma=1)
    assert torch.equal(raised, first(alpha=0.9, gamma=1, first_token="boosted"))
    assert not torch.allclose(raised, first(alpha=0, gamma=1))


def test_published_layers_in_proportion() -> None:
    for depth, both in ((32, (2, 31)), (28, (2, 27)), (4, (0, 3)), (1, (0, 0))):
        assert in_proportion(PUBLISHED, depth) == both
    assert chosen_layers(deep(), PUBLISHED, 2, None, "pai") == {2, 3}
    assert chosen_layers(deep(), PUBLISHED, 1, 3, "pai") == {1, 2}


class Uncached(AttentionHook):
    """PAI's change for every query from the prompt's last on, in one forward of the whole sequence."""

    def __init__(self, places: Tensor, alpha: float) -> None:
        self.places, self.alpha = places, alpha

    def scores(self, layer: int, scores: Tensor) -> Tensor:
        out = scores.clone()
        length = self.places.shape[1]
        part = out[:, :, length - 1 :, :length]
        seen = self.places[:, None, None] & (part > -1e30)
        out[:, :, length - 1 :, :length] = torch.where(seen, part + self.alpha * part.abs(), part)
        return out


@pytest.mark.parametrize("name", ["llava", "internvl", "qwen2_5_vl", "qwen2_5_vl_video", "qwen2_audio", "gemma3"])
def test_token_by_token_equals_one_forward(name: str) -> None:
    """Sliding windows, left padding, M-RoPE, sound and video: the cache changes nothing."""
    adapter, inputs = double(name), inputs_of(name, "batch")
    out = run(adapter, inputs, pai(alpha=0.5, gamma=1, start=0))
    tokens = emitted(out, inputs)
    hook = Uncached(media_places(adapter, inputs), 0.5)
    assert out.logits is not None
    for t in range(TOKENS):
        with adapter.routed(), attention_hooks(hook):
            wanted = forward(adapter.model, inputs, tokens[:, :t]).logits[:, -1]
        torch.testing.assert_close(out.logits[t], wanted, **CLOSE)


def test_attention_rises_on_the_media_alone() -> None:
    places = torch.tensor([[False, True, True, False]])
    assert key_places(places, 6, 6)[0].tolist() == [False, True, True, False, False, False]
    assert key_places(places, 3, 6)[0].tolist() == [False, False, False]
    assert key_places(places, 4, 6)[0].tolist() == [True, False, False, False]
    assert key_places(places, 9, 6)[0].tolist() == [False, True, True] + [False] * 6


def test_plain_is_the_unchanged_models_token() -> None:
    adapter, inputs = double("llava"), inputs_of("llava")
    strong = pai(alpha=3.0, gamma=2.0, start=0)
    out = run(adapter, inputs, strong, bind={"details": True})
    said = emitted(out, inputs)
    assert out.steps is not None
    for t, step in enumerate(out.steps[0]):
        plain = forward(adapter.model, inputs, said[:, :t]).logits[0, -1].argmax()
        assert step.plain == int(plain)
        assert step.intervened
    quick = run(adapter, inputs, strong)
    assert torch.equal(quick.sequences, out.sequences)
    assert quick.steps is not None
    assert quick.steps[0][0].plain is None


def test_guidance_alone_and_attention_alone() -> None:
    adapter, inputs = deep(), deep_inputs()
    places = media_places(adapter, inputs)
    none = torch.zeros(1, 0, dtype=torch.long)
    guided = run(adapter, inputs, pai(alpha=0, gamma=1.5, beta=0), n=1).logits
    wanted = twin.pai(adapter.model, inputs, places, none, 0.0, 1.5, 0.0, range(0), late=False)
    assert guided is not None
    torch.testing.assert_close(level(guided[0]), level(wanted), **CLOSE)
    assert torch.equal(emitted(run(adapter, inputs, pai(alpha=0, gamma=1)), inputs), plain_tokens(adapter, inputs))


def test_layers_the_model_lacks() -> None:
    with pytest.raises(SettingError, match=r"within 0\.\.1, got no layers \(start=2, stop=None\)"):
        run(double("llava"), inputs_of("llava"), pai(start=2))
    with pytest.raises(SettingError, match=r"layers \[4\]"):
        run(deep(), deep_inputs(), pai(start=0, stop=5))


def test_cross_attention_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="cross-attention"):
        run(double("mllama"), inputs_of("mllama"), pai(start=0))


def test_attention_that_goes_another_way_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = fresh("llava")
    inputs = inputs_of("llava")
    inputs = {k: v.float() if v.is_floating_point() else v for k, v in inputs.items()}
    module = adapter.attention_layers[1]

    def elsewhere(hidden_states: Tensor, **kwargs: object) -> tuple[Tensor, None]:
        return hidden_states, None

    monkeypatch.setattr(module, "forward", elsewhere)
    run(adapter, inputs, greedy(), n=1)  # transformers leaves hooks of its own on the tower at the first run
    before = snapshot(adapter.model)
    with pytest.raises(HookError, match=r"layers \[1\]"):
        run(Adapter(adapter.model), inputs, pai(start=0))
    assert snapshot(adapter.model) == before


@pytest.mark.parametrize(
    "wrong",
    [{"alpha": -1}, {"gamma": 0.5}, {"beta": 2}, {"start": -1}, {"start": 3, "stop": 3}, {"first_token": "plain"}],
)
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="pai"):
        Pai(**wrong)
