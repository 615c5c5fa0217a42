"""The newest version of each job that we were told of, so that a look need not ask for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from finetune_api.names import LABEL_PRIORITY, LABEL_QUEUE
from finetune_operator.queue import Key
from finetune_operator.remembered import Remembered

Object = dict[str, Any]
LIMIT = 4096
ROOM = 32 * 1024 * 1024
"""Bytes of the texts of all jobs."""
LARGEST = 128 * 1024
"""Bytes of one job; one that is larger is read at each look."""
_ENTRY = 256
"""Bytes that an entry takes beside its text."""
_METADATA = (
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
)
_LABELS = (LABEL_QUEUE, LABEL_PRIORITY)


class Stale(Exception):
    """What is to be done next is done only for a job as it is now, and this one was remembered."""


class KnownJobs:
    """Jobs as a watch, a list or the answer to our own write has shown them; the oldest are dropped.

    None is the newest for certain. Who writes under the version that it has is told so; who only
    acts has to read the job first. Of jobs that have ended, and of very large ones, the version
    alone is kept: the former are seldom looked at.
    """

    def __init__(self, limit: int = LIMIT, room: int = ROOM) -> None:
        """Begin empty."""
        self._known: Remembered[Key, tuple[int, bytes]] = Remembered(limit, room)

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._known)

    @property
    def size(self) -> int:
        """Bytes of what is kept."""
        return self._known.size

    def learn(self, body: Mapping[str, Any]) -> None:
        """Keep a job, unless a newer version is there; a version that is no number cannot be one."""
        metadata = body.get("metadata") or {}
        key = Key(str(metadata.get("namespace") or ""), str(metadata.get("name") or ""))
        version = str(metadata.get("resourceVersion") or "")
        before, _ = self._known.get(key) or (-1, b"")
        if not version.isdecimal():
            self.forget(key)
        elif int(version) > before:
            over = (body.get("status") or {}).get("outcome")
            text = b"" if over else _text(body)
            text = text if len(text) <= LARGEST else b""
            self._known.put(key, (int(version), text), len(text) + _ENTRY)

    def listed(self, body: Mapping[str, Any]) -> None:
        """Learn a job from a list of all jobs; one that is older there is to be read again.

        The list may have been older than what we were told. But where the store was brought back
        from a copy its versions begin again, and none of them would be newer than what was known.
        """
        metadata = body["metadata"]
        key, version = Key(metadata["namespace"], metadata["name"]), metadata["resourceVersion"]
        before, _ = self._known.get(key) or (-1, b"")
        if version.isdecimal() and int(version) < before:
            self.forget(key)
        else:
            self.learn(body)

    def get(self, key: Key) -> Object | None:
        """Return a job of one's own to change; None where none is kept."""
        _, text = self._known.get(key) or (-1, b"")
        if not text:
            return None
        body: Object = json.loads(text)
        return body

    def forget(self, key: Key) -> None:
        """Let go of a job that is gone, or that is not what it was taken for."""
        self._known.pop(key)


def _text(body: Mapping[str, Any]) -> bytes:
    """Return a job as text, which takes a fifth of the room, with what is read of its metadata.

    Annotations and labels are its users', who decide how much that is.
    """
    metadata = {name: body["metadata"][name] for name in _METADATA if name in body["metadata"]}
    labels = body["metadata"].get("labels") or {}
    own = {name: labels[name] for name in _LABELS if name in labels}
    if own:
        metadata["labels"] = own
    return json.dumps({**body, "metadata": metadata}, separators=(",", ":")).encode()
