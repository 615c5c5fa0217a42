"""Whatever stands in children and pods, a state comes out, and reading changes nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.children import CHILD_UID, KINDS, at, child, pod, read


@pytest.mark.parametrize("kind", KINDS)
def test_reading_changes_nothing_and_no_shape_breaks_it(kind: str) -> None:
    one, pods = child(kind, "Running"), [pod(kind, 0), pod(kind, 1, "ended", code=1)]
    before = copy.deepcopy((one, pods))
    read(
        kind, one, pods, gone=pods, events=[{}, {"involvedObject": {"uid": "pod-1"}, "reason": []}]
    )
    assert (one, pods) == before
    for strange in (
        {},
        {"metadata": None, "spec": [], "status": "x"},
        {"status": {"conditions": 3}},
    ):
        found = read(kind, strange, [{}, {"metadata": {"ownerReferences": [None]}}])
        assert (found.processes, found.running) == (1, 0)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from(
        ["", "True", "Failed", "Evicted", "0", "9" * 30, at(5), "0001-01-01T00:00:00Z"]
    ),
    st.text(max_size=4),
)
WORDS = st.sampled_from(
    [
        *("name", "uid", "labels", "ownerReferences", "controller", "deletionTimestamp"),
        *("deletionGracePeriodSeconds", "creationTimestamp", "phase", "reason", "message"),
        *("conditions", "containerStatuses", "type", "status", "state", "running", "waiting"),
        *("terminated", "exitCode", "startedAt", "finishedAt", "startTime", "completionTime"),
        *("suspend", "parallelism", "replicas", "runPolicy", "Worker", "pytorchReplicaSpecs"),
    ]
)
SHAPES = st.recursive(
    VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=5),
    max_leaves=20,
)
OBJECTS = st.dictionaries(st.sampled_from(["metadata", "spec", "status"]), SHAPES)


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    one=OBJECTS,
    pods=st.lists(OBJECTS, max_size=3),
    mixed=st.lists(st.integers(0, 2), max_size=4),
    events=st.lists(st.dictionaries(WORDS, SHAPES), max_size=2),
)
def test_whatever_stands_in_objects_a_state_comes_out(
    kind: str,
    one: dict[str, Any],
    pods: list[dict[str, Any]],
    mixed: list[int],
    events: list[dict[str, Any]],
) -> None:
    """Strange objects beside sound ones: the sound ones still count."""
    one = {**one, "metadata": {"uid": CHILD_UID}}
    owned = {"ownerReferences": [{"uid": CHILD_UID, "controller": True}]}
    ours = [{**body, "metadata": {"uid": str(i), **owned}} for i, body in enumerate(pods)]
    read(kind, one, ours, gone=ours[:1], events=events)
    states = {
        0: [pod(kind, i, uid=f"r{i}") for i, state in enumerate(mixed) if state == 0],
        1: [pod(kind, i, "pending", uid=f"w{i}") for i, state in enumerate(mixed) if state == 1],
        2: [pod(kind, i, "ended", uid=f"e{i}") for i, state in enumerate(mixed) if state == 2],
    }
    sound = [one for group in states.values() for one in group]
    nodes = max(1, len(mixed))
    found = read(kind, child(kind, nodes=nodes), [*pods, *sound], gone=pods, events=events)
    assert found.running == len(states[0])
    assert found.processes == nodes
    assert found.over == (len(states[2]) == nodes)
    assert not (found.over and found.running)
    assert found.ran == (bool(mixed) and not states[1])
