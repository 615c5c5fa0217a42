"""The one shape of everything that a user reads about a mistake."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from finetune_api.document import Document


def _fitted(most: int) -> BeforeValidator:
    """Cut text that is too long, and show what is no UTF-8 in it.

    What a user has written is repeated in the words about it, whatever it is.
    """

    def fit(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        value = value.encode("utf-8", "backslashreplace").decode()
        return value if len(value) <= most else value[: most - 3] + "..."

    return BeforeValidator(fit)


_Words = Annotated[str, _fitted(1024), Field(max_length=1024)]
_Place = Annotated[str, _fitted(512), Field(max_length=512)]


class Problem(Document):
    """What is wrong, where, and what to do about it."""

    code: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=64)
    """Stable kebab-case code, listed in ``docs/reference.md``."""
    message: _Words
    fix: _Words = ""
    field: _Place | None = None
    """Path in the object, such as ``spec.training.microBatchSize``; list items as ``[2]``."""
    file: _Words | None = None
    line: int | None = Field(default=None, ge=1)
    column: int | None = Field(default=None, ge=1)
    rows: tuple[int, ...] = Field(default=(), max_length=10)
    """Line numbers of the first offenders, where one problem stands for many rows."""
    count: int = Field(default=1, ge=1)
    severity: str = Field(default="error", pattern="^(error|warning)$")

    @property
    def place(self) -> str:
        """Where it is, as an editor understands it (``file:line:column``), else the field."""
        if self.file is None:
            return self.field or ""
        return ":".join(str(part) for part in (self.file, self.line, self.column) if part)


class Refused(Exception):
    """Input that cannot be accepted; carries at least one problem."""

    def __init__(self, *problems: Problem) -> None:
        """Hold the problems in the order in which they were found."""
        self.problems = problems
        super().__init__("; ".join(f"{p.code}: {p.message}" for p in problems))
