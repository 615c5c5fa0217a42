"""How a set of processes ended -> why, whose budget it uses, whether to try again, what to mend."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from finetune_api.exit_codes import FINAL, ExitCode
from finetune_api.problem import Problem
from finetune_api.resolved import Stage
from finetune_api.status import Failure, FailureClass
from finetune_operator.observed import ProcessEnd

Budget = Literal["failure", "preemption", "nothing"]

SHORTEST_BACK_OFF = 10.0
LONGEST_BACK_OFF = 600.0
WITHOUT_PROGRESS = 3
"""Attempts since the newest verified checkpoint that end the job, interrupted starts not counted."""
INTERRUPTED_STARTS = 30
"""Attempts since then that were ended from outside before their first step and end the job.

Back-off alone makes that four hours: 630 s until it is at its longest, then 23 times ten minutes.
"""
HALVINGS = 2


@dataclass(frozen=True)
class Row:
    """What one class of ends means."""

    budget: Budget
    retried: bool
    code: str
    message: str
    fix: str


ROWS: dict[FailureClass, Row] = {
    "InvalidConfig": Row(
        "failure", False, "invalid-config", "the configuration cannot be used", "correct the field"
    ),
    "InvalidData": Row(
        "failure",
        False,
        "invalid-data",
        "the training data cannot be used",
        "correct the rows that the preparation's report names",
    ),
    "DoesNotFit": Row(
        "failure",
        False,
        "does-not-fit",
        "the job does not fit the machine",
        "lower training.microBatchSize or dataset.maxLength, or give it more memory",
    ),
    "ModelUnavailable": Row(
        "failure",
        False,
        "model-unavailable",
        "the model cannot be read",
        "check model.uri and the right to read it",
    ),
    "NonFiniteLoss": Row(
        "failure",
        False,
        "non-finite-loss",
        "the loss is not a finite number any more",
        "lower training.learningRate, or train with precision bf16 or fp32",
    ),
    "StorageFull": Row(
        "failure",
        False,
        "storage-full",
        "no room is left in the workspace",
        "make room or enlarge the volume, or lower checkpoint.keep; then raise"
        " recovery.retryGeneration",
    ),
    "CheckpointUnusable": Row(
        "failure",
        False,
        "checkpoint-unusable",
        "none of the saved checkpoints can be used",
        "bring the workspace's files back, or train under a new name",
    ),
    "GateNotMet": Row(
        "failure",
        False,
        "gate-not-met",
        "the trained model does not meet evaluation.gate",
        "look at the rejected model and its report; train longer, or change the data or the gate",
    ),
    "OutOfMemory": Row(
        "failure",
        True,
        "out-of-memory",
        "a process was ended because it used more memory than it has",
        "lower training.microBatchSize, or raise resources.memory",
    ),
    "Evicted": Row(
        "failure",
        True,
        "evicted-own-limits",
        "a process was evicted because it used more than it had asked for",
        "raise resources.memory or the size of the workspace",
    ),
    "Crashed": Row(
        "failure",
        True,
        "crashed",
        "a process ended unexpectedly",
        "read its log",
    ),
    "CommunicationLost": Row(
        "failure",
        True,
        "communication-lost",
        "the processes lost each other",
        "check the network between the nodes",
    ),
    "Preempted": Row("preemption", True, "preempted", "the processes were told to make room", ""),
    "LostInfrastructure": Row(
        "preemption", True, "lost-infrastructure", "the processes vanished", ""
    ),
    "Fenced": Row(
        "failure",
        False,
        "fenced",
        "another run of this job writes to the same workspace",
        "end the other run, or give each a workspace of its own",
    ),
    "Stopped": Row("nothing", True, "stopped", "stopped on request", ""),
    "StartTimeout": Row(
        "nothing",
        True,
        "start-timeout",
        "not all processes ran within recovery.startTimeout",
        "look at the reason, or raise recovery.startTimeout",
    ),
    "DeadlineExceeded": Row(
        "nothing",
        False,
        "deadline-exceeded",
        "activeDeadlineSeconds have passed",
        "raise activeDeadlineSeconds and recovery.retryGeneration: training goes on from the newest"
        " checkpoint",
    ),
    "NoProgress": Row(
        "nothing",
        False,
        "no-progress",
        f"{WITHOUT_PROGRESS} attempts ended, and none left a newer verified checkpoint",
        "look at why the attempts end and raise recovery.retryGeneration, or lower"
        " checkpoint.maxLostWork in a new job, so that a checkpoint is reached sooner",
    ),
    "TooManyPreemptions": Row(
        "nothing",
        False,
        "too-many-preemptions",
        "more preemptions than recovery.maxPreemptions",
        "raise recovery.maxPreemptions and recovery.retryGeneration",
    ),
    "NotAccepted": Row("nothing", False, "not-accepted", "the job was not accepted", ""),
}

NEVER_TRAINED = Row(
    "nothing",
    False,
    "interrupted-starts",
    f"{INTERRUPTED_STARTS} attempts were ended from outside before their first step, and none left a"
    " newer verified checkpoint",
    "look at what takes the processes away while the model is loaded (a broken node, a drain, jobs of"
    " higher priority); once it is mended or over raise recovery.retryGeneration",
)
"""What is said of NoProgress where attempts did not come as far as training."""

NO_ROOM = Row(
    "nothing",
    True,
    "no-room",
    "there was no room for all processes within recovery.startTimeout",
    "nothing needs mending where room will come: it is tried again until there is some; else ask for"
    " less, or for a larger quota",
)
"""What is said of StartTimeout where the processes only waited for room."""
ROOM = frozenset(
    {"WaitingForRoom", "NoNodeFits", "VolumeInOtherZone", "QuotaExceeded", "Gated", "Queued"}
)
"""Reasons for which processes wait that others hold what they need, or that a cluster which grows may
have no node for yet: both end by themselves."""

_CODES: dict[int, FailureClass] = {
    ExitCode.INVALID_CONFIG: "InvalidConfig",
    ExitCode.INVALID_DATA: "InvalidData",
    ExitCode.DOES_NOT_FIT: "DoesNotFit",
    ExitCode.NON_FINITE_LOSS: "NonFiniteLoss",
    ExitCode.STORAGE_FULL: "StorageFull",
    ExitCode.CHECKPOINT_UNUSABLE: "CheckpointUnusable",
    ExitCode.MODEL_UNAVAILABLE: "ModelUnavailable",
    ExitCode.GATE_NOT_MET: "GateNotMet",
    ExitCode.FENCED: "Fenced",
    ExitCode.COMMUNICATION_LOST: "CommunicationLost",
    ExitCode.SIGNALLED: "Preempted",
}
_REASONS: dict[str, FailureClass] = {
    "OOMKilled": "OutOfMemory",
    "EvictedOwnLimits": "Evicted",
    "DisruptionTarget": "Preempted",
    "Evicted": "Preempted",
    "Deleted": "LostInfrastructure",
    "NodeLost": "LostInfrastructure",
}
_RANKS: tuple[frozenset[FailureClass], ...] = (
    frozenset(
        {
            "InvalidConfig",
            "InvalidData",
            "DoesNotFit",
            "NonFiniteLoss",
            "StorageFull",
            "CheckpointUnusable",
            "ModelUnavailable",
            "GateNotMet",
        }
    ),
    frozenset({"Fenced"}),
    frozenset({"OutOfMemory", "Evicted"}),
)
_OUTSIDE = 3
_CRASHED = 4
_COMMUNICATION = 5
_SIGNALLED = 6


@dataclass(frozen=True)
class Cause:
    """Why a child ended, and what follows from it."""

    class_: FailureClass
    budget: Budget
    retried: bool
    """Worth another attempt as it stands, within the budgets."""
    own_word: bool
    """The trainer itself named the reason, which no outer circumstance explains better."""
    code: str
    message: str
    fix: str
    exit_code: int | None
    process: str
    at: datetime
    device: bool = False
    """The accelerator's memory ran out: the same attempt would end the same way."""

    def failure(self, time: str) -> Failure:
        """Return it as status holds it."""
        return Failure(
            class_=self.class_,
            code=self.code,
            message=self.message[:1024],
            fix=self.fix[:1024],
            exit_code=self.exit_code,
            pod=self.process[:253],
            time=time,
        )


