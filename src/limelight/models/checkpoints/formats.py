"""Loading checkpoints in their own layouts into models built from transformers' parts.

A family file whose checkpoints transformers cannot load defines a :class:`Published`: how to recognise and load them. No
code that comes with a checkpoint is executed.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limelight.errors import ModelError
from limelight.models.runtime.machine import machine_failed

Weights = Iterable[tuple[str, Tensor]]
# Published name and tensor -> names and tensors of the model (empty for weights that are intentionally dropped).
Rename = Callable[[str, Tensor], Weights]
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True)
class Published:
    """How a family's checkpoints are recognised and loaded.

    Attributes:
        claims: (folder or None, its config.json as a mapping, empty without one) -> whether it has this layout.
        load: (folder, dtype or ``"auto"``) -> (model, processor), on the CPU.
    """

    claims: Callable[[Path | None, Mapping[str, Any]], bool]
    load: Callable[[Path, torch.dtype | str], tuple[Any, Any]]


@dataclass(frozen=True)
class Convertible:
    """How checkpoints are converted whose model transformers has, but whose layout it cannot read.

    Attributes:
        claims: see :class:`Published`.
        convert: folder -> folder in transformers' layout, which is then loaded with all of the caller's settings.
    """

    claims: Callable[[Path | None, Mapping[str, Any]], bool]
    convert: Callable[[Path], Path]


def config_of(folder: Path) -> dict[str, Any]:
    """Read a folder's config.json; {} if there is none.

    Raises:
        ModelError: it is not a JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}", hint="copy the checkpoint again") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} does not contain a JSON object", hint="copy the checkpoint again")
    return found


def dtype_of(wanted: torch.dtype | str, config: Mapping[str, Any]) -> torch.dtype:
    """Return the dtype to load in: the requested one, or for ``"auto"`` the checkpoint's (float32 if it names none)."""
    if isinstance(wanted, torch.dtype):
        return wanted
    name = str((config.get("dtype") or config.get("torch_dtype") or "float32") if wanted == "auto" else wanted)
    found = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise ModelError(f"{name!r} is not a dtype", hint="such as float32 or bfloat16")
    return found


def read_file(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of one file, safetensors or a pickled state dict (``weights_only``, memory-mapped)."""
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(str(path), framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                yield name, opened.get_tensor(name)
        return
    state = pickled(path)
    for name, value in state.get("model", state).items():
        if isinstance(value, Tensor):
            yield name, value


def pickled(path: Path) -> dict[str, Any]:
    """Read a pickled checkpoint that contains only tensors and plain values.

    Raises:
        ModelError: it is missing, damaged, or contains other objects.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except FileNotFoundError as error:
        raise ModelError(f"{path} does not exist", hint="copy the checkpoint again") from error
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        if machine_failed(error):
            raise
        raise ModelError(f"cannot read {path.name}: {str(error).splitlines()[0]}", hint="copy it again") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path.name} contains {type(found).__name__}, not a state dict", hint="copy it again")
    return found


def read_folder(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of every weight file of a folder; only safetensors if there are any.

    Raises:
        ModelError: the folder contains no weights.
    """
    for pattern in WEIGHTS:
        files = sorted(folder.glob(pattern))
        if files:
            for path in files:
                yield from read_file(path)
            return
    raise ModelError(f"{folder} contains no weights", hint=f"expected {' or '.join(WEIGHTS)}")


def fill(model: nn.Module, weights: Weights, rename: Rename, *, optional: Iterable[str] = ()) -> None:
    """Copy published weights into the model's parameters, each exactly once.

    Args:
        optional: names that may be missing from ``weights``.

    Raises:
        ModelError: a weight is unknown, of another shape, given twice, or missing.
    """
    own = {**dict(model.named_parameters()), **{n: b for n, b in model.named_buffers() if "inv_freq" not in n}}
    missing = set(own) - set(optional)
    done: set[str] = set()
    with torch.no_grad():
        for published, tensor in weights:
            for name, value in rename(published, tensor):
                if name not in own or name in done or own[name].shape != value.shape:
                    why = "twice" if name in done else f"of shape {tuple(value.shape)}"
                    place = f"{tuple(own[name].shape)}" if name in own else "no such weight"
                    raise ModelError(
                        f"the checkpoint has {published} {why}; {type(model).__name__} has {place} for {name}",
                        hint="this checkpoint's layout or size does not match its config",
                    )
                own[name].copy_(value)
                done.add(name)
    missing -= done
    if missing:
        listed = ", ".join(sorted(missing)[:4])
        raise ModelError(
            f"the checkpoint lacks {len(missing)} weights of {type(model).__name__}: {listed} ...",
            hint="copy all files of the checkpoint",
        )
