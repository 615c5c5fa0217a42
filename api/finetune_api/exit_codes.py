"""Exit codes of the trainer's processes and of the command line: public, never renumbered."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Why a process ended."""

    DONE = 0
    UNEXPECTED = 1
    INVALID_CONFIG = 10
    INVALID_DATA = 11
    DOES_NOT_FIT = 12
    NON_FINITE_LOSS = 13
    STORAGE_FULL = 14
    CHECKPOINT_UNUSABLE = 15
    MODEL_UNAVAILABLE = 16
    GATE_NOT_MET = 17
    COMMUNICATION_LOST = 20
    FENCED = 21
    KILLED = 137
    SIGNALLED = 143


FINAL = frozenset(
    {
        ExitCode.INVALID_CONFIG,
        ExitCode.INVALID_DATA,
        ExitCode.NON_FINITE_LOSS,
        ExitCode.STORAGE_FULL,
        ExitCode.CHECKPOINT_UNUSABLE,
        ExitCode.MODEL_UNAVAILABLE,
        ExitCode.GATE_NOT_MET,
    }
)
"""Codes after which the same attempt cannot succeed. Out of memory (12) is not among them only
because a micro batch that was ours to choose may be halved."""
