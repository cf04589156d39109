"""SALMONN read from its published parts, held against the published formulas; and everything limelight does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, WhisperModel

import limelight
from limelight.errors import MediaError, ModelError, PromptError
from limelight.models.adapter import Adapter
from limelight.models.checkpoints.salmonn.beats import Beats, buckets
from limelight.models.checkpoints.salmonn.processor import filter_bank
from tests.deployed import chatter
from tests.models.checkpoints.salmonn import published
from tests.slow_twins import salmonn as twin
from tests.tiny import snapshot

QUESTION = "what is in the sound ?"
POSITIONS = 50 * published.SECONDS // 17


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published.write(tmp_path_factory.mktemp("salmonn"))


@pytest.fixture(scope="module")
def adapter(folder: Path) -> Adapter:
    found = limelight.load(folder)
    found.model.generation_config.eos_token_id = None
    return found


def sound(seconds: float = 1.5, seed: int = 0) -> np.ndarray[Any, Any]:
    """A tone that climbs, in noise."""
    t = np.arange(round(seconds * 16000)) / 16000
    noise = np.random.default_rng(seed).normal(0, 0.05, len(t))
    return np.asarray(0.3 * np.sin(2 * np.pi * (300 + 900 * t) * t) + noise, dtype=np.float32)


def heard(seconds: float = 1.5, seed: int = 0) -> tuple[np.ndarray[Any, Any], int]:
    return sound(seconds, seed), 16000


def test_the_filter_bank_is_kaldis() -> None:
    samples = sound(0.3)
    want = twin.kaldi(torch.from_numpy(samples))
    torch.testing.assert_close(torch.from_numpy(filter_bank(samples)).double(), want, atol=2e-3, rtol=1e-3)


def test_buckets() -> None:
    got = buckets(120, 16, 40)
    want = [[twin.bucket(k - q, 16, 40) for k in range(120)] for q in range(120)]
    assert got.tolist() == want
    assert int(got.max()) == 15


def test_beats(adapter: Adapter) -> None:
    bank = filter_bank(sound(0.7))
    fbank = torch.from_numpy(bank)[None]
    want = twin.beats(published.beats(), published.CFG, fbank[0].double())
    with torch.no_grad():
        got = adapter.model.beats(fbank, torch.ones(1, len(bank)))[0]
    torch.testing.assert_close(got.double(), want, atol=1e-4, rtol=1e-4)
    assert float(want.std()) > 0.3


def test_rows_of_beats_are_what_they_are_alone(adapter: Adapter) -> None:
    banks = [torch.from_numpy(filter_bank(sound(s, n))) for n, s in enumerate((0.7, 0.4))]
    longest = max(map(len, banks))
    fbank = torch.stack([torch.nn.functional.pad(b, (0, 0, 0, longest - len(b)), value=7.0) for b in banks])
    mask = torch.stack([torch.arange(longest) < len(b) for b in banks])
    beats: Beats = adapter.model.beats
    with torch.no_grad():
        both = beats(fbank, mask)
        for row, bank in enumerate(banks):
            alone = beats(bank[None], torch.ones(1, len(bank)))[0]
            torch.testing.assert_close(both[row, : len(alone)], alone, atol=1e-5, rtol=1e-5)
            assert not both[row, len(alone) :].any()


def expected(folder: Path, adapter: Adapter, tensors: Any) -> Tensor:
    """Logits [T, V] by the published way: towers, bridge, and Vicuna with peft's LoRA around it."""
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    state = published.trained()
    with chatter():
        whisper = WhisperModel.from_pretrained(folder / "whisper-large-v2").double().eval()
        llama = AutoModelForCausalLM.from_pretrained(folder / "vicuna-7b-v1.5").double()
        tuned = (
            get_peft_model(llama, LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj"])).double().eval()
        )
        lora = {n.removeprefix("llama_model."): t.double() for n, t in state.items() if n.startswith("llama_model.")}
        assert not set_peft_model_state_dict(tuned, lora).unexpected_keys
    ids = tensors["input_ids"][0].tolist()
    with torch.no_grad():
        speech = whisper.encoder(tensors["input_features"].double()).last_hidden_state[0]
        bank = tensors["fbank"][0][: int(tensors["fbank_mask"].sum())].double()
        audio = twin.beats(published.beats(), published.CFG, bank)
        here = twin.bridge(state, speech, audio)
        embeds = llama.get_input_embeddings()(torch.tensor(ids))
        start = ids.index(0)
        assert ids[start : start + len(here)] == [0] * len(here)
        embeds = torch.cat([embeds[:start], here, embeds[start + len(here) :]])
        out: Tensor = tuned(inputs_embeds=embeds[None]).logits[0]
    return out


def test_the_published_computation(folder: Path, adapter: Adapter) -> None:
    prompt = adapter.prepare(QUESTION, {"audio": heard()})
    with torch.no_grad():
        got = adapter.model(**prompt.tensors).logits[0]
    want = expected(folder, adapter, prompt.tensors)
    torch.testing.assert_close(got.double(), want, atol=1e-3, rtol=1e-3)
    assert float(want.std()) > 0.5
    with torch.no_grad():
        other = adapter.model(**adapter.prepare(QUESTION, {"audio": heard(seed=1)}).tensors).logits[0]
        silent = adapter.model(**{**prompt.tensors, "fbank": torch.zeros_like(prompt.tensors["fbank"])}).logits[0]
    assert min(float((got - x)[-1].abs().max()) for x in (other, silent)) > 0.01, "the sound is not heard"


def test_the_published_prompt(adapter: Adapter) -> None:
    tensors = adapter.prepare(QUESTION, {"audio": heard()}).tensors
    ids = tensors["input_ids"][0].tolist()
    start = ids.index(0)
    words = adapter.tokenizer
    assert ids[0] == words.bos_token_id
    assert words.decode(ids[1:start]) == "USER: <Speech>"
    assert words.decode(ids[start + POSITIONS :]) == f"</Speech> {QUESTION}\nASSISTANT:"
    assert ids[1:start] == words("USER: <Speech>", add_special_tokens=False)["input_ids"]
    assert ids[start + POSITIONS :] == words(f"</Speech> {QUESTION}\nASSISTANT:", add_special_tokens=False)["input_ids"]


def test_family_spans_and_seconds(adapter: Adapter) -> None:
    assert adapter.family.name == "salmonn"
    assert limelight.lime().resolved(adapter).lr == 3e-4
    (span,) = [s for s in adapter.prepare(QUESTION, {"audio": heard()}).spans if s.modality == "audio"]
    assert len(span) == POSITIONS == 8
    assert span.seconds == pytest.approx(0.34)
    two = adapter.prepare(QUESTION, {"audio": [heard(), heard(1.2, 1)]})
    assert [len(s) for s in two.spans if s.modality == "audio"] == [POSITIONS] * 2


@pytest.mark.parametrize(
    "strategy", ["greedy", "meter", "relevance-contrastive", "lime", "lime-cached", "aad", "vcd", "pai"]
)
def test_decoding(adapter: Adapter, strategy: str) -> None:
    settings: dict[str, Any] = {"lime": {"steps": 3, "lr": 1e-2}, "lime-cached": {"lr": 1e-2}, "pai": {"start": 0}}
    prompt = adapter.prepare(QUESTION, {"audio": heard()})
    limelight.generate(adapter, messages=prompt, max_new_tokens=1)
    before = snapshot(adapter.model)
    answer = limelight.generate(
        adapter, messages=prompt, strategy=limelight.strategy(strategy, **settings.get(strategy, {})), max_new_tokens=3,
        repetition_penalty=1.1,
    )  # fmt: skip
    assert len(answer.steps) == 3
    assert snapshot(adapter.model) == before
    if strategy in ("greedy", "lime"):
        scores, seconds = answer.steps[0].relevance.on_seconds()  # type: ignore[union-attr]
        assert len(scores) == POSITIONS
        assert seconds == pytest.approx(0.34)
    if strategy == "greedy":
        own = adapter.model.generate(**prompt.tensors, max_new_tokens=3, do_sample=False, repetition_penalty=1.1)
        assert answer.token_ids == tuple(own[0, -3:].tolist())


def test_meter_and_relevance_agree(adapter: Adapter) -> None:
    prompt = adapter.prepare(QUESTION, {"audio": heard()})
    relevance = limelight.attribute(adapter, prompt.tensors)
    step = limelight.generate(adapter, messages=prompt, strategy="meter", max_new_tokens=1).steps[0]
    token, _, logit, phi = step.candidates[0]
    assert token == relevance.target
    assert phi == pytest.approx(relevance.total("audio"), abs=1e-3)
    assert logit == pytest.approx(relevance.logit, abs=1e-4)


def test_a_batch_equals_its_rows(adapter: Adapter) -> None:
    asks = [
        [{"role": "user", "content": [{"type": "audio", "audio": heard(s, n)}, {"type": "text", "text": words}]}]
        for n, (s, words) in enumerate(((1.5, "what is"), (2.4, QUESTION)))
    ]
    many = limelight.generate_many(adapter, requests=asks, strategy="lime-cached", max_new_tokens=3)
    for ask, answer in zip(asks, many, strict=True):
        alone = limelight.generate(adapter, messages=ask, strategy="lime-cached", max_new_tokens=3)
        assert answer.token_ids == alone.token_ids


def test_a_sound_that_is_too_long_and_words_that_cannot_be_spelled(adapter: Adapter) -> None:
    with pytest.raises(MediaError, match="cuts off its end"):
        adapter.prepare(QUESTION, {"audio": heard(published.SECONDS + 1.0)})
    with pytest.raises(PromptError, match="unknown token"):
        adapter.prepare("what is <unk> ?", {"audio": heard()})
    with pytest.raises(PromptError, match="2 audio inputs for 1"):
        adapter.processor(text=["<SpeechHere> what"], audio=[sound(), sound()])
    with pytest.raises(PromptError, match="input_features"):
        adapter.model(input_ids=torch.tensor([[1, 0, 5]]))


def broken(tmp_path: Path, what: str) -> Path:
    published.write(tmp_path)
    path, beats = tmp_path / "salmonn_v1.pth", next(tmp_path.glob("BEATs*"))
    state, other = torch.load(path), torch.load(beats)
    if what == "no Whisper":
        (tmp_path / "whisper-large-v2" / "config.json").unlink()
    elif what == "no BEATs":
        beats.unlink()
    elif what == "two checkpoints":
        torch.save(state, tmp_path / "salmonn_v2.pth")
    elif what == "damaged":
        path.write_bytes(b"nothing")
    elif what == "half an adapter":
        del state["model"][next(n for n in state["model"] if "lora_B" in n)]
        torch.save(state, path)
    elif what == "a weight is missing":
        del state["model"]["ln_speech.weight"]
        torch.save(state, path)
    elif what == "a weight too many":
        state["model"]["second_proj.weight"] = torch.ones(2, 2)
        torch.save(state, path)
    elif what == "no Q-Former":
        torch.save({"model": {"ln_speech.weight": torch.ones(16)}}, path)
    elif what == "BEATs of another kind":
        torch.save({**other, "cfg": {**other["cfg"], "layer_norm_first": True}}, beats)
    else:
        torch.save({**other, "cfg": {**other["cfg"], "encoder_layers": 3}}, beats)
    return tmp_path


@pytest.mark.parametrize(
    "what",
    [
        "no Whisper", "no BEATs", "two checkpoints", "damaged", "half an adapter", "a weight is missing",
        "a weight too many", "no Q-Former", "BEATs of another kind", "BEATs of another size",
    ],
)  # fmt: skip
def test_a_damaged_checkpoint_is_reported(tmp_path: Path, what: str) -> None:
    with chatter(), pytest.raises(ModelError) as caught:
        limelight.load(broken(tmp_path, what))
    assert caught.value.hint
