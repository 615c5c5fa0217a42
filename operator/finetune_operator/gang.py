"""The pods of one child as processes: who runs, who ended and why, who took another's place. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Literal

from finetune_operator import waiting
from finetune_operator.endings import container_status, ending_of, told_at
from finetune_operator.failures import ROOM
from finetune_operator.observed import ChildState, ProcessEnd, Waiting
from finetune_operator.plan.situation import time_of
from finetune_operator.render.indexed_job import INDEX_ANNOTATION
from finetune_operator.render.pytorch_job import INDEX_LABEL
from finetune_operator.resolve.paths import look

Object = Mapping[str, Any]
KILLED = 137
_EPOCH = datetime.fromtimestamp(0, UTC)
_JOB_POD = re.compile(r"-([0-9]{1,6})-[a-z0-9]{5}$")


@dataclass(frozen=True)
class Facts:
    """What the object of a child says, whatever kind it is."""

    name: str
    uid: str
    processes: int
    word: str = ""
    """Its own for its state."""
    finished: Literal["", "Succeeded", "Failed"] = ""
    suspended: bool = False
    emptied: str = ""
    """The field with which somebody has set its size to 0; empty where nobody has."""
    total: int | None = None
    """How many of its processes have to succeed, as it says itself; it may have been edited."""
    queue: str = ""
    active_since: datetime | None = None
    deleted_at: datetime | None = None
    completed_at: datetime | None = None

    @property
    def rests(self) -> bool:
        """No process is to run, and none will be made before somebody changes that."""
        return self.suspended or bool(self.emptied)

    @property
    def is_short(self) -> bool:
        """It claims success for fewer processes than it was made with."""
        short = self.total is not None and self.total < self.processes
        return self.finished == "Succeeded" and short


@dataclass(frozen=True)
class Member:
    """One pod of the child; one that is gone is remembered as it was last seen."""

    pod: Object
    index: int
    exists: bool
    created: datetime
    started: datetime | None
    end: ProcessEnd | None
    told: datetime | None

    @property
    def runs(self) -> bool:
        """Its process runs now."""
        return self.end is None and look(container_status(self.pod), "state", "running") is not None


def members(child_uid: str, pods: Sequence[Object], gone: Sequence[Object] = ()) -> list[Member]:
    """Return the pods that a child owns, by index, the newest of an index last.

    Pods of another owner are left out, whatever their labels say.
    """
    there = {str(look(pod, "metadata", "uid")): (pod, True) for pod in pods}
    left = {str(look(pod, "metadata", "uid")): (pod, False) for pod in gone}
    found = [
        _member(pod, exists)
        for pod, exists in ({**left, **there}).values()
        if child_uid and _owner(pod) == child_uid
    ]
    return sorted(found, key=lambda one: (one.index, one.exists, one.created))


def state(facts: Facts, found: Sequence[Member], events: Sequence[Object] = ()) -> ChildState:
    """Return the state of a child from its object, its pods and what events say of them."""
    facts = replace(facts, finished="Failed") if facts.is_short else facts
    found = _counting(facts, found)
    newest = {member.index: member for member in found}
    live = [member for member in found if member.exists and member.end is None]
    running = sum(member.runs for member in live)
    started = [member.started for member in found if member.started is not None]
    ends = _ends(facts, found, newest)
    return ChildState(
        name=facts.name,
        uid=facts.uid,
        processes=facts.processes,
        running=running,
        ends=ends,
        over=not live and _no_other_comes(facts, newest),
        active_since=_active_since(facts, started),
        ran=_ran(facts.processes, newest),
        waiting=_waiting(facts, live, running, ends, events),
        roomless=_roomless(facts.processes, newest),
        stopped_at=_stopped_at(facts, live),
        told_at=_told_at(facts, live),
        replaced=_replaced(facts, found),
        withdrawn=facts.rests and not facts.finished and not live and bool(ends),
        held=_held(facts),
        emptied=facts.emptied if _held(facts) else "",
        platform_status=facts.word,
    )


def _held(facts: Facts) -> bool:
    """A queue suspends and lets go on; it never sets a size to 0."""
    by_others = bool(facts.emptied) or (facts.suspended and not facts.queue)
    return by_others and not facts.finished and facts.deleted_at is None


def _member(pod: Object, exists: bool) -> Member:
    status = container_status(pod)
    times = [look(status, "state", "running", "startedAt")]
    times.append(look(status, "state", "terminated", "startedAt"))
    started = next((at for at in map(_time, times) if at is not None), None)
    return Member(
        pod=pod,
        index=_index(pod),
        exists=exists,
        created=_time(look(pod, "metadata", "creationTimestamp")) or _EPOCH,
        started=started,
        end=ending_of(pod, gone=not exists),
        told=told_at(pod),
    )


def _owner(pod: Object) -> str:
    references = look(pod, "metadata", "ownerReferences")
    for reference in references if isinstance(references, list) else []:
        if look(reference, "controller") is True:
            return str(look(reference, "uid"))
    return ""


def _index(pod: Object) -> int:
    """Return which of the child's processes a pod is; 0 where it does not say."""
    said = (
        look(pod, "metadata", "labels", INDEX_LABEL),
        look(pod, "metadata", "labels", INDEX_ANNOTATION),
        look(pod, "metadata", "annotations", INDEX_ANNOTATION),
    )
    for text in said:
        if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 7:
            return int(text)
    match = _JOB_POD.search(str(look(pod, "metadata", "name") or ""))
    return int(match[1]) if match else 0


