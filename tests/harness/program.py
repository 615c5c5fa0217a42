"""A long-running command that can be stopped and started again with the same words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.processes import Process, start


@dataclass
class Program:
    """A component of a cluster: what is run, and the process while it runs."""

    name: str
    command: Sequence[str | Path]
    log: Path
    env: Mapping[str, str] | None = None
    """In addition to this process's own."""
    process: Process | None = None

    def start(self) -> Process:
        """Start it, or return the process that runs already; its log goes on in the same file."""
        if self.process is None or self.process.ended():
            self.process = start(self.name, self.command, self.log, self.env)
        return self.process

    def stop(self, grace: float = 10.0) -> None:
        """Send SIGTERM, then SIGKILL when the grace is over; returns when it is gone."""
        if self.process is not None:
            self.process.stop(grace)

    def kill(self) -> None:
        """Send SIGKILL at once, as a crash would."""
        if self.process is not None and not self.process.ended():
            self.process.popen.kill()
            self.process.popen.wait()

    def running(self) -> bool:
        """Whether a process of it lives."""
        return self.process is not None and not self.process.ended()


def flags(options: Mapping[str, object]) -> list[str]:
    """Return ``--name=value`` for each option."""
    return [f"--{name}={value}" for name, value in options.items()]
