"""Exceptions become problems and exit codes here, and nowhere else."""

from __future__ import annotations

import errno
import os
import re
import signal
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from finetune_api.exit_codes import ExitCode
from finetune_api.names import VOLUMES_MOUNT
from finetune_api.problem import Problem, Refused
from finetune_api.resolved import StageConfig


class StageError(Refused):
    """A stage cannot go on, and knows why and with which exit code."""

    def __init__(self, exit_code: ExitCode, *problems: Problem) -> None:
        """Hold the code and at least one problem."""
        super().__init__(*problems)
        self.exit_code = exit_code


class Signalled(BaseException):
    """The process was asked to stop. Not an ``Exception``: no library may swallow it."""


@dataclass(frozen=True)
class Ending:
    """How a process ends, in the words of the contract."""

    exit_code: int
    message: str
    problems: tuple[Problem, ...] = ()


PRECEDENCE: tuple[int, ...] = (
    ExitCode.FENCED,
    ExitCode.INVALID_CONFIG,
    ExitCode.INVALID_DATA,
    ExitCode.MODEL_UNAVAILABLE,
    ExitCode.CHECKPOINT_UNUSABLE,
    ExitCode.GATE_NOT_MET,
    ExitCode.DOES_NOT_FIT,
    ExitCode.STORAGE_FULL,
    ExitCode.NON_FINITE_LOSS,
    ExitCode.KILLED,
    ExitCode.UNEXPECTED,
    ExitCode.COMMUNICATION_LOST,
    ExitCode.SIGNALLED,
    ExitCode.DONE,
)
"""Which of several ranks' codes names the cause, the likeliest first: a rank that fails takes the
others with it, and those only see lost connections (20) or are asked to stop (143)."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_STORAGE = ("no space left on device", "disk quota exceeded", "pytorchstreamwriter failed writing")
_SHARED_MEMORY = ("/dev/shm", "shared memory", "</torch_")  # noqa: S108 - where it is, in texts
_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "cuda_error_out_of_memory",
    "_status_alloc_failed",
)
_LOST = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "gloo/transport",
    "application timeout caused pair closure",
    "timed out waiting",
    "nccl error",
    "processgroupnccl",
    "watchdog caught collective",
    "the client socket",
)
_WORKER_KILLED = re.compile(
    r"dataloader worker \(pid(\(s\))? [\d, ]+\) (is killed by signal: killed|exited unexpectedly)"
)
"""torch's words; the second are used where the rank saw that it was gone before it saw why."""
_DISTRIBUTED = frozenset({"DistError", "DistBackendError", "DistNetworkError", "DistStoreError"})
_LOSS_SCALE = "loss scale already at minimum"


def ending_of(error: BaseException, config: StageConfig | None = None) -> Ending:
    """Return how a process ends that this exception left; ``config`` says where its volumes are."""
    volumes = (config.mounts.workspace, *config.mounts.volumes.values()) if config else ()
    for cause in _causes(error):
        known = _known(cause, volumes)
        if known is not None:
            return known
    last = _last_line(error)
    return Ending(
        ExitCode.UNEXPECTED,
        last,
        (
            Problem(
                code="unexpected",
                message=last,
                fix="Nothing in the job explains this. It is tried again; the log of this process "
                "holds the details.",
            ),
        ),
    )


def _known(error: BaseException, volumes: tuple[str, ...]) -> Ending | None:
    if isinstance(error, StageError):
        return Ending(error.exit_code, error.problems[0].message[:512], error.problems)
    if isinstance(error, Refused):
        return Ending(ExitCode.INVALID_CONFIG, error.problems[0].message[:512], error.problems)
    if isinstance(error, Signalled | KeyboardInterrupt):
        return Ending(ExitCode.SIGNALLED, "asked to stop")
    if isinstance(error, PermissionError) and str(error.filename).startswith(f"{VOLUMES_MOUNT}/"):
        return _not_permitted(error)
    names = {kind.__name__ for kind in type(error).__mro__}
    text = str(error).lower()
    if isinstance(error, RuntimeError) and _WORKER_KILLED.match(text):
        return Ending(
            ExitCode.KILLED,
            "a process that reads ahead for a rank was killed: by the node for its memory, or from "
            "outside",
        )
    if isinstance(error, MemoryError) or "OutOfMemoryError" in names:
        return _does_not_fit(error)
    full = (isinstance(error, OSError) and error.errno in _FULL) or _any(_STORAGE, text)
    if full and not (names & _DISTRIBUTED and not _any(_SHARED_MEMORY, text)):
        return _no_room(error, text, volumes)
    if _LOSS_SCALE in text:
        return _no_gradients(error)
    if isinstance(error, RuntimeError) and _any(_MEMORY, text):
        return _does_not_fit(error)
    if names & _DISTRIBUTED or (
        isinstance(error, RuntimeError | ConnectionError | TimeoutError) and _any(_LOST, text)
    ):
        return _communication_lost(error)
    return None


def _does_not_fit(error: BaseException) -> Ending:
    problem = Problem(
        code="out-of-memory",
        message=f"out of memory: {_last_line(error)}"[:1024],
        fix="set training.microBatchSize lower (the global batch stays), turn on "
        "training.gradientCheckpointing, lower dataset.maxLength, or ask for more memory",
        field="spec.training.microBatchSize",
    )
    return Ending(ExitCode.DOES_NOT_FIT, problem.message[:512], (problem,))


