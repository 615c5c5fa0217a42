"""``finetune explain FILE``: every value of a job, the layer it comes from, and why."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from finetune_api.document import Document
from finetune_api.exit_codes import ExitCode
from finetune_api.job import JobSpec
from finetune_api.problem import Refused
from finetune_api.resolved import ResolvedJob
from finetune_cli import job_file, problem_lines
from finetune_cli.yaml_file import YamlDocument
from finetune_operator.resolve.builtin import spelled
from finetune_operator.resolve.layers import leaves
from finetune_operator.resolve.paths import look, path_text
from finetune_operator.resolve.schema import fields

_ABSENT = re.compile(r"\bAbsent([^:.]*): (.+?)(?:\.(?:\s|$)|$)", re.DOTALL)
_NAMED = re.compile(r"``([A-Za-z]+)``")
_WIDEST_VALUE = 60


@dataclass(frozen=True)
class Explained:
    """One value of the job."""

    field: str
    value: Any
    origin: str
    """``user``, ``profile``, ``built-in``, or ``not set`` where absence has a meaning of its own."""
    place: str = ""
    """File and line of the user's own words, the profile of its defaults."""
    reason: str = ""


def add_parser(subparsers: Any) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "explain", help="show every value of a job and where it comes from"
    )
    job_file.add_arguments(parser)
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")


def main(arguments: argparse.Namespace) -> int:
    """Print the table; 10 where the job is refused."""
    try:
        job, document = job_file.resolve_file(arguments)
    except Refused as refused:
        if arguments.output == "json":
            print(problem_lines.as_json(refused.problems))
        else:
            print("\n".join(problem_lines.lines(refused.problems)), file=sys.stderr)
        return ExitCode.INVALID_CONFIG
    values = explained(job, document)
    if arguments.output == "json":
        data = {"name": job.name, "namespace": job.namespace}
        rows = [asdict(value) for value in values]
        print(json.dumps({**data, "values": rows}, indent=2, ensure_ascii=False))
    elif sys.stdout.isatty():
        _print_table(job, values)
    else:
        print("\n".join(_lines(values)))
    return ExitCode.DONE


def explained(job: ResolvedJob, document: YamlDocument | None = None) -> list[Explained]:
    """Return every value of a job in the order of the object, and what absent fields mean."""
    spec = job.spec.to_json()
    out: list[Explained] = []
    for path in leaves(spec):
        text = path_text(path)
        value = look(spec, *path)
        origin = job.origins.get(text, "built-in")
        reason = _reason(job, text) if origin == "built-in" else ""
        if value == {} and origin == "built-in" and not reason:
            continue  # a section that says nothing
        place = ""
        if document is not None and origin == "user":
            line, _ = document.place(f"spec.{text}")
            place = f"{document.file}:{line}"
        elif origin == "profile" and job.spec.profile_ref is not None:
            place = f"defaults of {job.spec.profile_ref.name}"
        out.append(Explained(text, value, origin, place, reason))
    out += [Explained(text, None, "not set", "", reason) for text, reason in _later(job.spec)]
    order = {name: at for at, name in enumerate(fields(JobSpec))}
    return sorted(out, key=lambda value: order[re.split(r"[.\[]", value.field)[0]])


def _reason(job: ResolvedJob, text: str) -> str:
    """Return why a value was chosen; a section that was chosen stands for its fields."""
    return next(
        (
            chosen.reason
            for chosen in job.chosen
            if text == chosen.field or text.startswith(f"{chosen.field}.")
        ),
        "",
    )


def _later(spec: Document, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Yield the fields that nobody wrote and that say what their absence means."""
    values = {
        info.alias or name: getattr(spec, name) for name, info in type(spec).model_fields.items()
    }
    for name, info in fields(type(spec)).items():
        if isinstance(values[name], Document):
            yield from _later(values[name], (*prefix, name))
        elif values[name] is None:
            said = _ABSENT.search(info.description or "")
            # "Absent, with ``other`` absent" means nothing where the other is there.
            if said and all(values.get(other) is None for other in _NAMED.findall(said[1])):
                yield path_text((*prefix, name)), " ".join(said[2].replace("``", "").split())


def _shown(value: Explained) -> str:
    """Return a value as it is written in a file, cut where it is long."""
    text = "-" if value.value is None else spelled(value.value)
    text = " ".join(text.split())
    return text if len(text) <= _WIDEST_VALUE else text[: _WIDEST_VALUE - 3] + "..."


def _lines(values: list[Explained]) -> list[str]:
    """Return aligned lines without any drawing."""
    rows = [("FIELD", "VALUE", "ORIGIN", "REASON")]
    rows += [(v.field, _shown(v), v.origin, v.reason or v.place) for v in values]
    widths = [max(len(row[at]) for row in rows) for at in range(3)]
    return [
        "  ".join(
            [*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]
        ).rstrip()
        for row in rows
    ]


def _print_table(job: ResolvedJob, values: list[Explained]) -> None:
    """Print a table for a terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    style = {"user": "bold", "profile": "cyan", "built-in": "dim", "not set": "yellow"}
    table = Table(title=f"{job.namespace}/{job.name}", title_justify="left", box=None)
    for heading in ("field", "value", "origin", "reason"):
        table.add_column(heading, overflow="fold", no_wrap=heading in {"field", "origin"})
    for value in values:
        cells = (value.field, _shown(value), value.origin, value.reason or value.place)
        table.add_row(*(Text(cell, style[value.origin]) for cell in cells))
    Console().print(table)
