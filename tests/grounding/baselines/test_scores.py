"""Published detectors against slow twins that read transformers' own outputs, in float64."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from limelight.errors import SettingError
from limelight.grounding.baselines import scores
from limelight.grounding.baselines.observation import Observation, observe
from limelight.models.adapter import Adapter
from limelight.models.runtime.attention import register
from tests.slow_twins import detectors as twin
from tests.tiny import llava, llava_inputs, snapshot

TOKENS = [61, 44, 90]
START = 22
MEDIA = list(range(3, 19))


@cache
def world() -> tuple[Any, Any, Observation, list[Any]]:
    model = llava(num_hidden_layers=3)
    inputs = llava_inputs(model)
    register()
    model.set_attn_implementation("limelight")  # transformers' own softmax is in float32 whatever the dtype
    raw: list[Any] = []
    handle = model.get_decoder().norm.register_forward_pre_hook(lambda _, args: raw.append(args[0].detach()))
    out = twin.run(model, inputs, TOKENS)
    handle.remove()
    out.last_raw = raw[0]
    bare = {k: v[:, [0, 1, 2, 19, 20, 21]] for k, v in inputs.items() if k != "pixel_values"}
    seen = observe(Adapter(model), inputs, TOKENS, without=bare)
    return model, out, seen, twin.states(model, out)


def same(name: str, want: list[float]) -> None:
    got = scores.BASELINES[name](world()[2])
    torch.testing.assert_close(got.double(), torch.tensor(want, dtype=torch.float64), rtol=1e-9, atol=1e-11)


def test_what_is_observed_is_the_models_own() -> None:
    _, out, seen, hidden = world()
    assert seen.start == START
    assert seen.media.nonzero()[:, 0].tolist() == MEDIA
    torch.testing.assert_close(seen.hidden, torch.stack(hidden), rtol=1e-12, atol=1e-12)
    rows = torch.stack([a[0, :, START - 1 : START + 2] for a in out.attentions])
    torch.testing.assert_close(seen.attention, rows, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(seen.logits, out.logits[0, START - 1 : START + 2], rtol=1e-10, atol=1e-12)


def test_confidence() -> None:
    _, out, _, _ = world()
    same("log-probability", twin.log_probability(out, START, TOKENS))
    same("entropy", twin.negative_entropy(out, START, TOKENS))


def test_logit_lens() -> None:
    model, _, _, hidden = world()
    same("logit lens", twin.logit_lens(model, hidden, MEDIA, TOKENS))


def test_attention_to_the_media_in_the_middle_layers() -> None:
    _, out, _, _ = world()
    layers = range(round(5 * 3 / 32), min(2, round(18 * 3 / 32)) + 1)
    same("attention to media", twin.attention_to_media(out, START, MEDIA, 3, layers))
    same("attention concentration", twin.concentration(out, START, MEDIA, 3, layers))


def test_cosines() -> None:
    model, _, _, hidden = world()
    same("contextual lens", twin.contextual_lens(hidden, START, MEDIA, 3))
    same("GLSim", twin.glsim(model, hidden, START, MEDIA, TOKENS, max(1, round(16 * 32 / 576))))


def test_attention_to_the_answer_so_far() -> None:
    _, out, _, _ = world()
    same("attention to prefix", twin.prefix_attention(out, START, 3))
    assert float(scores.prefix_attention(world()[2])[0]) == 0.0


def test_pmi_is_the_difference_to_the_prompt_without_media() -> None:
    model, out, seen, _ = world()
    ids = torch.tensor([[1, 31, 32, 41, 42, 43, *TOKENS]])
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 5:8]
    bare = [float(logits[j].log_softmax(-1)[t]) for j, t in enumerate(TOKENS)]
    same("PMI", [a - b for a, b in zip(twin.log_probability(out, START, TOKENS), bare, strict=True)])
    unknown = Observation(**{**vars(seen), "without": None})
    assert bool(scores.pmi(unknown).isnan().all())


def test_a_barred_word_takes_no_part_in_the_entropy() -> None:
    seen = world()[2]
    barred = seen.logits.clone()
    barred[:, 99] = -torch.inf
    kept = torch.cat([seen.logits[:, :99], seen.logits[:, 100:]], dim=1).log_softmax(-1)
    got = scores.negative_entropy(Observation(**{**vars(seen), "logits": barred}))
    torch.testing.assert_close(got, (kept.exp() * kept).sum(-1))


def test_the_model_is_left_as_it_was() -> None:
    model = llava()
    adapter, inputs = Adapter(model), llava_inputs(model)
    before = snapshot(model)
    observe(adapter, inputs, TOKENS)
    assert snapshot(model) == before


def test_no_answer() -> None:
    model = llava()
    with pytest.raises(SettingError, match="tokens of an answer"):
        observe(Adapter(model), llava_inputs(model), [])
