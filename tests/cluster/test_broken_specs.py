"""Broken jobs on the way into a cluster: `kubectl apply`, the API server, then the operator.

Whoever finds the mistake says it, and nothing that could become a pod is ever created.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.binaries import KUBECTL, binary
from harness.control_plane import ApiError, start_control_plane
from harness.created import POLICY, created
from harness.operator_driver import JOBS, make_namespace, operator, status_of, wait_for

ROOT = Path(__file__).parents[2]
TEAM = "team"
PROFILES = "/apis/finetune.dev/v1alpha1/finetuneprofiles"

ONE_METHOD = (
    "spec.method must hold exactly one of full, lora, houlsby, prefixTuning, promptTuning and"
    " pTuning; fix: write one of them, with {} behind it where it needs no values:"
    " method: {full: {}} [method-exactly-one]"
)
BY_KUBECTL = {
    "another version": 'no matches for kind "FineTuneJob" in version "finetune.dev/v1"',
    "a misspelt kind": 'no matches for kind "FinetuneJob" in version "finetune.dev/v1alpha1"',
    "a list": "error validating data: invalid object to validate",
    "a tab": "yaml: line 10: found character that cannot start any token",
    "a bracket that is never closed": "yaml: line 9: did not find expected ',' or '}'",
    "an alias of nothing": "yaml: unknown anchor 'mine' referenced",
    "an empty file": "error: no objects passed to apply",
}
BY_THE_API_SERVER = {
    "misspelt field": 'strict decoding error: unknown field "spec.trainning"',
    "the name of another tool": (
        'strict decoding error: unknown field "spec.training.per_device_train_batch_size"'
    ),
    "r is 0": "spec.method.lora.r in body should be greater than or equal to 1",
    "nothing behind full": ONE_METHOD,
    "two methods": ONE_METHOD,
    "the micro batch does not divide the batch": (
        "globalBatchSize must be a multiple of microBatchSize; fix: choose a microBatchSize that"
        " divides it, or leave microBatchSize out [micro-batch-divides]"
    ),
    "16-bit weights under DeepSpeed": (
        "pureBf16 has no meaning under DeepSpeed, which keeps fp32 master weights; fix: use"
        " precision: bf16, or parallelism: {ddp: {}} [pure-bf16-under-deepspeed]"
    ),
    "several at once, in the order of the file": (
        'strict decoding error: unknown field "spec.objectve", unknown field'
        ' "spec.training.precission"'
    ),
    "no spec": "spec: Required value",
    "a section at the wrong depth": 'strict decoding error: unknown field "spce"',
    # Which of the two counts is kubectl's choice; here the second one has no rows.
    "a key twice": "spec.dataset.train: Required value",
}
BY_THE_OPERATOR = {
    "the ranks do not divide the batch": (
        "WorldDivides",
        "spec.training.globalBatchSize: globalBatchSize 64 cannot be divided by 6 (6 ranks)"
        " [world-divides] fix: set globalBatchSize to 60 or 66",
    ),
}
NOT_OURS = {"another object": "configmap/x created"}


def _files():
    """The broken files of the command line's test, each with its text."""
    path = ROOT / "tests" / "unit" / "finetune_cli" / "test_broken_input.py"
    spec = importlib.util.spec_from_file_location("broken_input_of_the_command_line", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {name: text for name, (text, _) in module.CONFIG.items()}


FILES = _files()


class Audited:
    """A control plane that writes down what it is asked, and an operator at work on it."""

    def __init__(self, plane, process, folder):
        self.plane, self.api, self.process, self.folder = plane, plane.api, process, folder

    def apply(self, text):
        file = self.folder / "bot.yaml"
        file.write_text(text)
        command = [binary(KUBECTL), f"--kubeconfig={self.plane.kubeconfig}", f"--namespace={TEAM}"]
        done = subprocess.run(
            [*command, "apply", "-f", file], capture_output=True, text=True, check=False, timeout=60
        )
        return done.returncode, done.stdout + done.stderr

    def refused(self, name="bot", *, because=None):
        """Wait until the operator has refused a job; returns reason and message, and removes it.

        With ``because`` until that is the reason: a job may be looked at before the profile that
        was made just before it is known.
        """

        def accepted():
            found = status_of(self.api, TEAM, name).get("conditions") or []
            said = next((one for one in found if one["type"] == "Accepted"), None)
            return said if said and because in (None, said["reason"]) else None

        condition = wait_for(accepted, self.process, 60)
        assert condition["status"] == "False", condition
        summary = status_of(self.api, TEAM, name)["summary"]
        assert summary["reason"] == condition["reason"]
        self.api.delete(f"{JOBS.format(namespace=TEAM)}/{name}")
        return condition["reason"], condition["message"]

    def became(self):
        return [(one.resource, one.name, one.gpus) for one in created(self.log, TEAM)]

    @property
    def log(self):
        return self.plane.folder / "audit.log"


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audited")
    policy = folder / "policy.json"
    policy.write_text(json.dumps(POLICY))
    plane = start_control_plane(audit_policy=policy)
    try:
        _define(plane.api)
        make_namespace(plane.api, TEAM)
        with operator(plane.kubeconfig, TEAM, folder / "operator.log") as process:
            yield Audited(plane, process, folder)
    finally:
        plane.stop()


def _define(api):
    definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    for plural in ("finetunejobs", "finetuneprofiles"):
        path = f"{definitions}/{plural}.finetune.dev"
        api.apply(path, (ROOT / "crds" / f"finetune.dev_{plural}.yaml").read_bytes())

        def served(plural=plural):
            try:
                return "items" in api.get(f"/apis/finetune.dev/v1alpha1/{plural}")
            except ApiError as error:
                assert error.code in (404, 429), error  # 429: storage is (re)initializing
                return False

        wait_for(served)


def test_no_broken_file_is_left_out():
    tables = [*BY_KUBECTL, *BY_THE_API_SERVER, *BY_THE_OPERATOR, *NOT_OURS]
    assert sorted(tables) == sorted(FILES)


@pytest.mark.parametrize("case", [*BY_KUBECTL, *BY_THE_API_SERVER])
def test_refused_where_it_is_applied(audited, case):
    code, said = audited.apply(FILES[case])
    assert code == 1
    assert {**BY_KUBECTL, **BY_THE_API_SERVER}[case] in said
    assert audited.api.get(JOBS.format(namespace=TEAM))["items"] == []
    assert audited.became() == []


@pytest.mark.parametrize("case", BY_THE_OPERATOR)
def test_refused_with_a_condition(audited, case):
    assert audited.apply(FILES[case]) == (0, "finetunejob.finetune.dev/bot created\n")
    assert audited.refused() == BY_THE_OPERATOR[case]
    assert audited.became() == []


@pytest.mark.parametrize("case", NOT_OURS)
def test_another_object_is_nothing_to_us(audited, case):
    assert audited.apply(FILES[case]) == (0, NOT_OURS[case] + "\n")
    assert audited.became() == []


SMALL = {
    "limits": {"nodes": 2, "accelerators": 8},
    "allow": {"methods": ["lora"], "secrets": ["finetune-*"], "uris": ["pvc://*", "hf://Qwen/*"]},
}
JOB = {
    "model": {"uri": "pvc://models/tiny"},
    "dataset": {"train": [{"uri": "pvc://datasets/train.jsonl"}]},
    "method": {"lora": {}},
}
UNDER_A_PROFILE = {
    "over a limit": (
        {"resources": {"nodes": 3}},
        "OverLimit",
        "spec.resources.nodes: spec.resources.nodes is 3; profile small allows at most 2"
        " (limits.nodes) [over-limit] fix: lower nodes to 2, or ask who runs the cluster",
    ),
    "a method that is not allowed": (
        {"method": {"full": {}}},
        "NotAllowed",
        "spec.method.full: spec.method.full is not allowed by profile small (allow.methods: lora)"
        " [not-allowed] fix: use one of lora, or ask who runs the cluster to allow it",
    ),
    "a secret of somebody else": (
        {
            "model": {
                "uri": "hf://Qwen/Qwen2.5-7B",
                "tokenSecretRef": {"name": "registry", "key": "token"},
            }
        },
        "NotAllowed",
        'spec.model.tokenSecretRef.name: spec.model.tokenSecretRef.name "registry" is not allowed'
        " by profile small (allow.secrets: finetune-*) [not-allowed] fix: use one of finetune-*, or"
        " ask who runs the cluster to allow it",
    ),
    "a model from elsewhere": (
        {"model": {"uri": "hf://somebody/model"}},
        "NotAllowed",
        'spec.model.uri: spec.model.uri "hf://somebody/model" is not allowed by profile small'
        " (allow.uris: pvc://*, hf://Qwen/*) [not-allowed] fix: use one of pvc://*, hf://Qwen/*, or"
        " ask who runs the cluster to allow it",
    ),
    "a profile that is not there": (
        {"profileRef": {"name": "smal"}},
        "ProfileNotFound",
        'spec.profileRef.name: there is no FineTuneProfile "smal" [profile-not-found] fix: did you'
        " mean small? write profileRef: {name: ...} with one of small",
    ),
    "no profile named": (
        {"profileRef": None},
        "ProfileMissing",
        "spec.profileRef: the job names no profile, and no profile is the default [profile-missing]"
        " fix: write profileRef: {name: ...} with one of small",
    ),
}


@pytest.fixture(scope="module")
def small(audited):
    body = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneProfile",
        "metadata": {"name": "small"},
        "spec": SMALL,
    }
    audited.api.create(PROFILES, body)
    yield
    audited.api.delete(f"{PROFILES}/small")


