"""Models inside other modules: LoRA wrappers, data-parallel wrappers, compiled modules.

Rules and hooks live on module instances, and a compiled graph would not see them (or would go on seeing them after they
are gone), so whatever the library runs, it runs uncompiled. Outside its calls the modules are compiled as before.
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
    """The transformers model inside compiled, data-parallel and peft wrappers (adapters stay active inside it).

    Raises:
        UnsupportedError: a peft wrapper that works outside the model (prompt tuning and the like).
    """
    inner: Any = model
    seen: set[int] = set()
    while isinstance(inner, nn.Module) and id(inner) not in seen:
        seen.add(id(inner))
        outer: Any = inner
        written = compat.inside_compiled(outer)
        if written is not None:
            inner = written
        elif isinstance(outer, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = outer.module
        elif all(hasattr(outer, name) for name in ("peft_config", "base_model", "active_peft_config")):
            if outer.active_peft_config.is_prompt_learning:
                raise UnsupportedError(
                    f"{type(outer).__name__} puts virtual tokens in front of the prompt "
                    f"({outer.active_peft_config.peft_type}), which are no positions of it",
                    hint="adapters that change the model's own layers (LoRA, IA3, DoRA) work",
                )
            inner = outer.get_base_model()
    return inner


def modules_of(*roots: nn.Module) -> list[nn.Module]:
    """Every module of the models given once, like ``model.modules()`` in another order and several times as fast."""
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
    """Inside the block every module of ``model`` runs as it was written, whichever way it was compiled.

    Covers ``torch.compile(module)``, ``module.compile()`` and ``module.forward = torch.compile(module.forward)``.
    ``modules``: all of them, where they are at hand (:class:`ModuleTable`), which saves the walk.
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
            own, inner = vars(module), compat.inside_compiled(module)
            original = compat.uncompiled_function(own["forward"]) if inner is None else inner
            if original is not None:
                before.append((own, "forward", own["forward"]))
                own["forward"] = original
        yield
    finally:
        for own, name, value in before:
            own[name] = value


def _having(name: str, modules: Sequence[nn.Module], instances: Sequence[dict[str, Any]]) -> Iterator[nn.Module]:
    """Those with an attribute ``name`` of their own; asked of hundreds of modules, at every token."""
    return compress(modules, map(dict.__contains__, instances, repeat(name)))
