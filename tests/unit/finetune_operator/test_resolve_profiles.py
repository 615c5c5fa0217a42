"""Which profile counts for a job, and what is said where none does."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_operator.resolve import resolve
from harness.resolving import job, profile, refused

ONLY_A = {"allow": {"namespaceSelector": {"matchLabels": {"team": "a"}}}}
ONLY_B = {
    "allow": {
        "namespaceSelector": {
            "matchExpressions": [
                {"key": "team", "operator": "In", "values": ["b", "c"]},
            ]
        }
    }
}


def test_no_profiles_no_limits() -> None:
    assert resolve(job()).spec.profile_ref is None


def test_a_named_profile() -> None:
    profiles = [profile({}, "one"), profile({}, "two", default=False)]
    resolved = resolve(job({"profileRef": {"name": "two"}}), profiles)
    assert resolved.spec.profile_ref is not None
    assert resolved.spec.profile_ref.name == "two"
    assert resolved.origins["profileRef.name"] == "user"


def test_of_two_defaults_the_newest_that_admits_the_namespace_counts() -> None:
    profiles = [
        profile({}, "old", created="2026-01-01T00:00:00Z"),
        profile({}, "new", created="2026-02-01T00:00:00Z"),
        profile(ONLY_A, "newest", created="2026-03-01T00:00:00Z"),
    ]
    assert resolve(job(), profiles).spec.to_json()["profileRef"] == {"name": "new"}
    resolved = resolve(job(), profiles, {"team": "a"})
    assert resolved.spec.to_json()["profileRef"] == {"name": "newest"}


def test_no_default_profile() -> None:
    profiles = [
        profile({}, "open", default=False),
        profile(ONLY_A, "for-a", default=False),
        profile(ONLY_B, "for-b", default=False),
    ]
    assert refused(job(), profiles, {"team": "b"}) == [
        (
            "spec.profileRef",
            "profile-missing",
            "the job names no profile, and no profile is the default",
            "write profileRef: {name: ...} with one of for-b, open",
        )
    ]


def test_a_profile_that_does_not_admit_the_namespace() -> None:
    profiles = [profile(ONLY_A, "for-a"), profile(ONLY_B, "for-b", default=False)]
    assert refused(job(), profiles, {"team": "c"}) == [
        (
            "spec.profileRef",
            "profile-not-admitted",
            "the default profile for-a does not admit the namespace of the job",
            "write profileRef: {name: ...} with one of for-b",
        )
    ]
    assert refused(job({"profileRef": {"name": "for-b"}}), profiles, {"team": "z"}) == [
        (
            "spec.profileRef.name",
            "profile-not-admitted",
            "profile for-b does not admit the namespace of the job",
            "ask who runs the cluster for a profile that admits the namespace",
        )
    ]


def test_a_profile_that_is_not_there() -> None:
    named = job({"profileRef": {"name": "sharde"}})
    assert refused(named, [profile({}, "shared")]) == [
        (
            "spec.profileRef.name",
            "profile-not-found",
            'there is no FineTuneProfile "sharde"',
            "did you mean shared? write profileRef: {name: ...} with one of shared",
        )
    ]
    assert refused(named, []) == [
        (
            "spec.profileRef.name",
            "profile-not-found",
            'there is no FineTuneProfile "sharde"',
            "remove profileRef; there are no profiles",
        )
    ]


@pytest.mark.parametrize(
    ("operator", "values", "labels", "admits"),
    [
        ("In", ["a"], {"k": "a"}, True),
        ("In", ["a"], {}, False),
        ("NotIn", ["a"], {"k": "a"}, False),
        ("NotIn", ["a"], {}, True),
        ("Exists", None, {"k": ""}, True),
        ("Exists", None, {}, False),
        ("DoesNotExist", None, {"k": ""}, False),
        ("DoesNotExist", None, {}, True),
    ],
)
def test_selectors(
    operator: str, values: list[str] | None, labels: dict[str, str], *, admits: bool
) -> None:
    requirement: dict[str, Any] = {"key": "k", "operator": operator}
    if values:
        requirement["values"] = values
    only = profile({"allow": {"namespaceSelector": {"matchExpressions": [requirement]}}})
    if admits:
        assert resolve(job(), [only], labels).spec.profile_ref is not None
    else:
        assert refused(job(), [only], labels)[0][1] == "profile-not-admitted"


def test_a_broken_profile_hurts_only_those_who_use_it() -> None:
    profiles = [profile({"limits": {"nodes": 0}}, "broken", default=False), profile({}, "fine")]
    assert resolve(job(), profiles).spec.to_json()["profileRef"] == {"name": "fine"}
    assert refused(job({"profileRef": {"name": "broken"}}), profiles) == [
        (
            "spec.profileRef",
            "profile-invalid",
            "profile broken is invalid: spec.limits.nodes must be at least 1, not 0",
            "who runs the cluster has to correct the profile: write nodes: with a value that is "
            "at least 1",
        )
    ]


def test_a_profile_with_a_name_that_is_none() -> None:
    [(field, code, _, _)] = refused(job(), [profile({}, "x" * 1000)])
    assert (field, code) == ("spec.profileRef.name", "too-long")
