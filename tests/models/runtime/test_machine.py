"""Running out of memory is no property of a module, a file or a prompt."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limelight.errors import NotDifferentiableError, UnknownKindError
from limelight.models.checkpoints.formats import pickled
from limelight.models.runtime.machine import machine_failed
from limelight.relevance.classify import classify_modules
from limelight.relevance.differentiable import check_differentiable
from tests.tiny import fresh

FAILURES = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
]
REFUSALS = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (6x8 and 16x4)"),
    RuntimeError("expected scalar type Float but found BFloat16"),
    ValueError("out of memory, says a value"),
    FileNotFoundError(errno.ENOENT, "No such file"),
]
failures = pytest.mark.parametrize("error", FAILURES, ids=lambda e: type(e).__name__)


def test_what_is_the_machines() -> None:
    assert all(map(machine_failed, FAILURES))
    assert not any(map(machine_failed, REFUSALS))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert machine_failed(caught.value)


def planted(error: BaseException) -> Any:
    def fail(*_: Any, **__: Any) -> Tensor:
        raise error

    return fail


@pytest.mark.parametrize("part", ["norm", "layers.0.mlp", "layers.0.mlp.act_fn"])
@failures
def test_no_module_is_of_an_unknown_kind_for_want_of_memory(part: str, error: BaseException) -> None:
    decoder = fresh("llava").decoder
    decoder.get_submodule(part).forward = planted(error)
    with pytest.raises(type(error)):
        classify_modules(decoder)
    decoder.get_submodule(part).forward = planted(REFUSALS[0])
    with pytest.raises(UnknownKindError):
        classify_modules(decoder)


def test_a_linear_is_not_undifferentiable_for_want_of_memory() -> None:
    linear = nn.Linear(2, 2)
    linear.forward = planted(FAILURES[0])  # type: ignore[method-assign]
    with pytest.raises(torch.OutOfMemoryError):
        check_differentiable([("a", linear)])
    linear.forward = planted(REFUSALS[0])  # type: ignore[method-assign]
    with pytest.raises(NotDifferentiableError):
        check_differentiable([("a", linear)])


@failures
def test_no_file_is_damaged_for_want_of_memory(
    tmp_path: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({}, tmp_path / "a.pt")
    monkeypatch.setattr(torch, "load", planted(error))
    with pytest.raises(type(error)):
        pickled(tmp_path / "a.pt")
