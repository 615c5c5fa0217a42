"""The operator many times over: one process that has imported it, and forks of that to be killed.

A fork begins where ``python -m finetune_operator.main`` begins after its imports.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


class Forks:
    """Starts operators; each runs until it is killed."""

    def __init__(self, kubeconfig: Path, log: Path) -> None:
        """Import the operator once."""
        environment = {**os.environ, "KUBECONFIG": str(kubeconfig)}
        self.log = log
        self._parent = subprocess.Popen(
            [sys.executable, __file__, str(log)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.pid = 0
        self.started = 0

    def start(self, *flags: str) -> None:
        """Start an operator, unless one runs."""
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.write(json.dumps(flags) + "\n")
        self._parent.stdin.flush()
        self.pid = int(self._parent.stdout.readline())
        self.started += 1

    def kill(self) -> None:
        """End the operator with SIGKILL; nothing of it goes on after this."""
        pid, self.pid = self.pid, 0
        if pid:
            os.kill(pid, signal.SIGKILL)

    def alive(self) -> bool:
        """Whether the operator that was started last still runs."""
        return bool(self.pid) and Path(f"/proc/{self.pid}").exists()

    def stop(self) -> None:
        """End everything."""
        self.kill()
        self._parent.terminate()
        self._parent.wait(20)


def _serve(log: str) -> None:
    from finetune_operator.main import main

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    out = sys.stdout
    for line in sys.stdin:
        pid = os.fork()
        if pid:
            print(pid, file=out, flush=True)
            continue
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        stream = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        sys.argv = ["finetune-operator", *json.loads(line)]
        os._exit(main())


if __name__ == "__main__":
    _serve(sys.argv[1])
