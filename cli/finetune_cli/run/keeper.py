"""The parent of one process of a job: starts it when told, and leaves its end on the disk.

``finetune run`` may be killed at any moment. What its processes do and how they end must survive
that, so each has a keeper of its own: it waits for a word on its standard input (end of file: the
runner died before it had written down that there is a process, so nothing is started), starts the
process, passes SIGTERM on, kills it on SIGUSR1, and writes its exit code to a file. It adopts and
ends whatever the process leaves behind, removes its temporary files, and the process dies with it.

Standard library alone: it is started often, and must be small.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
NEVER_STARTED = 255
"""Exit code of a keeper that was never told to start anything."""


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file as a whole: temporary file, flush to the disk, rename, flush the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # on a full disk what is left of it is in the way
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def memory_events() -> Path | None:
    """Return the file in which the kernel counts processes that it ended for lack of memory."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            file = Path("/sys/fs/cgroup") / path.lstrip("/") / "memory.events"
            root = Path("/sys/fs/cgroup/memory.events")
            return file if file.is_file() else root if root.is_file() else None
    return None


def killed_for_memory(events: Path | None) -> int:
    """Return how many processes the kernel has ended for lack of memory; 0 when it does not say."""
    for file in (events, Path("/proc/vmstat")):
        try:
            text = file.read_text(encoding="utf-8") if file else ""
        except OSError:
            continue
        for line in text.splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0


def keep(started: Path, end: Path, events: Path | None, argv: list[str]) -> int:
    """Start ``argv`` when told and wait for its end; returns its exit code as a shell counts."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    if os.read(0, 1) != b"g":
        return NEVER_STARTED
    before = killed_for_memory(events)
    scratch = _scratch()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become(libc, parent, argv)
    _forward(pid)
    write_whole(started, json.dumps({"pid": pid, "at": _now()}).encode())
    code = _wait(pid)
    _end_the_rest()
    oom = code == 128 + signal.SIGKILL and killed_for_memory(events) > before
    found = {"exitCode": code, "at": _now(), "oomKilled": oom}
    write_whole(end, json.dumps(found).encode())
    if scratch is not None:
        shutil.rmtree(scratch, ignore_errors=True)
    return code


def _scratch() -> str | None:
    """Make a folder for the temporary files of the process and name it in its environment.

    It lies where such files lie anyway, not in the job's folder: paths of sockets must be short.
    """
    path = f"{os.environ.get('TMPDIR') or '/tmp'}/finetune-{os.urandom(4).hex()}"  # noqa: S108
    try:
        os.mkdir(path, 0o700)  # noqa: PTH102 - refuses what is there already
    except OSError:
        return None
    os.environ["TMPDIR"] = path
    return path


def _become(libc: ctypes.CDLL, parent: int, argv: list[str]) -> None:
    """Turn the forked child into the process itself. Never returns."""
    try:
        os.setpgid(0, 0)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(128 + signal.SIGKILL)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGUSR1})
        os.execvp(argv[0], argv)  # noqa: S606 - our own command, no shell
    except OSError as error:
        sys.stderr.write(f"{argv[0]}: {error}\n")
    finally:
        os._exit(127)


def _forward(pid: int) -> None:
    def pass_on(number: int, frame: FrameType | None) -> None:
        del frame
        try:
            if number == signal.SIGUSR1:
                os.killpg(pid, signal.SIGKILL)
            else:
                os.kill(pid, number)
        except ProcessLookupError:
            pass

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, pass_on)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGUSR1})


def _wait(pid: int) -> int:
    """Wait for one child, reaping whatever else it left to us."""
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)
            return 128 - code if code < 0 else code


def _end_the_rest() -> None:
    """End everything that the process left behind; all of it is our child by now."""
    for _ in range(200):
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        for pid in _children():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.02)


def _children() -> list[int]:
    me = os.getpid()
    path = Path(f"/proc/{me}/task/{me}/children")
    try:
        return [int(pid) for pid in path.read_text(encoding="ascii").split()]
    except OSError:
        return []


def _now() -> str:
    return datetime.now(UTC).isoformat()


if __name__ == "__main__":
    _started, _end, _events, *_argv = sys.argv[1:]
    sys.exit(keep(Path(_started), Path(_end), Path(_events) if _events else None, _argv))
