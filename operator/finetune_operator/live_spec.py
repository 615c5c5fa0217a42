"""The fields of an accepted job that may change, as its object has them now. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from finetune_api.job import MUTABLE, JobSpec
from finetune_api.problem import Problem
from finetune_api.resolved import ResolvedJob
from finetune_operator.resolve.ceilings import over_limits, removed_deadline
from finetune_operator.resolve.profiles import Profile

Changed = tuple[JobSpec, tuple[Problem, ...]]


def changed_spec(job: ResolvedJob, spec: Mapping[str, Any]) -> Changed:
    """Return the accepted spec with the fields that may change as the object has them now.

    A field that its user has taken out again is what it would be without a user: the built-in
    value. One that is not valid is left as it was accepted.
    """
    accepted = job.spec.to_json()
    problems: tuple[Problem, ...] = ()
    now = dict(accepted)
    for name in MUTABLE:
        theirs = spec.get(name)
        if name == "recovery":
            own = {
                key: value
                for key, value in (accepted.get(name) or {}).items()
                if job.origins.get(f"recovery.{key}") != "user"
            }
            theirs = {**own, **theirs} if isinstance(theirs, Mapping) else own
        elif theirs is None and job.origins.get(name) != "user":
            continue
        tried = {**now, name: theirs} if theirs is not None else _without(now, name)
        try:
            JobSpec.model_validate(tried)
        except ValidationError as error:
            message = str(error.errors()[0]["msg"])[:512]
            problems += (Problem(code="invalid-value", field=f"spec.{name}", message=message),)
            continue
        now = tried
    return JobSpec.model_validate(now), problems


def within_limits(job: ResolvedJob, now: JobSpec, profile: Profile | None) -> Changed:
    """Return a changed spec with what goes beyond the profile's limits as it was accepted.

    A deadline that is taken away goes further than any. ``profile``: as it is now; None where it is
    gone, so that nobody allows anything.
    """
    kept = job.spec.active_deadline_seconds
    if now.active_deadline_seconds == kept or now.profile_ref is None:
        return now, ()
    if profile is None:
        refused = [no_limits(now.profile_ref.name, "spec.activeDeadlineSeconds")]
    else:
        refused = over_limits(now, profile) + removed_deadline(job.spec, now, profile)
    if not refused:
        return now, ()
    return now.model_copy(update={"active_deadline_seconds": kept}), tuple(refused)


def no_limits(profile: str, field: str) -> Problem:
    """Return the problem of a change that a profile which is gone would have to allow."""
    return Problem(
        code="profile-missing",
        field=field,
        message=f"FineTuneProfile {profile} is gone, so nobody says how far this may go",
        fix="bring it back",
    )


def _without(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key != name}