def _not_permitted(error: PermissionError) -> Ending:
    """A claim that is mounted read-only is given to no group: its files stay as they are."""
    claim, _, path = str(error.filename).removeprefix(f"{VOLUMES_MOUNT}/").partition("/")
    problem = Problem(
        code="not-permitted",
        message=f"user {os.getuid()} may not read pvc://{claim}/{path}"[:1024],
        fix="let everybody read the claim's files (chmod -R a+rX), or run as their owner"
        " (platform.podSecurity of the profile); then raise recovery.retryGeneration",
    )
    return Ending(ExitCode.MODEL_UNAVAILABLE, problem.message[:512], (problem,))


def _no_room(error: BaseException, text: str, volumes: tuple[str, ...]) -> Ending:
    """Tell of shared memory and of the node's own disk apart from the volumes of the job."""
    if _any(_SHARED_MEMORY, text):
        return _shared_memory_full(error)
    name = getattr(error, "filename", None)
    if volumes and isinstance(name, str) and not any(_below(name, root) for root in volumes):
        return _disk_full(error, str(Path(name).resolve().parent))
    return _storage_full(error)


def _below(name: str, folder: str) -> bool:
    return Path(os.path.realpath(name)).is_relative_to(os.path.realpath(folder))


def _shared_memory_full(error: BaseException) -> Ending:
    lines = [line.strip() for line in str(error).splitlines() if _any(_SHARED_MEMORY, line.lower())]
    problem = Problem(
        code="shared-memory-full",
        message=f"no room in the shared memory of a node: {lines[-1]}"[:1024],
        fix="raise resources.sharedMemory (absent, it is 16Gi with accelerators and 1Gi without); the "
        "volumes of the job have room",
        field="spec.resources.sharedMemory",
    )
    return Ending(ExitCode.INVALID_CONFIG, problem.message[:512], (problem,))


def _disk_full(error: BaseException, folder: str) -> Ending:
    problem = Problem(
        code="node-disk-full",
        message=f"no room on the node's own disk, in {folder}: {_last_line(error)}"[:1024],
        fix="Nothing is to be done at first: it is tried again, maybe on another node. If it comes "
        "back, free room on the node; the volumes of the job have room.",
    )
    return Ending(ExitCode.UNEXPECTED, problem.message[:512], (problem,))


def _no_gradients(error: BaseException) -> Ending:
    problem = Problem(
        code="non-finite-gradients",
        message=f"gradients in fp16 are not finite at any scale: {_last_line(error)}"[:1024],
        fix="set training.precision to bf16 where the accelerator has it, else to fp32, or lower "
        "training.learningRate",
        field="spec.training.precision",
    )
    return Ending(ExitCode.NON_FINITE_LOSS, problem.message[:512], (problem,))


def _storage_full(error: BaseException) -> Ending:
    problem = Problem(
        code="storage-full",
        message=f"no room on the volume: {_last_line(error)}"[:1024],
        fix="make the workspace larger (workspace.size) or keep fewer checkpoints "
        "(checkpoint.keep); what was verified before is untouched",
        field="spec.workspace.size",
    )
    return Ending(ExitCode.STORAGE_FULL, problem.message[:512], (problem,))


def _communication_lost(error: BaseException) -> Ending:
    problem = Problem(
        code="communication-lost",
        message=f"a rank lost the others: {_last_line(error)}"[:1024],
        fix="Nothing is to be done at first: it is tried again from the newest verified "
        "checkpoint. If it comes back, look at the network between the nodes.",
    )
    return Ending(ExitCode.COMMUNICATION_LOST, problem.message[:512], (problem,))


def worst(codes: list[int]) -> int:
    """Return the code that names the cause, of all ranks' codes; 0 when there is none."""
    return min(codes, key=_precedence, default=int(ExitCode.DONE))


def _precedence(code: int) -> int:
    return PRECEDENCE.index(code if code in PRECEDENCE else ExitCode.UNEXPECTED)


def exit_code_of(returncode: int, device: str = "cpu") -> int:
    """Return a rank's return code as a contract's code: killed by a signal counts as 128 + it.

    On GPUs NCCL's watchdog aborts a rank whose peers are gone or hang, and it can say no more.
    """
    if device == "cuda" and returncode == -signal.SIGABRT:
        return int(ExitCode.COMMUNICATION_LOST)
    code = 128 - returncode if returncode < 0 else returncode
    return code if code in PRECEDENCE else int(ExitCode.UNEXPECTED)


def rendered(problem: Problem) -> str:
    """Return a problem for people: place, severity, message, code, and the fix below."""
    head = f"{problem.place} {problem.severity} {problem.message} [{problem.code}]".lstrip()
    return f"{head}\n    fix: {problem.fix}" if problem.fix else head


def log_traceback(error: BaseException, path: Path) -> None:
    """Append the traceback to a log file: it is for us, not for users. Never raises."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(f"{datetime.now(UTC).isoformat()}\n")
            stream.write("".join(traceback.format_exception(error)))
    except OSError:
        return


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those that it says it comes from."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__


def _last_line(error: BaseException) -> str:
    name, text = _said(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (f"{name}: {lines[0]}" if lines else name)[:512]


def _said(error: BaseException) -> tuple[str, str]:
    """Return an exception's name and text.

    Of one that came from a process or thread of a loader torch makes another, whose text is the
    whole traceback; that of the first stands at its end.
    """
    text = str(error)
    caught = re.match(r"Caught (\w+) in .+\.\nOriginal Traceback", text)
    if caught is None:
        return type(error).__name__, text
    said = re.findall(rf"^(?:[\w.]+\.)?{caught[1]}(?:: (.*))?$", text, re.MULTILINE)
    return caught[1], said[-1] if said else ""


def _any(needles: tuple[str, ...], text: str) -> bool:
    return any(needle in text for needle in needles)
