"""Claims without a cluster: each is a folder of this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from finetune_api.job import JobSpec
from finetune_api.problem import Problem, Refused
from finetune_api.source import parse_uri
from finetune_operator.resolve.wording import cut


def parse_volumes(texts: Sequence[str]) -> dict[str, Path]:
    """Return claim -> folder from ``claim=folder`` words.

    Raises ``Refused`` for a word of another shape, a claim named twice, or a folder that is none.
    """
    volumes: dict[str, Path] = {}
    problems = []
    for text in texts:
        claim, sign, folder = text.partition("=")
        if not sign or not claim or not folder:
            problems.append(
                Problem(
                    code="volume-malformed",
                    message=f"--volume {text} does not say which folder stands for which claim",
                    fix="--volume claim=folder, such as --volume datasets=./data",
                )
            )
            continue
        path, what = _looked_at(folder)
        if claim in volumes:
            problems.append(
                Problem(
                    code="volume-twice",
                    message=f"--volume names the claim {claim} twice",
                    fix="keep one of them",
                )
            )
        elif what:
            problems.append(
                Problem(
                    code="volume-missing",
                    message=f"the folder {cut(folder, 400)} of --volume {cut(text, 400)} {what}",
                    fix="name a folder that exists; its subfolders are the paths in the claim",
                )
            )
        else:
            volumes[claim] = path
    if problems:
        raise Refused(*problems)
    return volumes


def _looked_at(text: str) -> tuple[Path, str]:
    """Return a folder of this machine, and what is wrong with it."""
    try:
        path = Path(text).expanduser().resolve()
        if not path.is_dir():
            return path, "is a file, not a folder" if path.exists() else "does not exist"
        return path, "" if is_text(path) else "has a name that is no UTF-8"
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return Path(text), f"cannot be used: {reason}"


def is_text(path: Path) -> bool:
    """Tell whether a path is UTF-8: it is written into JSON for the processes of the job."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def claims_of(spec: JobSpec) -> Iterator[tuple[str, str, str]]:
    """Yield (claim, field, path in it) for every place in the job that names a claim."""
    for field, uri in _uris(spec):
        source = parse_uri(uri)
        if source.scheme == "pvc":
            yield source.name, field, source.path


def check_volumes(spec: JobSpec, volumes: Mapping[str, Path]) -> None:
    """Raise ``Refused`` unless every claim has a folder that can be used.

    A claim that is only written to has to be writable.
    """
    problems = []
    asked: set[str] = set()
    for claim, field, path in claims_of(spec):
        if claim in volumes:
            folder = volumes[claim]
            if field == "spec.output.uri" and not os.access(folder, os.W_OK):
                problems.append(
                    Problem(
                        code="volume-read-only",
                        field=field,
                        message=f"the folder {folder} of the claim {claim} cannot be written",
                        fix=f"name another folder: --volume {claim}=FOLDER",
                    )
                )
        elif claim not in asked:
            asked.add(claim)
            inside = f" with {path} in it" if path and field != "spec.output.uri" else ""
            problems.append(
                Problem(
                    code="volume-not-given",
                    field=field,
                    message=f"no folder stands for the claim {claim} on this machine",
                    fix=f"add --volume {claim}=FOLDER{inside and f' (a folder{inside})'}",
                )
            )
    if problems:
        raise Refused(*problems)


def _uris(spec: JobSpec) -> Iterator[tuple[str, str]]:
    yield "spec.model.uri", spec.model.uri
    if spec.model.tokenizer is not None:
        yield "spec.model.tokenizer.uri", spec.model.tokenizer.uri
    if spec.model.adapter is not None:
        yield "spec.model.adapter.uri", spec.model.adapter.uri
    for index, source in enumerate(spec.dataset.train):
        yield f"spec.dataset.train[{index}].uri", source.uri
    validation = spec.dataset.validation
    for index, source in enumerate(validation.sources or [] if validation else []):
        yield f"spec.dataset.validation.sources[{index}].uri", source.uri
    if spec.output.uri is not None:
        yield "spec.output.uri", spec.output.uri
