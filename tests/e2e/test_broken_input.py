"""What is wrong with data or model is found by a pod without a GPU, and said in a condition.

That no pod which asks for a GPU was ever created is read from the API server's audit log.
"""

import json
import shutil
import subprocess

import pytest

from harness.created import created
from harness.stage_config import merged, write_rows
from harness.tenant import chats, fill, make_tenant

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TEAM = "careless"
WITH_GPU = {"resources": {"accelerator": {"device": "cpu", "perNode": 1}}}
"""Every job of this module would train on a GPU."""
STRICT = (
    "{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def data(name):
    return {"dataset": {"train": [{"uri": f"pvc://datasets/{name}"}]}}


CASES = {
    "rows": (
        data("broken.jsonl"),
        "InvalidData",
        "broken.jsonl:1: no assistant turn, nothing to learn from (2 rows: 1, 7)"
        " [no-assistant-turn] fix: add the answer, or set dataset.invalidRows: Drop with"
        " maxInvalidFraction: 0.01",
    ),
    "no-file": (
        data("trian.jsonl"),
        "InvalidData",
        "spec.dataset.train[0].uri: pvc://datasets/trian.jsonl does not exist [file-not-found] fix:"
        " did you mean pvc://datasets/train.jsonl?",
    ),
    "empty": (data("empty.jsonl"), "InvalidData", "[empty-file]"),
    "target": (
        {"method": {"lora": {"targetModules": ["q_prj"]}}},
        "InvalidConfig",
        "[target-not-found] fix: did you mean q_proj?",
    ),
    "template-of-another-model": (
        {"dataset": {"chatTemplate": "llama3"}},
        "InvalidConfig",
        "[template-token-missing] fix: leave dataset.chatTemplate out: the tokenizer has its own",
    ),
    "no-such-template": (
        {"dataset": {"chatTemplate": "chatlm"}},
        "InvalidConfig",
        "[unknown-chat-template] fix: did you mean chatml? names: chatml llama3 mistral gemma",
    ),
    "broken-template": (
        {"dataset": {"chatTemplate": "{% for m in %}"}},
        "InvalidConfig",
        "[invalid-chat-template] fix: correct the template",
    ),
    "nothing-fits": (
        {"dataset": {"maxLength": 12}},
        "InvalidData",
        "[nothing-trained] fix: shorten the prompt, raise dataset.maxLength, or set"
        " dataset.invalidRows: Drop with maxInvalidFraction: 0.01",
    ),
    "too-long": (
        {"dataset": {"maxLength": 24, "overlong": "Fail"}},
        "InvalidData",
        "[row-too-long] fix: shorten it, raise dataset.maxLength, or set dataset.overlong: Truncate",
    ),
    "all-dropped": (
        {"dataset": {"maxLength": 24, "overlong": "Drop"}},
        "InvalidData",
        "[no-rows] fix: raise dataset.maxLength or set dataset.overlong: Truncate",
    ),
    "large-batch": (
        {"training": {"globalBatchSize": 64}},
        "InvalidConfig",
        "[batch-larger-than-data] fix: a smaller spec.training.globalBatchSize, more rows, or"
        " dataset.packing: false",
    ),
    "template-refuses": (
        merged(data("system.jsonl"), {"dataset": {"chatTemplate": STRICT}}),
        "InvalidData",
        "system.jsonl:21: the chat template refuses this row: System role not supported"
        " [template-refuses-row]",
    ),
    "short-model": (
        {"model": {"uri": "pvc://models/short"}},
        "InvalidConfig",
        "[longer-than-model] fix: set dataset.maxLength: 16",
    ),
    "no-config": (
        {"model": {"uri": "pvc://models/empty"}},
        "ModelUnavailable",
        "[model-config-missing]",
    ),
    "no-room": (
        {"workspace": {"claimName": "small"}},
        "StorageFull",
        "[no-room]",
    ),
    "no-memory": (
        {"resources": {"memory": "1Mi"}},
        "DoesNotFit",
        "[does-not-fit] fix: use a smaller model or more memory; no single change of this job is"
        " enough",
    ),
}
WAITING = {
    "no-claim": (
        {"model": {"uri": "pvc://modles/tiny"}},
        "ClaimMissing",
        'persistentvolumeclaim "modles" not found',
    ),
}
"""These may be mended in the cluster, so their jobs wait and say for what."""


@pytest.fixture(scope="module")
def team(cluster, tiny_model):
    team = make_tenant(cluster, TEAM)
    fill(team, tiny_model, rows=20)
    models, datasets = team.volume("models"), team.volume("datasets")
    shutil.copytree(models / "tiny", models / "short")
    config = json.loads((models / "short" / "config.json").read_text())
    config["max_position_embeddings"] = 16
    (models / "short" / "config.json").write_text(json.dumps(config))
    (models / "empty").mkdir()
    question = {"messages": [{"role": "user", "content": "hi"}]}
    rows = [question, *chats(3), '{"messages": [', *chats(1), question]
    write_rows(datasets / "broken.jsonl", rows)
    write_rows(datasets / "empty.jsonl", [])
    (last,) = chats(1)
    last["messages"].insert(0, {"role": "system", "content": "be kind"})
    write_rows(datasets / "system.jsonl", [*chats(20), last])
    small = team.claim("small")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", small], check=True)
    try:
        yield team
    finally:
        team.cluster.kubectl("delete", "ftjob", "--all", "-n", TEAM, "--wait=true")
        subprocess.run(["umount", "-l", small], check=True)


@pytest.fixture(scope="module")
def jobs(team, tenant):
    """All of them at the same time, beside the job ``twin``, which is done when others need it."""
    del tenant
    for name, (spec, *_) in {**CASES, **WAITING}.items():
        team.start(name, merged(WITH_GPU, spec))
    return team


@pytest.mark.parametrize("case", CASES)
def test_the_condition_says_what_is_wrong_and_what_to_do(jobs, case):
    _, reason, text = CASES[case]
    status = jobs.finished(case, 400)
    assert (status["outcome"], status["attempt"]) == ("Failed", 0)
    failed = jobs.conditions(case)["Failed"]
    assert (failed[0], failed[1]) == ("True", reason), failed
    assert text in failed[2]
    assert status["summary"]["reason"] == reason
    assert jobs.conditions(case)["Prepared"][:2] == ("False", reason)


@pytest.mark.parametrize("case", WAITING)
def test_what_others_may_mend_is_waited_for(jobs, case):
    _, reason, text = WAITING[case]

    def said():
        condition = jobs.conditions(case).get("Prepared")
        return condition if condition and condition[1] != "Preparing" else None

    condition = jobs.wait(said, f"{case} says what it waits for")
    assert condition[:2] == ("False", reason), condition
    assert text in condition[2]


def test_no_pod_that_asks_for_a_gpu_was_ever_created(cluster, jobs):
    for case in CASES:
        jobs.finished(case)
    found = created(cluster.audit_log, TEAM)
    children = sorted(one.name for one in found if one.resource != "pods")
    assert children == sorted(f"{name}-prepare" for name in {**CASES, **WAITING})
    pods = [one for one in found if one.resource == "pods"]
    assert len(pods) == len(children)
    assert [one.name for one in found if one.gpus] == []


def test_the_log_would_show_one(cluster, tenant):
    """The check above can fail: the pods of a job that trains ask for what it names."""

    def asked():
        found = created(cluster.audit_log, tenant.namespace)
        pods = [one for one in found if one.resource == "pods" and one.name.startswith("twin-1-")]
        return [one.gpus for one in pods] if len(pods) == 2 else None

    assert tenant.wait(asked, "its pods are made", 400) == [4, 4]
