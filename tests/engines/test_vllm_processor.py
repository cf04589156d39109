"""The processor under vLLM's two interfaces, as vLLM 0.32 defines them (the classes here have their names and signatures)."""

from __future__ import annotations

import importlib
import sys
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from limelight.decoding.formulas import amplified, boosted
from tests.engines.test_contrast import V, rows, told

NAME = "limelight.engines.vllm_processor"


class Moves(Enum):
    UNIDIRECTIONAL = auto()
    SWAP = auto()


@dataclass(frozen=True)
class BatchUpdate:
    batch_size: int
    removed: list[int]
    added: list[tuple[int, Any, list[int] | None, list[int]]]
    moved: list[tuple[int, int, Moves]]


class V1(ABC):
    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        return None

    @abstractmethod
    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None: ...

    @abstractmethod
    def apply(self, logits: Any) -> Any: ...

    @abstractmethod
    def is_argmax_invariant(self) -> bool: ...

    @abstractmethod
    def update_state(self, batch_update: Any) -> None: ...


class V2(ABC):
    @abstractmethod
    def apply(self, logits: Any, ctx: Any) -> Any: ...


def module(name: str, **members: Any) -> ModuleType:
    made = ModuleType(name)
    made.__path__ = []  # type: ignore[attr-defined]
    made.__dict__.update(members)
    return made


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules in the place of vLLM's, and the processor imported from them."""
    parents = ("vllm", "vllm.v1", "vllm.v1.sample", "vllm.v1.worker", "vllm.v1.worker.gpu", "vllm.v1.worker.gpu.sample")
    for name in parents:
        monkeypatch.setitem(sys.modules, name, module(name))
    monkeypatch.setitem(sys.modules, "vllm.v1.sample.logits_processor", module("a", LogitsProcessor=V1))
    monkeypatch.setitem(sys.modules, "vllm.v1.worker.gpu.sample.logits_processor", module("b", LogitsProcessor=V2))
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    yield
    sys.modules.pop(NAME, None)


def config(budget: int = 2048, chunks: bool = True) -> Any:
    return SimpleNamespace(
        scheduler_config=SimpleNamespace(enable_chunked_prefill=chunks, max_num_batched_tokens=budget)
    )


def params(extra: dict[str, Any] | None) -> Any:
    return SimpleNamespace(extra_args=extra, temperature=0.0, seed=None)


def processor(**options: Any) -> Any:
    return importlib.import_module(NAME).LimelightProcessor(config(**options), torch.device("cpu"), False)


@pytest.mark.usefixtures("vllm")
def test_the_entry_point_names_a_class_of_both_interfaces() -> None:
    content = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    (value,) = content["project"]["entry-points"]["vllm.logits_processors"].values()
    found = EntryPoint("limelight", value, "vllm.logits_processors").load()
    assert issubclass(found, V1)
    assert issubclass(found, V2)
    with pytest.raises(ValueError, match="unknown method"):
        found.validate_params(params({"limelight": "x"}))
    found.validate_params(params(None))


def test_older_versions_have_one_interface(vllm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "vllm.v1.worker.gpu.sample.logits_processor")
    found = importlib.import_module(NAME).LimelightProcessor
    assert issubclass(found, V1)
    assert not issubclass(found, V2)


@pytest.mark.usefixtures("vllm")
def test_v1_follows_added_moved_and_removed_requests() -> None:
    own = processor()
    outputs: list[list[int]] = [[], [], []]
    extras = [told("vcd", "a", alpha=1.0, beta=0.0), None, told("vcd", "a", "contrast", alpha=1.0, beta=0.0)]
    own.update_state(BatchUpdate(3, [], [(i, params(e), [1, 2], outputs[i]) for i, e in enumerate(extras)], []))
    logits = rows(3)
    out = own.apply(logits.clone())
    torch.testing.assert_close(out[0], amplified(logits[0:1], logits[2:3], 1.0, 0.0)[0])
    assert torch.equal(out[0], out[2])
    assert torch.equal(out[1], logits[1])
    for listed in outputs:
        listed.append(7)  # vLLM appends to the lists that it handed over
    # the bystander ends, the last row takes its place, and the two swap
    own.update_state(BatchUpdate(2, [1], [], [(2, 1, Moves.UNIDIRECTIONAL), (0, 1, Moves.SWAP)]))
    logits = rows(2, 1)
    out = own.apply(logits.clone())
    torch.testing.assert_close(out[1], amplified(logits[1:2], logits[0:1], 1.0, 0.0)[0])
    assert own.contrast.counts["paired"] == 1
    own.update_state(None)
    own.update_state(BatchUpdate(1, [0], [], [(1, 0, Moves.UNIDIRECTIONAL)]))
    alone = rows(1, 2)
    assert torch.equal(own.apply(alone.clone()), alone)
    assert own.contrast.counts["parted"] == 1
    own.update_state(BatchUpdate(0, [0], [], []))
    assert own.contrast.rows == {}
    assert own._outputs == {}


