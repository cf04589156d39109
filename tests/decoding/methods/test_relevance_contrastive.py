"""l'(v) = l(v) + alpha Phi_M(v): the formula from the backward route, the cut, the decay, the gates."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from limelight.cli.options import strategy_of
from limelight.decoding.loop import custom_generate
from limelight.decoding.methods.relevance_contrastive import (
    PRESETS,
    RelevanceContrastive,
    amplified,
    relevance_contrastive,
)
from limelight.decoding.registry import strategy
from limelight.errors import SettingError
from limelight.models.adapter import Adapter
from limelight.relevance.attachment import attached
from limelight.relevance.attribute import input_relevance
from limelight.relevance.composites import COMPOSITES
from tests.tiny import built, llava, llava_inputs
from tests.wide import wide
from tests.zoo import ZOO


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    return Adapter(llava())


def run(adapter: Adapter, inputs: dict[str, Tensor], tokens: int = 4, **settings: Any) -> Any:
    return adapter.model.generate(
        **inputs, custom_generate=custom_generate(relevance_contrastive(**settings)), max_new_tokens=tokens,
        do_sample=False, return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip


def by_backward(adapter: Adapter, inputs: dict[str, Tensor], said: Tensor, composite: str) -> tuple[Tensor, Tensor]:
    """Logits and Phi_M of every token ``[V]``: a backward pass each."""
    call = adapter.capture(inputs)
    with torch.no_grad():
        for token in said:
            call = call.appended(adapter.embed(token.reshape(1, 1)))
    media_mask = torch.zeros(call.length, dtype=torch.bool)
    media_mask[: inputs["input_ids"].shape[1]] = (adapter.modality_ids(inputs) > 0)[0]
    with torch.enable_grad(), attached(adapter, COMPOSITES[composite]):
        embeds = call.embeds.clone().requires_grad_(True)
        logits = adapter.logits(adapter.hidden(call, embeds)[:, -1:])[0, 0]
        phi = [float(input_relevance(x, embeds, retain_graph=True)[0][media_mask].sum().detach()) for x in logits]
    return logits.detach(), torch.tensor(phi, dtype=logits.dtype)


@pytest.mark.parametrize("composite", ["attnlrp", "cp-lrp"])
@pytest.mark.parametrize("beta", [0.0, 0.2])
def test_the_formula(adapter: Adapter, composite: str, beta: float) -> None:
    """Every logit of every step, with alpha fading as exp(-decay t)."""
    inputs = llava_inputs(adapter.model)
    output = run(adapter, inputs, 3, alpha=1.5, beta=beta, decay=0.7, composite=composite)
    length = inputs["input_ids"].shape[1]
    for j in range(3):
        logits, phi = by_backward(adapter, inputs, output.sequences[0, length : length + j], composite)
        want = logits + 1.5 * math.exp(-0.7 * j) * phi
        p = torch.softmax(logits, -1)
        want = torch.where(p < beta * p.max(), torch.full_like(want, -math.inf), want)
        torch.testing.assert_close(output.logits[j][0].double(), want, atol=1e-9, rtol=0)
        assert bool(want.isinf().any()) == (beta > 0)
        step = output.steps[0][j]
        assert step.token == int(want.argmax()) and step.plain == int(logits.argmax())
        assert step.intervened and not step.losses


def test_the_formula_with_z_scores(adapter: Adapter) -> None:
    """Whose alpha has no scale: z is the same whatever the logits are multiplied by."""
    inputs = llava_inputs(adapter.model)
    output = run(adapter, inputs, 2, alpha=1.5, beta=0.0, score="z")
    length = inputs["input_ids"].shape[1]
    for j in range(2):
        logits, phi = by_backward(adapter, inputs, output.sequences[0, length : length + j], "attnlrp")
        z = (phi - phi.mean()) / phi.std(correction=0)
        torch.testing.assert_close(output.logits[j][0].double(), logits + 1.5 * z, atol=1e-7, rtol=0)
        step = output.steps[0][j]
        assert step.grounding == pytest.approx(float(z[step.token]), abs=1e-6)
        rivals = z[(logits.softmax(-1) >= 1e-3) & (torch.arange(len(z)) != step.token)]
        assert step.rival_grounding == pytest.approx(float(rivals.max()), abs=1e-6)


@pytest.mark.parametrize(
    "settings", [{"alpha": 0.0}, {"gate": "uncertain", "threshold": 0.0}, {"gate": "ungrounded", "threshold": 0.0}]
)
@pytest.mark.parametrize("name", ["llava_gqa", "qwen2_5_vl", "gemma3", "paligemma2"])
def test_what_is_greedy(name: str, settings: dict[str, Any]) -> None:
    """alpha 0, or a gate that never opens: no cut either, so sampling would be the model's own, too."""
    given = built(name)
    inputs = ZOO[name].batch(given.model)  # type: ignore[misc]
    plain = given.model.generate(
        **inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    output = run(given, inputs, **settings)
    assert torch.equal(plain.sequences, output.sequences)
    for a, b in zip(plain.logits, output.logits, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)
    assert not any(s.intervened for steps in output.steps for s in steps)
    assert all(s.contributions and s.candidates for steps in output.steps for s in steps)


def test_the_cut() -> None:
    logits = torch.log(torch.tensor([[0.6, 0.3, 0.09, 0.01], [0.25, 0.25, 0.25, 0.25]]))
    phi = torch.tensor([[0.0, 0.0, 9.0, 99.0], [1.0, 2.0, 3.0, 4.0]])
    assert amplified(logits, phi, 1.0, 0.1).argmax(-1).tolist() == [2, 3]
    assert amplified(logits, phi, 1.0, 0.2).argmax(-1).tolist() == [0, 3]
    assert amplified(logits, phi, 1.0, 0.0).argmax(-1).tolist() == [3, 3]
    assert amplified(logits, phi, 1.0, 0.1).isinf().tolist() == [[False, False, False, True], [False] * 4]
    assert amplified(logits, phi, -1.0, 1.0).isinf().tolist() == [[False, True, True, True], [False] * 4]
    assert torch.equal(amplified(logits, phi, 0.0, 0.9), logits)


def test_what_every_token_shares_decides_nothing() -> None:
    logits, phi = torch.randn(2, 50), torch.randn(2, 50)
    a, b = amplified(logits, phi, 2.0, 0.1), amplified(logits, phi + 3.0, 2.0, 0.1)
    assert torch.equal(a.argmax(-1), b.argmax(-1))


def test_gates_open_a_row_at_a_time() -> None:
    wider = wide("llava_gqa")
    inputs = ZOO["llava_gqa"].batch(wider.model)  # type: ignore[misc]
    plain = run(wider, inputs, 1, alpha=0.0)
    full = run(wider, inputs, 1)
    largest = [float(x.softmax(-1).max()) for x in plain.logits[0]]
    shares = [s[0].contributions["image"] for s in plain.steps]
    for gate, values in (("uncertain", largest), ("ungrounded", shares)):
        between = sum(values) / 2
        output = run(wider, inputs, 1, gate=gate, threshold=between)
        for row, value in enumerate(values):
            opened = value < between
            want = full if opened else plain
            assert torch.equal(output.logits[0][row], want.logits[0][row])
            assert output.steps[row][0].intervened == opened


@pytest.mark.parametrize("name", ["llava_gqa", "qwen2_5_vl", "qwen2_audio"])
def test_batch_rows_are_their_runs_alone(name: str) -> None:
    wider = wide(name)
    tiny = ZOO[name]
    together = run(wider, tiny.batch(wider.model), decay=0.1)  # type: ignore[misc]
    for row in (0, 1):
        alone = run(wider, tiny.inputs(wider.model, row=row), decay=0.1)
        assert together.sequences[row, -4:].tolist() == alone.sequences[0, -4:].tolist()
        for a, b in zip(together.logits, alone.logits, strict=True):
            torch.testing.assert_close(a[row], b[0], atol=1e-9, rtol=0)


def test_sampling_keeps_to_the_plausible(adapter: Adapter) -> None:
    inputs = llava_inputs(adapter.model)
    drawn = set()
    for seed in range(8):
        output = adapter.model.generate(
            **inputs, custom_generate=custom_generate(relevance_contrastive(alpha=4.0, beta=0.5), seed=seed),
            max_new_tokens=2, do_sample=True, return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        for j, step in enumerate(output.steps[0]):
            assert torch.isfinite(output.logits[j][0, step.token])
            own = {t: logit for t, _, logit, _ in step.candidates}
            assert own.get(step.token, -math.inf) >= math.log(0.5) + max(own.values())
        drawn.add(tuple(output.sequences[0, -2:].tolist()))
    assert len(drawn) > 1


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"composite": "gradient-input"}, "forward mode"), ({"alpha": math.nan}, "alpha"), ({"alpha": math.inf}, "alpha"),
        ({"beta": -0.1}, "beta"), ({"beta": 1.1}, "beta"), ({"beta": math.nan}, "beta"), ({"decay": -1.0}, "decay"),
        ({"decay": math.nan}, "decay"), ({"gate": "often"}, "gate"), ({"threshold": 3.0}, "threshold"),
        ({"preset": "poems"}, "preset"), ({"score": "rank"}, "score"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(SettingError, match=word) as caught:
        relevance_contrastive(**settings)
    assert caught.value.hint


def test_settings_are_kept() -> None:
    strategy = relevance_contrastive(alpha=3.0, gate="uncertain")
    assert strategy.name == "relevance-contrastive"
    assert RelevanceContrastive(**strategy.settings()) == strategy
    assert relevance_contrastive() == RelevanceContrastive(alpha=2.0, beta=0.1, decay=0.0, gate="always")
    assert strategy.settings()["score"] == "phi" and strategy.settings()["preset"] is None


@pytest.mark.parametrize("preset", list(PRESETS))
def test_presets_give_what_is_not_given(preset: str) -> None:
    own = relevance_contrastive(preset=preset)
    assert {k: getattr(own, k) for k in PRESETS[preset]} == PRESETS[preset]
    assert own.settings()["preset"] == preset
    assert RelevanceContrastive(**own.settings()) == own
    other = relevance_contrastive(preset=preset, alpha=0.0, beta=0.0, score="phi")
    assert (other.alpha, other.beta, other.score) == (0.0, 0.0, "phi")  # what is given counts, zero too
    assert own == strategy("relevance-contrastive", preset=preset)
    assert own == strategy_of(f"relevance-contrastive,preset={preset}", [])
    assert strategy_of(f"relevance-contrastive,preset={preset}", ["alpha=0.5"]).settings()["alpha"] == 0.5
