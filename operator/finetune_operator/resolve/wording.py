"""Sentences about values: what was read, what is wanted, and how to write it."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from typing import Any

from finetune_api.problem import Problem
from finetune_operator.resolve.builtin import spelled
from finetune_operator.resolve.paths import Path

TYPES = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a section",
    "model_type": "a section",
    "model_attributes_type": "a section",
}
"""Errors about types, and what is wanted in words."""

_TYPE_FIX = {
    "text": "write it in quotes",
    "a whole number": "write a whole number without quotes",
    "a number": "write a number without quotes",
    "true or false": "write true or false without quotes",
    "a list": "write a list: [...]",
    "a section": "write a section: {...}",
}

_FORMATS: tuple[tuple[str, str], ...] = (
    (
        "^((hf|modelscope)",
        "write hf://owner/name, modelscope://owner/name, pvc://claim/path or job://name",
    ),
    ("^pvc://", "write pvc://claim/path"),
    ("(m|k|M|G", "write a quantity such as 80Gi, 500m or 32"),
    ("*)(k|M|G", "write a size that is more than nothing, such as 80Gi"),
    ("+(k|M|G", "write a whole number such as 1, or 2Gi"),
    (
        "|hugepages-",
        "write the name of a device, such as rdma/hca, hugepages-2Mi, or ephemeral-storage",
    ),
    ("*)(ms|s|m|h|d)", "write a length of time that is more than nothing, such as 90s or 10m"),
    ("(ms|s|m|h|d)", "write a length of time such as 90s, 10m or 1h30m"),
    ("^https?", "write a URL such as https://mirror.example"),
    (
        "^(gaussian",
        "write one of default, gaussian, eva, olora, pissa, pissa_niter_4, corda, loftq, orthogonal, mica",
    ),
    (
        "/)?[A-Za-z0-9]([-A-Za-z0-9_.]",
        "write a Kubernetes label key such as nvidia.com/gpu.product",
    ),
    (
        "/[A-Za-z0-9]([-A-Za-z0-9_.]",
        "write the name of a device as nodes give it, such as nvidia.com/gpu",
    ),
    (
        "^([A-Za-z0-9]([-A-Za-z0-9_.]*",
        "write a Kubernetes label value: letters, digits, '-', '_' and '.'",
    ),
    (
        "^[a-z0-9]([-a-z0-9.]*",
        "write the name of a Kubernetes object: lower case letters, digits, '-' and '.'",
    ),
    ("^[^\\s/]+/", "write the name of a controller such as kueue.x-k8s.io/multikueue"),
)
"""A part of a pattern, and how to write what matches it."""

_EXAMPLES = {
    "model": "add model: {uri: hf://owner/name} or {uri: pvc://claim/path}",
    "model.uri": "write model: {uri: hf://owner/name} or {uri: pvc://claim/path}",
    "dataset": "add dataset: {train: [{uri: pvc://claim/train.jsonl}]}",
    "dataset.train": "write dataset: {train: [{uri: pvc://claim/train.jsonl}]}",
    "method": "add method: {lora: {}} or {full: {}}",
    "train": "write train: [{uri: pvc://claim/train.jsonl}]",
    "uri": "write uri: pvc://claim/path",
    "name": "write name: ...",
    "key": "write key: ...",
}

_FIELD_FIX = {
    "r": "write r: 8 or r: 16; higher learns more and needs more memory",
    "learningRate": "leave it out, or write a number such as 2e-4",
    "epochs": "write epochs: 3, or maxSteps for a number of steps",
}


def cut(text: str, limit: int = 1000) -> str:
    """Return text that fits into a problem."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


