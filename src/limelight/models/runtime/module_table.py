"""The modules of a model, listed once and kept for as long as somebody works with the model.

Walking over the modules at every token costs more than a small model's forward. So whoever works with a model for more
than a moment (an answer, a dual stream, a block) holds its :class:`ModuleTable`; the adapter itself refers to it weakly,
so that modules and weights that a quantiser has replaced are not kept alive by an adapter at rest.
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
    """Every module of a model once, and what others have prepared for them.

    :meth:`refresh` compares the table with the model without walking over it, and lists anew where they differ. Noticed:
    a module that was exchanged, added or taken out anywhere (LoRA, quantisation, ``torch.compile``), a parameter of the
    decoder or the head that is another object (``load_state_dict(assign=True)``, torchao), or, where accelerate moves
    weights in and out, of another class. Not noticed: values that change in place, other buffers, and a ``_modules`` or
    ``_parameters`` dictionary that is itself exchanged.

    Attributes:
        everything: every module of the model, the decoder and the head.
        modules: the decoder's modules and the head.
        identity: what caches about the decoder and the head compare; a new object after every change.
        ids: ids of the decoder's modules.
        prepared: what others have built for these modules, by a key of theirs; emptied when a module is exchanged.
    """

    def __init__(self, model: nn.Module, decoder: nn.Module, head: nn.Module) -> None:
        self._roots = (model, decoder, head)
        self.prepared: dict[Any, Any] = {}
        self._list()

    def refresh(self) -> bool:
        """List the modules anew where something was exchanged; whether that was so."""
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
        """The parameters of decoder and head, or their classes where accelerate exchanges them at every forward."""
        found = chain.from_iterable(map(dict.values, self._decoder_weights))
        return list(map(type, found)) if self._moving else list(found)

    def parameters(self) -> Iterator[Tensor]:
        """The model's parameters as they are now; one that two modules share comes twice."""
        return (p for p in chain.from_iterable(map(dict.values, self._own_weights)) if p is not None)

    def configs(self) -> list[Any]:
        """Every transformers config of the decoder and its modules once."""
        return configs_of(self._decoder_instances)
