from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import nn

from limelight.decoding.instruments import (
    LogitLens,
    check_layers,
    first_input,
    masked_media,
    mlp_of,
    post_hook,
    pre_hook,
    tensor_of,
)
from limelight.errors import HookError, SettingError, UnsupportedError
from limelight.relevance.layers.norm import final_norm
from tests.decoding.peers import deep, deep_inputs, double, inputs_of, media_places
from tests.slow_twins import stack
from tests.tiny import built
from tests.zoo import ZOO


def test_hooks_leave_other_threads_alone() -> None:
    module = nn.Linear(2, 2)
    x = torch.ones(1, 2)
    plain = module(x)
    seen: list[torch.Tensor] = []
    with pre_hook(module, lambda a, k: ((a[0] * 2,), k)), post_hook(module, lambda a, k, out: out + 1):
        mine = module(x)
        thread = threading.Thread(target=lambda: seen.append(module(x)))
        thread.start()
        thread.join(200)
    assert torch.equal(seen[0], plain)
    assert not torch.equal(mine, plain)
    assert torch.equal(module(x), plain)


def test_exits_are_the_layers_before_the_final_norm() -> None:
    adapter, inputs = deep(), deep_inputs()
    exits = LogitLens(adapter, (0, 2, 3))
    with torch.no_grad(), exits.recording():
        adapter.model(**inputs)
    trace = stack.run(adapter.model, stack.prompt(adapter.model, inputs, torch.zeros(1, 0, dtype=torch.long)))
    wanted = torch.stack([stack.exit_logits(adapter.model, trace.hidden[i][-1:]) for i in (0, 2, 3)])
    torch.testing.assert_close(exits.logits(), wanted, atol=1e-5, rtol=1e-5)


def test_the_media_can_be_masked_by_position() -> None:
    adapter, inputs = deep(), deep_inputs()
    keep = ~media_places(adapter, inputs)
    keep[0, 5] = True
    with torch.no_grad(), masked_media(adapter, keep):
        got = adapter.model(**inputs).logits[0, -1]
    embeds = stack.prompt(adapter.model, inputs, torch.zeros(1, 0, dtype=torch.long)) * keep[0][:, None]
    torch.testing.assert_close(got, stack.run(adapter.model, embeds).logits[-1], atol=1e-5, rtol=1e-5)


def test_deepstack_is_masked_with_its_positions() -> None:
    """Keeping everything is the model itself; keeping nothing does not see the pixels."""
    adapter, inputs = double("qwen3_vl"), inputs_of("qwen3_vl")
    places = media_places(adapter, inputs)
    louder = {k: v * 2 + 1 if v.is_floating_point() else v for k, v in inputs.items()}
    with torch.no_grad():
        plain = adapter.model(**inputs).logits[0, -1]
        with masked_media(adapter, torch.ones_like(places)):
            torch.testing.assert_close(adapter.model(**inputs).logits[0, -1], plain)
        blind = []
        for media in (inputs, louder):
            with masked_media(adapter, ~places):
                blind.append(adapter.model(**media).logits[0, -1])
    torch.testing.assert_close(*blind)
    assert not torch.allclose(blind[0], plain)


def test_a_block_that_never_reaches_the_layers_is_found_out() -> None:
    with pytest.raises(HookError, match="first layer"), first_input(deep(), lambda embeds: None):
        pass


def test_what_is_not_a_plain_stack() -> None:
    with pytest.raises(UnsupportedError, match=r"\(2, 3, 4, 5\)"):
        tensor_of(torch.zeros(2, 3, 4, 5))
    with pytest.raises(UnsupportedError, match="NoneType"):
        tensor_of((None,))
    assert tensor_of((torch.zeros(1, 2, 3), None)).shape == (1, 2, 3)


def test_parts_of_the_decoder() -> None:
    adapter = deep()
    assert final_norm(adapter) is adapter.decoder.norm
    assert mlp_of(adapter, 2) is adapter.decoder.layers[2].mlp
    check_layers(adapter, (0, 3), "m")
    for layers, match in (
        ((4,), r"m: expected one or more layers within 0\.\.3, got layers \[4\]"),
        ((), "no layers"),
    ):
        with pytest.raises(SettingError, match=match):
            check_layers(adapter, layers, "m")


def test_a_layer_without_a_feed_forward_module() -> None:
    bare: Any = nn.Module()
    bare.decoder = nn.Module()
    bare.decoder.layers = nn.ModuleList([nn.Linear(2, 2)])
    with pytest.raises(HookError, match="feed-forward"):
        mlp_of(bare, 0)


@pytest.mark.parametrize("name", ["qwen3_vl", "granite4_vision"])  # a list of features, and a mapping by layer
def test_features_that_enter_again_are_masked_by_position(name: str) -> None:
    adapter = built(name)
    inputs = ZOO[name].inputs(adapter.model)
    features = adapter.capture(inputs).features
    assert features is not None
    picture = adapter.modality_ids(inputs) > 0
    first = int(picture[0].nonzero()[0, 0])
    keep = ~picture
    keep[0, first] = True
    seen: list[Any] = []
    with torch.no_grad(), masked_media(adapter, keep):
        handle = adapter.decoder.register_forward_pre_hook(
            lambda m, a, kw: seen.append(kw[features.name]), with_kwargs=True
        )
        adapter.model(**inputs)
        handle.remove()
    pieces = list(seen[0].values()) if isinstance(seen[0], dict) else list(seen[0])
    assert pieces and all(bool(p[0].any()) and not bool(p[1:].any()) for p in pieces)
