"""One rank: from its first moment it hears signals, and however it ends it says why."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
import time
from pathlib import Path

from finetune_api.exit_codes import ExitCode
from finetune_api.names import Layout
from finetune_api.reports import TerminationReport
from finetune_api.resolved import StageConfig
from finetune_trainer import errors
from finetune_trainer.facts import Facts
from finetune_trainer.listener import Listener

LAST = 0.5
"""Seconds for which a rank that lost the others stays, so that the cause is seen to go before it."""


def rank_main(config_file: str, ends: str, supervisor: int) -> None:
    """Run one rank; ends the process with its exit code unless that is 0."""
    listener = Listener()
    listener.install()
    try:
        code = _run_from(Path(config_file), Path(ends), supervisor, listener)
    except errors.Signalled:  # before it could begin, or while another end was being written
        listener.uninterruptible()
        code = int(ExitCode.SIGNALLED)
    if code:
        sys.stdout.flush()
        sys.stderr.flush()
        # Not sys.exit: destructors of a process group that lost a peer may wait for it.
        os._exit(code)


def _run_from(config_file: Path, ends: Path, supervisor: int, listener: Listener) -> int:
    """Make the rank known to its supervisor, from when on it may be signalled, and run it."""
    die_with(supervisor)
    rank = int(os.environ.get("RANK", "0"))
    _leave(ends / f"{rank}.pid", str(os.getpid()))
    config = StageConfig.model_validate_json(config_file.read_bytes())
    return run(config, listener, rank, ends)


def die_with(process: int) -> None:
    """End this process as soon as another is gone: a rank with its supervisor, a worker with its rank.

    Nobody would collect how it ended. The supervisor is not a rank's parent (ranks are forked from a
    process beside it), so the kernel's own signal on the death of a parent does not tell. A thread
    waits on it and costs nothing.
    """
    try:
        descriptor = os.pidfd_open(process)
    except ProcessLookupError:
        os.kill(os.getpid(), signal.SIGKILL)
        return

    def wait() -> None:
        select.select([descriptor], [], [])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="watch-of-one", daemon=True).start()


def run(config: StageConfig, listener: Listener, rank: int, ends: Path) -> int:
    """Train as one rank; return the exit code, with a report left in ``ends``."""
    assert config.attempt is not None
    facts = Facts()
    log = Layout(Path(config.mounts.workspace)).logs / f"train-{config.attempt.number}-{rank}.log"
    try:
        from finetune_trainer.train import train

        ending = train(config, listener, facts, ends, log)
    except BaseException as error:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise in here
        nothing_to_save = listener.interruptible
        listener.uninterruptible()
        asked = listener.heard and nothing_to_save
        ending = errors.ending_of(errors.Signalled() if asked else error, config)
        if ending.exit_code != ExitCode.SIGNALLED:
            errors.log_traceback(error, log)
    listener.uninterruptible()
    report = TerminationReport(
        stage="train",
        job_uid=config.job.uid,
        attempt=config.attempt.number,
        exit_code=ending.exit_code,
        message=ending.message[:512],
        problems=ending.problems[:3],
        **facts.values,
    )
    _leave(ends / f"{rank}.json", json.dumps(report.to_json()))
    if ending.exit_code == ExitCode.COMMUNICATION_LOST:
        # The one that was lost goes first. The agent looks ten times a second and tells of the first
        # rank that it finds gone, alone: it must not be this one.
        time.sleep(LAST)
    return int(ending.exit_code)


def _leave(path: Path, text: str) -> None:
    """Write a file that the supervisor sees as a whole or not at all."""
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_text(text, encoding="utf-8")
    temporary.rename(path)
