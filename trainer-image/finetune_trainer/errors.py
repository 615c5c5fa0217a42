"""Exceptions become problems and exit codes here, and nowhere else."""

from __future__ import annotations

from finetune_api.exit_codes import ExitCode
from finetune_api.problem import Problem, Refused


class StageError(Refused):
    """A stage cannot go on, and knows why and with which exit code."""

    def __init__(self, exit_code: ExitCode, *problems: Problem) -> None:
        """Hold the code and at least one problem."""
        super().__init__(*problems)
        self.exit_code = exit_code
