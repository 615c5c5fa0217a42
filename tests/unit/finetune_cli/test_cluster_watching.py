"""A watch goes on where it stood, whatever breaks."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

import pytest

from finetune_cli.cluster.connection import ApiRefusal, NoAnswer
from finetune_cli.cluster.watching import Listed, watch
from harness.scripted_cluster import ScriptedCluster

PATH = "/jobs"


def found(version: str, *names: str) -> dict[str, Any]:
    return {"metadata": {"resourceVersion": version}, "items": [body(n, version) for n in names]}


def body(name: str, version: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "resourceVersion": version}}


def event(kind: str, name: str, version: str) -> str:
    return json.dumps({"type": kind, "object": body(name, version)})


def error(code: int) -> str:
    status = {"kind": "Status", "code": code, "reason": "Expired", "message": "too old"}
    return json.dumps({"type": "ERROR", "object": status})


def seen(cluster: ScriptedCluster, count: int) -> tuple[list[object], list[str], list[float]]:
    said: list[str] = []
    slept: list[float] = []
    changes = islice(watch(cluster, PATH, {"fieldSelector": "x"}, said.append, slept.append), count)
    words = [
        [one["metadata"]["name"] for one in change.bodies]
        if isinstance(change, Listed)
        else (change.kind, change.body["metadata"]["name"])
        for change in changes
    ]
    return words, said, slept


def versions(cluster: ScriptedCluster) -> list[str | None]:
    return [query.get("resourceVersion") for _, query in cluster.asked]


def test_a_watch_begins_where_the_list_ended_and_goes_on_where_the_last_one_did() -> None:
    cluster = ScriptedCluster(
        {PATH: [found("5", "bot")]},
        {
            PATH: [
                [event("MODIFIED", "bot", "6"), event("BOOKMARK", "", "9")],
                [event("DELETED", "bot", "10")],
            ]
        },
    )
    words, said, _ = seen(cluster, 3)
    assert words == [["bot"], ("MODIFIED", "bot"), ("DELETED", "bot")]
    assert versions(cluster) == [None, "5", "9"]
    assert cluster.asked[1][1]["allowWatchBookmarks"] == "true"
    assert said == []


def test_one_broken_connection_is_not_worth_a_word_an_outage_is_worth_two() -> None:
    cluster = ScriptedCluster(
        {PATH: [found("5", "bot")]},
        {
            PATH: [
                [event("MODIFIED", "bot", "6"), NoAnswer("reset")],
                [event("MODIFIED", "bot", "7"), NoAnswer("reset")],
                NoAnswer("refused"),
                ApiRefusal(503, "", "starting"),
                [event("MODIFIED", "bot", "8")],
            ]
        },
    )
    words, said, slept = seen(cluster, 4)
    assert words == [["bot"], ("MODIFIED", "bot"), ("MODIFIED", "bot"), ("MODIFIED", "bot")]
    assert versions(cluster) == [None, "5", "6", "7", "7", "7"]
    assert said == [
        "the API server does not answer (refused); trying again",
        "the API server answers again",
    ]
    assert len(slept) == 4
    assert 1.0 <= slept[3] <= 2.0  # the third in a row: 0.5 s doubled twice, at least half of it


def test_what_is_too_old_is_listed_again() -> None:
    cluster = ScriptedCluster(
        {PATH: [found("5", "bot"), found("90")]},
        {PATH: [[error(410)], [event("ADDED", "bot", "91")]]},
    )
    words, said, _ = seen(cluster, 3)
    assert words == [["bot"], [], ("ADDED", "bot")]
    assert versions(cluster) == [None, "5", None, "90"]
    assert said == []


def test_a_server_that_finds_every_list_too_old_is_not_hurried() -> None:
    """The first refusal is answered with a new list at once; pauses grow from the second on."""
    cluster = ScriptedCluster(
        {PATH: [found("5", "bot")]},
        {PATH: [*[[error(410)]] * 5, [event("ADDED", "new", "6"), error(410)], [error(410)]]},
    )
    words, said, slept = seen(cluster, 9)
    assert words == [*[["bot"]] * 6, ("ADDED", "new"), ["bot"], ["bot"]]
    bounds = [(0.25, 0.5), (0.5, 1.0), (1.0, 2.0), (2.0, 4.0), (0.25, 0.5)]
    assert len(slept) == 5
    assert all(low <= pause <= high for pause, (low, high) in zip(slept, bounds, strict=True))
    assert said == [
        "the API server does not answer (410 too old); trying again",
        "the API server answers again",
    ]


def test_a_stream_that_opens_and_breaks_is_asked_for_less_and_less_often() -> None:
    cluster = ScriptedCluster(
        {PATH: [found("5", "bot")]},
        {PATH: [*[[NoAnswer("reset")]] * 4, [event("MODIFIED", "bot", "6")]]},
    )
    words, said, slept = seen(cluster, 2)
    assert words == [["bot"], ("MODIFIED", "bot")]
    assert len(slept) == 4
    assert 2.0 <= slept[3] <= 4.0
    assert said == [
        "the API server does not answer (reset); trying again",
        "the API server answers again",
    ]


def test_an_event_that_is_cut_off_is_read_again() -> None:
    cluster = ScriptedCluster(
        {PATH: [found("5", "bot")]},
        {PATH: [['{"type": "MODIFIED", "obj'], [event("MODIFIED", "bot", "6")]]},
    )
    assert seen(cluster, 2)[0] == [["bot"], ("MODIFIED", "bot")]
    assert versions(cluster) == [None, "5", "5"]


@pytest.mark.parametrize("first", [NoAnswer("refused"), ApiRefusal(403, "Forbidden", "no")])
def test_who_cannot_begin_is_told_at_once(first: Exception) -> None:
    with pytest.raises(type(first)):
        seen(ScriptedCluster({PATH: [first]}), 1)


def test_a_right_that_is_taken_away_ends_the_watch() -> None:
    refusal = ApiRefusal(403, "Forbidden", "no")
    cluster = ScriptedCluster({PATH: [found("5", "bot")]}, {PATH: [refusal]})
    with pytest.raises(ApiRefusal):
        seen(cluster, 2)
