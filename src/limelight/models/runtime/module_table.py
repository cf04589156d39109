"""A cached table of a model's modules, shared for as long as it is in use.

Traversing the modules at every token costs more than a small model's forward. Therefore longer operations on a model (an
answer, a dual stream, a block) hold its :class:`ModuleTable`; the adapter itself only has a weak reference, so that
modules and weights replaced by a quantiser are not kept alive by an idle adapter.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from operator import is_
from typing import Any

from torch import Tensor, nn

from limelight import compat
from limelight.models.runtime.attention import configs_of
from limelight.models.runtime.wrappers import modules_of


class ModuleTable:
    """Every module of a model once, and objects cached for them.

    :meth:`refresh` compares the table with the model without traversing it, and rebuilds it if they differ. Detected: a
    module replaced, added or removed anywhere (LoRA, quantisation, ``torch.compile``), a parameter of the decoder or the
    head replaced by another object (``load_state_dict(assign=True)``, torchao), or, where accelerate offloads weights, by
    one of another class. Not detected: values changed in place, replaced buffers, and a replaced ``_modules`` or
    ``_parameters`` dictionary.

    Attributes:
        everything: every module of the model, the decoder and the head.
        modules: the decoder's modules and the head.
        identity: compared by caches about the decoder and the head; a new object after every change.
        ids: ids of the decoder's modules.
        prepared: objects that callers have built for these modules, by key; cleared when a module is replaced.
    """

    def __init__(self, model: nn.Module, decoder: nn.Module, head: nn.Module) -> None:
        self._roots = (model, decoder, head)
        self.prepared: dict[Any, Any] = {}
        self._list()

    def refresh(self) -> bool:
        """Rebuild the table if something was replaced; return whether it was rebuilt."""
        children = list(chain.from_iterable(map(dict.values, self._children)))
        if len(children) == len(self._known) and all(map(is_, children, self._known)):
            present = self._present()
            if len(present) == len(self._weights) and all(map(is_, present, self._weights)):
                return False
        self._list()
        return True

    def _list(self) -> None:
        model, decoder, head = self._roots
        self.everything = everything = modules_of(model, decoder, head)
        self._children = [compat.children(m) for m in everything]
        self._known = list(chain.from_iterable(map(dict.values, self._children)))
        self._own_weights = [compat.parameters(m) for m in everything]
        inner = modules_of(decoder)
        self._decoder_instances = [vars(m) for m in inner]
        self.ids = frozenset(map(id, inner))
        self.modules = [*inner, head]
        self._decoder_weights = [compat.parameters(m) for m in self.modules]
        self._moving = any(compat.accelerate_hook(m) is not None for m in everything)
        self._weights = self._present()
        kept = self._weights if self._moving else map(id, self._weights)
        self.identity: tuple[object, ...] = (*map(id, self.modules), *kept)
        self.prepared.clear()

    def _present(self) -> list[Any]:
        """Return the parameters of decoder and head, or their classes where accelerate replaces them at every forward."""
        found = chain.from_iterable(map(dict.values, self._decoder_weights))
        return list(map(type, found)) if self._moving else list(found)

    def parameters(self) -> Iterator[Tensor]:
        """Iterate over the model's current parameters; shared ones appear once per module."""
        return (p for p in chain.from_iterable(map(dict.values, self._own_weights)) if p is not None)

    def configs(self) -> list[Any]:
        """Return every transformers config of the decoder and its modules once."""
        return configs_of(self._decoder_instances)
