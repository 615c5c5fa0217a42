"""What the operator is started with, and what that means for the library that watches."""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import kopf
from pydantic import Field, ValidationError

from finetune_api.document import Document
from finetune_api.names import LABEL_MANAGED_BY, MANAGED_BY
from finetune_operator.kube import BATCH_JOBS, CLAIMS, PAGE, PODS, PYTORCH_JOBS

PREFIX = "FINETUNE_OPERATOR_"
SELECTOR = f"{LABEL_MANAGED_BY}={MANAGED_BY}"


Namespace = Annotated[str, Field(pattern="^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]


class Settings(Document):
    """Every one is a flag ``--like-this`` and a variable ``FINETUNE_OPERATOR_LIKE_THIS``."""

    namespaces: tuple[Namespace, ...] = ()
    """Namespaces to serve, separated by commas. None: all of them."""
    trainer_image: str = ""
    """Image of the trainer, by digest, where a profile names none."""
    workers: int = Field(default=8, ge=1, le=64)
    """Jobs that are looked at at the same time."""
    connections: int = Field(default=32, ge=1, le=256)
    """Connections to the API server."""
    looks_per_second: float = Field(default=50.0, gt=0)
    """Looks at jobs, over all workers."""
    requests_per_second: float = Field(default=200.0, ge=5)
    """Requests to the API server, beside watches; twice as many at once."""
    relist_seconds: float = Field(default=300.0, gt=0)
    """How often all jobs are listed, whatever the watch says."""
    progress_seconds: float = Field(default=60.0, gt=0)
    """How often a job's progress is read, and written if its step has moved."""
    progress_per_second: float = Field(default=20.0, gt=0)
    """Progress of all jobs together that is read and written in a second."""
    progress_from_logs: bool = True
    """Read the end of a pod's log where its progress cannot be reached; needs get on pods/log."""
    restarts_at_once: int = Field(default=50, ge=1)
    """Jobs whose next attempt may be starting at the same time."""
    unreachable_seconds: float = Field(default=30.0, gt=0)
    """How often something is looked at again that will be mended elsewhere, unseen."""
    probe_address: str = ""
    """Empty: every address, of IPv4 and IPv6; the kubelet asks from outside the pod."""
    probe_port: int = Field(default=8080, ge=0, le=65535)
    log_level: str = Field(default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")


def read_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Return the settings: flags win over variables. Ends the process for a mistake, and says it."""
    parser = argparse.ArgumentParser(
        prog="python -m finetune_operator.main",
        description="The operator of FineTuneJobs.",
        epilog=f"Every flag may also be a variable, such as {PREFIX}WORKERS.",
    )
    for name, field in Settings.model_fields.items():
        shown = ",".join(field.default) if name == "namespaces" else field.default
        parser.add_argument(
            "--" + name.replace("_", "-"),
            help=f"{field.description} (default: {shown!s})".replace("%", "%%"),
        )
    given = {
        name: text for name, text in vars(parser.parse_args(arguments)).items() if text is not None
    }
    found = {
        name: environment[PREFIX + name.upper()]
        for name in Settings.model_fields
        if environment.get(PREFIX + name.upper())
    } | given
    values: dict[str, object] = dict(found)
    if "namespaces" in found:
        names = [name.strip() for name in found["namespaces"].split(",")]
        values["namespaces"] = tuple(dict.fromkeys(name for name in names if name))
        if not values["namespaces"]:
            parser.error("--namespaces: it names none; leave it out to serve all of them")
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        for wrong in error.errors():
            name = str(wrong["loc"][0])
            parser.error(f"--{name.replace('_', '-')}: {wrong['msg']}")
        raise


class NoHistory(kopf.DiffBaseStorage):
    """Keeps no earlier state of an object: nothing here asks what has changed of it.

    The library's own would copy every object that a watch delivers, field by field.
    """

    def build(self, **_: Any) -> Any:
        """Return nothing of an object."""
        return {}

    def fetch(self, **_: Any) -> Any:
        """Return what was kept of an object: nothing."""
        return None

    def store(self, **_: Any) -> None:
        """Keep nothing."""


class Backoffs:
    """Delays without an end: a short outage of the API server must not end the process.

    A new iteration begins for every request. Jittered, 30 s at most.
    """

    def __iter__(self) -> Iterator[float]:
        """Yield 0.5 to 1 s first, then up to twice as much each time."""
        limit = 1.0
        while True:
            yield random.uniform(limit / 2, limit)  # noqa: S311 - spreads load, guards nothing
            limit = min(30.0, limit * 2)


def kopf_settings(workers: int) -> kopf.OperatorSettings:
    """Return the settings of the library: it lists, watches and logs in, and writes nothing."""
    found = kopf.OperatorSettings()
    found.watching.server_timeout = 300
    found.watching.client_timeout = 310
    found.watching.connect_timeout = 10
    found.watching.inactivity_timeout = 70
    found.watching.reconnect_backoff = 1
    found.watching.chunk_size = PAGE
    found.watching.initial_streaming = False
    for resource in (PODS, BATCH_JOBS, PYTORCH_JOBS, CLAIMS):
        kind = (resource.group, resource.version, resource.plural)
        found.watching.label_selectors[kind] = SELECTOR
    found.networking.request_timeout = 30
    found.networking.connect_timeout = 10
    found.networking.error_backoffs = Backoffs()
    found.networking.enforce_retry_after = True
    found.peering.standalone = True
    found.scanning.disabled = True
    found.posting.enabled = False
    found.persistence.diffbase_storage = NoHistory()
    # What was told of an object last is held until its worker has nothing to do for so long.
    found.queueing.idle_timeout = 0.1
    found.execution.max_workers = workers
    return found


def instance() -> str:
    """Return the name of this process for Events: that of its pod."""
    return os.environ.get("POD_NAME") or os.uname().nodename
