"""What the processes of a job said of themselves: its preparation, claim and finished model. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_api.checkpoint import Claim
from finetune_api.names import workspace_folder
from finetune_api.reports import CompletionManifest, PrepareReport, TerminationReport
from finetune_api.status import Child, JobStatus
from finetune_operator.acceptance import Accepted
from finetune_operator.observed import ChildState
from finetune_operator.progress import Puller
from finetune_operator.render.claims import claim_of


def reports_of(states: Sequence[ChildState], child: Child | None) -> list[TerminationReport]:
    """Return what the processes of the ledger's child said, the first node's word first."""
    found = [
        end.report
        for state in states
        if child is not None and state.name == child.name and child.uid in ("", state.uid)
        for end in state.ends
        if end.report is not None
    ]
    return sorted(found, key=lambda report: report.node)


def prepared_by(uid: str, states: Sequence[ChildState]) -> PrepareReport | None:
    """Return what a preparation found and chose that has ended with success."""
    for said in (one for state in states for one in _preparations(state)):
        return PrepareReport(
            job_uid=uid,
            choices=said.choices,
            train=said.data,
            memory=said.memory,
            problems=said.problems,
        )
    return None


def _ended_well(states: Sequence[ChildState], child: Child | None) -> bool:
    """Tell whether all processes of the ledger's child are known to have succeeded."""
    ends = [
        end.exit_code
        for state in states
        if child is not None and state.name == child.name and child.uid in ("", state.uid)
        if state.over
        for end in state.ends
    ]
    return bool(ends) and not any(code != 0 for code in ends)


def _preparations(state: ChildState) -> list[TerminationReport]:
    """Return what a child's processes said that prepared with success."""
    return [
        end.report
        for end in state.ends
        if end.report is not None
        and end.report.stage == "prepare"
        and end.report.choices is not None
        and end.exit_code == 0
    ]


def claim_said(
    uid: str, status: JobStatus, reports: Sequence[TerminationReport], puller: Puller
) -> Claim | None:
    """Return the claim of the attempt, as its progress or its end tells of it."""
    progress = puller.known(uid)
    for report in reports:
        if report.stage == "train" and report.claim and report.attempt == status.attempt:
            return Claim(
                sequence=report.claim,
                job_uid=uid,
                attempt=report.attempt,
                pod_uid="",
                resumes_from=report.resumed_from,
                rejected=report.rejected,
                time="",
            )
    if progress is None or not progress.claim or progress.attempt != status.attempt:
        return None
    return Claim(
        sequence=progress.claim,
        job_uid=uid,
        attempt=progress.attempt,
        pod_uid="",
        resumes_from=progress.resumed_from,
        time=progress.time,
    )


def published_by(
    accepted: Accepted, status: JobStatus, states: Sequence[ChildState]
) -> CompletionManifest | None:
    """Return what is known here of the finished model; its manifest lies beside it.

    Where nobody heard what the process said before its pod was removed, that is where it lies.
    """
    job, spec = accepted.job, accepted.job.spec
    reports = reports_of(states, status.child)
    done = [one for one in reports if one.stage == "publish" and one.exit_code == 0]
    if not status.trained or not (done or _ended_well(states, status.child)):
        return None
    silent = TerminationReport(stage="publish", job_uid=job.uid, exit_code=0)
    said = done[0] if done else silent
    folder = workspace_folder(job.name, job.uid)
    methods = [name for name in type(spec.method).model_fields if getattr(spec.method, name)]
    return CompletionManifest(
        job=job.name,
        job_uid=job.uid,
        uri=spec.output.uri or f"pvc://{claim_of(job)}/{folder}/output",
        base_model=spec.model.uri,
        base_digest=accepted.digest,
        method=methods[0] if methods else "",
        objective="",
        merged=spec.output.merge,
        selected_step=said.step,
        selected_from=said.checkpoint,
        steps=said.step,
        evaluation_after=said.evaluation,
        files=(),
        time=status.finished_at or "",
    )
