"""What a job's status says while it is not accepted."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from finetune_api.problem import Problem
from finetune_api.status import Condition, JobStatus, Summary
from finetune_operator.plan.situation import text_of

LIMIT = 1024


def words(problems: Sequence[Problem]) -> tuple[str, str]:
    """Return the reason and message of problems: the first one's code, and all that has room."""
    reason = "".join(part.capitalize() for part in problems[0].code.split("-"))
    if not reason[:1].isalpha():
        reason = "Refused"
    lines: list[str] = []
    for number, problem in enumerate(problems):
        text = f"{problem.place}: {problem.message}" if problem.place else problem.message
        text += f" [{problem.code}]" + (f" fix: {problem.fix}" if problem.fix else "")
        left = len(problems) - number
        more = f"; and {left} more" if left > 1 else ""
        if sum(map(len, lines)) + 2 * len(lines) + len(text) + len(more) > LIMIT and lines:
            lines.append(f"and {left} more")
            break
        lines.append(text)
    return reason[:128], "; ".join(lines)[:LIMIT]


def refused(
    before: JobStatus, generation: int, reason: str, message: str, now: datetime
) -> JobStatus:
    """Return the status of a job that is not accepted as it stands; its ledger is left alone."""
    old = next((one for one in before.conditions if one.type == "Accepted"), None)
    since = text_of(now)
    if old is not None and old.status == "False":
        since = old.last_transition_time
    condition = Condition(
        type="Accepted",
        status="False",
        reason=reason,
        message=message[:LIMIT],
        observed_generation=generation,
        last_transition_time=since,
    )
    others = tuple(one for one in before.conditions if one.type != "Accepted")
    summary = before.summary.model_copy(update={"reason": reason})
    return before.model_copy(
        update={
            "phase": before.phase or "Pending",
            "summary": Summary.model_validate(summary.model_dump()),
            "observed_generation": generation,
            "conditions": (condition, *others),
        }
    )
