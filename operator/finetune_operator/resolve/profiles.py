"""Which FineTuneProfile a job runs under."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_api.document import Document
from finetune_api.job import JobSpec
from finetune_api.names import ANNOTATION_DEFAULT_PROFILE
from finetune_api.problem import Problem, Refused
from finetune_api.profile import LabelSelector, Platform, ProfileSpec, SelectorRequirement
from finetune_operator.render import environment, security
from finetune_operator.resolve import extra_resources, validation, wording
from finetune_operator.resolve.paths import look

ASK = "ask who runs the cluster for a profile that admits the namespace"


@dataclass(frozen=True)
class Profile:
    """A profile that was read: ``problems`` is empty, or ``spec`` is all defaults."""

    name: str
    spec: ProfileSpec
    default: bool = False
    created: str = ""
    problems: tuple[Problem, ...] = ()

    def admits(self, labels: Mapping[str, str]) -> bool:
        """Tell whether jobs of a namespace with these labels may use it."""
        return not self.problems and matches(self.spec.allow.namespace_selector, labels)


def read_profile(data: Any) -> Profile:
    """Return a profile of its raw object; whatever is wrong with it is in ``problems``."""
    spec = look(data, "spec")
    spec = {} if spec is None else spec
    name = look(data, "metadata", "name")
    problems = profile_problems(data)
    parsed = ProfileSpec() if problems else validation.parse(ProfileSpec, spec)
    if isinstance(parsed, list):
        problems, parsed = parsed, ProfileSpec()
    return Profile(
        name=name if isinstance(name, str) else "",
        spec=parsed,
        default=look(data, "metadata", "annotations", ANNOTATION_DEFAULT_PROFILE) == "true",
        created=str(look(data, "metadata", "creationTimestamp") or ""),
        problems=tuple(problems),
    )


def profile_problems(data: Any) -> list[Problem]:
    """Return everything that is wrong with a profile's object."""
    spec = look(data, "spec")
    spec = {} if spec is None else spec
    found = validation.shape(spec, "spec")
    if found:
        return found
    own = {name: value for name, value in spec.items() if name != "defaults"}
    found = validation.empties(ProfileSpec, own)
    parsed = validation.parse(ProfileSpec, own)
    found += _but_hidden(parsed, found)
    if isinstance(parsed, ProfileSpec):
        found += environment.problems(parsed.platform)
        found += security.problems(parsed.platform.pod_security)
        found += extra_resources.problems(parsed.platform)
        found += _not_supported(parsed.platform)
    defaults = spec.get("defaults", {})
    misshapen = validation.shape(defaults, "spec.defaults")
    if misshapen:
        return found + misshapen
    found += validation.empties(JobSpec, defaults, "spec.defaults")
    part = _but_hidden(validation.parse(JobSpec, defaults, "spec.defaults"), found)
    # A profile says a part of a job; what it leaves out is the user's to write.
    return found + [problem for problem in part if problem.code != "missing-field"]


def _not_supported(platform: Platform) -> list[Problem]:
    """Return what a profile cannot say yet: refused, never accepted and ignored."""
    found = []
    if platform.model_cache is not None:
        found.append(
            Problem(
                code="not-supported-model-cache",
                field="spec.platform.modelCache",
                message="not supported yet: a claim that holds the models of all jobs",
                fix="remove modelCache; each job keeps its model in its workspace",
            )
        )
    if platform.network == "Open":
        found.append(
            Problem(
                code="not-supported-network-open",
                field="spec.platform.network",
                message="not supported yet: training and publishing that read from a hub",
                fix="write network: HubOnly; what else pods can reach is for a NetworkPolicy to say",
            )
        )
    if platform.price is not None:
        found.append(
            Problem(
                code="not-supported-price",
                field="spec.platform.price",
                message="not supported yet: reports of what a job has cost",
                fix="remove price",
            )
        )
    return found


