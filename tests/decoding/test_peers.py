"""What holds for every peer: batches, sampling, streaming, a neutral setting, an untouched model, the registry."""

from __future__ import annotations

import pytest
import torch

from limelight.decoding import registry
from limelight.decoding.loop import GroundedOutput
from limelight.decoding.methods.aad import aad
from limelight.decoding.methods.agla import agla
from limelight.decoding.methods.avisc import avisc
from limelight.decoding.methods.deco import deco
from limelight.decoding.methods.dola import dola
from limelight.decoding.methods.flb import flb
from limelight.decoding.methods.greedy import greedy
from limelight.decoding.methods.iat import iat
from limelight.decoding.methods.icd import icd
from limelight.decoding.methods.ilvad import ilvad
from limelight.decoding.methods.kvsmooth import kvsmooth
from limelight.decoding.methods.m3id import m3id
from limelight.decoding.methods.memvr import memvr
from limelight.decoding.methods.opera import opera
from limelight.decoding.methods.pai import pai
from limelight.decoding.methods.rudder import rudder
from limelight.decoding.methods.vaf import vaf
from limelight.decoding.methods.vcd import vcd
from limelight.decoding.methods.vista import vista
from limelight.decoding.strategy import Strategy
from limelight.errors import SettingError
from limelight.models.adapter import Adapter
from tests.decoding.peers import CLOSE, deep, deep_inputs, double, emitted, inputs_of, plain_tokens, run
from tests.slow_twins.full import last_logits
from tests.tiny import snapshot
from tests.zoo import ZOO

WORDS = (60, 61, 62)
PEERS: dict[str, Strategy] = {
    "vcd": vcd(),
    "icd": icd(instruction=WORDS),
    "m3id": m3id(decay=0.3, gate=0.9),
    "m3id released": m3id(decay=0.3, variant="released"),
    "m3id zero": m3id(decay=0.3, gate=0.9, without="zero"),
    "pai": pai(alpha=0.5),
    "pai boosted": pai(alpha=0.5, first_token="boosted"),
    "dola": dola(layers=(0, 1)),
    "deco": deco(layers=(0, 1)),
    "avisc": avisc(),
    "memvr": memvr(ratio=0.5, threshold=0.5),
    "vaf": vaf(enhance=2.0, suppress=0.5),
    "rudder": rudder(alpha=2.0),
    "vista": vista(),
    "ilvad": ilvad(tau=1.0),
    "agla": agla(kept=0.5),
}
LATE: dict[str, Strategy] = {  # what leaves the first token, or the first two, as they are
    "flb": flb(gamma=5.0, decay=2.0), "iat": iat(alpha=3.0), "kvsmooth": kvsmooth(strength=0.5),
}  # fmt: skip
SOUND: dict[str, Strategy] = {
    **PEERS, **LATE, "aad": aad(silence=-1.5), "aad absent": aad(variant="absent"),
    "opera": opera(beams=2, candidates=2, threshold=1, warmup=1),
}  # fmt: skip
NEUTRAL: dict[str, Strategy] = {
    "vcd": vcd(alpha=0),
    "icd": icd(alpha=0, instruction=WORDS),
    "m3id": m3id(decay=0),
    "aad": aad(alpha=0, silence=-1.5),
    "pai": pai(alpha=0, gamma=1),
    "deco": deco(alpha=0),
    "avisc": avisc(alpha=0),
    "memvr": memvr(ratio=0),
    "vaf": vaf(enhance=1, suppress=1),
    "rudder": rudder(alpha=0),
    "vista": vista(strength=0, alpha=0),
    "ilvad": ilvad(alpha=0, beta=None),
    "flb": flb(gamma=0),
    "agla": agla(alpha=0),
    "iat": iat(alpha=0),
    "kvsmooth": kvsmooth(strength=0, radius=0),
}
every_peer = pytest.mark.parametrize("strategy", [pytest.param(s, id=n) for n, s in PEERS.items()])
on_sound = pytest.mark.parametrize("strategy", [pytest.param(s, id=n) for n, s in SOUND.items()])
that_samples = pytest.mark.parametrize("strategy", [pytest.param(s, id=n) for n, s in SOUND.items() if n != "opera"])


class Listener:
    """A streamer that keeps what it is given."""

    def __init__(self) -> None:
        self.got: list[torch.Tensor] = []
        self.ended = 0

    def put(self, value: torch.Tensor) -> None:
        self.got.append(value)

    def end(self) -> None:
        self.ended += 1


@every_peer
@pytest.mark.parametrize("name", ["llava", "internvl", "qwen2_5_vl", "gemma3", "qwen2_audio", "qwen2_5_vl_video"])
def test_a_row_alone_and_in_a_batch(name: str, strategy: Strategy) -> None:
    """Left padding, and neighbours, change nothing: at the first token and, where the tokens agree, at the second."""
    adapter = double(name)
    batch = run(adapter, inputs_of(name, "batch"), strategy, n=2)
    for row, kind in enumerate(("single", "other")):
        alone = run(adapter, inputs_of(name, kind), strategy, n=2)
        assert batch.logits is not None
        assert alone.logits is not None
        assert torch.equal(emitted(batch, inputs_of(name, "batch"))[row], emitted(alone, inputs_of(name, kind))[0])
        for of_batch, own in zip(batch.logits, alone.logits, strict=True):
            torch.testing.assert_close(of_batch[row], own[0], **CLOSE)