def read(value: Any) -> str:
    """Return what was read, in few words: ``the text "8"``, ``the number 3``, ``a list``."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e6:
        return f"the number {value}"
    if isinstance(value, int | float):
        return cut(f"the number {spelled(value)}" if abs(value) < 1e300 else "a huge number", 60)
    if isinstance(value, str):
        return f"the text {quoted(value)}"
    if isinstance(value, Mapping):
        return "a section" if value else "an empty section"
    return "a list" if value else "an empty list"


def quoted(value: str) -> str:
    """Return text in quotes, cut where it is long, with control characters made visible."""
    return json.dumps(cut(value, 60), ensure_ascii=not value.isprintable())


def wrong_type(where: str, value: Any, expected: str) -> Problem:
    """Return the problem of a value of another type than the contract has."""
    fix = _TYPE_FIX.get(expected, f"write {expected}")
    if (
        isinstance(value, str) and expected in {"a number", "a whole number"} and _numeric(value)
    ) or (isinstance(value, str) and expected == "true or false" and value in {"true", "false"}):
        fix = f"remove the quotes: {value}"
    elif expected == "text" and isinstance(value, int | float):
        fix = f"write it in quotes: {quoted(spelled(value))}"
    return Problem(
        code="wrong-type",
        field=where,
        message=cut(f"{where} must be {expected}, not {read(value)}"),
        fix=cut(fix),
    )


def _numeric(value: str) -> bool:
    """Tell whether text would be a number without its quotes."""
    try:
        float(value)
    except ValueError:
        return False
    return value.isascii() and not value[:1].isspace()


def describe(item: Mapping[str, Any], where: str, name: str) -> Problem:
    """Return the problem for one error of pydantic at one path."""
    kind, value, context = item["type"], item.get("input"), item.get("ctx", {})
    if kind in TYPES:
        return wrong_type(where, value, TYPES[kind])
    if kind == "literal_error":
        return _unknown_value(where, value, context)
    bound = _bound(kind, context)
    if bound is not None:
        return Problem(
            code="out-of-range",
            field=where,
            message=cut(f"{where} must be {bound}, not {_figure(value)}"),
            fix=_FIELD_FIX.get(name, f"write {name}: with a value that is {bound}"),
        )
    if name == "uri" and isinstance(value, str) and kind != "string_too_long":
        return _no_uri(where, value, output=where == "spec.output.uri")
    if kind in {"too_short", "string_too_short"}:
        least = context.get("min_length", 1)
        return Problem(
            code="too-short",
            field=where,
            message=cut(f"{where} needs {_count(least, value)}, has {len(value) if value else 0}"),
            fix=_EXAMPLES.get(name, "add what is missing, or remove the field"),
        )
    if kind in {"too_long", "string_too_long"}:
        most = context.get("max_length", 1)
        return Problem(
            code="too-long",
            field=where,
            message=cut(f"{where} takes at most {_count(most, value)}"),
            fix="shorten it",
        )
    if kind == "finite_number":
        return Problem(
            code="out-of-range",
            field=where,
            message=f"{where} must be a finite number",
            fix=_FIELD_FIX.get(name, "write a finite number"),
        )
    said = f"{where} cannot be {read(value)}"
    if kind == "value_error":
        said = f"{where}: {item['msg'].removeprefix('Value error, ')}"
    return Problem(code="wrong-format", field=where, message=cut(said), fix=format_fix(item))


def _no_uri(where: str, value: str, *, output: bool) -> Problem:
    """Return the problem of text that is no URI of the contract."""
    scheme, _, rest = value.partition("://")
    fix = "write hf://owner/name, modelscope://owner/name, pvc://claim/path or job://name"
    if scheme == "pvc" and {".", ".."} & set(rest.split("/")):
        fix = "write the path from the root of the claim: pvc://claim/folder/file, without . and .."
    elif output:
        fix = "write pvc://claim/path"
    elif value.startswith(("/", "./", "../", "~")) or value.endswith((".jsonl", ".json")):
        fix = "name the claim that holds it: pvc://claim/path"
    elif re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", value):
        fix = f"did you mean hf://{value}?"
    return Problem(
        code="wrong-format",
        field=where,
        message=cut(f"{where} cannot be {read(value)}"),
        fix=cut(fix),
    )


def _figure(value: Any) -> str:
    """Return a number as it is written."""
    return spelled(value) if abs(value) < 1e300 else "a huge number"


def _count(number: int, value: Any) -> str:
    """Return a number of characters or items in words."""
    thing = "character" if isinstance(value, str) else "item"
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _bound(kind: str, context: Mapping[str, Any]) -> str | None:
    """Return the bound that a number broke, in words."""
    words = {
        "greater_than": ("gt", "more than"),
        "greater_than_equal": ("ge", "at least"),
        "less_than": ("lt", "less than"),
        "less_than_equal": ("le", "at most"),
    }
    if kind not in words:
        return None
    key, text = words[kind]
    return f"{text} {spelled(context[key])}"


def _unknown_value(where: str, value: Any, context: Mapping[str, Any]) -> Problem:
    """Return the problem of a value that is not in a list of known ones."""
    known = [part.strip("' ") for part in context["expected"].replace(" or ", ",").split(",")]
    fix = f"write one of {', '.join(known)}" if len(known) > 1 else f"write {known[0]}"
    if isinstance(value, str):
        lower = {name.lower(): name for name in known}
        near = difflib.get_close_matches(value.lower(), lower, n=1, cutoff=0.6)
        if near:
            fix = f"did you mean {lower[near[0]]}? known: {', '.join(known)}"
    return Problem(
        code="unknown-value",
        field=where,
        message=cut(f"{where} cannot be {read(value)}"),
        fix=cut(fix),
    )


def format_fix(item: Mapping[str, Any]) -> str:
    """Return how to write what did not match a pattern."""
    pattern = str(item.get("ctx", {}).get("pattern", ""))
    for part, fix in _FORMATS:
        if part in pattern:
            return fix
    if item["type"] == "string_too_long":
        return f"write at most {item['ctx']['max_length']} characters"
    return cut(f"write what matches {pattern}") if pattern else "correct the value"


def example_of(path: Path) -> str:
    """Return how a missing field is written."""
    names = [str(part) for part in path if isinstance(part, str)]
    whole = ".".join(names)
    return _EXAMPLES.get(whole) or _EXAMPLES.get(names[-1]) or f"add {names[-1]}: ..."
