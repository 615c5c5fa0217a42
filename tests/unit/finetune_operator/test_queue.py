"""The queue with a clock that is set by hand."""

import asyncio

from finetune_operator.queue import Key, Queue, Schedule

A, B, C = Key("team", "a"), Key("team", "b"), Key("team", "c")


def test_a_key_is_given_out_once_however_often_it_was_added():
    schedule = Schedule()
    for _ in range(5):
        schedule.add(A, 0.0)

    assert schedule.take(0.0) == A
    assert schedule.take(0.0) is None
    assert len(schedule) == 0


def test_the_one_that_is_due_longest_comes_first():
    schedule = Schedule()
    schedule.add(A, 0.0, 3.0)
    schedule.add(B, 0.0, 1.0)
    schedule.add(C, 0.0, 2.0)

    assert [schedule.take(2.5) for _ in range(3)] == [B, C, None]
    assert schedule.take(3.0) == A


def test_an_earlier_time_wins_and_a_later_one_changes_nothing():
    schedule = Schedule()
    schedule.add(A, 0.0, 10.0)
    schedule.add(A, 0.0, 60.0)
    assert schedule.wait(0.0) == 10.0
    schedule.add(A, 1.0)

    assert schedule.take(1.0) == A
    assert schedule.take(100.0) is None, "the ten seconds are not kept beside it"


def test_one_with_patience_lets_others_go_first_and_no_longer_than_that():
    schedule = Schedule()
    schedule.add(A, 0.0, 1.0, patience=10.0)
    schedule.add(B, 5.0)

    assert [schedule.take(5.0) for _ in range(3)] == [B, A, None]
    schedule.done(A)
    schedule.add(A, 6.0, patience=10.0)
    schedule.add(C, 17.0)
    assert [schedule.take(17.0) for _ in range(3)] == [A, C, None]


def test_one_with_patience_that_nobody_presses_is_due_at_its_time():
    schedule = Schedule()
    schedule.add(A, 0.0, 1.0, patience=10.0)
    assert schedule.wait(0.0) == 1.0
    assert schedule.take(0.9) is None
    assert schedule.take(1.0) == A
    assert schedule.take(100.0) is None


def test_one_with_patience_presses_as_soon_as_something_does():
    schedule = Schedule()
    schedule.add(A, 0.0, patience=10.0)
    schedule.add(B, 1.0)
    schedule.add(A, 0.5)

    assert [schedule.take(1.0) for _ in range(3)] == [A, B, None]


def test_times_that_are_not_wanted_any_more_are_not_kept():
    """A job with a deadline in days is looked at each minute."""
    schedule = Schedule(rate=1e9, burst=1000)
    for minute in range(2000):
        schedule.add(A, 60.0 * minute)
        assert schedule.take(60.0 * minute) == A
        schedule.add(A, 60.0 * minute, 259_200.0 - 60.0 * minute)
        schedule.done(A)

    kept = len(schedule._due._heap) + len(schedule._pressing._heap)
    assert kept <= 2 * 67
    assert schedule.wait(120_000.0) == 259_200.0 - 120_000.0


def test_what_is_added_during_a_look_is_looked_at_after_it():
    schedule = Schedule()
    schedule.add(A, 0.0)
    assert schedule.take(0.0) == A
    schedule.add(A, 0.1)
    schedule.add(B, 0.2)

    assert schedule.take(0.3) == B
    assert schedule.take(0.3) is None
    assert schedule.wait(0.3) is None
    schedule.done(A)
    assert schedule.wait(0.3) == 0.0
    assert schedule.take(0.3) == A


def test_failures_of_a_key_wait_twice_as_long_each_time_and_are_its_own():
    schedule = Schedule()
    delays = []
    for _ in range(10):
        delays.append(schedule.fail(A, 0.0))
        schedule.take(1e9)
        schedule.done(A)

    assert delays == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 120.0, 120.0]
    assert schedule.fail(B, 0.0) == 0.5
    schedule.succeed(A)
    assert schedule.fail(A, 0.0, at_least=7.0) == 7.0


def test_no_more_than_the_rate_is_given_out():
    schedule = Schedule(rate=8.0, burst=2)
    for number in range(5):
        schedule.add(Key("team", str(number)), 0.0)

    taken = [at for at in (0.0, 0.0, 0.0, 0.0625, 0.125, 0.125, 0.25, 0.375) if schedule.take(at)]
    assert taken == [0.0, 0.0, 0.125, 0.25, 0.375]


def test_it_says_when_the_rate_lets_the_next_one_out():
    schedule = Schedule(rate=8.0, burst=1)
    schedule.add(A, 0.0)
    schedule.add(B, 0.0)
    schedule.take(0.0)

    assert schedule.wait(0.0) == 0.125
    assert schedule.wait(0.0625) == 0.0625


def test_workers_share_it_and_none_waits_for_nothing():
    async def run():
        queue = Queue(Schedule(rate=1e6, burst=1000))
        looked: list[Key] = []

        async def work():
            while True:
                key = await queue.take()
                looked.append(key)
                await asyncio.sleep(0)
                queue.done(key)

        workers = [asyncio.create_task(work()) for _ in range(3)]
        keys = [Key("team", str(number)) for number in range(50)]
        for key in keys:
            queue.add(key)
            queue.add(key)
        queue.add(A, 0.05)
        while len(looked) < 51:
            await asyncio.sleep(0.005)
        for worker in workers:
            worker.cancel()
        return looked, keys

    looked, keys = asyncio.run(asyncio.wait_for(run(), 10))
    assert sorted(looked[:50]) == sorted(keys)
    assert looked[50] == A


def test_one_that_is_told_to_end_while_a_key_comes_ends():
    async def run():
        queue = Queue(Schedule())
        queue.add(B, 60.0)
        waiting = asyncio.create_task(queue.take())
        await asyncio.sleep(0.01)
        queue.add(A, 50.0)
        waiting.cancel()
        done, _ = await asyncio.wait({waiting}, timeout=5)
        return [task.cancelled() for task in done]

    assert asyncio.run(run()) == [True]
