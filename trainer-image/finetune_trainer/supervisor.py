"""One a node: starts the ranks, passes signals on, and says how the attempt ended.

Ranks are started by torch's elastic launch API in this process, so that their exit codes survive,
and forked from one process that has imported everything. SIGTERM is passed on by us and not by the
agent, which would give up the exit codes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import multiprocessing.forkserver
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from finetune_api.exit_codes import ExitCode
from finetune_api.names import Layout
from finetune_api.reports import TerminationReport
from finetune_api.resolved import StageConfig
from finetune_trainer import errors, launch, termination

SLACK = 60
"""Seconds beyond the grace period before a rank that does not end is killed."""
NAME_WAIT = 600.0
"""Seconds within which the first node's name has to resolve."""
PRELOAD = "FINETUNE_PRELOAD_DEEPSPEED"
HEARD = frozenset({signal.SIGTERM, signal.SIGINT})


class Forwarder:
    """Passes a signal on to every rank, once each, as soon as the rank can hear it.

    Ranks write their process id when they are ready to be signalled; they are not our children.
    While there is none, nothing can be lost: ``end`` is called, and does not return.

    The signal is read from a socket, by a thread: the main thread may stand in a rendezvous, in
    which Python's own handlers do not run.
    """

    def __init__(self, ends: Path, end: Callable[[], None]) -> None:
        """Look for ranks in the folder in which they leave their process ids and ends."""
        self._ends, self._end = ends, end
        self.heard = False
        self._told: set[Path] = set()
        self._closed = threading.Event()
        self._deciding = threading.Lock()
        self._numbers, self._number = socket.socketpair()

    def install(self) -> None:
        """Hear SIGTERM and SIGINT from now on."""
        self._number.setblocking(False)
        signal.set_wakeup_fd(self._number.fileno(), warn_on_full_buffer=False)
        for number in HEARD:
            signal.signal(number, self._hear)
        threading.Thread(target=self._listen, name="signal-forwarder", daemon=True).start()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.heard = True

    def _listen(self) -> None:
        with self._numbers:  # open to the end: every further signal is written to the other one
            while not self._closed.is_set() and not self.heard:
                if not HEARD.isdisjoint(self._numbers.recv(64)):
                    self.heard = True
            while not self._closed.is_set():
                self._tell()
                self._closed.wait(0.1)

    def _tell(self) -> None:
        with self._deciding:
            if self._closed.is_set():
                return
            ranks = list(self._ends.glob("*.pid"))
            if not ranks:
                self._end()
        for path in ranks:
            if path in self._told or path.with_suffix(".json").exists():
                continue
            try:
                process = int(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):  # it cannot be read yet: the next look tries again
                continue
            self._told.add(path)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)

    def close(self) -> None:
        """Pass nothing on any more."""
        signal.set_wakeup_fd(-1)
        with self._deciding:
            self._closed.set()
        self._number.close()  # the thread that reads the other end goes on, and ends


@dataclass(frozen=True)
class Ranks:
    """How the ranks of this node ended."""

    codes: tuple[int, ...]
    reports: tuple[TerminationReport, ...]
    """Of those that left one, by local rank."""


def run(config: StageConfig, config_file: Path) -> TerminationReport:
    """Train one attempt on this node and return how it ended. Raises ``StageError`` before that."""
    if config.attempt is None:
        raise ValueError("the configuration has no attempt: it is not one of a train stage")
    launch.apply(config)
    meeting = launch.rendezvous(config.attempt.nodes, os.environ)
    ends = Path(tempfile.mkdtemp(prefix="finetune-ends-"))
    forwarder = Forwarder(ends, lambda: _stop(config, meeting.node_rank, ends))
    forwarder.install()
    try:
        if meeting.backend == "static" and meeting.node_rank:
            launch.wait_for_name(meeting.endpoint.rpartition(":")[0], NAME_WAIT)
        if config.job.spec.parallelism.deepspeed is not None:
            os.environ[PRELOAD] = "1"
        codes = _launch(config, config_file, ends, meeting)
        ranks = _gather(ends, codes)
    finally:
        forwarder.close()
        shutil.rmtree(ends, ignore_errors=True)
    return _merged(config, ranks, meeting.node_rank, asked=forwarder.heard)


