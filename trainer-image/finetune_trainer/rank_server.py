"""The process that ranks are forked from, itself forked from the supervisor.

``multiprocessing`` would start it as a new interpreter, and the supervisor, which needs torch too,
would import it a second time beside it: seconds of two processors, and a second copy in memory.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Sequence
from multiprocessing import forkserver, resource_tracker, util
from pathlib import Path

PRELOAD = "finetune_trainer.preload"


def start() -> None:
    """Import what ranks need and fork their server; call it before there are other threads.

    Its later forks share this process's imports and none of its files, sockets and signals.
    """
    import finetune_trainer.preload  # noqa: F401

    multiprocessing.set_forkserver_preload([PRELOAD])  # there already: for one that is made again
    resource_tracker.ensure_running()
    ours = _open()

    def fork(path: str, arguments: Sequence[str], passed: Sequence[int]) -> int:
        pid = os.fork()
        if pid == 0:
            _serve(arguments[-1], _open() - ours - set(passed))
        return pid

    spawn = util.spawnv_passfds
    util.spawnv_passfds = fork  # type: ignore[assignment]
    try:
        forkserver.ensure_running()
    finally:
        util.spawnv_passfds = spawn


def _open() -> set[int]:
    """Return the open descriptors."""
    return {int(path.name) for path in Path("/proc/self/fd").iterdir() if path.exists()}


def _serve(program: str, foreign: set[int]) -> None:
    """Be the server, as the interpreter would that was to run ``program``; never returns.

    It ends when nobody holds the other end of its pipe: the one that was inherited is closed.
    """
    code = 1
    try:
        # Whoever signals the process group must not take away what collects the ranks' exit codes.
        # A rank hears signals as soon as it runs.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for descriptor in foreign:
            os.close(descriptor)
        exec(program, {})  # noqa: S102 - it is multiprocessing's own
        code = 0
    except SystemExit:
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
