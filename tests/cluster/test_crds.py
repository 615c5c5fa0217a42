"""The definitions and every rule on a real API server."""

import copy
import random

import pytest

from finetune_api.compatibility import RULES, evaluate
from finetune_api.crd import job_definition
from finetune_api.rule import MINIMAL, specimen
from harness.control_plane import ApiError

JOBS = "/apis/finetune.dev/v1alpha1/namespaces/default/finetunejobs"
PROFILES = "/apis/finetune.dev/v1alpha1/finetuneprofiles"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
pytestmark = pytest.mark.usefixtures("definitions")


def job(spec, name="bot", **metadata):
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name, **metadata},
        "spec": spec,
    }


def refusal(api, spec, name="bot"):
    """What the API server says of a job; empty where it would be accepted."""
    try:
        api.create(JOBS, job(spec, name), dryRun="All")
    except ApiError as error:
        assert error.code == 422, error
        return error.message
    return ""


def codes_in(message):
    return {rule.code for rule in RULES if rule.text in message}


def test_both_definitions_are_structural_and_established(definitions):
    for definition in definitions.values():
        conditions = {one["type"]: one["status"] for one in definition["status"]["conditions"]}
        assert conditions == {"NamesAccepted": "True", "Established": "True"}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_bad_is_refused_and_good_is_accepted(api, rule):
    assert rule.text in refusal(api, specimen(rule.bad))
    assert refusal(api, specimen(rule.good)) == ""


def merged(lower, upper):
    if isinstance(lower, dict) and isinstance(upper, dict):
        keys = [*lower, *(key for key in upper if key not in lower)]
        return {
            key: merged(lower[key], upper[key])
            if key in lower and key in upper
            else upper.get(key, lower.get(key))
            for key in keys
        }
    return upper


def test_python_and_the_api_server_read_every_row_alike(api):
    """300 mixtures of up to four examples: the same rows refuse each of them on both sides."""
    choose = random.Random(20261122)
    examples = [specimen(change) for rule in RULES for change in (rule.bad, rule.good)]
    seen = set()
    for _ in range(300):
        spec = {}
        for example in choose.sample(examples, choose.randint(1, 4)):
            spec = merged(spec, example)
        here = {problem.code for problem in evaluate(spec)}
        assert codes_in(refusal(api, spec)) == here, spec
        seen |= here
    assert len(seen) > 0.8 * len(RULES)


def test_the_cost_of_the_rules_is_far_below_the_budget(api):
    """Eight times the rules are still accepted: they cost less than an eighth of the budget."""
    definition = copy.deepcopy(job_definition())
    definition["metadata"]["name"] = "finetunejobs.cost.finetune.dev"
    definition["spec"]["group"] = "cost.finetune.dev"
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    spec = schema["properties"]["spec"]
    once = spec["x-kubernetes-validations"]
    spec["x-kubernetes-validations"] = once * 8
    schema["x-kubernetes-validations"] *= 8
    api.create(DEFINITIONS, definition, dryRun="All")
    print(f"{len(once)} rules, less than 1/8 of the cost that the API server allows")

    # The check can fail: one rule that looks at all pairs and triples of sources is too dear.
    triples = (
        "self.dataset.train.all(b, self.dataset.train.all(c, a.uri != b.uri || b.uri != c.uri))"
    )
    spec["x-kubernetes-validations"] = [{"rule": f"self.dataset.train.all(a, {triples})"}]
    with pytest.raises(ApiError, match="exceeds budget"):
        api.create(DEFINITIONS, definition, dryRun="All")


def test_nothing_is_filled_in(api):
    assert api.create(JOBS, job(MINIMAL), dryRun="All")["spec"] == MINIMAL


