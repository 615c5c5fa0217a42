"""What is said of a spec or a name that cannot be: field, code, message and fix."""

from __future__ import annotations

import json
import re
import tracemalloc
from typing import Any

import pytest

from finetune_api.compatibility import RULES
from finetune_api.problem import Problem, Refused
from finetune_api.rule import Rule, specimen
from finetune_operator.resolve import resolve
from harness.resolving import job, profile, refused

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
    "16-bit weights under DeepSpeed": (
        {
            "training": {"precision": "pureBf16"},
            "parallelism": {"deepspeed": {"zeroStage": 1}},
        },
        (
            "spec.training.precision",
            "pure-bf16-under-deepspeed",
            "pureBf16 has no meaning under DeepSpeed, which keeps fp32 master weights",
            "use precision: bf16, or parallelism: {ddp: {}}",
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
    "a volume of nothing": (
        {"workspace": {"size": 0}},
        (
            "spec.workspace.size",
            "wrong-format",
            'spec.workspace.size cannot be the text "0"',
            "write a size that is more than nothing, such as 80Gi",
        ),
    ),
    "no time to start in": (
        {"recovery": {"startTimeout": "0m0s"}},
        (
            "spec.recovery.startTimeout",
            "wrong-format",
            'spec.recovery.startTimeout cannot be the text "0m0s"',
            "write a length of time that is more than nothing, such as 90s or 10m",
        ),
    ),
    "a device as quotas name it": (
        {"resources": {"accelerator": {"resource": "requests.nvidia.com/gpu"}}},
        (
            "spec.resources.accelerator.resource",
            "resource-of-quota",
            "a name that begins with requests. is how a quota speaks of a device",
            "write the name that nodes give it, such as nvidia.com/gpu",
        ),
    ),
    "a device that no quota could name": (
        {"resources": {"accelerator": {"resource": "a" * 245 + "/gpu"}}},
        (
            "spec.resources.accelerator.resource",
            "too-long",
            "spec.resources.accelerator.resource takes at most 248 characters",
            "shorten it",
        ),
    ),
    "a label key with too long a domain": (
        {"resources": {"nodeSelector": {"a" * 254 + "/pool": "gpu"}}},
        (
            f"spec.resources.nodeSelector[{'a' * 254}/pool]",
            "wrong-format",
            f'the text "{"a" * 57}..." cannot be a key of resources.nodeSelector',
            "write at most 258 characters",
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
        ("bot-prepare", "invalid-name", "end it otherwise than with -prepare or -publish"),
        ("a" * 39 + "-b", "name-too-long", "shorten it: " + "a" * 39),
        (5, "wrong-type", "write the name in quotes"),
    ],
)
def test_names(name: Any, code: str, fix: str) -> None:
    [(field, found, _, said)] = refused(job(name=name))
    assert (field, found, said) == ("metadata.name", code, fix)


def test_the_longest_name() -> None:
    assert resolve(job(name="a" * 40)).name == "a" * 40


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


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_every_rule_is_held(rule: Rule) -> None:
    assert rule.code in [code for _, code, _, _ in refused(job(specimen(rule.bad)))]
    assert resolve(job(specimen(rule.good))).name == "bot"


@pytest.mark.parametrize(
    ("change", "codes"),
    [
        ({"resources": {"processesPerNode": 8}}, ["more-processes-than-accelerators"]),
        (
            {"resources": {"processesPerNode": 8, "accelerator": {"perNode": 4}}},
            ["more-processes-than-accelerators"],
        ),
        (
            {"resources": {"accelerator": {"perNode": 0}}},
            ["accelerator-needed"],
        ),
        ({"dataset": {"maxInvalidFraction": 0.5}}, ["limit-needs-drop"]),
    ],
)
def test_what_a_default_makes_impossible_is_as_if_it_were_written(
    change: dict[str, Any], codes: list[str]
) -> None:
    """Written out with device: cuda, perNode: 1 or invalidRows: Fail each is refused."""
    whole = {**change}
    if "dataset" in change:
        whole["dataset"] = {"train": [{"uri": "pvc://datasets/train.jsonl"}], **change["dataset"]}
    assert [code for _, code, _, _ in refused(job(whole))] == codes


@pytest.mark.parametrize("key", ["k", "k" * 390])
def test_what_is_too_large_is_refused_in_little_memory(key: str) -> None:
    """The API server takes 1.5 MiB: saying what is wrong with each of its values takes 500 MiB."""
    large = job({"method": {"lora": {"targetModules": [{key: [None] * 280_000}]}}})
    tracemalloc.start()
    try:
        found = refused(large)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    said = "spec holds more than 20,000 values"
    assert found == [("spec", "too-large", said, "remove what no field of the job needs")]
    assert most < 8 * 2**20


def test_a_job_that_no_pod_can_carry_is_refused() -> None:
    """All annotations of a pod have 262,144 bytes together, and the job is one of them."""
    ranks = {f"layers.{number:02}.{'x' * 1000}": 8 for number in range(64)}  # 1,010 letters each
    modules = [f"{number:03}{'x' * 247}" for number in range(250)]  # 250 letters each
    lora = {"rankPattern": ranks, "alphaPattern": ranks, "targetModules": modules}
    ((field, code, message, fix),) = refused(job({"method": {"lora": lora}}))
    assert (field, code) == ("spec", "job-too-long")
    assert re.fullmatch(
        r"the complete job has 24\d,\d{3} bytes as JSON; 196,608 are possible", message
    )
    assert fix == "shorten the longest lists and texts of the job and its profile"
    resolve(job({"method": {"lora": {**lora, "targetModules": modules[:1]}}}))


def test_of_many_names_with_nothing_behind_them_the_first_are_said() -> None:
    overrides = {"configOverrides": {"layers": [None] * 19_000}}
    found = refused(job({"model": {"uri": "hf://owner/name", **overrides}}))
    empty = [field for field, code, _, _ in found if code == "empty-value"]
    assert len(empty) == 32
    assert empty[:2] == [
        "spec.model.configOverrides.layers[0]",
        "spec.model.configOverrides.layers[1]",
    ]


@pytest.mark.parametrize(
    ("section", "most"),
    [
        ({"method": {"lora": {"rankPattern": {"K": 8}}}}, 1024),
        ({"method": {"lora": {"alphaPattern": {"K": 8.0}}}}, 1024),
        ({"dataset": {"train": [{"uri": "pvc://d/a.jsonl", "columns": {"K": "v"}}]}}, 256),
    ],
)
def test_the_keys_of_a_map_are_bounded(section: dict[str, Any], most: int) -> None:
    def with_key(length: int) -> dict[str, Any]:
        return job(json.loads(json.dumps(section).replace("K", "k" * length)))

    assert resolve(with_key(most)).name == "bot"
    ((_, code, _, fix),) = refused(with_key(most + 1))
    assert (code, fix) == ("wrong-format", f"write at most {most} characters")
