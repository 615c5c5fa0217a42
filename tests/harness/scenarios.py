"""The table that every executor of the plan passes: how processes end, and what must come of it.

The expectations are worked out by hand from the rules of recovery, not by the code under test.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from finetune_operator.observed import EndReason


@dataclass(frozen=True)
class Try:
    """What the processes of one child do. One entry of ``exits`` a node."""

    exits: tuple[int, ...] = (0,)
    """As a shell counts: 137 dies of SIGKILL, 143 of SIGTERM."""
    reason: EndReason | None = None
    """What the platform says of the first of them that does not succeed."""
    step: int = 0
    """The last step reached."""
    checkpoint: int | None = None
    """The step of the newest verified checkpoint that it leaves."""
    code: str = ""
    """Code of the problem that it reports itself."""
    fix: str = ""


@dataclass(frozen=True)
class Expected:
    """What the ledger says in the end."""

    outcome: str
    attempt: int
    failures: int = 0
    preemptions: int = 0
    causes: tuple[str, ...] = ()
    """Of the resume entries, oldest first."""
    from_steps: tuple[int, ...] = ()
    lost_steps: tuple[int, ...] = ()
    failure: str | None = None
    """Class of the last failure."""
    exit_code: int | None = None
    code: str | None = None
    fix: str = ""
    """Part of the fix that the user reads."""
    micro_batches: tuple[int, ...] = ()
    """Of the attempts that were started, in order."""
    tries: tuple[int, int] = (1, 1)
    """Of preparation and publishing."""


@dataclass(frozen=True)
class Scenario:
    """One job's life."""

    name: str
    expected: Expected
    train: tuple[Try, ...] = (Try(step=60, checkpoint=60),)
    prepare: tuple[Try, ...] = (Try(),)
    publish: tuple[Try, ...] = (Try(),)
    spec: dict[str, Any] = field(default_factory=dict)
    micro_batch_chosen: bool = True
    local: bool = True
    """Processes of one machine can end like this; what a platform says of a pod, they cannot."""


DONE = Try(step=60, checkpoint=60)
TWO = {"resources": {"nodes": 2}}