@pytest.mark.usefixtures("vllm")
def test_v1_flb_counts_the_tokens_that_vllm_hands_over() -> None:
    own, output = processor(), list[int]()
    own.update_state(BatchUpdate(1, [], [(0, params(told("flb", beta=0.0)), None, output)], []))
    first = rows(1)
    assert torch.equal(own.apply(first.clone()), first)
    output += [1, 2, 3]
    later = rows(1, 1)
    torch.testing.assert_close(own.apply(later.clone()), boosted(later, first, 3, 0.3, 0.05, 0.0))
    assert own.needs_output_token_ids()
    assert not own.is_argmax_invariant()


@pytest.mark.usefixtures("vllm")
def test_v1_prompts_that_vllm_may_have_split_are_not_combined() -> None:
    pair = [told("icd", "a"), told("icd", "a", "contrast")]
    for budget, chunks, paired in ((20, True, 1), (19, True, 0), (19, False, 1)):
        own = processor(budget=budget, chunks=chunks)
        own.update_state(BatchUpdate(2, [], [(i, params(e), [0] * 10, []) for i, e in enumerate(pair)], []))
        logits = rows(2)
        out = own.apply(logits.clone())
        assert own.contrast.counts["paired"] == paired
        assert torch.equal(out, logits) is not bool(paired)


@pytest.mark.usefixtures("vllm")
def test_a_batch_without_our_requests_is_returned_as_it_is() -> None:
    own = processor()
    own.update_state(BatchUpdate(1, [], [(0, params(None), [1], [])], []))
    logits = rows(1)
    assert own.apply(logits) is logits


@pytest.mark.usefixtures("vllm")
def test_v2_rows_are_found_by_their_slots() -> None:
    prompts = SimpleNamespace(np=np.array([4, 9, 6, 0]))
    states = SimpleNamespace(total_len=object(), prompt_len=prompts)
    own = importlib.import_module(NAME).LimelightProcessor(config(), states)
    assert own.add_request(2, params(told("vcd", "a", alpha=1.0, beta=0.0)))
    assert own.add_request(0, params(told("vcd", "a", "contrast", alpha=1.0, beta=0.0)))
    assert not own.add_request(1, params(None))

    def step(slots: list[int], counts: list[int]) -> Any:
        positions = [int(prompts.np[s]) + c - 1 for s, c in zip(slots, counts, strict=True)]
        return SimpleNamespace(expanded_idx_mapping=torch.tensor(slots), pos=torch.tensor(positions))

    logits = rows(3)
    out = own.apply(logits.clone(), step([1, 0, 2], [5, 0, 0]))
    torch.testing.assert_close(out[2], amplified(logits[2:3], logits[1:2], 1.0, 0.0)[0])
    assert torch.equal(out[1], out[2])
    assert torch.equal(out[0], logits[0])
    logits = rows(2, 1)  # reordered
    out = own.apply(logits.clone(), step([2, 0], [1, 1]))
    torch.testing.assert_close(out[0], amplified(logits[0:1], logits[1:2], 1.0, 0.0)[0])
    assert own.contrast.counts["paired"] == 1
    # a prompt that is only partly read, and drafts of speculative decoding, are left alone
    assert own.add_request(2, params(told("flb")))
    assert torch.equal(own.apply(logits.clone(), step([2], [-3])), logits)
    assert torch.equal(own.apply(logits.clone(), step([2, 2], [0, 1])), logits)
    assert own.contrast.counts["flb"] == 0
    assert logits.shape[1] == V


def test_nothing_of_transformers_is_imported() -> None:
    import subprocess

    code = (
        "import sys; import limelight.engines.contrast, limelight.engines.requests, limelight.engines.paired; "
        "assert 'transformers' not in sys.modules, [m for m in sys.modules if m.startswith('limelight')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
