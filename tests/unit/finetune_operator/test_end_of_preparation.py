"""What a look asks for when the pod of a preparation has ended: next to nothing."""

from __future__ import annotations

from typing import Any

from harness.looks import NAMESPACE, Looks
from harness.played_runs import Run, trains_forever


def prepared(*, told: bool, script: Any = trains_forever) -> tuple[Looks, list[str]]:
    """Bring a job to the end of its preparation's pod; returns what the next look asks for."""
    looks = Looks(script=script)
    looks.create()
    for _ in range(12):
        pod = looks.api.objects.get(("pods", NAMESPACE, "bot-prepare-0-abcde"))
        if pod is not None and pod["status"]["phase"] in ("Succeeded", "Failed"):
            break
        looks.turn()
    else:
        raise AssertionError(looks.status)
    asked: list[str] = []

    def listen(method: str, path: str) -> None:
        asked.append(f"{method} {path.rpartition('/')[2]}")

    if told:
        looks.tell()
    looks.watches = False
    looks.kube.refuse = listen
    looks.look()
    return looks, asked


def test_the_attempt_begins_without_a_list() -> None:
    looks, asked = prepared(told=True)
    assert "bot-1" in looks.children()
    assert [one for one in asked if one.startswith("GET")] == ["GET bot-workspace"]


def test_an_end_that_no_watch_has_told_of_is_found_in_lists() -> None:
    looks, asked = prepared(told=False)
    assert "bot-1" in looks.children()
    assert {"GET jobs", "GET pods"} <= set(asked)


def test_both_say_the_same() -> None:
    one, other = (prepared(told=told)[0].status for told in (True, False))
    times = ("lastTransitionTime", "time", "since", "at")

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: plain(it)
                for key, it in value.items()
                if key not in times and not key.endswith(("Time", "At", "uid", "Seconds"))
            }
        return [plain(it) for it in value] if isinstance(value, list) else value

    assert plain(one) == plain(other)
    assert one["prepared"] is True
    assert one["choices"]["totalSteps"] == 60


def test_a_preparation_that_failed_is_looked_at_whole() -> None:
    def fails(stage: str, attempt: int, node: int) -> Run:
        return Run(exit_code=1)

    _, asked = prepared(told=True, script=fails)
    assert {"GET jobs", "GET pods"} <= set(asked)
