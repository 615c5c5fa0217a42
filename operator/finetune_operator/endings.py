"""How a pod's process ended, read off the pod alone. Pure: the watch calls it, and so does a look.

What a process says of itself comes as its termination message. Anybody who can run a pod can write
one, so a message that is not exactly a report of this job counts as text, and only for people.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_api import SCHEMA_VERSION
from finetune_api.names import LABEL_ATTEMPT, LABEL_STAGE, LABEL_UID
from finetune_api.reports import TerminationReport
from finetune_operator.observed import EndReason, ProcessEnd
from finetune_operator.plan.situation import later, time_of
from finetune_operator.resolve.paths import look

CONTAINERS = frozenset({"pytorch", "trainer"})
"""Names of the container that is ours; a mesh may have put others beside it."""
MESSAGE_LIMIT = 512
REPORT_LIMIT = 8192
_LARGEST = 2**53
_LARGEST_REAL = 1e305
"""Above the perplexity of any loss that the trainer tells, and no sum of such numbers is infinite."""
_KILLED, _SIGNALLED = 137, 143
_CLOCKS = 10.0
"""Seconds by which the clocks of a cluster are taken to differ at most."""
_VANISHED = frozenset({"ContainerStatusUnknown", "Unknown"})
"""Reasons that a kubelet gives for a container that it did not see end; the code is made up."""
_NODE_LOST = frozenset({"NodeLost", "DeletionByPodGC"})
_TURNED_AWAY = re.compile(
    r"Terminated|NodeShutdown|Shutdown|Preempting|Preempted|NodeAffinity|UnexpectedAdmissionError"
    r"|TopologyAffinityError|OutOf.+"
)
"""Reasons of a kubelet that ends or refuses a pod for the node's sake."""
_OWN_LIMIT = re.compile(r"exceeds the (total )?limit|exceeded its local ephemeral storage limit")
_LARGER = re.compile(r"was using (\S+), request is (\S+), has larger consumption")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")


def ending_of(pod: Mapping[str, Any], *, gone: bool = False) -> ProcessEnd | None:
    """Return how the process of a pod ended; None while it may still run.

    Args:
        pod: the object, or what is left of it.
        gone: the object does not exist any more, so that nothing runs, whatever it says.
    """
    terminated = _terminated(pod)
    phase = look(pod, "status", "phase")
    if terminated is None and phase not in ("Succeeded", "Failed") and not gone:
        return None
    code = _exit_code(terminated, phase)
    report = report_of(pod, look(terminated, "message"))
    reason, message = _outside(pod, terminated, code)
    if reason is None and code != 0:
        message = message or _own_words(
            terminated, code, told=told_at(pod) is not None, said=report
        )
    ended = _ended_at(pod, terminated)
    return ProcessEnd(
        name=str(look(pod, "metadata", "name") or ""),
        at=ended or _began_at(pod),
        undated=ended is None,
        exit_code=code,
        reason=reason,
        message=message,
        report=report,
    )


def told_at(pod: Mapping[str, Any]) -> datetime | None:
    """Return when a pod was told to end; its deletion time is the grace period later."""
    at = _time(look(pod, "metadata", "deletionTimestamp"))
    grace = look(pod, "metadata", "deletionGracePeriodSeconds")
    if at is None or not isinstance(grace, int) or not 0 <= grace <= 10**6:
        return at
    return at - timedelta(seconds=grace) if at.year > 1970 else at


