"""From a file to a resolved job: what run, validate and explain begin with."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_api.names import ANNOTATION_DEFAULT_PROFILE
from finetune_api.problem import Problem, Refused
from finetune_api.resolved import ResolvedJob
from finetune_cli import objects
from finetune_cli.yaml_file import YamlDocument
from finetune_operator.resolve import profile_problems, resolve
from finetune_operator.resolve.paths import look


@dataclass(frozen=True)
class Profiles:
    """The profiles that a job is held against: those of its own file, then those of --profile."""

    documents: tuple[YamlDocument, ...] = ()
    problems: tuple[Problem, ...] = ()
    chosen: str | None = None
    """The one profile that was named on the command line: it counts as the default."""

    @property
    def data(self) -> list[Mapping[str, Any]]:
        """The raw objects."""
        return [
            _as_default(document.data)
            if look(document.data, "metadata", "name") == self.chosen
            else document.data
            for document in self.documents
        ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every verb that reads a job takes."""
    parser.add_argument("file", metavar="FILE", help="a FineTuneJob in YAML or JSON; - is stdin")
    parser.add_argument(
        "--profile",
        metavar="FILE",
        action="append",
        default=[],
        help="FineTuneProfiles to hold the job against; a single one counts as the default",
    )
    parser.add_argument("--name", help="the job to take, where the file holds several")
    parser.add_argument(
        "--namespace-label",
        metavar="KEY=VALUE",
        type=_label,
        action="append",
        default=[],
        help="a label of the job's namespace, for the profiles' selectors",
    )


def _label(text: str) -> str:
    """Return a label as it was written, or leave with 2."""
    if not text.partition("=")[0] or "=" not in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return text


def load_profiles(files: Sequence[str], own: Sequence[YamlDocument] = ()) -> Profiles:
    """Return the profiles of the job's own file and of other files, with what is wrong in them."""
    given: list[YamlDocument] = []
    problems: list[Problem] = []
    for file in files:
        found = objects.load(file)
        problems += found.problems
        if not found.profiles and not found.problems:
            problems.append(
                Problem(
                    code="no-profile",
                    file=file,
                    message="the file holds no FineTuneProfile",
                    fix="name a file that holds one, or leave --profile out",
                )
            )
        given += found.profiles
    documents = (*own, *given)
    for document in documents:
        problems += [document.located(problem) for problem in profile_problems(document.data)]
    chosen = look(given[0].data, "metadata", "name") if len(given) == 1 else None
    return Profiles(documents, tuple(problems), chosen if isinstance(chosen, str) else None)


def resolve_document(
    document: YamlDocument,
    profiles: Profiles,
    labels: Sequence[str] = (),
    *,
    uid: str | None = None,
) -> ResolvedJob:
    """Return the resolved job of a document.

    Raises ``Refused`` with problems that name file, line and column.
    """
    namespace = look(document.data, "metadata", "namespace")
    known = {"kubernetes.io/metadata.name": namespace if isinstance(namespace, str) else "default"}
    for label in labels:
        key, _, value = label.partition("=")
        known[key] = value
    try:
        return resolve(document.data, profiles.data, known, uid=uid)
    except Refused as refused:
        raise Refused(*map(document.located, refused.problems)) from None


def resolve_file(
    arguments: argparse.Namespace, *, uid: str | None = None
) -> tuple[ResolvedJob, YamlDocument]:
    """Return the one job that the arguments of ``add_arguments`` name, resolved, and its document.

    Raises ``Refused`` with everything that is wrong.
    """
    document, found = objects.one_job(arguments.file, arguments.name)
    profiles = load_profiles(arguments.profile, found.profiles)
    if profiles.problems:
        raise Refused(*profiles.problems)
    return resolve_document(document, profiles, arguments.namespace_label, uid=uid), document


def _as_default(profile: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a profile's object with the mark of the default."""
    metadata = look(profile, "metadata") or {}
    annotations = {**(metadata.get("annotations") or {}), ANNOTATION_DEFAULT_PROFILE: "true"}
    return {**profile, "metadata": {**metadata, "annotations": annotations}}
