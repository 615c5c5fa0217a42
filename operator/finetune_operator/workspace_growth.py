"""A claim that we made grows with ``workspace.size``: never smaller, and never somebody else's."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune_api.problem import Problem
from finetune_api.quantity import parse_bytes
from finetune_operator.kube import (
    CLAIMS,
    Forbidden,
    Invalid,
    Kube,
    KubeError,
    Object,
    is_ending,
    uid_of,
)
from finetune_operator.render.workspace import made_by_us
from finetune_operator.resolve.paths import look
from finetune_operator.resolve.profiles import Profile
from finetune_operator.resolve.wording import cut

log = logging.getLogger(__name__)

FIELD = "spec.workspace.size"
AGAIN = 600.0
"""Seconds after which a growth that was refused is asked for again."""
REMEMBERED = 4096


def wanted(body: Mapping[str, Any], claim: Mapping[str, Any] | None) -> str | None:
    """Return the size that a claim is to grow to; None where it is to stay as it is.

    Only a claim with our label, and one that is bound: others cannot be resized yet.
    """
    size = look(body, "spec", "workspace", "size")
    if isinstance(size, int) and not isinstance(size, bool):
        size = str(size)
    if not isinstance(size, str) or look(body, "spec", "workspace", "claimName") is not None:
        return None
    if (
        claim is None
        or not made_by_us(claim)
        or is_ending(claim)
        or look(claim, "status", "phase") != "Bound"
    ):
        return None
    has = look(claim, "spec", "resources", "requests", "storage")
    try:
        return size if parse_bytes(size) > parse_bytes(str(has)) else None
    except ValueError:
        return None


def over_limit(size: str, profile: Profile) -> Problem | None:
    """Return a problem where a profile does not allow the size."""
    most = profile.spec.limits.workspace
    if most is None or parse_bytes(size) <= parse_bytes(most):
        return None
    return Problem(
        code="over-limit",
        field=FIELD,
        message=cut(
            f"{FIELD} is {size}; profile {profile.name} allows at most {most} (limits.workspace),"
            " so the volume stays as it is"
        ),
        fix=f"lower size to {most}, or ask who runs the cluster",
    )


def refused(claim: str, size: str, error: KubeError) -> Problem:
    """Return what the cluster said, and what to do: the job goes on with the volume it has."""
    text = error.message
    fix = "ask who runs the cluster"
    if "resize" in text or "expan" in text:
        fix = (
            "use a storage class with allowVolumeExpansion, or name a larger claim in"
            " workspace.claimName of a new job"
        )
    elif "exceeded quota" in text:
        fix = "free some of the namespace's storage quota, or have it raised"
    elif "cannot patch resource" in text:
        fix = "give the operator the right to patch persistentvolumeclaims"
    message = f"claim {claim} could not grow to {size}, the job goes on with what it has: {text}"
    return Problem(code="workspace-not-grown", field=FIELD, message=cut(message), fix=fix)


def unheard(claim: Mapping[str, Any], size: str, error: KubeError) -> Problem | None:
    """Return what to say of a growth that had no answer; None where it will have one soon."""
    if error.code < 500:
        return None
    # Its own words may differ each time, and each time would be a write.
    text = f"the API server answers {error.code}, and is asked again"
    return refused(str(look(claim, "metadata", "name")), size, KubeError(error.code, text))


@dataclass
class Growth:
    """Lets claims grow; remembers only what was refused lately."""

    kube: Kube
    clock: Callable[[], float] = time.monotonic
    _refused: OrderedDict[tuple[str, str], tuple[float, Problem]] = field(
        default_factory=OrderedDict
    )

    async def grow(self, claim: Object, size: str, profile: Profile | None) -> Problem | None:
        """Let a claim grow, within the job's profile; returns why it could not.

        Raises ``KubeError`` where there was no answer, or the claim has changed since it was read.
        """
        beyond = None if profile is None else over_limit(size, profile)
        if beyond is not None:
            return beyond
        key = (uid_of(claim), size)
        at, problem = self._refused.get(key, (float("-inf"), None))
        if problem is not None and self.clock() - at < AGAIN:
            return problem
        try:
            await self.kube.patch(
                CLAIMS, claim, {"spec": {"resources": {"requests": {"storage": size}}}}
            )
        except (Forbidden, Invalid) as error:
            name = str(claim["metadata"]["name"])
            problem = refused(name, size, error)
            self._refused[key] = (self.clock(), problem)
            self._refused.move_to_end(key)
            while len(self._refused) > REMEMBERED:
                self._refused.popitem(last=False)
            return problem
        self._refused.pop(key, None)
        log.info("claim %s grows to %s", claim["metadata"]["name"], size)
        return None