@pytest.mark.parametrize("strategy", [pytest.param(s, id=n) for n, s in NEUTRAL.items()])
def test_the_neutral_setting_is_the_model_itself(strategy: Strategy) -> None:
    adapter, inputs = double("qwen2_audio"), inputs_of("qwen2_audio", "batch")
    out = run(adapter, inputs, strategy, n=4)
    assert torch.equal(emitted(out, inputs), plain_tokens(adapter, inputs, 4))
    assert out.logits is not None
    for got, want in zip(out.logits, run(adapter, inputs, greedy(), n=4).logits or (), strict=True):
        torch.testing.assert_close(got, want, **CLOSE)
    assert out.steps is not None
    assert not any(s.intervened for row in out.steps for s in row)


@every_peer
def test_it_changes_tokens_and_reports_it(strategy: Strategy) -> None:
    adapter, inputs = double("qwen2_5_vl"), inputs_of("qwen2_5_vl")
    out = run(adapter, inputs, strategy, n=3, bind={"details": True})
    plain = run(adapter, inputs, greedy(), n=1).logits
    assert out.logits is not None
    assert plain is not None
    assert not torch.allclose(out.logits[0].softmax(-1), plain[0].softmax(-1), atol=1e-4)
    assert out.steps is not None
    first = out.steps[0][0]
    assert first.intervened
    assert first.plain == int(plain[0].argmax())


@pytest.mark.parametrize("strategy", [pytest.param(s, id=n) for n, s in LATE.items()])
def test_it_changes_later_tokens_and_reports_it(strategy: Strategy) -> None:
    adapter, inputs = double("qwen2_5_vl"), inputs_of("qwen2_5_vl")
    out = run(adapter, inputs, strategy, n=4, bind={"details": True})
    tokens = emitted(out, inputs)
    plain = last_logits(adapter.model, inputs, tokens[:, :3])
    assert out.logits is not None
    assert not torch.allclose(out.logits[3].softmax(-1), plain.softmax(-1), atol=1e-4)
    assert out.steps is not None
    assert out.steps[0][3].intervened
    assert out.steps[0][3].plain == int(plain.argmax())


@pytest.mark.parametrize(
    "name",
    [
        *("avisc", "deco", "dola", "icd", "m3id", "memvr", "opera", "pai", "vcd"),
        *("agla", "flb", "iat", "ilvad", "kvsmooth", "rudder", "vaf", "vista"),
    ],
)
@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_the_defaults_work_at_every_depth(name: str, layers: int) -> None:
    adapter = deep(layers)
    strategy = registry.strategy(name, **({"instruction": WORDS} if name == "icd" else {}))
    inputs = deep_inputs()
    if name == "memvr" and layers == 1:
        with pytest.raises(SettingError, match="at least 2 layers"):
            run(adapter, inputs, strategy)
        return
    assert emitted(run(adapter, inputs, strategy, n=2), inputs).shape == (1, 2)


@that_samples
def test_sampling_follows_its_seed_and_stays_in_the_distribution(strategy: Strategy) -> None:
    adapter, inputs = double("qwen2_audio"), inputs_of("qwen2_audio", "batch")

    def draw(seed: int) -> GroundedOutput:
        return run(adapter, inputs, strategy, n=3, do_sample=True, bind={"seed": seed})

    first, again = draw(5), draw(5)
    assert torch.equal(first.sequences, again.sequences)
    assert len({tuple(emitted(draw(seed), inputs).flatten().tolist()) for seed in (5, 6, 7, 8)}) > 1
    assert first.logits is not None
    for t, logits in enumerate(first.logits):
        chosen = emitted(first, inputs)[:, t : t + 1]
        assert bool(torch.isfinite(logits.gather(1, chosen)).all())


@on_sound
def test_a_streamer_receives_every_token(strategy: Strategy) -> None:
    adapter, inputs = double("qwen2_audio"), inputs_of("qwen2_audio")
    listener = Listener()
    out = run(adapter, inputs, strategy, bind={"streamer": listener})
    assert torch.stack(listener.got)[:, 0].tolist() == emitted(out, inputs)[0].tolist()
    assert listener.ended == 1


@on_sound
def test_the_model_is_left_as_it_was(strategy: Strategy) -> None:
    adapter = Adapter(ZOO["qwen2_audio"].build())
    inputs = ZOO["qwen2_audio"].inputs(adapter.model)
    run(adapter, inputs, greedy(), n=1)
    before = snapshot(adapter.model)
    run(adapter, inputs, strategy, n=2, bind={"details": True})
    assert snapshot(adapter.model) == before


@on_sound
def test_half_precision(strategy: Strategy) -> None:
    adapter = Adapter(ZOO["qwen2_audio"].build().to(torch.bfloat16))
    inputs = ZOO["qwen2_audio"].inputs(adapter.model)
    out = run(adapter, inputs, strategy, n=2)
    assert out.logits is not None
    assert out.logits[0].dtype == torch.float32
    assert emitted(out, inputs).shape == (1, 2)


def test_lists_from_a_configuration_file_become_tuples() -> None:
    assert dola(layers=[0, 1]) == dola(layers=(0, 1))
    assert deco(layers=[0, 1]) == deco(layers=(0, 1))
    assert icd(instruction=[60, 61]) == icd(instruction=(60, 61))
    assert vista(layers=[0, 1]) == vista(layers=(0, 1))


@on_sound
def test_the_registry_finds_it_and_settings_make_it_again(strategy: Strategy) -> None:
    made = registry.strategy(strategy.name, **strategy.settings())
    assert made == strategy
    assert isinstance(made, Strategy)
    assert hash(made) == hash(strategy)
