"""Features that enter again in early layers: found by shape, carried behind the embeddings, handed back bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from limelight.errors import UnsupportedError
from limelight.models.inputs.deepstack import DeepstackFeatures, find_deepstack
from tests.tiny import built, fresh
from tests.zoo import ZOO

DEEPSTACK = ("qwen3_vl", "granite4_vision", "granite_docling", "cohere_compass", "cosmos3_omni")


def arguments(name: str) -> tuple[dict[str, Any], Any]:
    """What the model itself hands its decoder, and the captured call."""
    adapter = built(name)
    inputs = ZOO[name].inputs(adapter.model)
    seen: dict[str, Any] = {}
    handle = adapter.decoder.register_forward_pre_hook(lambda m, a, kw: seen.update(kw), with_kwargs=True)
    with torch.no_grad():
        adapter.model(**inputs)
    handle.remove()
    return seen, adapter.capture(inputs)


@pytest.mark.parametrize("name", DEEPSTACK)
def test_the_decoder_gets_back_what_it_was_handed(name: str) -> None:
    seen, call = arguments(name)
    features = call.features
    given = call.arguments()
    assert isinstance(features, DeepstackFeatures)
    assert features.count == 3 if name == "granite4_vision" else 2
    assert call.embeds.shape[-1] == (1 + features.count) * features.width
    assert torch.equal(given["inputs_embeds"], seen["inputs_embeds"])
    assert torch.equal(given[features.where], seen[features.where])
    want, got = seen[features.name], given[features.name]
    pairs = zip(want.items(), got.items(), strict=True) if isinstance(want, dict) else zip(want, got, strict=True)
    for left, right in pairs:
        a, b = (left[1], right[1]) if isinstance(want, dict) else (left, right)
        assert not isinstance(want, dict) or left[0] == right[0]
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", DEEPSTACK)
def test_nothing_enters_where_no_picture_is(name: str) -> None:
    _, call = arguments(name)
    features = call.features
    where = call.kwargs[features.where]
    where = where if where.ndim == 2 else where[..., 0]
    assert int(where.sum()) == sum(b - a for a, b, _ in ZOO[name].spans)
    behind = call.embeds[..., features.width :]
    assert float(behind[~where].abs().max()) == 0.0
    assert float(behind[where].abs().min(-1).values.max()) > 0
    longer = call.appended(torch.randn(1, 1, features.width))
    assert longer.embeds.shape[-1] == call.embeds.shape[-1]
    assert float(longer.embeds[:, -1, features.width :].abs().max()) == 0.0
    assert not bool(longer.kwargs[features.where][:, -1].any())


def test_nothing_enters_at_a_word() -> None:
    features = DeepstackFeatures("deepstack_features", "vision_mask", None, 2, 4)
    given = features.arguments(torch.randn(1, 1, 12), {"vision_mask": torch.zeros(1, 1, dtype=torch.bool)})
    assert given["inputs_embeds"].shape == (1, 1, 4)
    assert set(given) == set(features.arguments(torch.randn(1, 1, 12), {})) == {"inputs_embeds"}


def _features(n: int, d: int = 4) -> Tensor:
    return torch.randn(n, d)


def test_what_does_not_fit_a_mask_is_not_deepstack() -> None:
    embeds = torch.randn(2, 5, 4)
    where = torch.zeros(2, 5, dtype=torch.bool)
    where[0, 1:3] = where[1, 2] = True
    good = {"deepstack_features": [_features(3), _features(3)], "vision_mask": where}
    found = find_deepstack(embeds, good)
    assert found is not None
    given = found.features.arguments(found.leaf, found.kwargs)
    assert torch.equal(given["inputs_embeds"], embeds)
    assert all(torch.equal(a, b) for a, b in zip(given["deepstack_features"], good["deepstack_features"], strict=True))
    assert given["vision_mask"] is where
    for odd in (
        {"deepstack_features": [_features(2), _features(3)], "vision_mask": where},
        {"deepstack_features": [_features(3, 5)], "vision_mask": where},
        {"deepstack_features": [_features(3)], "vision_mask": where.long()},
        {"deepstack_features": [_features(3)], "vision_mask": where, "visual_pos_masks": where.clone()},
        {"deepstack_features": [], "vision_mask": where},
        {"deepstack_features": _features(3), "vision_mask": where},
        {"deepstack_features": [_features(3)]},
        {"undeclared": [_features(3)], "vision_mask": where},
        {"deepstack_features": [_features(3)], "undeclared": where},
    ):
        assert find_deepstack(embeds, odd) is None


def test_features_without_a_place_are_refused() -> None:
    """A decoder that is handed features and no mask of their positions: relevance would miss them."""
    adapter = fresh("qwen3_vl")
    inner = adapter.decoder.forward

    def forward(**kwargs: Any) -> Any:
        return inner(**kwargs)

    language = adapter.model.model.language_model
    original = language.__call__

    class Blind(type(language)):  # type: ignore[misc]
        def __call__(self, **kwargs: Any) -> Any:
            kwargs["deepstack_visual_embeds"] = [f[:1] for f in kwargs["deepstack_visual_embeds"]]
            return original(**kwargs)

    language.__class__ = Blind
    with pytest.raises(UnsupportedError, match="deepstack_visual_embeds") as caught:
        adapter.capture(ZOO["qwen3_vl"].inputs(adapter.model))
    assert caught.value.hint
