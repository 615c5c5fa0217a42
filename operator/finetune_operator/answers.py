"""What the API server answers: JSON objects, and refusals as typed errors."""

from __future__ import annotations

import json
from typing import Any

Object = dict[str, Any]
_NO_SUCH_PATH = "404 page not found"
"""What the API server says of a kind that it does not know; of all else it says it in JSON."""


class KubeError(Exception):
    """An answer of the API server that is no success, or no answer."""

    def __init__(self, code: int, message: str, reason: str = "") -> None:
        """Hold the HTTP code (0: there was no answer), the message and the reason."""
        self.code = code
        self.message = message
        self.reason = reason
        super().__init__(f"{code} {reason}: {message}" if code else message)


class NotFound(KubeError):
    """The object, or its kind, does not exist."""


class Conflict(KubeError):
    """It exists already, or has changed since it was read."""


class Forbidden(KubeError):
    """The right is missing, a quota is used up, or a policy refuses it."""

    @property
    def for_quota(self) -> bool:
        """Whether a quota is used up, which the API server tells by its message alone."""
        return "exceeded quota" in self.message


class Invalid(KubeError):
    """The API server does not accept the object."""


class Unavailable(KubeError):
    """Nothing was decided: no answer, too many requests, an error of the server."""

    retry_after: float | None = None


def parsed(text: str) -> Object | None:
    """Return the object that an answer is; None where it is none, or only the beginning of one."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def held(answer: Object, name: str) -> list[Object]:
    """Return what every list of the API server holds, were it nothing.

    Raises ``Unavailable`` for an answer of somebody else, which would mean that there is nothing.
    """
    if name not in answer:
        raise not_its_own(200, f"the question for {name}", str(answer))
    return answer[name] or []


def not_its_own(code: int, asked: str, text: str) -> Unavailable:
    """Return what to raise where somebody between us and the API server has answered, or cut it."""
    return Unavailable(code, f"{asked}: this is no answer of the API server: {text[:64]!r}")


def error_of(code: int, answer: Object, text: str, after: float | None) -> KubeError:
    """Return what to raise for an answer that is no success."""
    message = str(answer.get("message") or text)[:1024]
    reason = str(answer.get("reason") or "")
    kinds: dict[int, type[KubeError]] = {
        403: Forbidden,
        404: NotFound,
        409: Conflict,
        400: Invalid,
        413: Invalid,
        422: Invalid,
    }
    if code == 404 and not answer and text and not text.startswith(_NO_SUCH_PATH):
        return not_its_own(code, "what was asked for", text)
    if code in kinds:
        return kinds[code](code, message, reason)
    if code in (401, 408, 429) or code >= 500:
        error = Unavailable(code, message, reason)
        error.retry_after = after
        return error
    return KubeError(code, message, reason)