def _counting(facts: Facts, found: Sequence[Member]) -> list[Member]:
    """Leave out pods that never started and are not of this gang: nothing was begun.

    They are of an earlier admission by the queue, or more than the gang has processes.
    """
    since = facts.active_since

    def of_before(member: Member) -> bool:
        if member.exists or member.started is not None:
            return False
        return facts.rests or (bool(facts.queue) and since is not None and member.created < since)

    def too_many(member: Member) -> bool:
        """Somebody has edited the child's size: the gang is the one that it was made for."""
        return member.index >= facts.processes and member.started is None

    return [one for one in found if not of_before(one) and not too_many(one)]


def _ends(
    facts: Facts, found: Sequence[Member], newest: Mapping[int, Member]
) -> tuple[ProcessEnd, ...]:
    """Return the ends that count.

    A pod whose place another took has ended, and with it the gang, unless all came to a good end
    nevertheless. Where the child's object says that all succeeded, pods that are gone did too.
    """
    good = {
        index: member.end
        for index, member in newest.items()
        if member.end is not None and member.end.exit_code == 0
    }
    if facts.finished == "Succeeded":
        at = facts.completed_at or max((end.at for end in good.values()), default=_EPOCH)
        for index in range(facts.processes):
            unseen = ProcessEnd(name=f"{facts.name} ({index})", at=at, exit_code=0)
            good.setdefault(index, unseen)
    if len(good) >= facts.processes:
        return tuple(good[index] for index in sorted(good))
    ended = [member for member in found if member.end is not None]
    # One that never had a place was nothing that could be lost.
    return _without_followers([one for one in ended if not _unplaced(one)] or ended)


def _unplaced(member: Member) -> bool:
    """Tell whether a pod only ever waited for room."""
    why = None if member.started is not None else waiting.why([member.pod], 1, "")
    return why is not None and why.reason in ROOM


def _roomless(processes: int, newest: Mapping[int, Member]) -> Waiting | None:
    """Return what those of the gang waited for that never had a place."""
    found = [member.pod for member in newest.values() if _unplaced(member)]
    return waiting.why(found, processes, "") if found else None


def _without_followers(ended: Sequence[Member]) -> tuple[ProcessEnd, ...]:
    """Return the ends; a pod that was killed only because another had ended is no cause itself."""
    ends = [(member, member.end) for member in ended if member.end is not None]
    causes = [
        end
        for member, end in ends
        if end.exit_code != 0
        and end.reason != "Deleted"
        and (end.reason is not None or member.told is None or end.at < member.told)
    ]
    return tuple(
        replace(end, reason=None)
        if causes and end.reason == "Deleted" and end.exit_code == KILLED
        else end
        for _, end in ends
    )


def _no_other_comes(facts: Facts, newest: Mapping[int, Member]) -> bool:
    """Tell whether no pod will be made any more.

    A child that rests may be let go on at any time. A pod that has ended and still exists
    keeps its place: neither controller makes another for it.
    """
    if facts.finished or facts.deleted_at is not None:
        return True
    if facts.rests:
        return False
    kept = [member for member in newest.values() if member.exists and member.end is not None]
    return len(kept) >= facts.processes


def _active_since(facts: Facts, started: Sequence[datetime]) -> datetime | None:
    """A child that a queue suspended after it had run still counts from when it began."""
    if facts.rests or facts.active_since is None:
        return min(started, default=None)
    return facts.active_since


def _ran(processes: int, newest: Mapping[int, Member]) -> bool:
    """Tell whether all processes ran at the same time."""
    if len(newest) < processes:
        return False
    starts = [member.started for member in newest.values() if member.started is not None]
    ends = [member.end.at for member in newest.values() if member.end is not None]
    return len(starts) >= processes and (not ends or max(starts) <= min(ends))


def _replaced(facts: Facts, found: Sequence[Member]) -> str:
    """Return the pod whose place another has taken; empty where none was taken.

    The controller makes another for one that was deleted before it ran, and nobody knows what the
    others have begun with the first.
    """
    if facts.finished or facts.rests or facts.deleted_at is not None:
        return ""
    for before, after in pairwise(found):
        if before.index == after.index and after.exists and after.end is None:
            return str(look(before.pod, "metadata", "name") or facts.name)
    return ""


def _stopped_at(facts: Facts, live: Sequence[Member]) -> datetime | None:
    """Return when the child was told to end: one pod that has to go takes the gang with it."""
    told = [member.told for member in live if member.told is not None]
    return min([*told, *([facts.deleted_at] if facts.deleted_at else [])], default=None)


def _told_at(facts: Facts, live: Sequence[Member]) -> datetime | None:
    """Return when the last of the pods that may still run was told to end; None unless all were.

    That their owner is deleted tells them nothing yet, and one that is neither deleted nor at its
    end makes another for a pod that goes.
    """
    told = [member.told for member in live if member.told is not None]
    if not (facts.finished or facts.deleted_at) or len(told) < len(live):
        return None
    return max(told, default=facts.deleted_at)


def _waiting(
    facts: Facts,
    live: Sequence[Member],
    running: int,
    ends: Sequence[ProcessEnd],
    events: Sequence[Object],
) -> Waiting | None:
    if facts.finished or facts.deleted_at is not None or ends:
        return None
    if facts.emptied:
        return waiting.emptied(facts.name, facts.emptied)
    if facts.suspended:
        return waiting.queued(facts.queue)
    if running >= facts.processes:
        return None
    return waiting.why([member.pod for member in live], facts.processes, facts.uid, events)


def _time(text: Any) -> datetime | None:
    return time_of(text) if isinstance(text, str) else None
