"""What holds of attempts whatever happens to their nodes, controllers and room."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune_operator.steps import Finish, StartAttempt, Wait
from harness.gang_world import GRACE, World

KINDS = st.sampled_from(["PyTorchJob", "Job"])
SECONDS = st.sampled_from([1, 10, 60, 200, 2000])
EVENTS = st.sampled_from(
    [
        "lose 0",
        "lose 1",
        "fail 0",
        "fail 1",
        "tell 0",
        "tell 1",
        "force 0",
        "force 1",
        "controller",
        "collector",
        "slow",
        "room",
        "delete",
    ]
)
LIVES = st.lists(st.tuples(EVENTS, SECONDS), min_size=1, max_size=12)


def happen(world: World, event: str) -> None:
    """Let one thing happen to the attempt that runs, or to the cluster."""
    what, _, index = event.partition(" ")
    assert world.ledger.child is not None
    own = world.of(world.ledger.child.name)
    own = [one for one in own if one.index == int(index or 0)]
    match what:
        case "lose" | "tell":
            for one in own:
                one.lost = one.lost or what == "lose"
                one.told = world.now if one.told is None else one.told
        case "fail":
            for one in own:
                if one.lives and one.started is not None and not one.lost:
                    one.ended, one.code = world.now, 1
        case "force":
            for one in own:
                # Somebody removes it; nobody knows whether its process has ended.
                one.gone = one.lost
        case "controller":
            world.controller = not world.controller
        case "collector":
            world.collector = not world.collector
        case "slow":
            world.slow = 300 if world.slow == 5 else 5
        case "room":
            world.room = not world.room
        case "delete":
            gang = world.gangs.get(world.ledger.child.name)
            if gang is not None and gang.deleted is None:
                gang.deleted = world.now


def go_on(world: World, seconds: int) -> None:
    """Look until nothing more is to be done at once; every start is checked, then time passes."""
    for _ in range(6):
        step = world.look()
        if isinstance(step, StartAttempt):
            for one in world.strangers():
                assert world.shared
                assert one.told is not None, "one that nobody has told to end"
                assert world.now - one.told >= GRACE + 60, "one that still has time to end"
        world.act(step)
        if isinstance(step, Wait | Finish):
            break
    world.pass_time(seconds)


def live(world: World, events: Sequence[tuple[str, int]]) -> None:
    for event, seconds in events:
        go_on(world, 10)
        happen(world, event)
        go_on(world, seconds)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(KINDS, st.booleans(), LIVES)
def test_what_is_left_of_an_attempt_was_told_to_end_before_the_next_one_starts(
    kind: str, shared: bool, events: list[tuple[str, int]]
) -> None:
    world = World(kind, shared)
    live(world, events)
    if not shared or world.ledger.outcome is not None:
        return
    # All that was away is back but for the nodes: a gang trains again.
    world.controller = world.collector = world.room = True
    world.slow = 5
    for _ in range(60):
        if world.trains() or world.ledger.outcome is not None:
            return
        go_on(world, 30)
    raise AssertionError("no gang trains any more")


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    KINDS,
    st.booleans(),
    st.lists(st.sampled_from([1, 10, 60, 300, 1000, 1800, 4000]), min_size=10, max_size=20),
)
def test_waiting_for_room_never_fails_a_job(kind: str, trained: bool, waits: list[int]) -> None:
    """From its first attempt on, or after one that was told to make room."""
    world = World(kind)
    if trained:
        for _ in range(3):
            go_on(world, 10)
        assert world.trains()
        happen(world, "tell 0")
    world.room = False
    for _ in range(4):
        for seconds in waits:
            go_on(world, seconds)
            assert world.ledger.outcome is None, world.ledger.last_failure
    assert world.ledger.attempts_without_progress <= trained
    assert world.ledger.failures == 0
    world.room = True
    for _ in range(60):
        if world.trains():
            return
        go_on(world, 30)
    raise AssertionError("there is room, and no gang trains")