def _stop(config: StageConfig, node: int, ends: Path) -> NoReturn:
    """End this process before it has a rank; its main thread may wait for nodes that never come."""
    try:
        report = _merged(config, Ranks((int(ExitCode.SIGNALLED),), ()), node, asked=True)
        sys.stderr.write(f"{report.message}\n")
        termination.write(report, os.environ)
    except OSError as error:
        sys.stderr.write(f"the termination message could not be written: {error}\n")
    finally:
        shutil.rmtree(ends, ignore_errors=True)
        sys.stderr.flush()
        os._exit(int(ExitCode.SIGNALLED))


def _launch(
    config: StageConfig, config_file: Path, ends: Path, meeting: launch.Rendezvous
) -> list[int]:
    """Start the ranks and wait; return the exit codes that the agent saw."""
    assert config.attempt is not None
    multiprocessing.set_forkserver_preload(["finetune_trainer.preload"])
    multiprocessing.forkserver.ensure_running()
    # Only now: the import takes as long as the one that runs beside it.
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from finetune_trainer.rank import rank_main

    for name in ("torch.distributed", "torch.multiprocessing", "torch.distributed.elastic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    settings: dict[str, Any] = {"rank": meeting.node_rank} if meeting.backend == "static" else {}
    launched = LaunchConfig(
        min_nodes=config.attempt.nodes,
        max_nodes=config.attempt.nodes,
        nproc_per_node=config.attempt.processes_per_node,
        run_id=f"{config.job.uid}-{config.attempt.number}",
        role="trainer",
        rdzv_backend=meeting.backend,
        rdzv_endpoint=meeting.endpoint,
        rdzv_configs=settings,
        local_addr=meeting.local_addr,
        max_restarts=0,
        monitor_interval=0.1,
        start_method="forkserver",
        signals_to_handle="SIGUSR2",
        shutdown_timeout=config.job.spec.checkpoint.grace_period_seconds + SLACK,
    )
    try:
        elastic_launch(launched, rank_main)(str(config_file), str(ends), os.getpid())
    except ChildFailedError as error:
        device = config.job.spec.resources.accelerator.device
        codes = [failure.exitcode for failure in error.failures.values()]
        return [errors.exit_code_of(code, device) for code in codes]
    return [int(ExitCode.DONE)]


def _gather(ends: Path, codes: list[int]) -> Ranks:
    """Return what the ranks left beside what the agent saw of them."""
    reports = []
    for path in sorted(ends.glob("*.json"), key=lambda path: int(path.stem)):
        try:
            reports.append(TerminationReport.model_validate_json(path.read_bytes()))
        except (ValueError, OSError):
            continue
    told = [report.exit_code for report in reports]
    return Ranks((*told, *(code for code in codes if code)), tuple(reports))


def _merged(config: StageConfig, ranks: Ranks, node: int, *, asked: bool) -> TerminationReport:
    """Return the one end of all ranks: the code that names the cause, the facts of the first."""
    assert config.attempt is not None
    code = errors.worst(list(ranks.codes))
    if asked and code == ExitCode.COMMUNICATION_LOST:
        code = int(ExitCode.SIGNALLED)  # the others left before this node's ranks could
    cause = next((r for r in ranks.reports if r.exit_code == code), None)
    facts = ranks.reports[0] if ranks.reports else None
    base = facts or TerminationReport(
        stage="train",
        job_uid=config.job.uid,
        attempt=config.attempt.number,
        exit_code=code,
    )
    report = base.model_copy(
        update={
            "exit_code": code,
            "node": node,
            "message": cause.message if cause else _without_report(code),
            "problems": cause.problems if cause else (),
            "peak_memory_bytes": max((r.peak_memory_bytes for r in ranks.reports), default=0),
        }
    )
    leave(report, config)
    return report


def _without_report(code: int) -> str:
    if code == ExitCode.KILLED:
        return "a rank was killed (SIGKILL): by the node for its memory, or from outside"
    if code == ExitCode.SIGNALLED:
        return "asked to stop"
    if code == ExitCode.COMMUNICATION_LOST:
        return "a rank hung, or NCCL aborted it because it had lost the others; the log says which"
    return "a rank ended without saying why; the log holds what it wrote"


def leave(report: TerminationReport, config: StageConfig) -> None:
    """Write ``reports/<claim>/end-<node>.json``; a workspace that cannot be written is said."""
    from finetune_trainer.checkpoint import durable

    path = Layout(Path(config.mounts.workspace)).end_report(report.claim, report.node)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.replace(path, json.dumps(report.to_json(), indent=1).encode())
    except OSError as error:
        sys.stderr.write(f"the end could not be written to {path}: {error.strerror}\n")
