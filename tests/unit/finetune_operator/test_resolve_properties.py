"""Properties of resolve over generated jobs: layers, origins, and what it may raise."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from finetune_api.job import JobSpec
from finetune_api.problem import Refused
from finetune_operator.resolve import resolve, schema


def names_of(model: Any, seen: set[str]) -> set[str]:
    for name, info in schema.fields(model).items():
        seen.add(name)
        section = schema.section_in(info.annotation)
        if section is not None:
            names_of(section, seen)
    return seen


NAMES = sorted(names_of(JobSpec, set()))
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([0, 1, 8, 2**63, 10**400, 2e-4, "", "80Gi", "10m", "cpu", "pvc://a/b", "all"])
    | st.text(max_size=8)
)
KEYS = st.sampled_from(NAMES) | st.text(max_size=6)
JSON = st.recursive(
    SCALARS,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(KEYS, children, max_size=4),
    max_leaves=25,
)
SECTIONS = st.fixed_dictionaries({}, optional=dict.fromkeys(schema.fields(JobSpec), JSON))


def outcome(job: Any, **more: Any) -> Any:
    """The resolved job, or the refusal; anything else fails the test."""
    try:
        return resolve(job, **more)
    except Refused as refused:
        assert refused.problems
        assert all(problem.message for problem in refused.problems)
        return refused


@settings(max_examples=150, deadline=None)
@given(spec=JSON | SECTIONS)
@example(spec={"method": {"lora": {"r": 10**5000}}})
@example(spec={"training": {"globalBatchSize": 10**5000, "microBatchSize": 3}})
@example(
    spec={
        "resources": {"nodes": -1, "processesPerNode": 10**400},
        "training": {"globalBatchSize": 4},
    }
)
@example(spec={"\ud800": "\ud800", "model": {"uri": "pvc://\ud800"}})
@example(spec={"dataset": {"train": {"uri": None}}, "objective": [], "method": "lora"})
@example(spec={"x" * 10000: 1})
@example(spec={"resources": {"nodeSelector": {"": None, "a/b/c": 3}}})
def test_any_spec_is_resolved_or_refused(spec: Any) -> None:
    outcome({"metadata": {"name": "bot"}, "spec": spec})


@settings(max_examples=60, deadline=None)
@given(job=JSON, profile=JSON, defaults=SECTIONS)
def test_any_job_under_any_profile_is_resolved_or_refused(
    job: Any, profile: Any, defaults: Any
) -> None:
    named = {"metadata": {"name": "p"}, "spec": {"defaults": defaults}}
    for profiles in ([profile], [named], [{**named, "spec": profile}]):
        outcome(job, profiles=profiles)
        outcome(
            {"metadata": {"name": "bot"}, "spec": {"profileRef": {"name": "p"}}}, profiles=profiles
        )


def test_a_spec_that_is_nested_a_thousand_deep_is_refused() -> None:
    spec: Any = {}
    for _ in range(1000):
        spec = {"model": spec}
    refused = outcome({"metadata": {"name": "bot"}, "spec": spec})
    assert [problem.code for problem in refused.problems] == ["too-deep"]


MINIMAL = {
    "model": {"uri": "hf://Qwen/Qwen2.5-0.5B-Instruct"},
    "dataset": {"train": [{"uri": "pvc://datasets/train.jsonl"}]},
}
METHODS = st.sampled_from(
    [{"full": {}}, {"lora": {}}, {"lora": {"r": 4}}, {"lora": {"alpha": 8.0}}]
)
TRAINING = st.fixed_dictionaries(
    {},
    optional={
        "epochs": st.sampled_from([1.0, 2.5]),
        "learningRate": st.sampled_from([1e-3, 3e-5]),
        "precision": st.sampled_from(["bf16", "fp32"]),
        "gradientCheckpointing": st.booleans(),
        "seed": st.integers(0, 9),
        "betas": st.sampled_from([[0.9, 0.95], [0.8, 0.99]]),
    },
)
WARMUP = st.sampled_from([{}, {"warmupRatio": 0.1}, {"warmupSteps": 7}])
ENGINES = st.sampled_from([{}, {"ddp": {}}, {"deepspeed": {}}, {"deepspeed": {"zeroStage": 3}}])
LAYER = st.builds(
    lambda method, training, warmup, engine, selector: {
        **({"method": method} if method else {}),
        "training": {**training, **warmup},
        "parallelism": engine,
        "resources": {"nodeSelector": selector},
    },
    st.none() | METHODS,
    TRAINING,
    WARMUP,
    ENGINES,
    st.dictionaries(st.sampled_from(["pool", "nvidia.com/gpu.product"]), st.just("a")),
)


def leaves(data: Any, path: str = "") -> dict[str, Any]:
    """Every value by the text of its path, written without the code under test."""
    if isinstance(data, dict) and data:
        out: dict[str, Any] = {}
        for key, value in data.items():
            text = f"[{key}]" if "." in key else f".{key}"
            out |= leaves(value, (path + text).lstrip("."))
        return out
    return {path: data}


@settings(max_examples=100, deadline=None)
@given(profile=LAYER, user=LAYER)
def test_the_user_wins_and_every_origin_is_the_layer_that_held_the_value(
    profile: Any, user: Any
) -> None:
    user = {**MINIMAL, "method": {"lora": {}}, **user}
    defaults = {
        "metadata": {"name": "p", "annotations": {"finetune.dev/is-default-profile": "true"}},
        "spec": {"defaults": profile},
    }
    job = resolve({"metadata": {"name": "bot"}, "spec": user}, [defaults])
    values = leaves(job.spec.to_json())
    from_user = leaves(user)
    from_profile = leaves(profile)
    for path, wanted in from_user.items():
        if wanted == {} or path.startswith("dataset.train"):
            continue
        assert values[path] == wanted
        assert job.origins[path] == "user"
    for path, origin in job.origins.items():
        held = {"user": from_user, "profile": from_profile}.get(origin)
        if held is not None:
            assert path in held
            assert path not in from_user or origin == "user"
    for path, wanted in from_profile.items():
        if wanted not in ({}, None) and path in job.origins and path not in from_user:
            assert job.origins[path] == "profile"
            assert values[path] == wanted
    # One-of sections hold the choice of one layer alone.
    assert len(job.spec.method.to_json()) == 1
    engines = {"ddp", "deepspeed", "fsdp"} & job.spec.parallelism.to_json().keys()
    assert len(engines) == 1
    training = job.spec.training
    assert training.warmup_ratio is None or training.warmup_steps is None
