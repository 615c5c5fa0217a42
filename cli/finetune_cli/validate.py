"""``finetune validate FILE``: everything that is wrong with a job, before anything is started."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_api.problem import Problem, Refused
from finetune_api.resolved import ResolvedJob
from finetune_cli import data_check, job_file, objects, problem_lines
from finetune_cli.yaml_file import YamlDocument
from finetune_operator.resolve.paths import look

UID = "00000000-0000-4000-8000-000000000000"
"""Of a job that was never created."""


def add_parser(subparsers: Any) -> None:
    """Add the verb."""
    parser = subparsers.add_parser("validate", help="check a job file, and its data with --data")
    job_file.add_arguments(parser)
    parser.add_argument(
        "--data", action="store_true", help="read the model's tokenizer and every row"
    )
    parser.add_argument(
        "--volume",
        metavar="CLAIM=FOLDER",
        action="append",
        default=[],
        help="the folder that stands for a claim, with --data",
    )
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")


def main(arguments: argparse.Namespace) -> int:
    """Print what is wrong; 10 where the job is wrong, 11 where only its data is."""
    problems: list[Problem] = []
    notes: list[str] = []
    code = ExitCode.DONE
    try:
        jobs = _check(arguments, problems, notes)
    except Refused as refused:
        problems += refused.problems
        jobs = []
    if any(problem.severity == "error" for problem in problems):
        code = ExitCode.INVALID_CONFIG
    elif arguments.data:
        for job, document in jobs:
            checked = data_check.check(job, arguments.volume)
            problems += [_located(problem, document) for problem in checked.problems]
            if checked.summary:
                notes.append(f"{document.file}  ok  {checked.summary}")
            code = code or checked.exit_code
    problems.sort(key=_order(arguments.file))
    if arguments.output == "json":
        print(problem_lines.as_json(problems, notes=notes))
        return code
    for line in [*problem_lines.lines(problems), *(notes if code == ExitCode.DONE else ())]:
        print(line)
    return code


def _located(problem: Problem, document: YamlDocument) -> Problem:
    """Return a problem with its place in the job's file, where it has none of its own."""
    return document.located(problem) if problem.field and not problem.file else problem


def _order(file: str) -> Callable[[Problem], tuple[bool, int, int]]:
    """Return the order of lines: the job's file from top to bottom, then what is elsewhere."""

    def key(problem: Problem) -> tuple[bool, int, int]:
        if problem.file in {file, "stdin"}:
            return False, problem.line or 0, problem.column or 0
        return True, 0, 0

    return key


def _check(
    arguments: argparse.Namespace, problems: list[Problem], notes: list[str]
) -> list[tuple[ResolvedJob, YamlDocument]]:
    """Return the valid jobs of the file with their documents; gather what is wrong with the rest."""
    found = objects.load(arguments.file)
    problems += found.problems
    profiles = job_file.load_profiles(arguments.profile, found.profiles)
    problems += profiles.problems
    jobs = []
    named = [look(job.data, "metadata", "name") for job in found.jobs]
    if arguments.name is not None and arguments.name not in named:
        objects.one_job(arguments.file, arguments.name)  # says which jobs there are
    for document, name in zip(found.jobs, named, strict=True):
        if arguments.name is not None and name != arguments.name:
            continue
        try:
            job = job_file.resolve_document(document, profiles, arguments.namespace_label, uid=UID)
        except Refused as refused:
            problems += refused.problems
        else:
            jobs.append((job, document))
            notes.append(f"{document.file}  ok  FineTuneJob {job.name}")
    if not found.jobs:
        notes += [
            f"{document.file}  ok  FineTuneProfile {look(document.data, 'metadata', 'name')}"
            for document in found.profiles
        ]
    return jobs
