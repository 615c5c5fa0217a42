"""``resolve``: a job as its user wrote it, its profile and our defaults become one complete job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetune_api.document import canonical
from finetune_api.job import JobSpec
from finetune_api.problem import Problem, Refused
from finetune_api.resolved import Chosen, Origin, ResolvedJob
from finetune_operator.resolve import builtin, ceilings, checks, extra_resources, validation
from finetune_operator.resolve.layers import Merged
from finetune_operator.resolve.paths import look, path_text
from finetune_operator.resolve.profiles import Profile, choose_profile, profile_problems
from finetune_operator.resolve.wording import cut

__all__ = ["profile_problems", "resolve"]

NEEDED = frozenset({"missing-field", "method-exactly-one"})
"""Problems of what is absent."""
LONGEST = 192 * 1024
"""Bytes of a resolved job: every pod carries it in an annotation, and all of those have 256 KiB."""


def resolve(
    job: Mapping[str, Any],
    profiles: Sequence[Mapping[str, Any]] = (),
    namespace_labels: Mapping[str, str] | None = None,
    *,
    uid: str | None = None,
    namespace: str | None = None,
    trainer_image: str | None = None,
) -> ResolvedJob:
    """Return the complete job: built-in values < the profile's defaults < the user's words.

    Args:
        job: the whole FineTuneJob object, raw and in camelCase.
        profiles: every FineTuneProfile object there is, raw.
        namespace_labels: labels of the job's namespace, for the profiles' selectors.
        uid: of the job; absent: ``metadata.uid``.
        namespace: of the job; absent: ``metadata.namespace``, else ``default``.
        trainer_image: pinned by digest; absent: the profile's.

    Raises:
        Refused: with every problem that was found, and nothing else for any JSON-like input.
    """
    problems: list[Problem] = checks.name_problems(look(job, "metadata", "name"))
    spec = look(job, "spec")
    misshapen = validation.shape({} if spec is None else spec, "spec")
    if misshapen:
        raise Refused(*problems, *misshapen)
    user = spec or {}
    empty = validation.empties(JobSpec, user)
    problems += empty

    profile: Profile | None = None
    refusal: tuple[Problem, ...] = ()
    try:
        profile = choose_profile(user.get("profileRef"), profiles, namespace_labels or {})
    except Refused as refused:
        refusal = refused.problems
    merged, chosen = _merged(user, profile)
    parsed = validation.parse(JobSpec, merged.data)
    found = parsed if isinstance(parsed, list) else []
    broken = [problem.field for problem in (*empty, *found) if problem.field]
    found += checks.rule_problems(builtin.compared(merged), broken)
    if isinstance(parsed, JobSpec):
        found += _beyond_profile(parsed, look(job, "metadata", "labels"), profile)
    if refusal:
        # What is missing may stand in the profile that was not found.
        found = [problem for problem in found if problem.code not in NEEDED]
    hidden = {problem.field for problem in empty}
    problems += refusal
    problems += [
        _attributed(problem, merged, profile) for problem in found if problem.field not in hidden
    ]
    if problems:
        raise Refused(*problems)
    assert isinstance(parsed, JobSpec)
    resolved = ResolvedJob(
        name=look(job, "metadata", "name"),
        namespace=namespace or _text(look(job, "metadata", "namespace")) or "default",
        uid=uid or _text(look(job, "metadata", "uid")),
        trainer_image=_image(trainer_image, profile),
        spec=parsed,
        origins={path_text(path): origin for path, origin in sorted(_known(merged).items())},
        chosen=chosen,
    )
    if (size := len(canonical(resolved.to_json()))) > LONGEST:
        raise Refused(
            Problem(
                code="job-too-long",
                field="spec",
                message=f"the complete job has {size:,} bytes as JSON; {LONGEST:,} are possible",
                fix="shorten the longest lists and texts of the job and its profile",
            )
        )
    return resolved


def _merged(user: Mapping[str, Any], profile: Profile | None) -> tuple[Merged, tuple[Chosen, ...]]:
    """Return the three layers as one, with what was chosen."""
    merged = Merged()
    if profile is not None:
        defaults = {k: v for k, v in profile.spec.defaults.items() if k != "profileRef"}
        merged = merged.over(defaults, "profile")
    merged = merged.over(user, "user")
    chosen: tuple[Chosen, ...] = ()
    if profile is not None:
        if "profileRef" not in merged.data:
            merged = merged.filled(("profileRef", "name"), profile.name)
            reason = "the default profile of the cluster"
            chosen += (
                Chosen(field="profileRef.name", value=cut(profile.name, 250), reason=reason),
            )
        merged, fitted = ceilings.fit(merged, profile)
        chosen += fitted
    merged, filled = builtin.fill(merged)
    return merged, chosen + filled


def _beyond_profile(spec: JobSpec, labels: Any, profile: Profile | None) -> list[Problem]:
    """Return what a valid spec asks for and its profile does not give."""
    if profile is None:
        return []
    texts = {
        key: value
        for key, value in (labels.items() if isinstance(labels, Mapping) else ())
        if isinstance(value, str)
    }
    return [
        *ceilings.not_allowed(spec, texts, profile),
        *ceilings.over_limits(spec, profile),
        *extra_resources.lacking(spec, profile.spec.platform),
    ]


def _attributed(problem: Problem, merged: Merged, profile: Profile | None) -> Problem:
    """Return the problem with the profile named, where the value came from its defaults."""
    if profile is None or problem.field is None:
        return problem
    field = problem.field.removeprefix("spec.")
    around = [
        (path_text(path), origin)
        for path, origin in merged.origins.items()
        if field == path_text(path)
        or field.startswith((f"{path_text(path)}.", f"{path_text(path)}["))
    ]
    if not around or max(around, key=lambda item: len(item[0]))[1] != "profile":
        return problem
    message = f"{problem.message} (from the defaults of profile {profile.name})"
    return problem.model_copy(update={"message": cut(message)})


def _known(merged: Merged) -> dict[tuple[str, ...], Origin]:
    """Return the origins with paths that sort; lists are one value, so no path has a number."""
    return {tuple(map(str, path)): origin for path, origin in merged.origins.items()}


def _text(value: Any) -> str:
    """Return text, empty where the value is none."""
    return value if isinstance(value, str) else ""


def _image(given: str | None, profile: Profile | None) -> str:
    """Return the trainer image: the one that is given, else the profile's."""
    if given:
        return given
    return (profile.spec.platform.images.trainer or "") if profile else ""