def test_everything_that_can_be_said_is_kept(api):
    spec = {
        "profileRef": {"name": "a100-shared"},
        "model": {
            "uri": "hf://Qwen/Qwen2.5-7B-Instruct",
            "revision": "main",
            "endpoint": "https://mirror.example",
            "tokenSecretRef": {"name": "hf", "key": "token"},
            "tokenizer": {"uri": "pvc://models/tokenizer"},
            "initialization": "Pretrained",
            "task": "CausalLM",
            "attention": "sdpa",
        },
        "dataset": {
            "train": [
                {
                    "uri": "pvc://datasets/support/train.jsonl",
                    "format": "Messages",
                    "columns": {"messages": "conversations"},
                    "weight": 1,
                    "maxRows": 100,
                }
            ],
            "validation": {"fraction": 0.02},
            "maxLength": 2048,
            "overlong": "Split",
            "packing": True,
            "lossOn": "Assistant",
            "invalidRows": "Drop",
            "maxInvalidFraction": 0.01,
        },
        "method": {"lora": {"r": 8, "alpha": 32, "targetModules": ["q_proj", "v_proj"]}},
        "objective": {"sft": {}},
        "training": {"epochs": 3, "learningRate": 2e-4, "betas": [0.9, 0.999], "seed": 4294967295},
        "parallelism": {"deepspeed": {"zeroStage": 2}, "tensorParallelSize": 1},
        "resources": {
            "nodes": 2,
            "accelerator": {"resource": "nvidia.com/gpu", "perNode": 8, "memory": "80Gi"},
            "cpu": 32,
            "memory": "256Gi",
            "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        },
        "backend": "PyTorchJob",
        "workspace": {"size": "500Gi", "storageClassName": "fast-rwx", "retain": True},
        "checkpoint": {"maxLostWork": "10m", "maxOverhead": 0.05},
        "recovery": {"maxFailures": 3, "startTimeout": "30m"},
        "evaluation": {"everySteps": 100, "metrics": ["loss"], "gate": {"mustImproveBy": 0}},
        "output": {"uri": "pvc://models/support-bot", "merge": True, "select": "best"},
        "suspend": False,
        "activeDeadlineSeconds": 86400,
        "ttlSecondsAfterFinished": 604800,
    }

    assert api.create(JOBS, job(spec), dryRun="All")["spec"] == spec


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": {"lora": {"r": 0}}}, "spec.method.lora.r"),
        ({"method": {"lora": {"dropout": 1}}}, "spec.method.lora.dropout"),
        ({"method": {"full": None}}, "[method-exactly-one]"),
        (
            {"method": {"lora": {"targetModules": [["q_proj"]]}}},
            "spec.method.lora.targetModules[0]",
        ),
        ({"method": {"lora": {"excludeModules": [{"a": None}]}}}, "lora.excludeModules[0]"),
        ({"method": {"lora": {"targetModules": [None]}}}, "spec.method.lora.targetModules[0]"),
        ({"model": {}}, "spec.model.uri"),
        ({"model": {"uri": "Qwen/Qwen2.5"}}, "spec.model.uri"),
        ({"dataset": {"train": []}}, "spec.dataset.train"),
        ({"dataset": {"train": [{"uri": "pvc://datasets/../x"}]}}, "spec.dataset.train[0].uri"),
        ({"training": {"learningRate": 0}}, "spec.training.learningRate"),
        ({"training": {"learningRate": "2e-4"}}, "spec.training.learningRate"),
        ({"training": {"epochs": 0}}, "spec.training.epochs"),
        ({"training": {"globalBatchSize": 1.5}}, "spec.training.globalBatchSize"),
        ({"training": {"betas": [0.9]}}, "spec.training.betas"),
        ({"training": {"optimizer": "adam"}}, "spec.training.optimizer"),
        ({"resources": {"memory": "64GB"}}, "spec.resources.memory"),
        (
            {"resources": {"accelerator": {"resource": "memory"}}},
            "spec.resources.accelerator.resource",
        ),
        ({"resources": {"memory": -1}}, "spec.resources.memory"),
        ({"resources": {"memory": 1.5}}, "spec.resources.memory"),
        ({"checkpoint": {"maxLostWork": "ten minutes"}}, "spec.checkpoint.maxLostWork"),
        ({"output": {"uri": "hf://me/model"}}, "spec.output.uri"),
    ],
)
def test_bounds(api, change, said):
    assert said in refusal(api, specimen(change))


def test_a_misspelt_field_is_refused(api):
    spec = specimen({"training": {"per_device_train_batch_size": 4}})
    with pytest.raises(ApiError, match=r"unknown field .*per_device_train_batch_size") as refused:
        api.create(JOBS, job(spec), dryRun="All")
    assert refused.value.code == 400


@pytest.mark.parametrize("value", [0, 64, 2**40, "64Gi", "500m"])
def test_quantities_may_be_numbers(api, value):
    assert refusal(api, specimen({"resources": {"memory": value}})) == ""


@pytest.mark.parametrize("value", ["all-linear", r".*\.(q|v)_proj", ["q_proj"]])
def test_target_modules_are_text_or_a_list(api, value):
    spec = specimen({"method": {"lora": {"targetModules": value}}})
    assert api.create(JOBS, job(spec), dryRun="All")["spec"] == spec


