"""The environment of the ranks, settled before torch is imported; imports nothing heavy itself."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from finetune_api.exit_codes import ExitCode
from finetune_api.problem import Problem
from finetune_api.resolved import StageConfig
from finetune_trainer.errors import StageError

NODE_RANK = "FINETUNE_NODE_RANK"
_MPI = {
    "RANK": ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK"),
    "WORLD_SIZE": ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"),
    "LOCAL_RANK": ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "MV2_COMM_WORLD_LOCAL_RANK"),
    "LOCAL_WORLD_SIZE": (
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        "MPI_LOCALNRANKS",
        "MV2_COMM_WORLD_LOCAL_SIZE",
    ),
}
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DO_NOT_TRACK": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "TOKENIZERS_PARALLELISM": "false",
    "ACCELERATE_USE_CPU": "false",
}


@dataclass(frozen=True)
class Rendezvous:
    """Where the supervisors of all nodes meet."""

    backend: str
    endpoint: str
    node_rank: int
    local_addr: str | None


def settings(config: StageConfig, cores: int) -> dict[str, str]:
    """Return what every process of a train stage has in its environment.

    The base model was materialised by prepare, so training never goes to a hub. DeepSpeed chooses
    its device when it is imported, and counts the CPU's ranks by ``LOCAL_SIZE``.
    """
    if config.attempt is None:
        raise ValueError("the configuration has no attempt: it is not one of a train stage")
    local = config.attempt.processes_per_node
    values = {**_OFFLINE, "OMP_NUM_THREADS": str(max(1, cores // local))}
    if config.job.spec.resources.accelerator.device == "cpu":
        values |= {
            "DS_ACCELERATOR": "cpu",
            "LOCAL_SIZE": str(local),
            "CUDA_VISIBLE_DEVICES": "",
        }
    return values


def apply(config: StageConfig) -> None:
    """Settle the environment of this process and of those that it starts."""
    for name, value in settings(config, cores()).items():
        if name == "OMP_NUM_THREADS":
            os.environ.setdefault(name, value)
        else:
            os.environ[name] = value
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)  # a controller's are those of the node, not of a rank


def cores(root: Path = Path("/")) -> int:
    """Return the processors that this process may keep busy: the control group's limit counts too.

    With more threads than that the kernel stops all of them for a part of each period, in which the
    other ranks wait. The limit is the job's, so the number is the same on every node.
    """
    there = len(os.sched_getaffinity(0))
    limit = _cpu_limit(root / "sys/fs/cgroup")
    return there if limit is None else max(1, min(there, math.ceil(limit)))


def _cpu_limit(groups: Path) -> float | None:
    """Return the limit of this control group in processors; None where there is none."""
    try:
        words = (groups / "cpu.max").read_text(encoding="ascii").split()
    except OSError:
        try:
            words = [
                (groups / "cpu" / f"cpu.cfs_{name}_us").read_text(encoding="ascii").strip()
                for name in ("quota", "period")
            ]
        except OSError:
            return None
    try:
        quota, period = (int(word) for word in words)
    except ValueError:  # "max"
        return None
    return quota / period if quota > 0 and period > 0 else None


def rendezvous(nodes: int, environ: Mapping[str, str]) -> Rendezvous:
    """Return where the supervisors meet.

    One node: a free port of the loopback device. Several: ``MASTER_ADDR`` and ``MASTER_PORT``,
    with the node's rank in ``FINETUNE_NODE_RANK``.

    Raises:
        StageError: one of them is missing or no number (10).
    """
    if nodes == 1:
        return Rendezvous("c10d", "127.0.0.1:0", 0, "127.0.0.1")
    missing = [n for n in (NODE_RANK, "MASTER_ADDR", "MASTER_PORT") if not environ.get(n)]
    if missing:
        raise _environment(f"{' and '.join(missing)} not set, and the attempt has {nodes} nodes")
    rank, port = environ[NODE_RANK], environ["MASTER_PORT"]
    if not rank.isdecimal() or int(rank) >= nodes:
        raise _environment(f"{NODE_RANK} is {rank!r}, not one of 0 to {nodes - 1}")
    if not port.isdecimal():
        raise _environment(f"MASTER_PORT is {port!r}, not a number")
    return Rendezvous("static", f"{environ['MASTER_ADDR']}:{port}", int(rank), None)


def under_mpi(environ: Mapping[str, str]) -> bool:
    """Tell whether mpirun started this process, so that it is a rank itself."""
    return any(name in environ for name in _MPI["RANK"])


def mpi_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return torch's names for what mpirun says.

    Raises:
        StageError: mpirun said too little, or there is no ``MASTER_ADDR`` (10).
    """
    found: dict[str, str] = {}
    for ours, theirs in _MPI.items():
        value = next((environ[name] for name in theirs if name in environ), None)
        if value is None:
            raise _environment(f"mpirun set none of {', '.join(theirs)}")
        found[ours] = value
    if found["WORLD_SIZE"] == found["LOCAL_WORLD_SIZE"]:
        found["MASTER_ADDR"] = environ.get("MASTER_ADDR", "127.0.0.1")
    elif "MASTER_ADDR" in environ:
        found["MASTER_ADDR"] = environ["MASTER_ADDR"]
    else:
        raise _environment("MASTER_ADDR not set, and mpirun started ranks on several nodes")
    found["MASTER_PORT"] = environ.get("MASTER_PORT", "29500")
    return found


def wait_for_name(host: str, seconds: float) -> None:
    """Wait until a host's name resolves: the first pod's appears after the pod.

    Raises:
        StageError: it did not within ``seconds`` (20).
    """
    end = time.monotonic() + seconds
    while True:
        try:
            socket.getaddrinfo(host, None)
            return
        except OSError:
            if time.monotonic() >= end:
                raise StageError(
                    ExitCode.COMMUNICATION_LOST,
                    Problem(
                        code="master-not-found",
                        message=f"the name {host} did not resolve within {seconds:.0f} s",
                        fix="see whether the pod of the first node runs and whether the cluster's "
                        "DNS answers",
                    ),
                ) from None
            time.sleep(0.5)


def _environment(message: str) -> StageError:
    return StageError(
        ExitCode.INVALID_CONFIG,
        Problem(
            code="launch-environment",
            message=message,
            fix="start the trainer as the operator does, or run the job with finetune run",
        ),
    )
