"""The objects of a file: which documents are jobs and profiles, and whether their frame is right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from finetune_api import API_VERSION, GROUP
from finetune_api.job import KIND as JOB
from finetune_api.problem import Problem, Refused
from finetune_api.profile import KIND as PROFILE
from finetune_cli import yaml_file
from finetune_cli.yaml_file import YamlDocument
from finetune_operator.resolve.paths import look, path_text
from finetune_operator.resolve.wording import cut, quoted, read

_FRAME = ("apiVersion", "kind", "metadata", "spec", "status")
_METADATA = (
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "labels",
    "managedFields",
    "name",
    "namespace",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
)


@dataclass(frozen=True)
class Objects:
    """What a file holds, in its order."""

    jobs: tuple[YamlDocument, ...] = ()
    profiles: tuple[YamlDocument, ...] = ()
    problems: tuple[Problem, ...] = ()
    """Located; documents with a wrong frame are in neither list."""


def load(path: str) -> Objects:
    """Return the jobs and profiles of a file.

    Objects of other API groups are left to kubectl, as long as a job or a profile is there too.
    Raises ``Refused`` where the file cannot be read at all.
    """
    jobs: list[YamlDocument] = []
    profiles: list[YamlDocument] = []
    problems: list[Problem] = []
    others: list[Problem] = []
    for document in yaml_file.read(path):
        foreign, found = _frame(document.data)
        located = [document.located(problem) for problem in found]
        if foreign:
            others += located
        elif located:
            problems += located
        else:
            (jobs if document.data["kind"] == JOB else profiles).append(document)
    if not jobs and not profiles and not problems:
        problems = others
    return Objects(tuple(jobs), tuple(profiles), tuple(problems))


def one_job(path: str, name: str | None = None) -> tuple[YamlDocument, Objects]:
    """Return the one job of a file, and everything that is in it.

    Raises ``Refused`` where something is wrong with the frame of an object, or where the file
    holds no job, or several and no ``name`` chooses one.
    """
    objects = load(path)
    if objects.problems:
        raise Refused(*objects.problems)
    jobs = [job for job in objects.jobs if name in (None, look(job.data, "metadata", "name"))]
    if len(jobs) == 1:
        return jobs[0], objects
    names = [str(look(job.data, "metadata", "name")) for job in objects.jobs]
    if not objects.jobs:
        message, fix = "the file holds no FineTuneJob", "add one, or name another file"
    elif not jobs:
        message, fix = f"no FineTuneJob {quoted(name or '')}", f"there are {', '.join(names)}"
    else:
        message = f"the file holds {len(names)} FineTuneJobs: {', '.join(names)}"
        fix = "choose one with --name"
    raise Refused(
        Problem(code="which-job", file=path, message=cut(message), fix=cut(fix)),
    )


def _frame(data: Any) -> tuple[bool, list[Problem]]:
    """Return whether a document belongs to another API, and what is wrong with its frame."""
    if not isinstance(data, Mapping):
        fix = f"begin with apiVersion: {API_VERSION} and kind: {JOB}"
        return False, [_wrong("wrong-type", "", f"an object is wanted, not {read(data)}", fix)]
    version, kind = data.get("apiVersion"), data.get("kind")
    if kind not in (JOB, PROFILE) and isinstance(version, str) and isinstance(kind, str):
        near = difflib.get_close_matches(kind, (JOB, PROFILE), n=1, cutoff=0.7)
        if version != API_VERSION and not near:
            message = f"kind {quoted(kind)} of {quoted(version)} is neither {JOB} nor {PROFILE}"
            return True, [_wrong("wrong-kind", "kind", message, f"write kind: {JOB}")]
        fix = f"did you mean {near[0]}?" if near else f"write kind: {JOB}"
        return False, [_wrong("wrong-kind", "kind", f"there is no kind {quoted(kind)}", fix)]
    found = []
    if kind is None:
        found.append(_wrong("missing-field", "kind", "kind is missing", f"write kind: {JOB}"))
    elif not isinstance(kind, str):
        message = f"kind must be text, not {read(kind)}"
        found.append(_wrong("wrong-type", "kind", message, f"write kind: {JOB}"))
    if version != API_VERSION:
        said = f"apiVersion cannot be {read(version)}" if version is not None else ""
        if isinstance(version, str) and version.startswith(f"{GROUP}/"):
            said = f"this release does not know the version {quoted(version)}"
        found.append(
            _wrong(
                "wrong-api-version" if said else "missing-field",
                "apiVersion",
                said or "apiVersion is missing",
                f"write apiVersion: {API_VERSION}",
            )
        )
    return False, found + _outer(data)


def _outer(data: Mapping[str, Any]) -> list[Problem]:
    """Return what is wrong around ``spec``."""
    found = [_unknown(name, name, _FRAME) for name in data if name not in _FRAME]
    metadata = data.get("metadata")
    if metadata is None:
        message = "metadata is missing"
        found.append(_wrong("missing-field", "metadata", message, "write metadata: {name: my-job}"))
    elif not isinstance(metadata, Mapping):
        message = f"metadata must be a section, not {read(metadata)}"
        fix = "write metadata: {name: my-job}"
        found.append(_wrong("wrong-type", "metadata", message, fix))
    else:
        found += [
            _unknown(f"metadata.{name}", name, _METADATA)
            for name in metadata
            if name not in _METADATA
        ]
        for section in ("labels", "annotations"):
            found += _texts(metadata.get(section), section)
        namespace = metadata.get("namespace")
        if namespace is not None and not isinstance(namespace, str):
            message = f"metadata.namespace must be text, not {read(namespace)}"
            found.append(_wrong("wrong-type", "metadata.namespace", message, "put it in quotes"))
    if "spec" not in data and data.get("kind") == JOB:
        fix = "write spec: {model: ..., dataset: ..., method: ...}"
        found.append(_wrong("missing-field", "spec", "spec is missing", fix))
    return found


def _texts(section: Any, name: str) -> Iterable[Problem]:
    """Yield what is wrong with labels or annotations: their values are text."""
    if section is None:
        return
    if not isinstance(section, Mapping):
        message = f"metadata.{name} must be a section, not {read(section)}"
        yield _wrong("wrong-type", f"metadata.{name}", message, f"write {name}: {{key: value}}")
        return
    for key, value in section.items():
        if not isinstance(value, str):
            field = path_text(("metadata", name, key))
            yield _wrong(
                "wrong-type", field, f"{field} must be text, not {read(value)}", "put it in quotes"
            )


def _unknown(field: str, name: str, known: tuple[str, ...]) -> Problem:
    """Return the problem of a name that Kubernetes does not know there."""
    near = difflib.get_close_matches(name.lower(), [one.lower() for one in known], n=1)
    meant = next((one for one in known if near and one.lower() == near[0]), None)
    parent = field.removesuffix(name)
    fix = f"did you mean {parent}{meant}?" if meant else f"remove it; there is {', '.join(known)}"
    return _wrong("unknown-field", field, f"unknown field {field}", fix)


def _wrong(code: str, field: str, message: str, fix: str) -> Problem:
    """Return one problem of the frame."""
    return Problem(code=code, field=cut(field, 400) or None, message=cut(message), fix=cut(fix))
