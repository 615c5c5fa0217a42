"""An executor whose processes are lines of a scenario: the plan's own test bench, without a clock."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_api.checkpoint import CheckpointRef
from finetune_api.job import JobSpec
from finetune_api.problem import Problem
from finetune_api.reports import Progress, TerminationReport
from finetune_api.resolved import Choices, ResolvedJob, Stage
from finetune_api.status import Child, Ledger
from finetune_operator.observed import ChildState, Live, Observed, ProcessEnd
from finetune_operator.plan import account, plan
from finetune_operator.steps import (
    Finish,
    StartAttempt,
    StartPrepare,
    StartPublish,
    Step,
    Stop,
    Wait,
)
from harness.scenarios import Scenario, Try
from harness.stage_config import SPEC, UID, merged

START = datetime(2026, 1, 1, tzinfo=UTC)
DIGEST = "sha256:" + "a" * 64


def make_job(spec: dict[str, Any] | None = None) -> ResolvedJob:
    """Return a resolved job; ``spec`` is laid over the harness's."""
    parsed = JobSpec.model_validate(merged(SPEC, spec or {}))
    return ResolvedJob(name="tiny", namespace="default", uid=UID, spec=parsed)


def make_choices(**changes: Any) -> Choices:
    """Return the choices of a preparation: micro batch 4 of 8, 60 steps."""
    values: dict[str, Any] = {
        "fingerprint": DIGEST,
        "model_path": "model",
        "model_digest": DIGEST,
        "tokenizer_digest": DIGEST,
        "train_sequences": 80,
        "packing": False,
        "global_batch_size": 8,
        "micro_batch_size": 4,
        "micro_batch_chosen": True,
        "steps_per_epoch": 10,
        "total_steps": 60,
    }
    return Choices(**(values | changes))


def ref(claim: int, step: int) -> CheckpointRef:
    """Return the checkpoint of a claim and step."""
    return CheckpointRef(step=step, path=f"checkpoints/{claim}/step-{step}", digest=DIGEST)


@dataclass
class Simulation:
    """Runs a scenario to its end."""

    scenario: Scenario
    ledger: Ledger = field(default_factory=Ledger)
    now: datetime = START
    children: tuple[ChildState, ...] = ()
    progress: Progress | None = None
    micro_batches: list[int] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    tries: dict[str, int] = field(default_factory=lambda: {"prepare": 0, "publish": 0})
    suspend: bool = False

    def __post_init__(self) -> None:
        self.job = make_job(self.scenario.spec)
        self.choices = make_choices(micro_batch_chosen=self.scenario.micro_batch_chosen)

    def look(self) -> Observed:
        prepared = any(c.over and "prepare" in c.name for c in self.children)
        return Observed(
            live=replace(Live.of(self.job.spec), suspend=self.suspend),
            children=self.children,
            choices=self.choices if prepared else None,
            progress=self.progress,
        )

    def turn(self) -> Step:
        """Look, account, plan and act once; checks that the same evidence counts once."""
        seen = self.look()
        before = self.ledger
        self.ledger = account(self.job, before, seen, self.now)
        assert account(self.job, self.ledger, seen, self.now) == self.ledger
        assert self.ledger.attempt - before.attempt in (0, 1)
        Ledger.model_validate(self.ledger.model_dump())
        step = plan(self.job, self.ledger, seen, self.now)
        self.act(step)
        return step

    def run(self) -> Finish:
        """Turn until the job has ended."""
        for _ in range(100):
            step = self.turn()
            if isinstance(step, Finish):
                return step
        raise AssertionError("the job does not end")

    def act(self, step: Step) -> None:
        match step:
            case StartPrepare(child):
                self.tries["prepare"] += 1
                self.end(child, "prepare", self.scenario.prepare[self.tries["prepare"] - 1])
            case StartPublish(child):
                self.tries["publish"] += 1
                self.end(child, "publish", self.scenario.publish[self.tries["publish"] - 1])
            case StartAttempt(child, attempt):
                self.micro_batches.append(attempt.micro_batch_size)
                self.end(child, "train", self.scenario.train[attempt.number - 1])
            case Wait(until=until):
                assert until is not None, step
                self.now = until
            case Stop() | Finish():
                pass

    def end(self, child: Child, stage: Stage, script: Try) -> None:
        """Start a child and let a minute later all its processes end as the script says."""
        assert all(c.over for c in self.children), "one is still alive"
        self.started.append(child.name)
        began, self.now = self.now, self.now + timedelta(seconds=60)
        attempt = self.ledger.attempt
        saved = None if script.checkpoint is None else ref(max(attempt, 1), script.checkpoint)
        if stage == "train":
            self.progress = Progress(
                job_uid=UID,
                attempt=attempt,
                claim=attempt,
                step=script.step,
                total_steps=60,
                checkpoint=saved,
            )
        said = ()
        if script.code:
            said = (Problem(code=script.code, message="said so", fix=script.fix),)
        first_failed = next((n for n, code in enumerate(script.exits) if code), None)
        ends = tuple(
            ProcessEnd(
                name=f"{child.name}-worker-{node}",
                at=self.now + timedelta(seconds=node),
                exit_code=code,
                reason=script.reason if node == first_failed else None,
                report=TerminationReport(
                    stage=stage,
                    job_uid=UID,
                    attempt=attempt,
                    node=node,
                    exit_code=code,
                    step=script.step,
                    problems=said,
                ),
            )
            for node, code in enumerate(script.exits)
        )
        self.children = (
            *self.children,
            ChildState(
                name=child.name,
                uid=f"uid-{child.name}",
                processes=len(ends),
                ends=ends,
                over=True,
                active_since=began,
                ran=True,
            ),
        )
