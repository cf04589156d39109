"""One lock per model, held while anything is attached to it or one of its forwards runs.

Rules and hooks are attached to module instances, so only one thread may use a model at a time. The token loop acquires
the lock per token: answers of several threads advance in turns, and each is the same as it would be alone.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from weakref import WeakKeyDictionary

from torch import nn

_LOCKS: WeakKeyDictionary[nn.Module, AbstractContextManager[bool]] = WeakKeyDictionary()
_TABLE = threading.Lock()


def lock_of(decoder: nn.Module) -> AbstractContextManager[bool]:
    """Return a model's re-entrant lock, keyed by its decoder, so that adapters and wrappers of one model share it."""
    with _TABLE:
        return _LOCKS.setdefault(decoder, threading.RLock())