def _but_hidden(parsed: Document | list[Problem], found: Sequence[Problem]) -> list[Problem]:
    """Return what a model refuses, without the fields that were said already."""
    said = {problem.field for problem in found}
    refused = parsed if isinstance(parsed, list) else []
    return [problem for problem in refused if problem.field not in said]


def choose_profile(
    reference: Any, profiles: Sequence[Mapping[str, Any]], labels: Mapping[str, str]
) -> Profile | None:
    """Return the profile that a job names, else the default one, else None where none exists.

    Several defaults may divide the namespaces among them; of those that admit this one the newest
    counts, as with StorageClasses. Raises ``Refused`` with the names that the job may use.
    """
    known = [read_profile(data) for data in profiles]
    usable = sorted(profile.name for profile in known if profile.admits(labels))
    name = look(reference, "name")
    if isinstance(name, str):
        return _named(name, known, usable, labels)
    if not known:
        return None
    defaults = [profile for profile in known if profile.default]
    admitting = [profile for profile in defaults if profile.admits(labels)]
    if admitting:
        return max(admitting, key=lambda profile: (profile.created, profile.name))
    broken = next((profile for profile in defaults if profile.problems), None)
    if broken is not None:
        raise Refused(_broken(broken))
    message = (
        f"the default profile {defaults[0].name} does not admit the namespace of the job"
        if defaults
        else "the job names no profile, and no profile is the default"
    )
    raise Refused(
        Problem(
            code="profile-not-admitted" if defaults else "profile-missing",
            field="spec.profileRef",
            message=wording.cut(message),
            fix=_usable_fix(usable),
        )
    )


def _named(
    name: str, known: list[Profile], usable: list[str], labels: Mapping[str, str]
) -> Profile:
    """Return the profile of this name, or refuse."""
    found = next((profile for profile in known if profile.name == name), None)
    if found is None:
        near = difflib.get_close_matches(name, usable, n=1)
        raise Refused(
            Problem(
                code="profile-not-found",
                field="spec.profileRef.name",
                message=wording.cut(f"there is no FineTuneProfile {wording.quoted(name)}"),
                fix=wording.cut(
                    (f"did you mean {near[0]}? " if near else "")
                    + (_usable_fix(usable) if known else "remove profileRef; there are no profiles")
                ),
            )
        )
    if found.problems:
        raise Refused(_broken(found))
    if not found.admits(labels):
        raise Refused(
            Problem(
                code="profile-not-admitted",
                field="spec.profileRef.name",
                message=wording.cut(f"profile {name} does not admit the namespace of the job"),
                fix=_usable_fix(usable),
            )
        )
    return found


def _usable_fix(usable: list[str]) -> str:
    """Return the names that a job may use."""
    if not usable:
        return ASK
    return wording.cut(f"write profileRef: {{name: ...}} with one of {', '.join(usable)}")


def _broken(profile: Profile) -> Problem:
    """Return the problem of a profile that cannot be used by anybody."""
    first = profile.problems[0]
    return Problem(
        code="profile-invalid",
        field="spec.profileRef",
        message=wording.cut(f"profile {profile.name} is invalid: {first.message}"),
        fix=wording.cut(f"who runs the cluster has to correct the profile: {first.fix}"),
    )


def matches(selector: LabelSelector | None, labels: Mapping[str, str]) -> bool:
    """Tell whether labels satisfy a selector, as Kubernetes reads it; an absent one admits all."""
    if selector is None:
        return True
    return all(
        labels.get(key) == value for key, value in (selector.match_labels or {}).items()
    ) and all(_satisfied(item, labels) for item in selector.match_expressions or ())


def _satisfied(item: SelectorRequirement, labels: Mapping[str, str]) -> bool:
    """Tell whether labels satisfy one expression."""
    present = item.key in labels
    within = present and labels[item.key] in (item.values or ())
    outcomes = {
        "In": within,
        "NotIn": not within,
        "Exists": present,
        "DoesNotExist": not present,
    }
    return outcomes[item.operator]