def classify(stage: Stage, ends: Sequence[ProcessEnd]) -> Cause | None:
    """Return why a child ended, from the ends of all its processes; None when all succeeded.

    The order is: what the trainer itself says of configuration, data or fit; fenced; out of
    memory; made to leave by the platform; crashed; communication lost; signalled. Among equals the
    earliest end counts, because the others follow from it.
    """
    failed = [end for end in ends if end.exit_code != 0]
    if not failed:
        return None
    end = min(failed, key=lambda end: (_rank(end), end.at, end.name))
    return cause_of(stage, end)


def cause_of(stage: Stage, end: ProcessEnd) -> Cause:
    """Return what one end means by itself."""
    class_ = _class(end)
    device = class_ == "DoesNotFit" and stage == "train"
    if device:
        class_ = "OutOfMemory"
    row = ROWS[class_]
    said = _said(end)
    return Cause(
        class_=class_,
        budget=row.budget,
        retried=row.retried and not device,
        own_word=_rank(end) == 0,
        code=said.code if said else row.code,
        message=_message(end, row, said),
        fix=(said.fix if said else "") or row.fix,
        exit_code=end.exit_code,
        process=end.name,
        at=end.at,
        device=device,
    )


def of_class(class_: FailureClass, at: datetime, *, message: str = "", process: str = "") -> Cause:
    """Return the cause of an end that we brought about, or that nobody saw."""
    row = ROWS[class_]
    return Cause(
        class_=class_,
        budget=row.budget,
        retried=row.retried,
        own_word=False,
        code=row.code,
        message=message or row.message,
        fix=row.fix,
        exit_code=None,
        process=process,
        at=at,
    )


