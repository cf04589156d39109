"""Models inside other modules: LoRA wrappers, data-parallel wrappers, compiled modules.

Rules and hooks live on module instances, and a compiled graph would not see them (or would go on seeing them after they
are gone), so whatever the library runs, it runs uncompiled. Outside its calls the modules are compiled as before.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


def modules_of(model: nn.Module) -> list[nn.Module]:
    """Every module once, like ``model.modules()`` in another order; light enough for every token."""
    found, seen = [model], {id(model)}
    for module in found:  # which grows
        for child in compat.children(module).values():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                found.append(child)
    return found


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Inside the block every module of ``model`` runs as it was written, whichever way it was compiled.

    Covers ``torch.compile(module)``, ``module.compile()`` and ``module.forward = torch.compile(module.forward)``.
    """
    if "torch._dynamo" not in sys.modules:
        yield
        return
    calls: list[tuple[nn.Module, Any]] = []
    forwards: list[tuple[dict[str, Any], Any]] = []
    for module in modules_of(model):
        own = vars(module)
        call = compat.compiled_call(module)
        if call is not None:
            calls.append((module, call))
        if "forward" not in own:  # hundreds of modules, at every token
            continue
        inner = compat.inside_compiled(module)
        original: Callable[..., Any] | None = inner if inner is not None else compat.uncompiled_function(own["forward"])
        if original is not None:
            forwards.append((own, own["forward"]))
            own["forward"] = original
    for module, _ in calls:
        compat.set_compiled_call(module, None)
    try:
        yield
    finally:
        for own, forward in forwards:
            own["forward"] = forward
        for module, call in calls:
            compat.set_compiled_call(module, call)
