"""Jobs that start again: not too many at once, or each keeps the others from what all start with."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

LONGEST = 600.0
"""Seconds after which a start that came to no end keeps nobody waiting any more."""


@dataclass
class Restarts:
    """The places of jobs whose next attempt is starting. Lost with the process, to no harm."""

    _since: dict[str, datetime] = field(default_factory=dict)

    @property
    def taken(self) -> int:
        """How many places are taken."""
        return len(self._since)

    def take(self, uid: str, most: int, now: datetime) -> bool:
        """Take one of so many places for a job, or keep the one that it has; False: none is free."""
        self._since = {
            job: since
            for job, since in self._since.items()
            if (now - since).total_seconds() < LONGEST
        }
        if uid not in self._since and len(self._since) >= most:
            return False
        self._since.setdefault(uid, now)
        return True

    def leave(self, uid: str) -> None:
        """Give a job's place to others."""
        self._since.pop(uid, None)
