"""Conditions on a job's spec: written once, evaluated in Python and rendered to CEL.

A condition speaks of fields by their path in ``spec`` (``training.microBatchSize``); inside a rule
over the items of a list, ``@`` is the item and ``@.weight`` a field of it. What is absent, or null,
satisfies no comparison: only ``Not`` can be true of it. That is the one meaning both readers share,
so a condition never fails and never reads a default into what a profile may still fill in.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

ITEM = "@"
Literals = str | bool | int | float
Ordering = Literal["<", "<=", ">", ">="]
CountOrdering = Literal["==", "!=", ">", "<"]

_ORDER = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


class Condition(Protocol):
    """One node: true or false of a spec, and the same in CEL."""

    def holds(self, spec: Any, item: Any = None) -> bool:
        """Whether it is true of raw camelCase data; never raises, whatever the data is."""

    def cel(self) -> str:
        """Return a CEL expression over ``self`` (and ``item``), guarded by ``has()``."""


def value_at(path: str, spec: Any, item: Any = None) -> Any:
    """Return what stands at a path, or None where any part of it is absent."""
    first, *rest = path.split(".")
    value = item if first == ITEM else _child(spec, first)
    for key in rest:
        value = _child(value, key)
    return value


def _child(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, Mapping) else None


def _cel_path(path: str) -> str:
    return path.replace(ITEM, "item", 1) if path.startswith(ITEM) else f"self.{path}"


def _guards(*paths: str) -> str:
    """Return ``has(a) && has(a.b)`` for every path, each prefix once."""
    seen: dict[str, None] = {}
    for path in paths:
        root, *keys = _cel_path(path).split(".")
        for count in range(1, len(keys) + 1):
            seen[f"has({'.'.join([root, *keys[:count]])})"] = None
    return " && ".join(seen)


def _guarded(test: str, *paths: str) -> str:
    guards = _guards(*paths)
    return f"({guards} && {test})" if guards else f"({test})"


def _literal(value: Literals) -> str:
    """Return a CEL literal; a float always keeps its point, or CEL would take it for an int."""
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same(left: Any, right: Literals) -> bool:
    """Equality of JSON: 1 is 1.0, but true is not 1."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if _is_number(right):
        return _is_number(left) and bool(left == right)
    return bool(left == right)


@dataclass(frozen=True)
class Has:
    """The field is present."""

    path: str

    def holds(self, spec: Any, item: Any = None) -> bool:
        """See Condition."""
        return value_at(self.path, spec, item) is not None

    def cel(self) -> str:
        """See Condition."""
        return f"({_guards(self.path)})"


@dataclass(frozen=True)
class Eq:
    """The field is present and has this value."""

    path: str
    value: Literals

    def holds(self, spec: Any, item: Any = None) -> bool:
        """See Condition."""
        return _same(value_at(self.path, spec, item), self.value)

    def cel(self) -> str:
        """See Condition."""
        return _guarded(f"{_cel_path(self.path)} == {_literal(self.value)}", self.path)


@dataclass(frozen=True)
class In:
    """The field is present and has one of these values."""

    path: str
    values: tuple[str, ...]

    def holds(self, spec: Any, item: Any = None) -> bool:
        """See Condition."""
        found = value_at(self.path, spec, item)
        return any(_same(found, value) for value in self.values)

    def cel(self) -> str:
        """See Condition."""
        values = ", ".join(_literal(value) for value in self.values)
        return _guarded(f"{_cel_path(self.path)} in [{values}]", self.path)


@dataclass(frozen=True)
class StartsWith:
    """The field is present and its text begins so."""

    path: str
    prefix: str

    def holds(self, spec: Any, item: Any = None) -> bool:
        """See Condition."""
        found = value_at(self.path, spec, item)
        return isinstance(found, str) and found.startswith(self.prefix)

    def cel(self) -> str:
        """See Condition."""
        return _guarded(f"{_cel_path(self.path)}.startsWith({_literal(self.prefix)})", self.path)


@dataclass(frozen=True)
class Greater:
    """The field is present and greater than a number of the field's own kind (int or float)."""

    path: str
    value: int | float

    def holds(self, spec: Any, item: Any = None) -> bool:
        """See Condition."""
        found = value_at(self.path, spec, item)
        return _is_number(found) and bool(found > self.value)

    def cel(self) -> str:
        """See Condition."""
        return _guarded(f"{_cel_path(self.path)} > {_literal(self.value)}", self.path)