@pytest.mark.parametrize("value", ["", [], 3, -3, 0.5, True, False, {}, {"a": 1}, ["q"] * 257])
def test_target_modules_are_nothing_else(api, value):
    said = refusal(api, specimen({"method": {"lora": {"targetModules": value}}}))
    assert "spec.method.lora.targetModules" in said


@pytest.mark.parametrize("name", ["a", "support-bot-2", "a" * 40])
def test_names(api, name):
    assert refusal(api, MINIMAL, name) == ""


@pytest.mark.parametrize("name", ["a" * 41, "1a", "a.b"])
def test_names_that_would_not_fit_a_child(api, name):
    assert "[invalid-name]" in refusal(api, MINIMAL, name)


CREATED = specimen(
    {
        "training": {"learningRate": 2e-4},
        "workspace": {"size": "500Gi", "storageClassName": "fast-rwx"},
        "recovery": {"maxFailures": 3},
        "method": {"lora": {"targetModules": ["q_proj", "v_proj"]}},
    }
)


@pytest.fixture
def created(api):
    made = api.create(JOBS, job(CREATED, "fixed"))
    yield made
    api.delete(f"{JOBS}/fixed")


def changed(change, *, without=()):
    spec = merged(CREATED, change)
    return {key: value for key, value in spec.items() if key not in without}


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (changed({"training": {"learningRate": 1e-4}}), "training"),
        (changed({"training": {"epochs": 3}}), "training"),
        (changed({}, without=["training"]), "training"),
        (changed({"resources": {"nodes": 2}}), "resources"),
        (changed({"evaluation": {}}), "evaluation"),
        (changed({"profileRef": {"name": "other"}}), "profileRef"),
        (changed({"model": {"uri": "hf://Qwen/Qwen2.5-7B-Instruct"}}), "model"),
        (changed({"method": {"lora": {"targetModules": ["q_proj"]}}}), "method"),
        (changed({"method": {"lora": {"targetModules": "all-linear"}}}), "method"),
        (changed({"backend": "Job"}), "backend"),
        (changed({"workspace": {"size": "499Gi"}}), "workspace"),
        (changed({"workspace": {"size": 1}}), "workspace"),
        (changed({"workspace": {"retain": False}}), "workspace"),
        (changed({"workspace": {"storageClassName": "slow"}}), "workspace"),
        (changed({}, without=["workspace"]), "workspace"),
        ({**CREATED, "workspace": {"storageClassName": "fast-rwx"}}, "workspace"),
        (
            {**CREATED, "dataset": {"train": [{"uri": "pvc://datasets/other.jsonl"}]}},
            "dataset",
        ),
    ],
)
def test_what_is_fixed_at_creation(api, created, spec, field):
    with pytest.raises(ApiError, match=rf"spec\.{field} cannot be changed.*\[immutable\]"):
        api.replace(f"{JOBS}/fixed", {**created, "spec": spec})


@pytest.mark.parametrize(
    "change",
    [
        {"suspend": True},
        {"recovery": {"maxFailures": 5, "retryGeneration": 1}},
        {"activeDeadlineSeconds": 3600},
        {"ttlSecondsAfterFinished": 60},
        {"workspace": {"size": "1Ti"}},
        {"workspace": {"size": 549_755_813_888_000}},
        {},
    ],
)
def test_what_may_change(api, created, change):
    spec = changed(change)
    assert api.replace(f"{JOBS}/fixed", {**created, "spec": spec})["spec"] == spec


def test_status_is_a_thing_of_its_own_and_fills_the_columns(api, created):
    status = {
        "phase": "Recovering",
        "attempt": 2,
        "summary": {
            "reason": "WaitingForRoom",
            "progress": "61%",
            "loss": "0.871",
            "restarts": 2,
            "model": "Qwen2.5-0.5B-Instruct",
            "method": "LoRA r=8",
        },
        "progress": {"step": 480, "totalSteps": 1062},
        "conditions": [
            {
                "type": "Recovering",
                "status": "True",
                "reason": "WaitingForRoom",
                "lastTransitionTime": "2026-11-22T06:00:00Z",
            }
        ],
    }
    ignored = api.replace(f"{JOBS}/fixed", {**created, "status": status})
    assert "status" not in ignored
    api.replace(f"{JOBS}/fixed/status", {**ignored, "status": status})

    table = api.table(f"{JOBS}/fixed")
    names = [column["name"] for column in table["columnDefinitions"]]
    cells = dict(zip(names, table["rows"][0]["cells"], strict=True))
    del cells["Age"]
    assert cells == {
        "Name": "fixed",
        "Phase": "Recovering",
        "Reason": "WaitingForRoom",
        "Progress": "61%",
        "Loss": "0.871",
        "ETA": None,
        "GPUs": None,
        "Restarts": 2,
        "Model": "Qwen2.5-0.5B-Instruct",
        "Method": "LoRA r=8",
        "Step": 480,
        "Checkpoint": None,
        "Output": None,
    }


