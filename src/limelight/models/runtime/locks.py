"""One model, several threads: a lock a model, held while anything is attached to it or one of its forwards runs.

Rules and hooks sit on module instances, so two threads may not be inside one model at once. The token loop takes
the lock a token at a time: answers of several threads advance in turns, and each is the one it would be alone.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from weakref import WeakKeyDictionary

from torch import nn

_LOCKS: WeakKeyDictionary[nn.Module, AbstractContextManager[bool]] = WeakKeyDictionary()
_TABLE = threading.Lock()


def lock_of(decoder: nn.Module) -> AbstractContextManager[bool]:
    """The re-entrant lock of a model, told by its text stack: adapters and wrappers around one model share it."""
    with _TABLE:
        return _LOCKS.setdefault(decoder, threading.RLock())
