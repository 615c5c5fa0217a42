"""What a process has used since a point in time, and what it has asked the API server for."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from harness.audit import requests

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Usage:
    """CPU and memory of a process since a point in time, and what it asked for."""

    pid: int
    log: Path
    user: str
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    cpu: float = 0.0

    def __post_init__(self) -> None:
        """Begin now."""
        self.cpu = self._seconds()

    def spent(self) -> float:
        """Return CPU seconds since the beginning."""
        return self._seconds() - self.cpu

    def resident(self) -> float:
        """Return the memory in MiB."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def asked(self, *, writes: bool = False) -> int:
        """Return the number of requests since the beginning."""
        found = requests(self.log, user=self.user, since=self.began)
        return sum(1 for one in found if one.writes or not writes)

    def _seconds(self) -> float:
        words = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / TICKS