def profile(spec):
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneProfile",
        "metadata": {"name": "a100-shared"},
        "spec": spec,
    }


def test_a_profile(api):
    spec = {
        "allow": {
            "namespaceSelector": {"matchLabels": {"team": "nlp"}},
            "uris": ["hf://Qwen/*", "pvc://*"],
            "secrets": ["finetune-*"],
            "methods": ["full", "lora"],
            "remoteCode": False,
            "nodeSelectorKeys": ["nvidia.com/gpu.product"],
            "tolerations": [{"key": "nvidia.com/gpu"}],
        },
        "limits": {"nodes": 4, "accelerators": 32, "runtime": "72h", "workspace": "2Ti"},
        "defaults": {"training": {"epochs": 1}, "workspace": {"storageClassName": "fast-rwx"}},
        "platform": {
            "images": {"trainer": "registry.example/trainer@sha256:" + "0" * 64},
            "environment": [{"name": "NCCL_IB_HCA", "value": "mlx5"}],
            "extraResources": {"rdma/hca": 1},
            "podSecurity": {"runAsUser": 1000, "fsGroup": 1000},
            "zones": ["eu-1a"],
            "network": "HubOnly",
        },
    }

    assert api.create(PROFILES, profile(spec), dryRun="All")["spec"] == spec


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"defaults": {"training": {"epochs": 0}}}, "spec.defaults.training.epochs"),
        ({"defaults": {"training": {"lr": 1}}}, "spec.defaults.training.lr"),
        ({"platform": {"images": {"trainer": "trainer:latest"}}}, "spec.platform.images.trainer"),
        ({"limits": {"nodes": 0}}, "spec.limits.nodes"),
        ({"limits": {"workspace": 0}}, "spec.limits.workspace"),
        ({"platform": {"extraResources": {"rdma/hca": "500m"}}}, "extraResources.rdma/hca"),
        ({"allow": {"methods": ["magic"]}}, "spec.allow.methods[0]"),
    ],
)
def test_a_profile_with_a_mistake(api, spec, said):
    with pytest.raises(ApiError) as refused:
        api.create(PROFILES, profile(spec), dryRun="All")
    assert said in refused.value.message


def batch_job(resources=None, **pod):
    container = {"name": "a", "image": "a", "resources": {"limits": resources or {}}}
    template = {"spec": {"restartPolicy": "Never", "containers": [container], **pod}}
    return {"metadata": {"name": "a"}, "spec": {"template": template}}


def claim(size):
    wanted = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": size}}}
    return {"metadata": {"name": "a"}, "spec": wanted}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (batch_job({"example.com/hca": "1", "memory": "1Gi", "hugepages-2Mi": "4Mi"}), ""),
        (batch_job({"a" * 244 + "/hca": "1"}, nodeSelector={"a" * 253 + "/pool": "x"}), ""),
        (batch_job({"foo": "1"}), "must be a standard resource for containers"),
        (batch_job({"example.com/hca": "500m"}), "must be an integer"),
        (batch_job({"requests.example.com/gpu": "1"}), "extended resource name standard"),
        (batch_job({"a" * 245 + "/hca": "1"}), "extended resource name standard"),
        (batch_job({"hugepages-2Mi": "4Mi"}), "HugePages require cpu or memory"),
        (
            batch_job({"hugepages-2Mi": "3Mi", "memory": "1Gi"}),
            "positive integer multiple of hugepages-2Mi",
        ),
        (batch_job(nodeSelector={"a" * 254 + "/pool": "x"}), "must be no more than 253"),
        (claim("1"), ""),
        (claim("0"), "must be greater than zero"),
    ],
    ids=lambda case: None if isinstance(case, dict) else case or "taken",
)
def test_what_resolve_asks_of_names_and_amounts_is_what_kubernetes_asks(api, body, said):
    group, kind, plural = "api/v1", "PersistentVolumeClaim", "persistentvolumeclaims"
    if "template" in body["spec"]:
        group, kind, plural = "apis/batch/v1", "Job", "jobs"
    whole = {"apiVersion": group.partition("/")[2], "kind": kind, **body}
    path = f"/{group}/namespaces/default/{plural}"
    try:
        api.create(path, whole, dryRun="All")
    except ApiError as error:
        assert said and said in error.message
    else:
        assert not said
