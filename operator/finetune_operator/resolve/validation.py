"""Turning what the models refuse into problems that a person can mend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, TypeVar

from pydantic import ValidationError

from finetune_api import synonyms
from finetune_api.document import Document
from finetune_api.problem import Problem
from finetune_operator.resolve import schema, wording
from finetune_operator.resolve.paths import Path, deeper_than, larger_than, path_text, under

Model = TypeVar("Model", bound=Document)

DEEPEST = 24
"""Levels of nesting that any valid object stays below."""
LARGEST = 20_000
"""Values that no valid object has: three times those of one with every list full."""
MOST_EMPTY = 32
"""Names with nothing behind them that are said; a refusal has no room for more."""


def parse(model: type[Model], data: Any, root: str = "spec") -> Model | list[Problem]:
    """Return the model of raw data, or every problem with it.

    Types are taken as they stand, as the API server takes them: ``"8"`` is no number.
    """
    try:
        return model.model_validate(data, strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        found = error.errors(include_url=False)
    grouped: dict[Path, list[Mapping[str, Any]]] = {}
    branches: set[Path] = set()
    for item in found:
        path, branch = _path_of(item, data)
        grouped.setdefault(path, []).append(item)
        if branch:
            branches.add(path)
    return [
        _problem(model, path, items, root)
        for path, items in grouped.items()
        if not (path in branches and any(_inside(path, other) for other in grouped))
    ]


def _inside(path: Path, other: Path) -> bool:
    """Tell whether ``other`` lies below ``path``."""
    return len(other) > len(path) and other[: len(path)] == path


def _path_of(item: Mapping[str, Any], data: Any) -> tuple[Path, bool]:
    """Return where an error lies, and whether it comes from one branch of a union.

    Locations name union branches (``list[str]``) and keys (``[key]``) beside real names; only
    what can be followed in the data is kept.
    """
    path: list[str | int] = []
    here = data
    branch = False
    last = len(item["loc"]) - 1
    for at, part in enumerate(item["loc"]):
        if (isinstance(here, Mapping) and part in here) or (
            isinstance(here, list) and isinstance(part, int) and part < len(here)
        ):
            here = here[part]
        elif not (at == last and item["type"] == "missing"):
            branch = branch or part != "[key]"
            continue
        path.append(part)
    return tuple(path), branch


def _problem(
    model: type[Document],
    path: Path,
    items: list[Mapping[str, Any]],
    root: str,
) -> Problem:
    """Return the problem for all errors at one path."""
    where = under(root, path)
    kind = items[0]["type"]
    value = items[0].get("input")
    if kind == "extra_forbidden":
        return unknown_field(model, path, root)
    if kind == "missing":
        return missing(model, path, root)
    if len(items) > 1 and all(item["type"] in wording.TYPES for item in items):
        expected = " or ".join(dict.fromkeys(wording.TYPES[item["type"]] for item in items))
        return wording.wrong_type(where, value, expected)
    if "[key]" in items[0]["loc"]:
        return Problem(
            code="wrong-format",
            field=where,
            message=wording.cut(
                f"{wording.read(path[-1])} cannot be a key of {path_text(path[:-1])}"
            ),
            fix=wording.format_fix(items[0]),
        )
    return wording.describe(items[0], where, str(path[-1]) if path else root)


def unknown_field(model: type[Document], path: Path, root: str) -> Problem:
    """Return the problem of a name that the contract does not have, with what was meant."""
    where = under(root, path)
    return Problem(
        code="unknown-field",
        field=where,
        message=wording.cut(f"unknown field {where}"),
        fix=wording.cut(_meant(model, path, root)),
    )


def _meant(model: type[Document], path: Path, root: str) -> str:
    """Return the fix for an unknown field: the nearest name, or the names there are."""
    name = str(path[-1])
    around = schema.section_at(model, path[:-1])
    names = list(schema.fields(around)) if around else []
    suggestion = synonyms.suggest(name, names)
    if suggestion and suggestion.field not in names:
        return suggestion.fix  # another tool's name for something here
    elsewhere = [found for found in _places(model, _flat(name)) if found != path]
    spelled = suggestion is not None and _flat(suggestion.field or "") == _flat(name)
    if len(elsewhere) == 1 and not spelled:
        return f"did you mean {under(root, elsewhere[0])}?"
    if suggestion and suggestion.field:
        return f"did you mean {under(root, (*path[:-1], suggestion.field))}?"
    holder = under(root, path[:-1]) or "the object"
    return f"remove it; {holder} takes {', '.join(sorted(names)) or 'nothing'}"


def _flat(name: str) -> str:
    """Return a name without case and separators, for comparing spellings."""
    return name.replace("_", "").replace("-", "").lower()


def _places(model: type[Document], flat: str, path: Path = ()) -> Iterator[Path]:
    """Yield the paths of all fields of exactly this name, however it is spelled."""
    for name, info in schema.fields(model).items():
        if _flat(name) == flat:
            yield (*path, name)
        section = schema.section_in(info.annotation)
        if section is not None:
            yield from _places(section, flat, (*path, name))


def missing(model: type[Document], path: Path, root: str) -> Problem:
    """Return the problem of a field that has to be written and is not."""
    where = under(root, path)
    return Problem(
        code="missing-field",
        field=where,
        message=wording.cut(f"{where} is missing"),
        fix=wording.cut(wording.example_of(path)),
    )


def empties(model: type[Document], data: Any, root: str = "spec") -> list[Problem]:
    """Return a problem for every name with nothing behind it (``full:`` is null in YAML).

    The API server drops such names silently, so that a job would mean something else than its
    file says.
    """
    found = []
    first = islice(_nulls(data), MOST_EMPTY)
    for path in sorted(first, key=lambda path: [str(part) for part in path]):
        where = under(root, path)
        section = schema.section_at(model, path) if isinstance(path[-1], str) else None
        if not schema.known(model, path) and isinstance(path[-1], str):
            holder = schema.section_at(model, path[:-1])
            if holder is not None:
                continue  # an unknown field is said as such
        if section is None:
            problem = Problem(
                code="empty-value",
                field=where,
                message=wording.cut(f"{where} has nothing behind it"),
                fix="write a value, or remove the line",
            )
        else:
            problem = Problem(
                code="empty-section",
                field=where,
                message=wording.cut(f"{where} has nothing behind it"),
                fix=wording.cut(_section_fix(section, str(path[-1]), path)),
            )
        found.append(problem)
    return found


def _section_fix(section: type[Document], name: str, path: Path) -> str:
    """Return how to write an empty section."""
    needed = schema.required(section)
    if not needed:
        return f"write {name}: {{}}"
    return f"{wording.example_of((*path, needed[0]))}, or remove {name}"


def _nulls(data: Any, path: Path = ()) -> Iterator[Path]:
    """Yield the paths of all nulls."""
    if data is None and path:
        yield path
    elif isinstance(data, Mapping):
        for key, value in data.items():
            yield from _nulls(value, (*path, key))
    elif isinstance(data, list):
        for at, value in enumerate(data):
            yield from _nulls(value, (*path, at))


def shape(data: Any, root: str) -> list[Problem]:
    """Return what is wrong with data before any model looks at it: no mapping, too large or deep.

    Whoever writes an object decides neither how long it takes to say what is wrong with it, nor how
    much memory.
    """
    if not isinstance(data, Mapping):
        return [wording.wrong_type(root, data, "a section")]
    if larger_than(data, LARGEST):
        return [
            Problem(
                code="too-large",
                field=root,
                message=f"{root} holds more than {LARGEST:,} values",
                fix="remove what no field of the job needs",
            )
        ]
    if deeper_than(data, DEEPEST):
        return [
            Problem(
                code="too-deep",
                field=root,
                message=f"{root} is nested deeper than {DEEPEST} levels",
                fix="remove what no field of the job needs",
            )
        ]
    return []
