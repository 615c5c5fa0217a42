"""A child whose size somebody has lowered: it rests, and what it calls a success is none."""

from __future__ import annotations

import pytest

from harness.children import KINDS, cause, child, pod, read

SIZES = {
    "PyTorchJob": "spec.pytorchReplicaSpecs.Worker.replicas",
    "Job": "spec.parallelism",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_size_of_nothing_is_a_suspension_by_somebody_else(kind: str) -> None:
    """Whatever the queue: none sets a size."""
    emptied = child(kind, "Running", nodes=0, queue="gpus")
    saving = [pod(kind, 0, told=30), pod(kind, 1, told=30)]
    found = read(kind, emptied, saving, processes=2)
    assert (found.held, found.withdrawn, found.over) == (True, False, False)
    gone = [pod(kind, i, "ended", code=143, told=30, ends=40 + i) for i in (0, 1)]
    found = read(kind, emptied, [], gone=gone, processes=2)
    assert (found.held, found.withdrawn, found.over) == (True, True, False)
    assert found.emptied == SIZES[kind]
    assert cause(found) == "Preempted"
    never_ran = read(kind, child(kind, nodes=0), [], processes=2)
    assert never_ran.waiting is not None
    assert (never_ran.waiting.reason, never_ran.active_since) == ("SuspendedByOthers", None)
    assert SIZES[kind] in never_ran.waiting.message


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nodes", [0, 1])
def test_a_success_of_fewer_processes_than_it_was_made_with_is_none(kind: str, nodes: int) -> None:
    """The controllers call a child done whose size was lowered to what has succeeded."""
    lowered = child(kind, "Succeeded", "Complete", nodes=nodes)
    gone = [pod(kind, i, "ended", code=143, told=30, ends=40) for i in (0, 1)]
    found = read(kind, lowered, [], gone=gone, processes=2)
    assert (found.over, found.held, found.emptied) == (True, False, "")
    assert cause(found) == "Preempted"
    assert read(kind, lowered, [], processes=2).ends == ()
