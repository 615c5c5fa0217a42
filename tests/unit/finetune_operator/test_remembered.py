"""A table that is bounded by number and by bytes."""

from __future__ import annotations

from finetune_operator.remembered import Remembered


def test_the_oldest_are_dropped_beyond_the_number() -> None:
    kept: Remembered[str, int] = Remembered(2, 100)
    for number, key in enumerate("abc"):
        kept.put(key, number, 1)
    assert [kept.get(key) for key in "abc"] == [None, 1, 2]
    assert (len(kept), kept.size) == (2, 2)


def test_the_oldest_are_dropped_beyond_the_bytes() -> None:
    kept: Remembered[str, int] = Remembered(10, 100)
    for number, key in enumerate("abc"):
        kept.put(key, number, 40)
    assert [kept.get(key) for key in "abc"] == [None, 1, 2]
    kept.put("d", 3, 100)
    assert [kept.get(key) for key in "bcd"] == [None, None, 3]
    assert (len(kept), kept.size) == (1, 100)


def test_one_that_is_larger_than_all_the_room_takes_nothing_from_others() -> None:
    kept: Remembered[str, int] = Remembered(10, 100)
    kept.put("a", 0, 60)
    kept.put("b", 1, 20)
    kept.put("b", 2, 101)
    assert (kept.get("a"), kept.get("b")) == (0, None)
    assert (len(kept), kept.size) == (1, 60)


def test_what_is_put_again_is_the_newest_and_counted_once() -> None:
    kept: Remembered[str, int] = Remembered(2, 100)
    kept.put("a", 0, 60)
    kept.put("b", 1, 10)
    kept.put("a", 2, 20)
    assert kept.size == 30
    kept.put("c", 3, 10)
    assert [kept.get(key) for key in "abc"] == [2, None, 3]
    kept.pop("a")
    kept.pop("nothing")
    assert (len(kept), kept.size) == (1, 10)