def back_off(uid: str, attempt: int, restarts: int) -> float:
    """Return the seconds to wait before an attempt: 10 s doubled a restart, 10 min at most.

    The jitter of up to a quarter is drawn from the job's uid and the attempt, so that every look
    at the same ledger gives the same time and many jobs do not start together.
    """
    doubled = SHORTEST_BACK_OFF * 2.0 ** min(max(restarts - 1, 0), 16)
    drawn = hashlib.sha256(f"{uid}/{attempt}".encode()).digest()
    jitter = int.from_bytes(drawn[:4], "big") / 2**32
    return float(min(LONGEST_BACK_OFF, doubled * (1 + jitter / 4)))


def _class(end: ProcessEnd) -> FailureClass:
    code = end.exit_code
    if code is not None and (code in FINAL or code in (ExitCode.DOES_NOT_FIT, ExitCode.FENCED)):
        return _CODES[code]
    if end.reason is not None:
        return _REASONS[end.reason]
    if code is None:
        return "LostInfrastructure"
    return _CODES.get(code, "Crashed")


def _rank(end: ProcessEnd) -> int:
    class_ = _class(end)
    for rank, classes in enumerate(_RANKS):
        if class_ in classes:
            return rank
    if end.reason is not None or class_ == "LostInfrastructure":
        return _OUTSIDE
    return {"CommunicationLost": _COMMUNICATION, "Preempted": _SIGNALLED}.get(class_, _CRASHED)


def _said(end: ProcessEnd) -> Problem | None:
    """The trainer's own first problem, where it is about this end and not a by-product."""
    if end.report is None or not end.report.problems:
        return None
    if end.exit_code is not None and end.report.exit_code != end.exit_code:
        return None
    return end.report.problems[0]


def _message(end: ProcessEnd, row: Row, said: Problem | None) -> str:
    if said is not None:
        return f"{said.place}: {said.message}" if said.place else said.message
    parts = [row.message]
    if end.exit_code is not None and end.reason is None:
        parts.append(f"exit code {end.exit_code}")
    detail = end.message or (end.report.message if end.report else "")
    if detail:
        parts.append(detail)
    return "; ".join(parts)
