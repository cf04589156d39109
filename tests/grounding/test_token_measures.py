"""The meter's measures of given tokens: against their definitions, and several at once against one by one."""

from __future__ import annotations

import pytest
import torch

from limelight.calibration import Calibration
from limelight.grounding.score import flagged, rival_score, z_score
from limelight.grounding.token_measures import TOP, token_measures
from limelight.types import EARLIER_ANSWERS

GENERATOR = torch.Generator().manual_seed(0)
LOGITS, AUDIO, IMAGE, EARLIER = (3 * torch.randn(5, 40, generator=GENERATOR, dtype=torch.float64) for _ in range(4))
TOKENS = torch.tensor([0, 7, 7, 39, 12])
KNOWN = 36  # the fourth token is none of the tokenizer's
CALIBRATION = Calibration("x", 0.5, (-2.0, 2.0), (0.1, 0.9), margin=0.5)
GROUPS = {"image": IMAGE, "audio": AUDIO, EARLIER_ANSWERS: EARLIER}


def test_they_are_what_they_are_defined_as() -> None:
    phi = IMAGE + AUDIO
    found = token_measures(TOKENS, LOGITS, phi, ["image", "audio"], GROUPS, known=KNOWN, calibration=CALIBRATION)
    among = torch.arange(40) < KNOWN
    z = z_score(phi, among.expand(phi.shape))
    rivals = rival_score(z, LOGITS, TOKENS)
    for n, (token, one) in enumerate(zip(TOKENS.tolist(), found, strict=True)):
        own = z[n, token]
        assert one["grounding"] == pytest.approx(float(own))
        assert one["rival_grounding"] == pytest.approx(float(rivals[n]))
        assert one["flagged"] == bool(flagged(own, rivals[n], 0.5, margin=0.5))
        assert one["p_supported"] == pytest.approx(CALIBRATION.probability(float(own)))
        assert one["support"] == pytest.approx(float(phi[n, token] - phi[n, :KNOWN].mean()))
        by_kind = {k: float(z_score(GROUPS[k], among.expand(phi.shape))[n, token]) for k in ("image", "audio")}
        assert one["grounding_by_modality"] == pytest.approx(by_kind)
        sizes = {k: float(v[n, token]) for k, v in GROUPS.items()}
        rest = abs(float(LOGITS[n, token]) - sum(sizes.values()))
        total = rest + sum(map(abs, sizes.values()))
        assert one["contributions"] == pytest.approx(
            {k: abs(v) / total for k, v in sizes.items()} | {"text": rest / total}
        )
        assert one["plain"] == one["candidates"][0][0] == int(LOGITS[n].argmax()) and len(one["candidates"]) == TOP
        assert all((x, y) == (float(LOGITS[n, t]), float(phi[n, t])) for t, x, y in one["candidates"])


def test_several_are_each_of_them_alone() -> None:
    given = {"known": None, "calibration": None}
    together = token_measures(TOKENS, LOGITS, IMAGE, ["image"], {}, **given)
    for n, one in enumerate(together):
        part = slice(n, n + 1)
        (alone,) = token_measures(TOKENS[part], LOGITS[part], IMAGE[part], ["image"], {}, **given)
        assert alone == one and one["p_supported"] is None


def test_without_media_there_are_only_shares_and_candidates() -> None:
    (one,) = token_measures(TOKENS[:1], LOGITS[:1], torch.zeros(1, 40), [], {}, known=None, calibration=CALIBRATION)
    assert one["contributions"] == {"text": 1.0} and not one["flagged"] and one["grounding_by_modality"] == {}
    assert [one[k] for k in ("grounding", "rival_grounding", "support", "p_supported")] == [None] * 4


def test_of_equal_logits_the_first_is_plain_and_known_probabilities_change_nothing() -> None:
    logits = LOGITS.round()  # with ties, also of the highest
    logits[0, [4, 33]] = logits[1, [0, 1, 2]] = 20.0
    given = {"known": KNOWN, "calibration": CALIBRATION}
    found = token_measures(TOKENS, logits, IMAGE, ["image"], {}, **given)
    assert [one["plain"] for one in found] == logits.argmax(-1).tolist()
    assert found[0]["plain"] == 4 and found[1]["plain"] == 0
    known = torch.softmax(logits, -1)
    assert token_measures(TOKENS, logits, IMAGE, ["image"], {}, probabilities=known, **given) == found
