"""What the API server was asked, and by whom: its own audit log, not what a client says of itself."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from finetune_api.names import LABEL_UID

WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})


@dataclass(frozen=True)
class Request:
    """One request that the API server has answered."""

    at: datetime
    """When it came."""
    user: str
    agent: str
    verb: str
    resource: str
    """With its subresource, such as ``finetunejobs/status``."""
    namespace: str
    name: str
    code: int
    selector: str = ""
    """Labels that were asked for in a list or a watch."""

    @property
    def writes(self) -> bool:
        """Whether it asks for a change; a refused one counts as well."""
        return self.verb in WRITES


def policy(folder: Path, *users: str) -> Path:
    """Write an audit policy: every write, and all that these users ask; returns its path."""
    rules: list[dict[str, Any]] = [
        {"level": "Metadata", "users": list(users)},
        {"level": "Metadata", "verbs": sorted(WRITES)},
        {"level": "None"},
    ]
    path = folder / "audit-policy.json"
    path.write_text(
        json.dumps(
            {
                "apiVersion": "audit.k8s.io/v1",
                "kind": "Policy",
                "omitStages": ["RequestReceived", "ResponseStarted"],
                "rules": rules if users else rules[1:],
            }
        )
    )
    return path


def requests(log: Path, *, user: str = "", since: datetime | None = None) -> Iterator[Request]:
    """Yield the requests of a user, of any where none is named, that came after a time."""
    with log.open() as lines:
        for line in lines:
            if not line.endswith("\n"):
                return  # is being written
            if user and f'"{user}"' not in line:
                continue
            found = _read(json.loads(line))
            if (not user or found.user == user) and (since is None or found.at > since):
                yield found


def looked_at(found: Iterable[Request]) -> set[str]:
    """Return the uids of the jobs whose pods were listed: every look at a job that runs does so."""
    return {
        one.selector.partition(f"{LABEL_UID}=")[2]
        for one in found
        if (one.verb, one.resource) == ("list", "pods") and LABEL_UID in one.selector
    }


def _read(entry: dict[str, Any]) -> Request:
    about = entry.get("objectRef") or {}
    query = parse_qs(urlsplit(entry.get("requestURI", "")).query)
    parts = (about.get("resource", ""), about.get("subresource", ""))
    return Request(
        at=datetime.fromisoformat(entry["requestReceivedTimestamp"]),
        user=entry["user"].get("username", ""),
        agent=entry.get("userAgent", ""),
        verb=entry["verb"],
        resource="/".join(part for part in parts if part),
        namespace=about.get("namespace", ""),
        name=about.get("name", ""),
        code=(entry.get("responseStatus") or {}).get("code", 0),
        selector=query.get("labelSelector", [""])[0],
    )