def container_status(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the status of our container; empty where the kubelet gave none yet."""
    statuses = look(pod, "status", "containerStatuses")
    found = [one for one in statuses or [] if isinstance(one, Mapping)] if _listed(statuses) else []
    ours = [one for one in found if _text(one.get("name")) in CONTAINERS]
    return (ours or found or [{}])[0]


def condition(pod: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """Return a condition of an object's status; empty where there is none."""
    conditions = look(pod, "status", "conditions")
    for one in conditions if _listed(conditions) else []:
        if isinstance(one, Mapping) and one.get("type") == kind:
            return one
    return {}


def clean(text: Any, limit: int = MESSAGE_LIMIT) -> str:
    """Return text that can be shown in one line of a terminal: no control characters, bounded."""
    if not isinstance(text, str):
        return ""
    shown = _CONTROL.sub(" ", text[: 4 * limit]).encode(errors="replace").decode()
    return " ".join(shown.split())[:limit]


def report_of(pod: Mapping[str, Any], text: Any) -> TerminationReport | None:
    """Return the termination report of a pod; None unless it is one, and of this job and child."""
    if not isinstance(text, str) or not 0 < len(text) <= REPORT_LIMIT:
        return None
    try:
        data = harmless(json.loads(text))
        if not isinstance(data, dict) or data.get("schemaVersion", 0) > SCHEMA_VERSION:
            return None
        report = TerminationReport.model_validate(data)
    except (TypeError, ValueError, RecursionError):
        return None
    labels = look(pod, "metadata", "labels") or {}
    if not isinstance(labels, Mapping) or report.job_uid != labels.get(LABEL_UID):
        return None
    if report.stage != labels.get(LABEL_STAGE, report.stage):
        return None
    if report.stage == "train" and str(report.attempt) != labels.get(LABEL_ATTEMPT):
        return None
    return report


def harmless(data: Any) -> Any:
    """Return JSON data out of a pod without control characters.

    Raises ``ValueError`` for absurd numbers: with one of them no status could be written any more.
    """
    if isinstance(data, str):
        return _CONTROL.sub(" ", data)
    if isinstance(data, dict):
        return {key: harmless(value) for key, value in data.items()}
    if isinstance(data, list):
        return [harmless(value) for value in data]
    most = _LARGEST if isinstance(data, int) else _LARGEST_REAL
    if isinstance(data, int | float) and not -most < data < most:
        raise ValueError("a number that no report holds")
    return data


def _terminated(pod: Mapping[str, Any]) -> Mapping[str, Any] | None:
    found = look(container_status(pod), "state", "terminated")
    return found if isinstance(found, Mapping) else None


def _exit_code(terminated: Mapping[str, Any] | None, phase: Any) -> int | None:
    if terminated is not None and _text(terminated.get("reason")) not in _VANISHED:
        code = terminated.get("exitCode")
        return code if isinstance(code, int) and not isinstance(code, bool) else None
    return 0 if terminated is None and phase == "Succeeded" else None


def _outside(
    pod: Mapping[str, Any], terminated: Mapping[str, Any] | None, code: int | None
) -> tuple[EndReason | None, str]:
    """Return what ended the process from outside, and in whose words; None: nothing did."""
    if code == 0:
        return None, ""
    why = _text(look(pod, "status", "reason"))
    text = clean(look(pod, "status", "message"))
    if why == "Evicted":
        return ("EvictedOwnLimits" if _by_own_limits(text) else "Evicted"), text
    how = _text(look(terminated, "reason"))
    if how == "OOMKilled":
        return "OOMKilled", "it used more memory than its limit"
    target = condition(pod, "DisruptionTarget")
    if target.get("status") == "True" and not _was_over(terminated, target, code):
        by = clean(target.get("reason"), 128)
        said = clean(target.get("message"))
        lost: EndReason = "NodeLost" if by in _NODE_LOST else "DisruptionTarget"
        return lost, f"{by}: {said}" if said else by
    if why in _NODE_LOST:
        return "NodeLost", text
    if _TURNED_AWAY.fullmatch(why):
        return "Evicted", f"{why}: {text}" if text else why
    if how in _VANISHED:
        return "NodeLost", "the node lost sight of it"
    deleted = told_at(pod) is not None
    if deleted and code in (None, _KILLED):
        unheard = code == _KILLED
        return (
            "Deleted",
            "deleted; it did not end within its grace period" if unheard else "deleted",
        )
    if code is None and terminated is None:
        return ("Deleted", "deleted") if look(pod, "status", "phase") != "Failed" else (None, text)
    return None, ""


def _was_over(
    terminated: Mapping[str, Any] | None, target: Mapping[str, Any], code: int | None
) -> bool:
    """Tell whether a process had ended by itself before its pod was to go.

    Its node's clock may be a little behind the one that says when the pod was to go.
    """
    ended, told = _time(look(terminated, "finishedAt")), _time(target.get("lastTransitionTime"))
    if ended is None or told is None or code in (None, _KILLED, _SIGNALLED):
        return False
    return told > later(ended, _CLOCKS)


def _by_own_limits(message: str) -> bool:
    """Tell whether an eviction was the pod's own doing.

    It is when a limit of its own was passed, and when it was chosen under pressure because it used
    more than it had asked for. One that asked for nothing was merely in the way.
    """
    if _OWN_LIMIT.search(message):
        return True
    return any(request.strip("0.,") for _, request in _LARGER.findall(message))


def _own_words(
    terminated: Mapping[str, Any] | None,
    code: int | None,
    *,
    told: bool,
    said: TerminationReport | None,
) -> str:
    """Return what there is to say of an end that nothing outside explains."""
    if said is not None or terminated is None:
        return ""
    how = clean(terminated.get("reason"), 128)
    text = clean(terminated.get("message"))
    if how not in ("", "Error", "Completed"):
        return f"{how}: {text}" if text else how
    if code == _SIGNALLED and told:
        return "told to end"
    if code == _KILLED:
        return "killed from outside (SIGKILL)"
    return "" if text.startswith("{") else text


def _ended_at(pod: Mapping[str, Any], terminated: Mapping[str, Any] | None) -> datetime | None:
    """Return the best time there is: of the process, of what ended it, of the last word on it.

    A kubelet that turns a pod away after its node has started again leaves the last alone.
    """
    ready = condition(pod, "Ready")
    times = (
        look(terminated, "finishedAt"),
        condition(pod, "DisruptionTarget").get("lastTransitionTime"),
        look(pod, "metadata", "deletionTimestamp"),
        ready.get("lastTransitionTime") if ready.get("status") != "True" else None,
    )
    return next((at for at in map(_time, times) if at is not None), _last_word(pod))


def _last_word(pod: Mapping[str, Any]) -> datetime | None:
    """Return when the status of a pod was written last, by the clock of the API server."""
    fields = look(pod, "metadata", "managedFields")
    written = (
        _time(one.get("time"))
        for one in (fields if _listed(fields) else [])
        if isinstance(one, Mapping) and one.get("subresource") == "status"
    )
    return max((at for at in written if at is not None), default=None)


def _began_at(pod: Mapping[str, Any]) -> datetime:
    times = (look(pod, "status", "startTime"), look(pod, "metadata", "creationTimestamp"))
    found = (at for at in map(_time, times) if at is not None)
    return next(found, datetime.fromtimestamp(0, UTC))


def _time(text: Any) -> datetime | None:
    return time_of(text) if isinstance(text, str) else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _listed(value: Any) -> bool:
    return isinstance(value, list | tuple)
