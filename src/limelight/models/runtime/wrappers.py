"""Unwrapping models from LoRA wrappers, data-parallel wrappers and compiled modules.

Rules and hooks are attached to module instances, and a compiled graph would not see them (or would keep them after
removal), so the library always runs modules uncompiled. Outside its calls the modules stay compiled.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import compress, repeat
from typing import Any

from torch import nn

from limelight import compat
from limelight.errors import UnsupportedError


def unwrapped(model: Any) -> Any:
    """Return the transformers model inside compiled, data-parallel and peft wrappers (adapters stay active).

    Raises:
        UnsupportedError: a peft wrapper that works outside the model (such as prompt tuning).
    """
    inner: Any = model
    seen: set[int] = set()
    while isinstance(inner, nn.Module) and id(inner) not in seen:
        seen.add(id(inner))
        outer: Any = inner
        written = compat.uncompiled_module(outer)
        if written is not None:
            inner = written
        elif isinstance(outer, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = outer.module
        elif all(hasattr(outer, name) for name in ("peft_config", "base_model", "active_peft_config")):
            if outer.active_peft_config.is_prompt_learning:
                raise UnsupportedError(
                    f"{type(outer).__name__} adds virtual tokens before the prompt "
                    f"({outer.active_peft_config.peft_type}), which are not positions of the prompt",
                    hint="adapters that change the model's own layers (LoRA, IA3, DoRA) work",
                )
            inner = outer.get_base_model()
    return inner


def modules_of(*roots: nn.Module) -> list[nn.Module]:
    """Return every module of the given models once, like ``model.modules()`` in a different order and several times faster."""
    found, seen = list(roots), set(map(id, roots))
    if len(seen) < len(found):
        found = list({id(m): m for m in found}.values())
    for module in found:  # which grows
        for child in compat.children(module).values():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                found.append(child)
    return found


@contextmanager
def uncompiled(model: nn.Module, modules: Sequence[nn.Module] | None = None) -> Iterator[None]:
    """Run every module of ``model`` uncompiled inside the block.

    Covers ``torch.compile(module)``, ``module.compile()`` and ``module.forward = torch.compile(module.forward)``.
    ``modules``: all modules, if already listed (:class:`ModuleTable`), which avoids traversing the model.
    """
    if "torch._dynamo" not in sys.modules:
        yield
        return
    compat.require(compat.COMPILED_CALL)
    modules = modules_of(model) if modules is None else modules
    instances = list(map(vars, modules))
    before: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for module in _having(compat.COMPILED_CALL, modules, instances):
            own = vars(module)
            before.append((own, compat.COMPILED_CALL, own[compat.COMPILED_CALL]))
            own[compat.COMPILED_CALL] = None
        for module in _having("forward", modules, instances):
            own, inner = vars(module), compat.uncompiled_module(module)
            original = compat.uncompiled_function(own["forward"]) if inner is None else inner
            if original is not None:
                before.append((own, "forward", own["forward"]))
                own["forward"] = original
        yield
    finally:
        for own, name, value in before:
            own[name] = value


def _having(name: str, modules: Sequence[nn.Module], instances: Sequence[dict[str, Any]]) -> Iterator[nn.Module]:
    """Return the modules with an instance attribute ``name``; called for hundreds of modules at every token."""
    return compress(modules, map(dict.__contains__, instances, repeat(name)))
