"""What a profile allows and limits, held against one job."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from finetune_api.job import JobSpec
from finetune_api.job.lifecycle import WORKSPACE_SIZE
from finetune_api.job.resources import Toleration
from finetune_api.names import LABEL_PRIORITY, LABEL_QUEUE
from finetune_api.problem import Problem
from finetune_api.profile import AllowedToleration, Limits
from finetune_api.quantity import format_duration, parse_bytes, parse_duration
from finetune_api.resolved import Chosen
from finetune_operator.resolve.builtin import spelled
from finetune_operator.resolve.layers import Merged
from finetune_operator.resolve.paths import Path, look, path_text
from finetune_operator.resolve.profiles import Profile
from finetune_operator.resolve.wording import cut, quoted

LONGEST_DEADLINE = 10**9
"""Bound of ``activeDeadlineSeconds``."""


def glob_matches(pattern: str, text: str) -> bool:
    """Tell whether text matches a pattern in which ``*`` stands for any text, slashes included.

    Looks at each part once, so that no pattern takes long.
    """
    first, *others = pattern.split("*")
    if not others:
        return pattern == text
    *inner, last = others
    at = len(first)
    if not text.startswith(first) or len(text) < at + len(last) or not text.endswith(last):
        return False
    end = len(text) - len(last)
    for part in inner:
        found = text.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


def uris(spec: JobSpec) -> Iterator[tuple[str, str]]:
    """Yield the field and the text of every URI of a job."""
    model = spec.model
    yield "spec.model.uri", model.uri
    if model.tokenizer:
        yield "spec.model.tokenizer.uri", model.tokenizer.uri
    if model.adapter:
        yield "spec.model.adapter.uri", model.adapter.uri
    for at, source in enumerate(spec.dataset.train):
        yield f"spec.dataset.train[{at}].uri", source.uri
    if spec.dataset.validation:
        for at, source in enumerate(spec.dataset.validation.sources or ()):
            yield f"spec.dataset.validation.sources[{at}].uri", source.uri
    if spec.output.uri:
        yield "spec.output.uri", spec.output.uri


def secrets(spec: JobSpec) -> Iterator[tuple[str, str]]:
    """Yield the field and the name of every secret of a job."""
    if spec.model.token_secret_ref:
        yield "spec.model.tokenSecretRef.name", spec.model.token_secret_ref.name
    sources = [("train", source) for source in enumerate(spec.dataset.train)]
    if spec.dataset.validation:
        held_out = spec.dataset.validation.sources or []
        sources += [("validation.sources", source) for source in enumerate(held_out)]
    for split, (at, source) in sources:
        if source.token_secret_ref:
            yield f"spec.dataset.{split}[{at}].tokenSecretRef.name", source.token_secret_ref.name
    if spec.reporting.wandb:
        yield (
            "spec.reporting.wandb.apiKeySecretRef.name",
            spec.reporting.wandb.api_key_secret_ref.name,
        )


def not_allowed(spec: JobSpec, labels: Mapping[str, str], profile: Profile) -> list[Problem]:
    """Return a problem for everything that a job names and its profile does not allow."""
    allow = profile.spec.allow
    resources = spec.resources
    found: list[Problem] = []

    def check(items: Iterable[tuple[str, str]], globs: list[str] | None, name: str) -> None:
        if globs is None:
            return
        found.extend(
            _refusal(field, quoted(text), name, globs, profile.name)
            for field, text in items
            if not any(glob_matches(glob, text) for glob in globs)
        )

    endpoint, claim = spec.model.endpoint, spec.workspace.claim_name
    priority = resources.priority_class_name
    check(uris(spec), allow.uris, "uris")
    if claim != look(profile.spec.defaults, "workspace", "claimName"):
        # Its pods write there, and the kubelet may change the group of everything in it.
        folder = f"pvc://{claim}/"
        check([("spec.workspace.claimName", folder)] if claim else [], allow.uris, "uris")
    check([("spec.model.endpoint", endpoint)] if endpoint else [], _endpoints(profile), "endpoints")
    check(secrets(spec), allow.secrets, "secrets")
    priorities = [("spec.resources.priorityClassName", priority)] if priority else []
    priorities += _labelled(labels, LABEL_PRIORITY)
    check(priorities, allow.priority_class_names, "priorityClassNames")
    check(_labelled(labels, LABEL_QUEUE), allow.queue_names, "queueNames")
    if allow.methods is not None and spec.method.kind not in allow.methods:
        methods: list[str] = list(allow.methods)
        field = f"spec.method.{spec.method.kind}"
        found.append(_refusal(field, "", "methods", methods, profile.name))
    if spec.model.remote_code and not allow.remote_code:
        found.append(_refusal("spec.model.remoteCode", "true", "remoteCode", None, profile.name))
    if allow.node_selector_keys is not None:
        found += [
            _refusal(
                path_text(("spec", "resources", "nodeSelector", key)),
                "",
                "nodeSelectorKeys",
                allow.node_selector_keys,
                profile.name,
            )
            for key in resources.node_selector or {}
            if key not in allow.node_selector_keys
        ]
    if allow.tolerations is not None:
        found += [
            _refusal(
                f"spec.resources.tolerations[{at}]",
                _toleration_text(item),
                "tolerations",
                [_toleration_text(one) for one in allow.tolerations],
                profile.name,
            )
            for at, item in enumerate(resources.tolerations or ())
            if not any(_tolerated(item, one) for one in allow.tolerations)
        ]
    return found


def _endpoints(profile: Profile) -> list[str] | None:
    """Return the mirrors of the hub that jobs may name; None: any.

    Whoever names a mirror decides what ``hf://`` means and who is sent the token, so that limits on
    either hold only where mirrors are limited too.
    """
    allow = profile.spec.allow
    if allow.endpoints is not None or (allow.uris is None and allow.secrets is None):
        return allow.endpoints
    own = look(profile.spec.defaults, "model", "endpoint")
    return [own.rstrip("/"), own.rstrip("/") + "/"] if isinstance(own, str) else []


def _labelled(labels: Mapping[str, str], label: str) -> list[tuple[str, str]]:
    """Return the value of a label of the job, where it has it."""
    value = labels.get(label)
    return [(path_text(("metadata", "labels", label)), value)] if value else []


def _refusal(field: str, text: str, name: str, allowed: list[str] | None, profile: str) -> Problem:
    """Return the problem of something that a profile does not allow."""
    listed = "" if allowed is None else f": {', '.join(allowed)}" if allowed else ": nothing"
    remedy = f"use one of {', '.join(allowed)}" if allowed else "remove it"
    return Problem(
        code="not-allowed",
        field=field,
        message=cut(
            f"{field}{' ' if text else ''}{text} is not allowed by profile {profile}"
            f" (allow.{name}{listed})"
        ),
        fix=cut(f"{remedy}, or ask who runs the cluster to allow it"),
    )


def _tolerated(asked: Toleration, allowed: AllowedToleration) -> bool:
    """Tell whether a toleration is no wider than an allowed one."""
    value = None if asked.operator == "Exists" else (asked.value or "")
    return (
        asked.key == allowed.key
        and (allowed.value is None or value == allowed.value)
        and (allowed.effect is None or asked.effect == allowed.effect)
    )


def _toleration_text(item: Toleration | AllowedToleration) -> str:
    """Return a toleration as ``kubectl describe`` writes it."""
    value = f"={item.value}" if item.value is not None else ""
    return f"{item.key}{value}" + (f":{item.effect}" if item.effect else "")


def over_limits(spec: JobSpec, profile: Profile) -> list[Problem]:
    """Return a problem for every limit of the profile that a job goes over."""
    limits = profile.spec.limits
    found: list[Problem] = []

    def check(field: str, asked: float, most: float | None, name: str, say: Any = spelled) -> None:
        if most is not None and asked > most:
            short = field.rpartition(".")[2]
            found.append(
                Problem(
                    code="over-limit",
                    field=field,
                    message=cut(
                        f"{field} is {say(asked)}; profile {profile.name} allows at most "
                        f"{say(most)} (limits.{name})"
                    ),
                    fix=f"lower {short} to {say(most)}, or ask who runs the cluster",
                )
            )

    resources = spec.resources
    check("spec.resources.nodes", resources.nodes, limits.nodes, "nodes")
    accelerators = resources.nodes * resources.accelerator.per_node
    most = limits.accelerators
    if most is not None and accelerators > most:
        found.append(_accelerators(spec, accelerators, most, profile.name))
    check("spec.dataset.maxLength", spec.dataset.max_length, limits.max_length, "maxLength")
    check(
        "spec.checkpoint.gracePeriodSeconds",
        spec.checkpoint.grace_period_seconds,
        limits.grace_period_seconds,
        "gracePeriodSeconds",
    )
    if limits.workspace is not None and spec.workspace.size is not None:
        asked, bytes_most = parse_bytes(spec.workspace.size), parse_bytes(limits.workspace)
        words = {asked: spec.workspace.size, bytes_most: limits.workspace}
        check("spec.workspace.size", asked, bytes_most, "workspace", words.__getitem__)
    deadline = spec.active_deadline_seconds
    if deadline is not None:
        for seconds, name in _deadlines(limits, accelerators):
            check("spec.activeDeadlineSeconds", deadline, seconds, name, _seconds)
    return found


def removed_deadline(before: JobSpec, now: JobSpec, profile: Profile) -> list[Problem]:
    """Return the problem of a job whose user has taken its deadline away, where limits ask for one.

    A job that is accepted without one gets the longest that there may be; later nothing is chosen
    for it any more, so that the one that it had stays.
    """
    had = before.active_deadline_seconds
    resources = now.resources
    most = _deadlines(profile.spec.limits, resources.nodes * resources.accelerator.per_node)
    if had is None or now.active_deadline_seconds is not None or not most:
        return []
    seconds, name = min(most)
    field = "spec.activeDeadlineSeconds"
    return [
        Problem(
            code="over-limit",
            field=field,
            message=cut(
                f"{field} was removed; profile {profile.name} allows at most {_seconds(seconds)}"
                f" (limits.{name}), so {_seconds(had)} stays"
            ),
            fix=f"set activeDeadlineSeconds to at most {_seconds(seconds)}, or ask who runs the"
            " cluster",
        )
    ]


def _seconds(count: float) -> str:
    """Return a number of seconds with what it is for people: ``259200 (3d)``."""
    return f"{int(count)} ({format_duration(count)})"


def _accelerators(spec: JobSpec, asked: int, most: int, profile: str) -> Problem:
    """Return the problem of a job that wants more accelerators than it may have."""
    nodes, per_node = spec.resources.nodes, spec.resources.accelerator.per_node
    if most >= per_node:
        fix = f"lower nodes to {most // per_node}"
    else:
        fix = f"lower accelerator.perNode to {most // nodes}" if most >= nodes else "ask for fewer"
    return Problem(
        code="over-limit",
        field="spec.resources.accelerator.perNode" if nodes == 1 else "spec.resources.nodes",
        message=cut(
            f"the job wants {asked} accelerators ({nodes} x {per_node}); profile {profile} "
            f"allows at most {most} (limits.accelerators)"
        ),
        fix=f"{fix}, or ask who runs the cluster",
    )


def _deadlines(limits: Limits, accelerators: int) -> list[tuple[int, str]]:
    """Return the longest deadlines that the limits leave, in seconds, and which limit it was."""
    found = []
    if limits.runtime is not None:
        found.append((int(parse_duration(limits.runtime)), "runtime"))
    if limits.accelerator_hours is not None and accelerators > 0:
        found.append((int(limits.accelerator_hours * 3600 / accelerators), "acceleratorHours"))
    return found


def fit(merged: Merged, profile: Profile) -> tuple[Merged, tuple[Chosen, ...]]:
    """Return the spec with values that nobody wrote brought below the profile's limits.

    A default of ours is no wish of the user, so it is lowered instead of refused; a job without a
    deadline gets the longest one that the limits leave.
    """
    limits = profile.spec.limits
    chosen: list[Chosen] = []

    def choose(path: Path, value: int | str, limit: str) -> None:
        nonlocal merged
        if merged.origin(path) in {"user", "profile"} and look(merged.data, *path) is not None:
            return
        around = look(merged.data, *path[:-1]) if len(path) > 1 else merged.data
        if around is not None and not isinstance(around, dict):
            return
        merged = merged.filled(path, value)
        reason = cut(f"the most that profile {profile.name} allows (limits.{limit})", 500)
        chosen.append(Chosen(field=path_text(path), value=str(value), reason=reason))

    for path, most, usual, name in (
        (("dataset", "maxLength"), limits.max_length, 2048, "maxLength"),
        (
            ("checkpoint", "gracePeriodSeconds"),
            limits.grace_period_seconds,
            120,
            "gracePeriodSeconds",
        ),
    ):
        if most is not None and most < usual:
            choose(path, most, name)
    size = limits.workspace
    made = look(merged.data, "workspace", "claimName") is None
    if made and size is not None and parse_bytes(size) < parse_bytes(WORKSPACE_SIZE):
        choose(("workspace", "size"), size, "workspace")
    nodes = look(merged.data, "resources", "nodes")
    per_node = look(merged.data, "resources", "accelerator", "perNode")
    accelerators = (nodes if isinstance(nodes, int) else 1) * (
        per_node if isinstance(per_node, int) else 1
    )
    deadlines = _deadlines(limits, accelerators)
    if deadlines:
        seconds, name = min(deadlines)
        # A limit below a second allows no job at all: over_limits says so of this one second.
        choose(("activeDeadlineSeconds",), max(1, min(seconds, LONGEST_DEADLINE)), name)
    return merged, tuple(chosen)
