"""Merging, defaults, profiles and refusals, with values worked out by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from finetune_api.compatibility import RULES
from finetune_api.problem import Problem, Refused
from finetune_api.resolved import Chosen, ResolvedJob
from finetune_api.rule import Rule, specimen
from finetune_operator.resolve import resolve

MINIMAL: dict[str, Any] = {
    "model": {"uri": "hf://Qwen/Qwen2.5-7B-Instruct"},
    "dataset": {"train": [{"uri": "pvc://datasets/support/train.jsonl"}]},
    "method": {"lora": {}},
}


def job(spec: dict[str, Any] | None = None, name: str = "bot", **metadata: Any) -> dict[str, Any]:
    """A job object whose spec is ``MINIMAL`` with sections replaced."""
    whole = {**copy.deepcopy(MINIMAL), **(spec or {})}
    return {"metadata": {"name": name, **metadata}, "spec": whole}


def profile(
    spec: dict[str, Any], name: str = "shared", *, default: bool = True, created: str = ""
) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "creationTimestamp": created}
    if default:
        metadata["annotations"] = {"finetune.dev/is-default-profile": "true"}
    return {"metadata": metadata, "spec": spec}


def refused(*args: Any, **kwargs: Any) -> list[tuple[str | None, str, str, str]]:
    """(field, code, message, fix) of every problem."""
    with pytest.raises(Refused) as caught:
        resolve(*args, **kwargs)
    return [(p.field, p.code, p.message, p.fix) for p in caught.value.problems]


def chosen(resolved: ResolvedJob) -> dict[str, tuple[str, str]]:
    return {item.field: (item.value, item.reason) for item in resolved.chosen}


# --- defaults -------------------------------------------------------------------------------------


def test_the_shortest_job_is_completed() -> None:
    resolved = resolve(job(uid="1234", namespace="team-a"))
    assert (resolved.name, resolved.namespace, resolved.uid) == ("bot", "team-a", "1234")
    assert resolved.chosen == (
        Chosen(field="objective.sft", value="{}", reason="the usual objective"),
        Chosen(
            field="training.learningRate", value="2e-4", reason="the usual value for sft with lora"
        ),
        Chosen(
            field="training.precision", value="bf16", reason="the ranks compute on accelerators"
        ),
        Chosen(
            field="training.gradientCheckpointing",
            value="true",
            reason="memory of accelerators is the limit",
        ),
        Chosen(field="resources.processesPerNode", value="1", reason="one rank an accelerator"),
        Chosen(field="parallelism.ddp", value="{}", reason="one rank has nothing to divide"),
    )
    assert resolved.origins == {
        "dataset.train": "user",
        "method.lora": "user",
        "model.uri": "user",
        "objective.sft": "built-in",
        "parallelism.ddp": "built-in",
        "resources.processesPerNode": "built-in",
        "training.gradientCheckpointing": "built-in",
        "training.learningRate": "built-in",
        "training.precision": "built-in",
    }


@pytest.mark.parametrize(("method", "rate"), [("full", 1e-5), ("lora", 2e-4)])
def test_the_learning_rate_follows_the_method(method: str, rate: float) -> None:
    assert resolve(job({"method": {method: {}}})).spec.training.learning_rate == rate


def test_the_table_of_learning_rates() -> None:
    from finetune_operator.resolve.builtin import LEARNING_RATE

    table = {
        (method, objective): LEARNING_RATE[method][objective]
        for method in ("full", "lora", "houlsby", "prefixTuning", "promptTuning", "pTuning")
        for objective in ("sft", "dpo", "kto")
    }
    assert table == {
        ("full", "sft"): 0.00001,
        ("full", "dpo"): 0.0000005,
        ("full", "kto"): 0.0000005,
        ("lora", "sft"): 0.0002,
        ("lora", "dpo"): 0.000005,
        ("lora", "kto"): 0.000005,
        ("houlsby", "sft"): 0.0001,
        ("houlsby", "dpo"): 0.000005,
        ("houlsby", "kto"): 0.000005,
        ("prefixTuning", "sft"): 0.01,
        ("prefixTuning", "dpo"): 0.01,
        ("prefixTuning", "kto"): 0.01,
        ("promptTuning", "sft"): 0.01,
        ("promptTuning", "dpo"): 0.01,
        ("promptTuning", "kto"): 0.01,
        ("pTuning", "sft"): 0.01,
        ("pTuning", "dpo"): 0.01,
        ("pTuning", "kto"): 0.01,
    }
    objectives = {"sft", "pretrain", "dpo", "kto", "orpo", "reward", "supervised"}
    assert all(row.keys() == objectives for row in LEARNING_RATE.values())


def test_on_a_cpu() -> None:
    spec = {"resources": {"nodes": 2, "accelerator": {"device": "cpu", "perNode": 4}}}
    resolved = resolve(job(spec))
    assert resolved.spec.training.precision == "fp32"
    assert resolved.spec.training.gradient_checkpointing is False
    assert resolved.spec.resources.processes_per_node == 1
    assert resolved.spec.resources.world_size == 2


def test_full_fine_tuning_on_several_ranks_is_divided() -> None:
    spec = {"method": {"full": {}}, "resources": {"nodes": 2, "accelerator": {"perNode": 8}}}
    resolved = resolve(job(spec))
    assert resolved.spec.resources.processes_per_node == 8
    assert resolved.spec.parallelism.to_json() == {
        "deepspeed": {"zeroStage": 2},
        "tensorParallelSize": 1,
        "pipelineParallelSize": 1,
        "sequenceParallelSize": 1,
    }
    assert chosen(resolved)["parallelism.deepspeed"] == (
        "{zeroStage: 2}",
        "optimizer state and gradients are divided over 16 ranks",
    )


def test_an_adapter_on_several_ranks_is_not_divided() -> None:
    resolved = resolve(job({"resources": {"accelerator": {"perNode": 8}}}))
    assert resolved.spec.parallelism.engine == "ddp"
    assert resolved.spec.parallelism.ddp is not None


def test_what_the_user_wrote_is_not_chosen() -> None:
    spec = {
        "objective": {"sft": {}},
        "training": {"learningRate": 1e-3, "precision": "fp32", "gradientCheckpointing": False},
        "parallelism": {"deepspeed": {"zeroStage": 3}},
        "resources": {"processesPerNode": 1},
    }
    resolved = resolve(job(spec))
    assert resolved.chosen == ()
    assert resolved.spec.training.learning_rate == 0.001
    assert resolved.spec.parallelism.deepspeed is not None
    assert resolved.spec.parallelism.deepspeed.zero_stage == 3


def test_neither_input_is_changed() -> None:
    user, preset = job(), profile({"defaults": {"training": {"seed": 7}}})
    before = copy.deepcopy((user, preset))
    resolve(user, [preset])
    assert (user, preset) == before


# --- layers ---------------------------------------------------------------------------------------


def test_three_layers() -> None:
    defaults = {
        "training": {"seed": 7, "epochs": 1, "learningRate": 1e-3},
        "resources": {"nodeSelector": {"pool": "a", "nvidia.com/gpu.product": "A100"}},
    }
    user = {
        "training": {"epochs": 2},
        "resources": {"nodeSelector": {"nvidia.com/gpu.product": "H100"}},
    }
    resolved = resolve(job(user), [profile({"defaults": defaults})])
    training = resolved.spec.training
    assert (training.seed, training.epochs, training.learning_rate) == (7, 2, 0.001)
    assert training.weight_decay == 0.0
    assert resolved.spec.resources.node_selector == {
        "pool": "a",
        "nvidia.com/gpu.product": "H100",
    }
    origins = resolved.origins
    assert origins["training.seed"] == "profile"
    assert origins["training.epochs"] == "user"
    assert origins["training.learningRate"] == "profile"
    assert origins["training.precision"] == "built-in"
    assert origins["resources.nodeSelector.pool"] == "profile"
    assert origins["resources.nodeSelector[nvidia.com/gpu.product]"] == "user"
    assert "training.weightDecay" not in origins
    assert chosen(resolved)["profileRef.name"] == ("shared", "the default profile of the cluster")


@pytest.mark.parametrize(
    ("section", "preset", "user", "merged"),
    [
        ("method", {"lora": {"r": 64}}, {"full": {}}, {"full": {}}),
        ("parallelism", {"ddp": {}}, {"deepspeed": {"zeroStage": 3}}, {"zeroStage": 3}),
        ("training", {"warmupRatio": 0.1}, {"warmupSteps": 5}, None),
        ("workspace", {"size": "1Ti", "storageClassName": "x"}, {"claimName": "mine"}, None),
    ],
)
def test_a_choice_replaces_the_choice_below(
    section: str, preset: Any, user: Any, merged: Any
) -> None:
    resolved = resolve(job({section: user}), [profile({"defaults": {section: preset}})])
    found = resolved.spec.to_json()[section]
    for name in preset:
        assert name not in found
    for name, value in user.items():
        assert found[name] == (merged if name == "deepspeed" else value)
    assert not [path for path, origin in resolved.origins.items() if origin == "profile"]


def test_the_same_choice_keeps_the_profiles_values() -> None:
    preset = {"method": {"lora": {"r": 64, "alpha": 128}}}
    resolved = resolve(job({"method": {"lora": {"alpha": 8}}}), [profile({"defaults": preset})])
    lora = resolved.spec.method.lora
    assert lora is not None
    assert (lora.r, lora.alpha) == (64, 8)
    assert resolved.origins["method.lora.r"] == "profile"
    assert resolved.origins["method.lora.alpha"] == "user"


def test_validation_rows_of_the_user_replace_the_fraction_of_the_profile() -> None:
    dataset = {**MINIMAL["dataset"], "validation": {"sources": [{"uri": "pvc://datasets/v.jsonl"}]}}
    preset = {"dataset": {"validation": {"fraction": 0.1}}}
    resolved = resolve(job({"dataset": dataset}), [profile({"defaults": preset})])
    assert resolved.spec.dataset.validation is not None
    assert resolved.spec.dataset.validation.fraction is None


def test_a_value_of_the_profile_that_is_wrong_is_said_to_be_the_profiles() -> None:
    preset = {"training": {"globalBatchSize": 10, "microBatchSize": 4}}
    assert refused(job(), [profile({"defaults": preset})]) == [
        (
            "spec.training.microBatchSize",
            "micro-batch-divides",
            "globalBatchSize 10 cannot be divided by 4 (1 rank x microBatchSize 4) "
            "(from the defaults of profile shared)",
            "set microBatchSize to 2, or globalBatchSize to 8 or 12",
        )
    ]


# --- refusals of the spec -------------------------------------------------------------------------

REFUSALS: dict[str, tuple[dict[str, Any], tuple[str, str, str, str]]] = {
    "misspelt": (
        {"training": {"microBatchsize": 4}},
        (
            "spec.training.microBatchsize",
            "unknown-field",
            "unknown field spec.training.microBatchsize",
            "did you mean spec.training.microBatchSize?",
        ),
    ),
    "name of another tool": (
        {"training": {"per_device_train_batch_size": 4}},
        (
            "spec.training.per_device_train_batch_size",
            "unknown-field",
            "unknown field spec.training.per_device_train_batch_size",
            "spec.training.microBatchSize (per GPU), or leave it out and set globalBatchSize",
        ),
    ),
    "python's spelling": (
        {"training": {"micro_batch_size": 4}},
        (
            "spec.training.micro_batch_size",
            "unknown-field",
            "unknown field spec.training.micro_batch_size",
            "did you mean spec.training.microBatchSize?",
        ),
    ),
    "in the wrong section": (
        {"training": {"maxLength": 4}},
        (
            "spec.training.maxLength",
            "unknown-field",
            "unknown field spec.training.maxLength",
            "did you mean spec.dataset.maxLength?",
        ),
    ),
    "no such thing": (
        {"recovery": {"zzz": 1}},
        (
            "spec.recovery.zzz",
            "unknown-field",
            "unknown field spec.recovery.zzz",
            "remove it; spec.recovery takes maxFailures, maxPreemptions, retryGeneration, "
            "startTimeout",
        ),
    ),
    "r is 0": (
        {"method": {"lora": {"r": 0}}},
        (
            "spec.method.lora.r",
            "out-of-range",
            "spec.method.lora.r must be at least 1, not 0",
            "write r: 8 or r: 16; higher learns more and needs more memory",
        ),
    ),
    "nothing behind full": (
        {"method": {"full": None}},
        (
            "spec.method.full",
            "empty-section",
            "spec.method.full has nothing behind it",
            "write full: {}",
        ),
    ),
    "nothing behind a value": (
        {"training": {"epochs": None}},
        (
            "spec.training.epochs",
            "empty-value",
            "spec.training.epochs has nothing behind it",
            "write a value, or remove the line",
        ),
    ),
    "nothing behind model": (
        {"model": None},
        (
            "spec.model",
            "empty-section",
            "spec.model has nothing behind it",
            "write model: {uri: hf://owner/name} or {uri: pvc://claim/path}, or remove model",
        ),
    ),
    "two methods": (
        {"method": {"full": {}, "lora": {}}},
        (
            "spec.method",
            "method-exactly-one",
            "spec.method must hold exactly one of full, lora, houlsby, prefixTuning, promptTuning "
            "and pTuning",
            "write one of them, with {} behind it where it needs no values: method: {full: {}}",
        ),
    ),
    "ranks do not divide": (
        {
            "training": {"globalBatchSize": 64},
            "resources": {"nodes": 2, "accelerator": {"perNode": 3}},
        },
        (
            "spec.training.globalBatchSize",
            "world-divides",
            "globalBatchSize 64 cannot be divided by 6 (6 ranks)",
            "set globalBatchSize to 60 or 66",
        ),
    ),
    "more ranks than sequences": (
        {"training": {"globalBatchSize": 4}, "resources": {"nodes": 8}},
        (
            "spec.training.globalBatchSize",
            "world-divides",
            "globalBatchSize 4 cannot be divided by 8 (8 ranks)",
            "set globalBatchSize to 8",
        ),
    ),
    "micro batch does not divide a rank's share": (
        {"training": {"globalBatchSize": 8, "microBatchSize": 8}, "resources": {"nodes": 2}},
        (
            "spec.training.microBatchSize",
            "micro-batch-times-world-divides",
            "globalBatchSize 8 cannot be divided by 16 (2 ranks x microBatchSize 8)",
            "set microBatchSize to 4, or globalBatchSize to 16",
        ),
    ),
    "text for a number": (
        {"training": {"epochs": "3"}},
        (
            "spec.training.epochs",
            "wrong-type",
            'spec.training.epochs must be a number, not the text "3"',
            "remove the quotes: 3",
        ),
    ),
    "a fraction for a whole number": (
        {"training": {"maxSteps": 1.5}},
        (
            "spec.training.maxSteps",
            "wrong-type",
            "spec.training.maxSteps must be a whole number, not the number 1.5",
            "write a whole number without quotes",
        ),
    ),
    "a list for a section": (
        {"training": []},
        (
            "spec.training",
            "wrong-type",
            "spec.training must be a section, not an empty list",
            "write a section: {...}",
        ),
    ),
    "a number for text": (
        {"method": {"lora": {"targetModules": ["q_proj", 3]}}},
        (
            "spec.method.lora.targetModules[1]",
            "wrong-type",
            "spec.method.lora.targetModules[1] must be text, not the number 3",
            'write it in quotes: "3"',
        ),
    ),
    "neither text nor list": (
        {"method": {"lora": {"targetModules": 3}}},
        (
            "spec.method.lora.targetModules",
            "wrong-type",
            "spec.method.lora.targetModules must be text or a list, not the number 3",
            "write text or a list",
        ),
    ),
    "an unknown value": (
        {"training": {"precision": "BF16"}},
        (
            "spec.training.precision",
            "unknown-value",
            'spec.training.precision cannot be the text "BF16"',
            "did you mean bf16? known: bf16, fp16, fp32, pureBf16",
        ),
    ),
    "no URI": (
        {"model": {"uri": "Qwen/Qwen2.5-7B-Instruct"}},
        (
            "spec.model.uri",
            "wrong-format",
            'spec.model.uri cannot be the text "Qwen/Qwen2.5-7B-Instruct"',
            "did you mean hf://Qwen/Qwen2.5-7B-Instruct?",
        ),
    ),
    "a path of this machine": (
        {"dataset": {"train": [{"uri": "./train.jsonl"}]}},
        (
            "spec.dataset.train[0].uri",
            "wrong-format",
            'spec.dataset.train[0].uri cannot be the text "./train.jsonl"',
            "name the claim that holds it: pvc://claim/path",
        ),
    ),
    "another scheme": (
        {"model": {"uri": "s3://bucket/model"}},
        (
            "spec.model.uri",
            "wrong-format",
            'spec.model.uri cannot be the text "s3://bucket/model"',
            "write hf://owner/name, modelscope://owner/name, pvc://claim/path or job://name",
        ),
    ),
    "out of the claim": (
        {"dataset": {"train": [{"uri": "pvc://datasets/a/../../b"}]}},
        (
            "spec.dataset.train[0].uri",
            "wrong-format",
            'spec.dataset.train[0].uri cannot be the text "pvc://datasets/a/../../b"',
            "write the path from the root of the claim: pvc://claim/folder/file, without . and ..",
        ),
    ),
    "no length of time": (
        {"checkpoint": {"maxLostWork": "10 min"}},
        (
            "spec.checkpoint.maxLostWork",
            "wrong-format",
            'spec.checkpoint.maxLostWork cannot be the text "10 min"',
            "write a length of time such as 90s, 10m or 1h30m",
        ),
    ),
    "no data": (
        {"dataset": {"train": []}},
        (
            "spec.dataset.train",
            "too-short",
            "spec.dataset.train needs 1 item, has 0",
            "write train: [{uri: pvc://claim/train.jsonl}]",
        ),
    ),
    "not supported yet": (
        {"objective": {"dpo": {}}},
        (
            "spec.objective.dpo",
            "not-supported-dpo",
            "not supported yet: direct preference optimisation",
            "use objective: {sft: {}}",
        ),
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusal(case: str) -> None:
    change, problem = REFUSALS[case]
    assert refused(job(change)) == [problem]


def test_every_mistake_is_said_at_once() -> None:
    change = {
        "method": {"lora": {"r": 0}, "full": {}},
        "training": {"precission": "bf16", "epochs": "three", "globalBatchSize": 3},
        "resources": {"nodes": 2},
    }
    assert [code for _, code, _, _ in refused(job(change, name="Bot"))] == [
        "invalid-name",
        "out-of-range",
        "wrong-type",
        "unknown-field",
        "world-divides",
    ]


def test_an_empty_spec() -> None:
    assert refused({"metadata": {"name": "bot"}}) == [
        (
            "spec.model",
            "missing-field",
            "spec.model is missing",
            "add model: {uri: hf://owner/name} or {uri: pvc://claim/path}",
        ),
        (
            "spec.dataset",
            "missing-field",
            "spec.dataset is missing",
            "add dataset: {train: [{uri: pvc://claim/train.jsonl}]}",
        ),
        (
            "spec.method",
            "missing-field",
            "spec.method is missing",
            "add method: {lora: {}} or {full: {}}",
        ),
    ]


@pytest.mark.parametrize(
    ("name", "code", "fix"),
    [
        (None, "missing-field", "write metadata: {name: my-job}"),
        (
            "Support_Bot",
            "invalid-name",
            "use lower case letters, digits and '-', and begin with a letter: support-bot",
        ),
        (
            "7b",
            "invalid-name",
            "use lower case letters, digits and '-', and begin with a letter: b",
        ),
        ("a" * 39 + "-b", "name-too-long", "shorten it: " + "a" * 39),
        (5, "wrong-type", "write the name in quotes"),
    ],
)
def test_names(name: Any, code: str, fix: str) -> None:
    [(field, found, _, said)] = refused(job(name=name))
    assert (field, found, said) == ("metadata.name", code, fix)


def test_the_longest_name() -> None:
    assert resolve(job(name="a" * 40)).name == "a" * 40


# --- which profile --------------------------------------------------------------------------------

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


def test_names_with_nothing_behind_them_are_said_once() -> None:
    change = {"training": None, "model": {"uri": None}, "dataset": {"train": [None]}}
    assert [(field, code) for field, code, _, _ in refused(job(change))] == [
        ("spec.dataset.train[0]", "empty-value"),
        ("spec.model.uri", "empty-value"),
        ("spec.training", "empty-section"),
    ]
    from finetune_operator.resolve import profile_problems

    preset = {
        "limits": None,
        "platform": {"images": {"trainer": None}},
        "defaults": {"model": None},
    }
    assert [(p.field, p.code) for p in profile_problems(profile(preset))] == [
        ("spec.limits", "empty-section"),
        ("spec.platform.images.trainer", "empty-value"),
        ("spec.defaults.model", "empty-section"),
    ]


# --- what a profile allows ------------------------------------------------------------------------

ASK = "or ask who runs the cluster to allow it"
NOT_ALLOWED: dict[str, tuple[dict[str, Any], dict[str, Any], list[tuple[str, str, str]]]] = {
    "uris": (
        {"uris": ["hf://meta/*", "pvc://datasets/*"]},
        {},
        [
            (
                "spec.model.uri",
                'spec.model.uri "hf://Qwen/Qwen2.5-7B-Instruct" is not allowed by profile shared '
                "(allow.uris: hf://meta/*, pvc://datasets/*)",
                f"use one of hf://meta/*, pvc://datasets/*, {ASK}",
            )
        ],
    ),
    "nothing": (
        {"uris": []},
        {"output": {"uri": "pvc://models/bot"}},
        [
            (
                field,
                f"{field} {text} is not allowed by profile shared (allow.uris: nothing)",
                f"remove it, {ASK}",
            )
            for field, text in (
                ("spec.model.uri", '"hf://Qwen/Qwen2.5-7B-Instruct"'),
                ("spec.dataset.train[0].uri", '"pvc://datasets/support/train.jsonl"'),
                ("spec.output.uri", '"pvc://models/bot"'),
            )
        ],
    ),
    "endpoints": (
        {"endpoints": ["https://hub.example"]},
        {"model": {"uri": "hf://a/b", "endpoint": "https://hub.example.evil"}},
        [
            (
                "spec.model.endpoint",
                'spec.model.endpoint "https://hub.example.evil" is not allowed by profile shared '
                "(allow.endpoints: https://hub.example)",
                f"use one of https://hub.example, {ASK}",
            )
        ],
    ),
    "secrets": (
        {"secrets": ["finetune-*"]},
        {"model": {"uri": "hf://a/b", "tokenSecretRef": {"name": "admin"}}},
        [
            (
                "spec.model.tokenSecretRef.name",
                'spec.model.tokenSecretRef.name "admin" is not allowed by profile shared '
                "(allow.secrets: finetune-*)",
                f"use one of finetune-*, {ASK}",
            )
        ],
    ),
    "methods": (
        {"methods": ["lora"]},
        {"method": {"full": {}}},
        [
            (
                "spec.method.full",
                "spec.method.full is not allowed by profile shared (allow.methods: lora)",
                f"use one of lora, {ASK}",
            )
        ],
    ),
    "nodeSelectorKeys": (
        {"nodeSelectorKeys": ["pool"]},
        {"resources": {"nodeSelector": {"pool": "a", "kubernetes.io/hostname": "n1"}}},
        [
            (
                "spec.resources.nodeSelector[kubernetes.io/hostname]",
                "spec.resources.nodeSelector[kubernetes.io/hostname] is not allowed by profile "
                "shared (allow.nodeSelectorKeys: pool)",
                f"use one of pool, {ASK}",
            )
        ],
    ),
    "tolerations": (
        {"tolerations": [{"key": "gpu", "effect": "NoSchedule"}]},
        {
            "resources": {
                "tolerations": [
                    {"key": "gpu", "operator": "Exists", "effect": "NoSchedule"},
                    {"key": "gpu", "operator": "Exists"},
                ]
            }
        },
        [
            (
                "spec.resources.tolerations[1]",
                "spec.resources.tolerations[1] gpu is not allowed by profile shared "
                "(allow.tolerations: gpu:NoSchedule)",
                f"use one of gpu:NoSchedule, {ASK}",
            )
        ],
    ),
    "priorityClassNames": (
        {"priorityClassNames": ["batch"]},
        {"resources": {"priorityClassName": "urgent"}},
        [
            (
                "spec.resources.priorityClassName",
                'spec.resources.priorityClassName "urgent" is not allowed by profile shared '
                "(allow.priorityClassNames: batch)",
                f"use one of batch, {ASK}",
            )
        ],
    ),
}


@pytest.mark.parametrize("case", NOT_ALLOWED)
def test_not_allowed(case: str) -> None:
    allow, change, expected = NOT_ALLOWED[case]
    found = refused(job(change), [profile({"allow": allow})])
    assert found == [(field, "not-allowed", message, fix) for field, message, fix in expected]


def test_queues_are_read_off_the_labels() -> None:
    queued = job(labels={"kueue.x-k8s.io/queue-name": "other"})
    assert refused(queued, [profile({"allow": {"queueNames": ["team-*"]}})]) == [
        (
            "metadata.labels[kueue.x-k8s.io/queue-name]",
            "not-allowed",
            'metadata.labels[kueue.x-k8s.io/queue-name] "other" is not allowed by profile shared '
            "(allow.queueNames: team-*)",
            f"use one of team-*, {ASK}",
        )
    ]
    queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "team-a"
    assert resolve(queued, [profile({"allow": {"queueNames": ["team-*"]}})]).name == "bot"


def test_remote_code_has_to_be_allowed() -> None:
    change = {"model": {"uri": "hf://a/b", "remoteCode": True}}
    codes = [code for _, code, _, _ in refused(job(change), [profile({})])]
    assert codes == ["not-supported-remote-code", "not-allowed"]
    allowed = [profile({"allow": {"remoteCode": True}})]
    assert [code for _, code, _, _ in refused(job(change), allowed)] == [
        "not-supported-remote-code"
    ]


def test_a_star_crosses_slashes_and_nothing_else_is_special() -> None:
    from finetune_operator.resolve.ceilings import glob_matches

    assert glob_matches("pvc://*", "pvc://datasets/support/train.jsonl")
    assert glob_matches("hf://Qwen/*", "hf://Qwen/Qwen2.5-7B")
    assert not glob_matches("hf://Qwen/*", "hf://QwenX/Qwen2.5-7B")
    assert not glob_matches("hf://Qwen2.5", "hf://Qwen2x5")
    assert not glob_matches("finetune-*", "a-finetune-b")
    assert glob_matches("a*b*c", "a-b-b-c")
    assert not glob_matches("a*b*c", "a-c-b")
    assert not glob_matches("ab*ba", "aba")
    assert glob_matches("ab*ba", "abba")
    assert not glob_matches("*a" * 200 + "b", "a" * 1000)
    assert glob_matches("[a]?", "[a]?")
    assert not glob_matches("[a]?", "ab")


# --- limits ---------------------------------------------------------------------------------------

LIMITS: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, str, str]]] = {
    "nodes": (
        {"nodes": 4},
        {"resources": {"nodes": 8}},
        (
            "spec.resources.nodes",
            "spec.resources.nodes is 8; profile shared allows at most 4 (limits.nodes)",
            "lower nodes to 4, or ask who runs the cluster",
        ),
    ),
    "accelerators": (
        {"accelerators": 32},
        {"resources": {"nodes": 5, "accelerator": {"perNode": 8}}},
        (
            "spec.resources.nodes",
            "the job wants 40 accelerators (5 x 8); profile shared allows at most 32 "
            "(limits.accelerators)",
            "lower nodes to 4, or ask who runs the cluster",
        ),
    ),
    "accelerators of one node": (
        {"accelerators": 4},
        {"resources": {"accelerator": {"perNode": 8}}},
        (
            "spec.resources.accelerator.perNode",
            "the job wants 8 accelerators (1 x 8); profile shared allows at most 4 "
            "(limits.accelerators)",
            "lower accelerator.perNode to 4, or ask who runs the cluster",
        ),
    ),
    "acceleratorHours": (
        {"acceleratorHours": 64},
        {
            "resources": {"nodes": 2, "accelerator": {"perNode": 8}},
            "activeDeadlineSeconds": 18000,
        },
        (
            "spec.activeDeadlineSeconds",
            "spec.activeDeadlineSeconds is 18000 (5h); profile shared allows at most 14400 (4h) "
            "(limits.acceleratorHours)",
            "lower activeDeadlineSeconds to 14400 (4h), or ask who runs the cluster",
        ),
    ),
    "runtime": (
        {"runtime": "72h"},
        {"activeDeadlineSeconds": 604800},
        (
            "spec.activeDeadlineSeconds",
            "spec.activeDeadlineSeconds is 604800 (7d); profile shared allows at most 259200 (3d) "
            "(limits.runtime)",
            "lower activeDeadlineSeconds to 259200 (3d), or ask who runs the cluster",
        ),
    ),
    "maxLength": (
        {"maxLength": 4096},
        {"dataset": {**MINIMAL["dataset"], "maxLength": 8192}},
        (
            "spec.dataset.maxLength",
            "spec.dataset.maxLength is 8192; profile shared allows at most 4096 (limits.maxLength)",
            "lower maxLength to 4096, or ask who runs the cluster",
        ),
    ),
    "workspace": (
        {"workspace": "2Ti"},
        {"workspace": {"size": "2049Gi"}},
        (
            "spec.workspace.size",
            "spec.workspace.size is 2049Gi; profile shared allows at most 2Ti (limits.workspace)",
            "lower size to 2Ti, or ask who runs the cluster",
        ),
    ),
    "gracePeriodSeconds": (
        {"gracePeriodSeconds": 600},
        {"checkpoint": {"gracePeriodSeconds": 601}},
        (
            "spec.checkpoint.gracePeriodSeconds",
            "spec.checkpoint.gracePeriodSeconds is 601; profile shared allows at most 600 "
            "(limits.gracePeriodSeconds)",
            "lower gracePeriodSeconds to 600, or ask who runs the cluster",
        ),
    ),
}


@pytest.mark.parametrize("case", LIMITS)
def test_over_a_limit(case: str) -> None:
    limits, change, (field, message, fix) = LIMITS[case]
    found = refused(job(change), [profile({"limits": limits})])
    assert found == [(field, "over-limit", message, fix)]


def test_exactly_at_every_limit() -> None:
    limits = {
        "nodes": 2,
        "accelerators": 16,
        "acceleratorHours": 64,
        "runtime": "4h",
        "maxLength": 4096,
        "workspace": "2Ti",
        "gracePeriodSeconds": 600,
    }
    change = {
        "resources": {"nodes": 2, "accelerator": {"perNode": 8}},
        "activeDeadlineSeconds": 14400,
        "dataset": {**MINIMAL["dataset"], "maxLength": 4096},
        "workspace": {"size": "2048Gi"},
        "checkpoint": {"gracePeriodSeconds": 600},
    }
    assert resolve(job(change), [profile({"limits": limits})]).name == "bot"


def test_a_default_of_ours_is_brought_below_the_limit() -> None:
    limits = {"maxLength": 1024, "gracePeriodSeconds": 60, "runtime": "8h", "acceleratorHours": 4}
    resolved = resolve(job(), [profile({"limits": limits})])
    assert resolved.spec.dataset.max_length == 1024
    assert resolved.spec.checkpoint.grace_period_seconds == 60
    assert resolved.spec.active_deadline_seconds == 14400
    reasons = chosen(resolved)
    assert reasons["dataset.maxLength"] == (
        "1024",
        "the most that profile shared allows (limits.maxLength)",
    )
    assert reasons["activeDeadlineSeconds"] == (
        "14400",
        "the most that profile shared allows (limits.acceleratorHours)",
    )


@pytest.mark.parametrize(
    ("limit", "workspace", "size"),
    [
        ("20Gi", {}, "20Gi"),
        ("50Gi", {}, None),
        ("2Ti", {}, None),
        ("20Gi", {"size": "10Gi"}, "10Gi"),
        ("20Gi", {"storageClassName": "fast"}, "20Gi"),
        ("20Gi", {"claimName": "mine"}, None),
    ],
)
def test_the_usual_workspace_is_brought_below_the_limit(
    limit: str, workspace: dict[str, str], size: str | None
) -> None:
    written = {"workspace": workspace} if workspace else {}
    resolved = resolve(job(written), [profile({"limits": {"workspace": limit}})])
    assert resolved.spec.workspace.size == size
    said = chosen(resolved).get("workspace.size")
    if workspace.get("size") or size is None:
        assert said is None
    else:
        reason = "the most that profile shared allows (limits.workspace)"
        assert said == (size, reason)
        assert resolved.origins["workspace.size"] == "built-in"


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("spec.workspace.claimName", {"workspace": {"claimName": "a..b"}}),
        ("spec.workspace.storageClassName", {"workspace": {"storageClassName": "a.-b"}}),
        ("spec.output.uri", {"output": {"uri": "pvc://a..b/c"}}),
        ("spec.resources.priorityClassName", {"resources": {"priorityClassName": "a.-b"}}),
        (
            "spec.resources.accelerator.resource",
            {"resources": {"accelerator": {"resource": "a..b/gpu"}}},
        ),
    ],
)
def test_names_that_kubernetes_refuses_are_refused(field: str, change: dict[str, Any]) -> None:
    assert [found[0] for found in refused(job(change))] == [field]


def test_no_hours_of_accelerators_at_all() -> None:
    [(field, code, message, _)] = refused(job(), [profile({"limits": {"acceleratorHours": 0}})])
    assert (field, code) == ("spec.activeDeadlineSeconds", "over-limit")
    assert message == (
        "spec.activeDeadlineSeconds is 1 (1s); profile shared allows at most 0 (0s) "
        "(limits.acceleratorHours)"
    )


def test_a_limit_beyond_what_a_deadline_can_say() -> None:
    resolved = resolve(job(), [profile({"limits": {"acceleratorHours": 1e9}})])
    assert resolved.spec.active_deadline_seconds == 1_000_000_000


def test_a_profile_with_a_name_that_is_none() -> None:
    [(field, code, _, _)] = refused(job(), [profile({}, "x" * 1000)])
    assert (field, code) == ("spec.profileRef.name", "too-long")


def test_hours_of_accelerators_do_not_bind_a_job_without_any() -> None:
    change = {"resources": {"accelerator": {"device": "cpu", "perNode": 0}}}
    resolved = resolve(job(change), [profile({"limits": {"acceleratorHours": 4}})])
    assert resolved.spec.active_deadline_seconds is None


def test_the_image_is_the_profiles_unless_one_is_given() -> None:
    image = "registry.example/trainer@sha256:" + "0" * 64
    preset = [profile({"platform": {"images": {"trainer": image}}})]
    assert resolve(job(), preset).trainer_image == image
    assert resolve(job(), preset, trainer_image="other").trainer_image == "other"
    assert resolve(job()).trainer_image == ""


def test_a_problem_is_a_problem() -> None:
    with pytest.raises(Refused) as caught:
        resolve(job({"method": {"lora": {"r": 0}}}))
    assert caught.value.problems == (
        Problem(
            code="out-of-range",
            field="spec.method.lora.r",
            message="spec.method.lora.r must be at least 1, not 0",
            fix="write r: 8 or r: 16; higher learns more and needs more memory",
        ),
    )


# --- the rules between fields ---------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_every_rule_is_held(rule: Rule) -> None:
    assert rule.code in [code for _, code, _, _ in refused(job(specimen(rule.bad)))]
    assert resolve(job(specimen(rule.good))).name == "bot"
