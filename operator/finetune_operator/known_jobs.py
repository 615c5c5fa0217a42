"""The newest version of each job that we were told of, so that a look need not ask for it."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from finetune_operator.queue import Key

Object = dict[str, Any]
LIMIT = 4096


class Stale(Exception):
    """What is to be done next is done only for a job as it is now, and this one was remembered."""


class KnownJobs:
    """Jobs as a watch, a list or the answer to our own write has shown them; the oldest are dropped.

    None is the newest for certain. Who writes under the version that it has is told so; who only
    acts has to read the job first. Of jobs that have ended the version alone is kept: they are seldom looked at.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        """Begin empty."""
        self._limit = limit
        self._known: OrderedDict[Key, tuple[int, bytes]] = OrderedDict()

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._known)

    def learn(self, body: Mapping[str, Any]) -> None:
        """Keep a job, unless a newer version is there; a version that is no number cannot be one."""
        metadata = body.get("metadata") or {}
        key = Key(str(metadata.get("namespace") or ""), str(metadata.get("name") or ""))
        version = str(metadata.get("resourceVersion") or "")
        before, _ = self._known.get(key, (-1, b""))
        if not version.isdecimal():
            self.forget(key)
        elif int(version) <= before:
            return
        else:
            over = (body.get("status") or {}).get("outcome")
            self._known[key] = (int(version), b"" if over else _text(body))
            self._known.move_to_end(key)
            while len(self._known) > self._limit:
                self._known.popitem(last=False)

    def get(self, key: Key) -> Object | None:
        """Return a job of one's own to change; None where none is kept."""
        _, text = self._known.get(key, (-1, b""))
        if not text:
            return None
        body: Object = json.loads(text)
        return body

    def forget(self, key: Key) -> None:
        """Let go of a job that is gone, or that is not what it was taken for."""
        self._known.pop(key, None)


def _text(body: Mapping[str, Any]) -> bytes:
    """Return a job as text, which takes a fifth of the room; who wrote which field is left out."""
    metadata = {name: it for name, it in body["metadata"].items() if name != "managedFields"}
    return json.dumps({**body, "metadata": metadata}, separators=(",", ":")).encode()
