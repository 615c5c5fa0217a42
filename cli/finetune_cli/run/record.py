"""``status.json``: the object, its ledger, and what this machine runs for it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from finetune_api import GROUP, SCHEMA_VERSION
from finetune_api.document import Document
from finetune_api.job import KIND, MUTABLE
from finetune_api.names import Layout, workspace_folder
from finetune_api.problem import Problem, Refused
from finetune_api.resolved import Choices, ResolvedJob, Stage
from finetune_api.status import JobStatus
from finetune_cli.run.keeper import write_whole
from finetune_cli.run.processes import Kept


class Metadata(Document):
    """As in the cluster."""

    name: str
    namespace: str = "default"
    uid: str
    creation_timestamp: str


class LocalChild(Document):
    """One child: the processes of a stage's try, one a node."""

    name: str
    uid: str
    stage: Stage
    attempt: int = 0
    kept: tuple[Kept, ...]
    started_at: str
    stopped_at: str | None = None
    killed: bool = False
    log: str = ""


class Record(Document):
    """Everything that a second ``finetune run`` needs to go on where the first one stopped."""

    schema_version: int = SCHEMA_VERSION
    api_version: str = f"{GROUP}/v1alpha1"
    kind: str = KIND
    metadata: Metadata
    spec: dict[str, Any]
    """As its user wrote it."""
    resolved: ResolvedJob
    choices: Choices | None = None
    volumes: dict[str, str] = Field(default_factory=dict)
    retries: int = 0
    """How often a failed job was run again; counts as ``recovery.retryGeneration``."""
    children: tuple[LocalChild, ...] = ()
    status: JobStatus = JobStatus()


def read_record(path: Path) -> Record:
    """Return the record of a job's folder.

    Raises ``Refused`` when it cannot be read or was written by another version.
    """
    try:
        return Record.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise Refused(
            Problem(
                code="status-unreadable",
                file=str(path),
                message=f"the state of the job cannot be read: {first}",
                fix="bring the file back from a copy, or start anew with --fresh: the folder and"
                " the checkpoints in it stay",
            )
        ) from error


def write_record(path: Path, record: Record) -> None:
    """Replace the record as a whole; it is on the disk when this returns."""
    write_whole(path, json.dumps(record.to_json(), indent=1, ensure_ascii=False).encode())


def folders_of(workspace: Path, name: str) -> Iterator[Path]:
    """Yield the folders of the jobs of this name, the newest last."""
    found = []
    for path in workspace.glob(f"{name}-*/status.json"):
        suffix = path.parent.name.removeprefix(f"{name}-")
        if len(suffix) == 8 and set(suffix) <= set("0123456789abcdef"):
            found.append((path.stat().st_ctime_ns, _created(path), path.parent))
    for _, _, folder in sorted(found, key=lambda entry: (entry[1], entry[0])):
        yield folder


def _created(path: Path) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["metadata"]["creationTimestamp"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def new_metadata(name: str, namespace: str) -> Metadata:
    """Return the identity of a job that did not exist before."""
    created = datetime.now(UTC).isoformat()
    return Metadata(
        name=name, namespace=namespace, uid=str(uuid.uuid4()), creation_timestamp=created
    )


def layout_of(workspace: Path, metadata: Metadata) -> Layout:
    """Return the folder of a job under the workspace."""
    return Layout(workspace / workspace_folder(metadata.name, metadata.uid))


def check_unchanged(record: Record, spec: dict[str, Any], file: str) -> None:
    """Raise ``Refused`` that names every field which may not change after a job has begun."""
    problems = []
    for path, before, after in _changes(record.spec, spec, "spec"):
        top = path.removeprefix("spec.").split(".")[0].split("[")[0]
        if top in MUTABLE or path == "spec.workspace.size":
            continue
        problems.append(
            Problem(
                code="field-immutable",
                field=path,
                message=f"{path} was {_shown(before)} when the job began and is"
                f" {_shown(after)} in {file} now; what training means cannot change half-way",
                fix=f"put it back to {_shown(before)}, give the job another name, or start anew"
                " with --fresh (what the first run left stays where it is)",
            )
        )
    if problems:
        raise Refused(*problems)


def _changes(before: Any, after: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys((*before, *after)):
            yield from _changes(before.get(key), after.get(key), f"{path}.{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from _changes(old, new, f"{path}[{index}]")
    elif before != after:
        yield path, before, after


def _shown(value: Any) -> str:
    if value is None:
        return "absent"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
