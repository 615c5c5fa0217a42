"""A connection whose answers a test has written: for breaks in places that no real server hits at will.

The real API server answers in ``tests/cluster``, real kubelets in ``tests/e2e``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class ScriptedCluster:
    """Answers each question with the next answer of its path; an exception is raised."""

    gets: dict[str, list[Any]] = field(default_factory=dict)
    streams: dict[str, list[Any]] = field(default_factory=dict)
    """Each a list of lines; an exception in it breaks the stream, a callable is called."""
    namespace: str = "team"
    place: str = "context tests"
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def get(self, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Answer the next time that a path is read; the last answer stays."""
        self.asked.append((path, dict(query or {})))
        answers = self.gets[path]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return dict(answer)

    def merge(self, path: str, patch: Mapping[str, Any]) -> dict[str, Any]:
        """Nothing that is scripted is changed."""
        raise NotImplementedError

    def lines(
        self, path: str, query: Mapping[str, str] | None = None, silence: float | None = None
    ) -> Iterator[str]:
        """Open the next stream of a path."""
        self.asked.append((path, dict(query or {})))
        answers = self.streams[path]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return self._stream(list(answer))

    def _stream(self, script: list[str | BaseException | Callable[[], None]]) -> Iterator[str]:
        for entry in script:
            if isinstance(entry, BaseException):
                raise entry
            if callable(entry):
                entry()
            else:
                yield entry