def _job(name, **spec):
    spec = {key: value for key, value in {**JOB, **spec}.items() if value is not None}
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": spec,
    }


@pytest.mark.parametrize("case", UNDER_A_PROFILE)
def test_refused_by_the_profile(audited, small, case):
    del small
    change, reason, message = UNDER_A_PROFILE[case]
    spec = {"profileRef": {"name": "small"}, **change}
    audited.api.create(JOBS.format(namespace=TEAM), _job("bot", **spec))
    assert audited.refused(because=reason) == (reason, message)
    assert audited.became() == []


@pytest.fixture
def reads_deep():
    """Let Python read objects of 10,000 levels here too."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(30_000)
    yield
    sys.setrecursionlimit(before)


def test_an_object_that_is_nested_deep_is_read(audited, reads_deep):
    """What the API server keeps of who wrote which field may be nested as deep as it reads at all.

    It stands in every list and watch that the operator reads.
    """
    del reads_deep
    deep = '{"f:a":' * 9_000 + "{}" + "}" * 9_000
    fields = {"manager": "m", "operation": "Update", "fieldsType": "FieldsV1", "fieldsV1": "deep"}
    job = _job("bot", profileRef={"name": "none"})
    job["metadata"]["managedFields"] = [{**fields, "apiVersion": "finetune.dev/v1alpha1"}]
    path = JOBS.format(namespace=TEAM)
    audited.api.create(path, json.dumps(job).replace('"deep"', deep).encode())
    assert json.dumps(audited.api.get(f"{path}/bot")).count("f:a") == 9_000
    assert audited.refused()[0] == "ProfileNotFound"
    assert audited.became() == []


def _profile(**spec):
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneProfile",
        "metadata": {"name": "broken"},
        "spec": spec,
    }


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"limits": {"nodes": 0}}, r"limits\.nodes in body should be greater than or equal to 1"),
        (
            {"defaults": {"training": {"epoch": 3}}},
            r'strict decoding error: unknown field "spec\.defaults\.training\.epoch"',
        ),
    ],
)
def test_a_broken_profile_is_refused(audited, spec, said):
    with pytest.raises(ApiError, match=said):
        audited.api.create(PROFILES, _profile(**spec))


def test_a_profile_that_only_the_operator_refuses_is_said_to_whoever_names_it(audited):
    platform = {"environment": [{"name": "LD_PRELOAD", "value": "/volumes/models/x.so"}]}
    audited.api.create(PROFILES, _profile(platform=platform))
    try:
        spec = {"profileRef": {"name": "broken"}}
        audited.api.create(JOBS.format(namespace=TEAM), _job("bot", **spec))
        assert audited.refused(because="ProfileInvalid") == (
            "ProfileInvalid",
            "spec.profileRef: profile broken is invalid: LD_PRELOAD is set by the operator, or would"
            " reach beyond the pod's share [profile-invalid] fix: who runs the cluster has to"
            " correct the profile: remove it",
        )
    finally:
        audited.api.delete(f"{PROFILES}/broken")
    assert audited.became() == []


def test_the_log_shows_what_a_good_job_becomes(audited, small):
    """The checks above can fail: a job that is accepted is prepared, without a GPU."""
    del small
    audited.api.create(JOBS.format(namespace=TEAM), _job("good", profileRef={"name": "small"}))
    found = wait_for(audited.became, audited.process, 30)
    assert found == [("jobs", "good-prepare", 0)]
