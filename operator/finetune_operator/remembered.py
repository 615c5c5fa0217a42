"""What is kept between looks, bounded by number and by bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Remembered(Generic[K, V]):
    """A table whose oldest entries are dropped; whoever kept them reads them again.

    How much one entry takes is decided by users, so that a number alone is no bound.
    """

    def __init__(self, limit: int, room: int) -> None:
        """Keep so many entries at most, and so many bytes."""
        self._limit, self._room = limit, room
        self._kept: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self.size = 0
        """Bytes of all that is kept, as its users said."""

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._kept)

    def get(self, key: K) -> V | None:
        """Return what is kept under a key."""
        found = self._kept.get(key)
        return None if found is None else found[0]

    def put(self, key: K, value: V, size: int) -> None:
        """Keep a value of so many bytes; one that is larger than all the room is not kept."""
        self.pop(key)
        if size > self._room:
            return
        self._kept[key] = (value, size)
        self.size += size
        while len(self._kept) > self._limit or self.size > self._room:
            self.pop(next(iter(self._kept)))

    def pop(self, key: K) -> None:
        """Let go of one."""
        _, size = self._kept.pop(key, (None, 0))
        self.size -= size
