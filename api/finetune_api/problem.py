"""The one shape of everything that a user reads about a mistake."""

from __future__ import annotations

from pydantic import Field

from finetune_api.document import Document


class Problem(Document):
    """What is wrong, where, and what to do about it."""

    code: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=64)
    """Stable kebab-case code, listed in ``docs/reference.md``."""
    message: str = Field(max_length=1024)
    fix: str = Field(default="", max_length=1024)
    field: str | None = Field(default=None, max_length=512)
    """Path in the object, such as ``spec.training.microBatchSize``; list items as ``[2]``."""
    file: str | None = Field(default=None, max_length=1024)
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
