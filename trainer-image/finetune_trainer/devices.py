"""A job for GPUs trains on GPUs: looked at first, for the libraries go on with the CPU quietly."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from finetune_api.exit_codes import ExitCode
from finetune_api.problem import Problem
from finetune_api.resolved import StageConfig
from finetune_trainer.errors import StageError

OLDEST_DRIVER = {12: 525, 13: 580}
"""By the major version of CUDA (NVIDIA, CUDA Compatibility, "Minor Version Compatibility")."""
FIELD = "spec.resources.accelerator.device"
_ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)(a?)f?")


@dataclass(frozen=True)
class Seen:
    """The GPUs of a node, as torch sees them."""

    capabilities: tuple[tuple[int, int], ...] = ()
    """Of each GPU."""
    built_for: tuple[str, ...] = ()
    """What torch has kernels for: ``sm_90`` is capability 9.0."""
    cuda: str | None = None
    """The version of CUDA that torch is built with."""
    driver: str | None = None
    trouble: str = ""
    """Why torch can use none."""


def check(config: StageConfig) -> None:
    """Refuse to train on anything but what the job asks for.

    Raises:
        StageError: torch cannot use the GPUs of this node (10). Where an earlier attempt has saved
            a checkpoint it is this node that is at fault and not the job, so it is tried again (1).
    """
    attempt = config.attempt
    if config.job.spec.resources.accelerator.device != "cuda" or attempt is None:
        return
    found = problem(look(), attempt.processes_per_node)
    if found:
        raise StageError(ExitCode.UNEXPECTED if attempt.known else ExitCode.INVALID_CONFIG, found)


def look(root: Path = Path("/")) -> Seen:
    """Return what torch sees; ``root`` is where the driver's own words lie below ``proc``."""
    import torch

    seen = Seen(
        built_for=tuple(torch.cuda.get_arch_list()),
        cuda=torch.version.cuda,
        driver=_driver(root / "proc/driver/nvidia/version"),
    )
    if not torch.cuda.is_available():
        return replace(seen, trouble=_trouble())
    every = range(torch.cuda.device_count())
    return replace(seen, capabilities=tuple(torch.cuda.get_device_capability(n) for n in every))


def _trouble() -> str:
    """Return why torch can use no GPU; asking whether it can is answered with a warning at most."""
    import torch

    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        said = str(error).partition("\n")[0].partition(" Please ")[0]
        return said.rstrip(".")[:300]
    return "it finds none"


def _driver(path: Path) -> str | None:
    """Return the version of the kernel's driver; None where there is none or it is not shown."""
    try:
        found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found[0] if found else None


def problem(seen: Seen, ranks: int) -> Problem | None:
    """Return why ``ranks`` ranks of this node cannot train on its GPUs; None when they can."""
    if not seen.capabilities:
        return Problem(
            code="accelerator-not-usable",
            message="device cuda was asked for, and torch cannot use a GPU: "
            f"{seen.trouble} ({_versions(seen)})",
            fix=f"{_needed(seen)}, and the container needs the node's GPUs: see that nvidia-smi works "
            "in a pod that asks for them; to train without set resources.accelerator.device: cpu",
            field=FIELD,
        )
    if len(seen.capabilities) < ranks:
        return Problem(
            code="too-few-accelerators",
            message=f"{ranks} ranks of this node need a GPU each, and torch can use "
            f"{len(seen.capabilities)} ({_versions(seen)})",
            fix="ask for as many GPUs as there are ranks (resources.accelerator.perNode), or for "
            "fewer ranks (resources.processesPerNode)",
            field="spec.resources.processesPerNode",
        )
    for index, capability in enumerate(seen.capabilities[:ranks]):
        if not covered(capability, seen.built_for):
            major, minor = capability
            return Problem(
                code="accelerator-not-supported",
                message=f"GPU {index} has capability {major}.{minor}, and torch has kernels for "
                f"{' '.join(seen.built_for)} ({_versions(seen)})",
                fix="choose nodes with newer GPUs (resources.nodeSelector), or an image whose "
                "torch is built for this one",
                field=FIELD,
            )
    return None


def covered(capability: tuple[int, int], built_for: tuple[str, ...]) -> bool:
    """Tell whether code for one of ``built_for`` runs on a GPU.

    Binaries run on later GPUs of the same major version, intermediate code (``compute``) on all later
    ones, and what is marked ``a`` on that GPU alone. Other makers' names say nothing here.
    """
    known = [match for name in built_for if (match := _ARCHITECTURE.fullmatch(name))]
    return not known or any(_fits(match, capability) for match in known)


def _fits(architecture: re.Match[str], capability: tuple[int, int]) -> bool:
    kind, major, minor, alone = architecture.groups()
    made_for = (int(major), int(minor))
    if alone:
        return made_for == capability
    if kind == "sm":
        return made_for[0] == capability[0] and made_for[1] <= capability[1]
    return made_for <= capability


def _versions(seen: Seen) -> str:
    built = f"CUDA {seen.cuda}" if seen.cuda else "no CUDA"
    return f"torch is built with {built}; driver: {seen.driver or 'not seen'}"


def _needed(seen: Seen) -> str:
    if seen.cuda is None:
        return "use the trainer's image, whose torch is built with CUDA"
    oldest = OLDEST_DRIVER.get(int(seen.cuda.partition(".")[0]))
    return f"CUDA {seen.cuda} needs a driver {oldest or 'of its age'} or newer on the node"


def assert_in_use(device: str, config: StageConfig) -> None:
    """Refuse to go on when the libraries chose another device than the job asks for.

    Raises:
        StageError: another kind of device would be trained on (10).
    """
    wanted = config.job.spec.resources.accelerator.device
    if device != wanted:
        raise StageError(
            ExitCode.INVALID_CONFIG,
            Problem(
                code="engine-not-in-force",
                message=f"device {wanted} was asked for, and {device} is what would be used",
                fix="start the trainer as the operator does, or run the job with finetune run",
                field=FIELD,
            ),
        )
