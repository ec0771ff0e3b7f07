"""What a policy's state looks like, so that two moments can be compared."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from engine.cache.radix_node import RadixNode
from engine.request import Request

_PLAIN = (int, float, complex, str, bytes, bool, type(None))


def fingerprint(thing: Any, seen: frozenset[int] = frozenset()) -> Any:
    """Equal before and after exactly when nothing was written. Nodes and requests stand for their ids."""
    if isinstance(thing, _PLAIN):
        return repr(thing)
    if isinstance(thing, (RadixNode, Request)):
        return type(thing).__name__, thing.id
    if isinstance(thing, random.Random):
        return thing.getstate()
    if id(thing) in seen:
        return "..."
    seen |= {id(thing)}
    if isinstance(thing, np.ndarray):
        return thing.dtype.str, thing.shape, thing.tobytes()
    if isinstance(thing, dict):
        return "dict", [(fingerprint(k, seen), fingerprint(v, seen)) for k, v in thing.items()]
    if isinstance(thing, (set, frozenset)):
        return "set", sorted(repr(fingerprint(x, seen)) for x in thing)
    if isinstance(thing, memoryview):
        return "memoryview", thing.tobytes()
    if hasattr(thing, "__dict__") and not callable(thing):
        return type(thing).__qualname__, fingerprint(vars(thing), seen), _items(thing, seen)
    slots = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
    if slots:
        return type(thing).__qualname__, [(n, fingerprint(getattr(thing, n, None), seen)) for n in slots]
    return type(thing).__qualname__, _items(thing, seen)


def _items(thing: Any, seen: frozenset[int]) -> Any:
    """What is in a container (list, tuple, deque, ...). Iterators are left alone: to look would be to use them up."""
    if hasattr(thing, "__len__") and hasattr(thing, "__iter__"):
        return [fingerprint(x, seen) for x in thing]
    return None
