"""A watch of the API server that outlives its outages."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from finetune_cli.cluster.connection import ApiRefusal, Cluster, NoAnswer

Object = dict[str, Any]
SERVER_SECONDS = 290
"""After which the API server ends a watch by itself; the next one goes on where it stood."""
SILENCE = 130.0
"""Seconds without a word, not even a bookmark (sent each minute), after which it is broken."""
LONGEST_PAUSE = 10.0


@dataclass(frozen=True)
class Change:
    """One object as it is now, or the last that was seen of it."""

    kind: Literal["ADDED", "MODIFIED", "DELETED"]
    body: Object


@dataclass(frozen=True)
class Listed:
    """Everything that is there: what was seen before and is not among it has gone."""

    bodies: tuple[Object, ...]


def watch(
    cluster: Cluster,
    path: str,
    query: Mapping[str, str],
    say: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Change | Listed]:
    """Yield what is there, then every change, without an end.

    After a long outage the list is read and told again. The first list raises ``ApiRefusal`` and ``NoAnswer``; later ones are tried again for
    ever, except where the API server refuses them. ``say`` hears of an outage and of its end.
    """
    outage = _Outage(say, sleep)
    version = ""
    started = False
    while True:
        try:
            if not version:
                found = cluster.get(path, query)
                started = True
                version = _version(found)
                yield Listed(tuple(found.get("items") or ()))
            began = time.monotonic()
            events = _changes(cluster, path, query, version)
            outage.answers()
            for change, reached in events:
                outage.over()
                version = reached
                if change is not None:
                    yield change
            if time.monotonic() - began < 1.0:
                sleep(1.0)  # a server that ends every watch at once must not be hurried
        except ApiRefusal as error:
            if not started or not _passes(error):
                raise
            if error.code == 410:
                version = ""
                if outage.first_too_old():
                    continue  # the list is newer, but not that of a server which lags behind
            outage.wait(f"{error.code} {error.message}")
        except NoAnswer as error:
            if not started:
                raise
            outage.wait(str(error))


def _changes(
    cluster: Cluster, path: str, query: Mapping[str, str], version: str
) -> Iterator[tuple[Change | None, str]]:
    """Open a watch; return its changes with the version that each one reaches, until it ends."""
    more = {
        "watch": "1",
        "allowWatchBookmarks": "true",
        "timeoutSeconds": str(SERVER_SECONDS),
        "resourceVersion": version,
    }
    return _parsed(cluster.lines(path, {**query, **more}, SILENCE), version)


def _parsed(lines: Iterator[str], version: str) -> Iterator[tuple[Change | None, str]]:
    for line in lines:
        try:
            event = json.loads(line)
            kind, body = event["type"], event["object"]
        except (ValueError, KeyError, TypeError) as error:
            raise NoAnswer("an event of the watch is cut off") from error
        if kind == "ERROR":
            code = int(body.get("code") or 500)
            raise ApiRefusal(code, str(body.get("reason") or ""), str(body.get("message") or ""))
        version = _version(body) or version
        yield (Change(kind, body) if kind != "BOOKMARK" else None), version


def _version(body: Mapping[str, Any]) -> str:
    return str((body.get("metadata") or {}).get("resourceVersion") or "")


def _passes(error: ApiRefusal) -> bool:
    """Tell whether a refusal is one of the moment: an overload, a start, a list that is too old."""
    return error.code in (408, 410, 429) or error.code >= 500


class _Outage:
    """Says once that nobody answers, and once that it is over.

    Pauses grow until an event has come: a stream that opens and breaks at once is none.
    """

    def __init__(self, say: Callable[[str], None], sleep: Callable[[float], None]) -> None:
        self._say = say
        self._sleep = sleep
        self._tries = 0
        self._said = False
        self._too_old = False

    def wait(self, why: str) -> None:
        """Pause before the next try; a single break is silent: connections do end."""
        self._tries += 1
        if self._tries == 2:
            self._said = True
            self._say(f"the API server does not answer ({why}); trying again")
        pause = min(LONGEST_PAUSE, 0.5 * 2 ** (self._tries - 1))
        self._sleep(random.uniform(pause / 2, pause))  # noqa: S311 - spreads load, guards nothing

    def first_too_old(self) -> bool:
        """Tell whether no watch was refused as too old since the last event."""
        first, self._too_old = not self._too_old, True
        return first

    def answers(self) -> None:
        """Say that it answers, where it was said that it does not."""
        if self._said:
            self._say("the API server answers again")
        self._said = False

    def over(self) -> None:
        """Begin anew: an event has come."""
        self._tries, self._too_old = 0, False
