"""Processes of this machine: started under a keeper, recognised again, told to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from finetune_api.document import Document
from finetune_cli.run import keeper


class Kept(Document):
    """One keeper, so that it is recognised after the runner was killed and started again."""

    name: str
    node: int
    pid: int
    start: int
    """Clock ticks since boot at which it started: a process id alone is given out again."""
    boot: str
    """Of the machine: after a reboot no process is the one that it was."""
    started_file: str
    end_file: str
    report_file: str
    """Where the process leaves its termination report."""


@dataclass(frozen=True)
class End:
    """What the keeper wrote."""

    exit_code: int
    at: datetime
    oom_killed: bool


@dataclass
class Gate:
    """A keeper that has started nothing yet."""

    kept: Kept
    process: subprocess.Popen[bytes]

    def open(self) -> None:
        """Let it start its process."""
        stream: IO[bytes] | None = self.process.stdin
        if stream is not None:
            try:
                stream.write(b"g")
                stream.close()
            except BrokenPipeError:
                return


def prepare_process(
    name: str,
    node: int,
    argv: Sequence[str],
    *,
    files: Path,
    log: Path,
    environment: Mapping[str, str],
    memory_events: Path | None,
) -> Gate:
    """Start a keeper that waits for its gate to be opened.

    Args:
        name: of the process, for people.
        node: its number among the processes of its child.
        argv: what the keeper will start.
        files: folder and beginning of the name of the files that the keeper and process leave.
        log: the file to which both outputs are appended.
        environment: of the process, complete.
        memory_events: the cgroup file that counts processes ended for lack of memory.
    """
    paths = [files.with_name(f"{files.name}-{node}.{what}.json") for what in ("pid", "end", "said")]
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter, no shell
            [
                sys.executable,
                "-I",
                keeper.__file__,
                str(paths[0]),
                str(paths[1]),
                str(memory_events or ""),
                *argv,
            ],
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=stream,
            env={**environment, "FINETUNE_TERMINATION_LOG": str(paths[2])},
            start_new_session=True,
        )
    started = start_ticks(process.pid)
    kept = Kept(
        name=name,
        node=node,
        pid=process.pid,
        start=started or 0,
        boot=boot_id(),
        started_file=str(paths[0]),
        end_file=str(paths[1]),
        report_file=str(paths[2]),
    )
    return Gate(kept, process)


def start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None when it is gone or dead."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


def boot_id() -> str:
    """Return the identity of this boot of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def alive(kept: Kept) -> bool:
    """Tell whether this very keeper still runs."""
    reap(kept.pid)
    return kept.boot == boot_id() and start_ticks(kept.pid) == kept.start


def reap(pid: int) -> None:
    """Take note of the end of a keeper that is our own child, so that it does not stay a zombie."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def has_started(kept: Kept) -> bool:
    """Tell whether the keeper has started its process."""
    return Path(kept.started_file).is_file()


def end_of(kept: Kept) -> End | None:
    """Return how the process ended; None when it runs, or when nobody saw it end."""
    try:
        data = json.loads(Path(kept.end_file).read_text(encoding="utf-8"))
        at = datetime.fromisoformat(data["at"]).astimezone(UTC)
        return End(int(data["exitCode"]), at, bool(data["oomKilled"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def terminate(kept: Kept) -> None:
    """Tell the process to save and end."""
    _signal(kept, signal.SIGTERM)


def kill(kept: Kept) -> None:
    """End the process and everything below it at once."""
    _signal(kept, signal.SIGUSR1)


def _signal(kept: Kept, number: signal.Signals) -> None:
    if not alive(kept):
        return
    try:
        os.kill(kept.pid, number)
    except ProcessLookupError:
        return
