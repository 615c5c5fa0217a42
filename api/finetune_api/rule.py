"""A rule between fields of a job's spec: one row, read by Python and by the API server."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune_api.condition import ITEM, Condition, cel_exists, items_of
from finetune_api.problem import Problem

MINIMAL: dict[str, Any] = {
    "model": {"uri": "hf://Qwen/Qwen2.5-0.5B-Instruct"},
    "dataset": {"train": [{"uri": "pvc://datasets/train.jsonl"}]},
    "method": {"lora": {}},
}
"""The shortest spec; the examples of the rules are changes to it."""

Change = Mapping[str, Any]
"""Path in ``spec`` to the value to put there."""


@dataclass(frozen=True)
class Rule:
    """One row: a job for which ``when`` holds is refused."""

    code: str
    field: str
    """Path in ``spec`` to point at; ``@`` is the item of ``each``."""
    when: Condition
    message: str
    """What is wrong, for people."""
    fix: str
    bad: Change
    """A change of ``MINIMAL`` that this row refuses."""
    good: Change
    """The nearest change that is accepted, by every row."""
    each: tuple[str, ...] = ()
    """Lists whose items are looked at one by one."""

    @property
    def cel(self) -> str:
        """CEL that is true of an acceptable spec, for ``x-kubernetes-validations`` on ``spec``."""
        if self.each:
            return f"!({cel_exists(self.each, self.when)})"
        return f"!{self.when.cel()}"

    @property
    def text(self) -> str:
        """Message, fix and code in one line, as the API server says them."""
        return f"{self.message}; fix: {self.fix} [{self.code}]"

    def problems(self, spec: Any) -> list[Problem]:
        """Return one problem for the spec, or one for each item that offends."""
        if not self.each:
            return [self._problem(f"spec.{self.field}")] if self.when.holds(spec) else []
        return [
            self._problem(self.field.replace(ITEM, f"spec.{path}[{index}]", 1))
            for path in self.each
            for index, item in enumerate(items_of(path, spec))
            if self.when.holds(spec, item)
        ]

    def _problem(self, place: str) -> Problem:
        return Problem(code=self.code, message=self.message, fix=self.fix, field=place)


def specimen(change: Change) -> dict[str, Any]:
    """Return ``MINIMAL`` with a change made to it, as a spec of its own."""
    spec = copy.deepcopy(MINIMAL)
    for path, value in change.items():
        *parents, last = path.split(".")
        place = spec
        for key in parents:
            place = place.setdefault(key, {})
        place[last] = copy.deepcopy(value)
    return spec