SCENARIOS: tuple[Scenario, ...] = (
    Scenario("undisturbed", Expected("Succeeded", attempt=1, micro_batches=(4,))),
    Scenario(
        "worker out of memory once, micro batch ours to choose",
        train=(Try((137,), "OOMKilled", step=7), DONE),
        expected=Expected(
            "Succeeded",
            attempt=2,
            failures=1,
            causes=("OutOfMemory",),
            from_steps=(0,),
            lost_steps=(7,),
            failure="OutOfMemory",
            exit_code=137,
            code="out-of-memory",
            fix="lower training.microBatchSize",
            micro_batches=(4, 2),
        ),
    ),
    Scenario(
        "worker out of memory, micro batch chosen by the user, on a CPU: not tried unchanged",
        train=(Try((137,), "OOMKilled", step=7),),
        micro_batch_chosen=False,
        expected=Expected(
            "Failed",
            attempt=1,
            failures=1,
            failure="OutOfMemory",
            exit_code=137,
            code="out-of-memory",
            fix="raise resources.memory",
            micro_batches=(4,),
        ),
    ),
    Scenario(
        "device out of memory: halved twice, then failed with the trainer's fix",
        train=(
            Try((12,), code="device-out-of-memory", fix="lower dataset.maxLength to 1024"),
            Try((12,), code="device-out-of-memory", fix="lower dataset.maxLength to 1024"),
            Try((12,), code="device-out-of-memory", fix="lower dataset.maxLength to 1024"),
        ),
        expected=Expected(
            "Failed",
            attempt=3,
            failures=3,
            causes=("OutOfMemory", "OutOfMemory"),
            from_steps=(0, 0),
            lost_steps=(0, 0),
            failure="OutOfMemory",
            exit_code=12,
            code="device-out-of-memory",
            fix="lower dataset.maxLength to 1024",
            micro_batches=(4, 2, 1),
        ),
    ),
    Scenario(
        "exits 1 twice",
        train=(Try((1,), step=12, checkpoint=10), Try((1,), step=25, checkpoint=20), DONE),
        expected=Expected(
            "Succeeded",
            attempt=3,
            failures=2,
            causes=("Crashed", "Crashed"),
            from_steps=(10, 20),
            lost_steps=(2, 5),
            failure="Crashed",
            exit_code=1,
            code="crashed",
            fix="read its log",
            micro_batches=(4, 4, 4),
        ),
    ),
    Scenario(
        "exits 1 once more than recovery.maxFailures",
        train=tuple(Try((1,), step=10 * n, checkpoint=10 * n) for n in (1, 2)),
        spec={"recovery": {"maxFailures": 1}},
        expected=Expected(
            "Failed",
            attempt=2,
            failures=2,
            causes=("Crashed",),
            from_steps=(10,),
            lost_steps=(0,),
            failure="Crashed",
            exit_code=1,
            code="crashed",
            fix="read its log",
            micro_batches=(4, 4),
        ),
    ),
    Scenario(
        "signalled five times, saved each time: no failure budget used",
        train=(*(Try((143,), step=n, checkpoint=n) for n in (5, 11, 18, 26, 35)), DONE),
        spec={"recovery": {"maxFailures": 0}},
        expected=Expected(
            "Succeeded",
            attempt=6,
            preemptions=5,
            causes=("Preempted",) * 5,
            from_steps=(5, 11, 18, 26, 35),
            lost_steps=(0, 0, 0, 0, 0),
            failure="Preempted",
            exit_code=143,
            code="preempted",
            micro_batches=(4,) * 6,
        ),
    ),
    Scenario(
        "signalled before anything is saved: the third attempt without progress is a failure",
        train=(Try((143,), step=3), Try((143,), step=4), Try((143,), step=2)),
        expected=Expected(
            "Failed",
            attempt=3,
            preemptions=3,
            causes=("Preempted", "Preempted"),
            from_steps=(0, 0),
            lost_steps=(3, 4),
            failure="NoProgress",
            exit_code=143,
            code="no-progress",
            fix="lower checkpoint.maxLostWork",
            micro_batches=(4, 4, 4),
        ),
    ),
    Scenario(
        "a checkpoint between counts anew",
        train=(
            Try((143,), step=3),
            Try((143,), step=4),
            Try((143,), step=9, checkpoint=9),
            Try((143,), step=12),
            Try((143,), step=11),
            DONE,
        ),
        expected=Expected(
            "Succeeded",
            attempt=6,
            preemptions=5,
            causes=("Preempted",) * 5,
            from_steps=(0, 0, 9, 9, 9),
            lost_steps=(3, 4, 0, 3, 2),
            failure="Preempted",
            exit_code=143,
            code="preempted",
            micro_batches=(4,) * 6,
        ),
    ),
    Scenario(
        "signalled four times while it starts, before and after a checkpoint: it goes on",
        train=(
            *(Try((143,)) for _ in range(4)),
            Try((143,), step=9, checkpoint=9),
            *(Try((143,), step=9) for _ in range(4)),
            DONE,
        ),
        expected=Expected(
            "Succeeded",
            attempt=10,
            preemptions=9,
            causes=("Preempted",) * 9,
            from_steps=(0, 0, 0, 0, 9, 9, 9, 9, 9),
            lost_steps=(0,) * 9,
            failure="Preempted",
            exit_code=143,
            code="preempted",
            micro_batches=(4,) * 10,
        ),
    ),
    Scenario(
        "more preemptions than recovery.maxPreemptions",
        train=tuple(Try((143,), step=n, checkpoint=n) for n in (5, 10, 15)),
        spec={"recovery": {"maxPreemptions": 2}},
        expected=Expected(
            "Failed",
            attempt=3,
            preemptions=3,
            causes=("Preempted", "Preempted"),
            from_steps=(5, 10),
            lost_steps=(0, 0),
            failure="TooManyPreemptions",
            exit_code=143,
            code="too-many-preemptions",
            fix="raise recovery.maxPreemptions",
            micro_batches=(4, 4, 4),
        ),
    ),
    Scenario(
        "preempted by the scheduler",
        train=(Try((143,), "DisruptionTarget", step=480, checkpoint=480), DONE),
        local=False,
        expected=Expected(
            "Succeeded",
            attempt=2,
            preemptions=1,
            causes=("Preempted",),
            from_steps=(480,),
            lost_steps=(0,),
            failure="Preempted",
            exit_code=143,
            code="preempted",
            micro_batches=(4, 4),
        ),
    ),
    Scenario(
        "evicted for its own limits is a failure",
        train=(Try((137,), "EvictedOwnLimits", step=5, checkpoint=5), DONE),
        local=False,
        expected=Expected(
            "Succeeded",
            attempt=2,
            failures=1,
            causes=("Evicted",),
            from_steps=(5,),
            lost_steps=(0,),
            failure="Evicted",
            exit_code=137,
            code="evicted-own-limits",
            fix="size of the workspace",
            micro_batches=(4, 4),
        ),
    ),
    Scenario(
        "two nodes: one crashes, the other only loses it",
        train=(Try((20, 1), step=6, checkpoint=5), DONE),
        spec=TWO,
        expected=Expected(
            "Succeeded",
            attempt=2,
            failures=1,
            causes=("Crashed",),
            from_steps=(5,),
            lost_steps=(1,),
            failure="Crashed",
            exit_code=1,
            code="crashed",
            micro_batches=(4, 4),
        ),
    ),
    Scenario(
        "two nodes: both lose each other",
        train=(Try((20, 20), step=6, checkpoint=5), DONE),
        spec=TWO,
        expected=Expected(
            "Succeeded",
            attempt=2,
            failures=1,
            causes=("CommunicationLost",),
            from_steps=(5,),
            lost_steps=(1,),
            failure="CommunicationLost",
            exit_code=20,
            code="communication-lost",
            fix="network",
            micro_batches=(4, 4),
        ),
    ),
    *(
        Scenario(
            f"final: exit {exit_code}",
            train=(Try((exit_code,), step=4, checkpoint=4, code="told-why", fix="do this"),),
            expected=Expected(
                "Failed",
                attempt=1,
                failures=1,
                failure=class_,
                exit_code=exit_code,
                code="told-why",
                fix="do this",
                micro_batches=(4,),
            ),
        )
        for exit_code, class_ in (
            (10, "InvalidConfig"),
            (11, "InvalidData"),
            (13, "NonFiniteLoss"),
            (14, "StorageFull"),
            (15, "CheckpointUnusable"),
            (16, "ModelUnavailable"),
            (21, "Fenced"),
        )
    ),
    Scenario(
        "invalid data: no attempt is ever named",
        prepare=(Try((11,), code="no-assistant-turn", fix="add the answer"),),
        train=(),
        expected=Expected(
            "Failed",
            attempt=0,
            failures=1,
            failure="InvalidData",
            exit_code=11,
            code="no-assistant-turn",
            fix="add the answer",
        ),
    ),
    Scenario(
        "does not fit, said before anything is trained",
        prepare=(Try((12,), code="does-not-fit", fix="microBatchSize: 1"),),
        train=(),
        expected=Expected(
            "Failed",
            attempt=0,
            failures=1,
            failure="DoesNotFit",
            exit_code=12,
            code="does-not-fit",
            fix="microBatchSize: 1",
        ),
    ),
    Scenario(
        "preparation and publishing are tried again",
        prepare=(Try((1,)), Try()),
        publish=(Try((143,)), Try()),
        expected=Expected(
            "Succeeded",
            attempt=1,
            failures=1,
            preemptions=1,
            failure="Preempted",
            exit_code=143,
            code="preempted",
            micro_batches=(4,),
            tries=(2, 2),
        ),
    ),
    Scenario(
        "gate not met",
        publish=(Try((17,), code="gate-not-met", fix="train longer"),),
        expected=Expected(
            "Failed",
            attempt=1,
            failures=1,
            failure="GateNotMet",
            exit_code=17,
            code="gate-not-met",
            fix="train longer",
            micro_batches=(4,),
        ),
    ),
)