@dataclass(frozen=True)
class Compare:
    """Both fields are present, and the first stands so to the second."""

    left: str
    order: Ordering
    right: str

    def holds(self, spec: Any, item: Any = None) -> bool:
        """See Condition."""
        left, right = value_at(self.left, spec, item), value_at(self.right, spec, item)
        return _is_number(left) and _is_number(right) and bool(_ORDER[self.order](left, right))

    def cel(self) -> str:
        """See Condition."""
        test = f"{_cel_path(self.left)} {self.order} {_cel_path(self.right)}"
        return _guarded(test, self.left, self.right)


@dataclass(frozen=True)
class Remainder:
    """All are present, and the whole number is no multiple of the product of the divisors."""

    path: str
    divisors: tuple[str, ...]

    def holds(self, spec: Any, item: Any = None) -> bool:
        """See Condition."""
        numbers = [value_at(path, spec, item) for path in (self.path, *self.divisors)]
        if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in numbers):
            return False
        product = 1
        for number in numbers[1:]:
            product *= number
        return bool(numbers[0] % product != 0)

    def cel(self) -> str:
        """See Condition."""
        paths = (self.path, *self.divisors)
        product = " * ".join(_cel_path(path) for path in self.divisors)
        # The product of bounded fields stays far below 2^63, and no divisor can be 0.
        return _guarded(f"{_cel_path(self.path)} % ({product}) != 0", *paths)


@dataclass(frozen=True)
class Count:
    """How many of the fields are present."""

    paths: tuple[str, ...]
    order: CountOrdering
    number: int

    def holds(self, spec: Any, item: Any = None) -> bool:
        """See Condition."""
        present = sum(value_at(path, spec, item) is not None for path in self.paths)
        return bool(_ORDER[self.order](present, self.number))

    def cel(self) -> str:
        """See Condition."""
        terms = " + ".join(f"({_guards(path)} ? 1 : 0)" for path in self.paths)
        return f"({terms} {self.order} {self.number})"


@dataclass(frozen=True)
class Not:
    """The opposite; true where the field is absent."""

    condition: Condition

    def holds(self, spec: Any, item: Any = None) -> bool:
        """See Condition."""
        return not self.condition.holds(spec, item)

    def cel(self) -> str:
        """See Condition."""
        return f"!{self.condition.cel()}"


@dataclass(frozen=True, init=False)
class All:
    """Every one of them."""

    conditions: tuple[Condition, ...]

    def __init__(self, *conditions: Condition) -> None:
        """Hold the conditions in order."""
        object.__setattr__(self, "conditions", conditions)

    def holds(self, spec: Any, item: Any = None) -> bool:
        """See Condition."""
        return all(condition.holds(spec, item) for condition in self.conditions)

    def cel(self) -> str:
        """See Condition."""
        return f"({' && '.join(condition.cel() for condition in self.conditions)})"


@dataclass(frozen=True, init=False)
class Either:
    """At least one of them."""

    conditions: tuple[Condition, ...]

    def __init__(self, *conditions: Condition) -> None:
        """Hold the conditions in order."""
        object.__setattr__(self, "conditions", conditions)

    def holds(self, spec: Any, item: Any = None) -> bool:
        """See Condition."""
        return any(condition.holds(spec, item) for condition in self.conditions)

    def cel(self) -> str:
        """See Condition."""
        return f"({' || '.join(condition.cel() for condition in self.conditions)})"


def any_of(paths: Iterable[str]) -> Either:
    """Return the condition that at least one of the fields is present."""
    return Either(*(Has(path) for path in paths))


def cel_exists(lists: Iterable[str], condition: Condition) -> str:
    """Return CEL that is true where an item of one of the lists satisfies the condition."""
    return " || ".join(
        f"({_guards(path)} && {_cel_path(path)}.exists(item, {condition.cel()}))" for path in lists
    )


def items_of(path: str, spec: Any) -> list[Any]:
    """Return the items of the list at a path; nothing where it is absent or no list."""
    found = value_at(path, spec)
    return list(found) if isinstance(found, list | tuple) else []
