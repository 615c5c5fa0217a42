"""What ``finetune report`` tells of a job of a cluster and of one of this machine."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

from finetune_api.names import Layout
from finetune_api.reports import Goodput
from finetune_api.status import JobStatus, OutputStatus
from finetune_cli.cluster.jobs import ClusterJob, parse
from finetune_cli.cluster.volume_file import VolumeFile, command, file_of
from finetune_cli.report import cluster_lines, local_lines
from finetune_cli.run.record import Metadata, Record
from harness.simulation import make_job
from harness.written_status import FAILED, SUCCEEDED, THEN

UID = "1234abcd-0000-4000-8000-000000000000"
WHOLE = {
    **SUCCEEDED,
    "failures": 1,
    "suspensions": 1,
    "attempt": 2,
    "trainerImage": "registry.example/trainer:0.1.0",
    "goodput": {"productive": 3540, "starting": 40, "saving": 15, "evaluating": 0, "lost": 5},
    "dataset": {
        "rows": 14212,
        "dropped": 3,
        "sequences": 900,
        "tokens": 31000000,
        "trainedTokens": 9800000,
        "fingerprint": "sha256:" + "1a" * 32,
    },
    "memory": {"verdict": "Fits", "predictedBytes": 61 * 2**30, "observedBytes": 58 * 2**30},
    "chosen": [{"field": "training.globalBatchSize", "value": "64", "reason": "100 steps"}],
}


def job(status: dict[str, Any], **spec: Any) -> ClusterJob:
    metadata = {"name": "bot", "namespace": "team", "uid": UID, "creationTimestamp": THEN}
    return parse({"metadata": metadata, "spec": spec, "status": status})


def test_the_report_of_a_job_that_succeeded() -> None:
    lines = list(cluster_lines(job(WHOLE)))
    assert lines[:-1] == [
        "bot  Succeeded in 3h12m   lora on tiny",
        "  data        14,212 rows, 3 dropped, 900 sequences",
        "  tokens      9,800,000 trained of 31,000,000",
        "  training    step 40 of 60, loss 0.844, 1,204 tokens/s",
        "  evaluation  loss 1.03",
        "  attempts    2 (1 failed, 1 interrupted, 1 suspended)",
        "              attempt 2: Preempted at step 33, resumed from 30 (sha256 9f9f9f9f...),"
        " 3 steps repeated",
        "  time        98.3% productive: productive 59m, starting 40s, saving 15s, lost 5s",
        "  memory      61.0 GiB predicted, 58.0 GiB seen, of one process",
        "  chosen      training.globalBatchSize: 64 (100 steps)",
        "  checkpoint  step 30, sha256:9f9f9f9f9f9f,"
        " pvc://bot-workspace/bot-1234abcd/checkpoints/1/step-30",
        "  model       pvc://output/bot  sha256:4b4b4b4b4b4b",
        "  report      pvc://output/bot/report.html",
    ]
    assert lines[-1].startswith(
        "  copy it here, once no pod of the job holds a volume of one node:"
    )


def test_a_job_that_has_done_nothing_yet_and_one_that_failed() -> None:
    assert list(cluster_lines(job({}))) == ["bot  Pending"]
    assert list(cluster_lines(job(FAILED))) == [
        "bot  Failed in 2m",
        "  failed      InvalidData: train.jsonl:17: no assistant turn, nothing to learn from"
        " [no-assistant-turn]",
        "  fix         add the answer",
    ]


def test_which_file_tells_most() -> None:
    whole = {"outcome": "Succeeded", "output": {"uri": "pvc://output"}}
    assert file_of(job(whole)) == VolumeFile("output", "report.html")
    running = file_of(job({"attempt": 1}, workspace={"claimName": "mine"}))
    assert running == VolumeFile("mine", "bot-1234abcd/reports/metrics.jsonl")
    assert running.uri == "pvc://mine/bot-1234abcd/reports/metrics.jsonl"
    missed = {"class": "GateNotMet", "code": "c", "message": "m", "time": THEN}
    rejected = file_of(job({"attempt": 1, "outcome": "Failed", "lastFailure": missed}))
    assert rejected is not None
    assert rejected.uri == "pvc://bot-workspace/bot-1234abcd/rejected/*/report.html"
    assert file_of(job({"outcome": "Succeeded", "output": {"uri": "hf://somebody/bot"}})) is None


def words_of(text: str) -> list[str]:
    read, _, target = text.rpartition(" > ")
    return [*shlex.split(read), ">", target]


def test_the_command_mounts_the_claim_read_only_and_passes_restricted_pod_security() -> None:
    text = command(
        job(WHOLE), VolumeFile("output", "my bot/it's/report.html"), ["--context", "the other"]
    )
    words = words_of(text)
    assert words[:5] == ["echo", "|", "kubectl", "--context", "the other"]
    assert words[5:9] == ["run", "bot-report", "--namespace", "team"]
    assert words[words.index("--image") + 1] == "registry.example/trainer:0.1.0"
    assert words[-8:] == [
        *("--command", "--", "sh", "-c", 'read -r _; cat "$0"', "/claim/my bot/it's/report.html"),
        *(">", "bot-report.html"),
    ]
    pod = json.loads(words[words.index("--overrides") + 1])["spec"]
    assert pod["volumes"] == [{"name": "claim", "persistentVolumeClaim": {"claimName": "output"}}]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    (container,) = pod["containers"]
    assert container["name"] == "bot-report"
    assert container["volumeMounts"] == [{"name": "claim", "mountPath": "/claim", "readOnly": True}]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }


def test_of_several_rejected_models_the_newest_is_read(tmp_path: Path) -> None:
    for number, name in enumerate(("step-30-ab", "step-60-cd")):
        folder = tmp_path / "bot-1234abcd" / "rejected" / name
        folder.mkdir(parents=True)
        (folder / "report.html").write_text(name)
        os.utime(folder, (1000 - number, 1000 - number))
    file = VolumeFile("bot-workspace", "bot-1234abcd/rejected/report.html", newest_of=True)
    words = words_of(command(job(WHOLE), file))
    shell = words[words.index("--") + 1 : -2]
    assert shell[:2] == ["sh", "-c"]
    shell[3] = shell[3].replace("/claim/", f"{tmp_path}/")
    assert subprocess.check_output(shell, input="\n", text=True) == "step-30-ab"


def test_the_report_of_a_job_of_this_machine(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    metadata = Metadata(name="tiny", uid=UID, creation_timestamp=THEN)
    status = JobStatus(
        phase="Succeeded",
        outcome="Succeeded",
        finished_at="2026-01-01T10:02:00Z",
        attempt=1,
        goodput=Goodput(productive=9, starting=1),
        output=OutputStatus(uri="output", evaluation={"loss": 0.5}),
    )
    record = Record(metadata=metadata, spec={}, resolved=make_job(), status=status)
    first = [
        "tiny  Succeeded in 2m",
        "  evaluation  loss 0.5",
        "  attempts    1",
        "  time        90.0% productive: productive 9s, starting 1s",
    ]
    assert list(local_lines(record, layout)) == first
    layout.reports.mkdir()
    layout.metrics.write_text("{}\n")
    metrics = [*first, f"  metrics     {tmp_path}/reports/metrics.jsonl"]
    assert list(local_lines(record, layout)) == metrics
    done: dict[str, Any] = {
        **{"job": "tiny", "jobUid": UID, "uri": "output", "baseModel": "pvc://models/tiny"},
        **{"baseDigest": "sha256:" + "0" * 64, "method": "lora", "objective": "sft"},
        **{"merged": True, "selectedStep": 60, "steps": 60, "files": [], "time": THEN},
    }
    layout.publish_report.write_text(json.dumps(done))
    layout.output.mkdir()
    (layout.output / "report.html").write_text("<html>")
    published = [
        *first,
        f"  model       {tmp_path}/output",
        f"  report      {tmp_path}/output/report.html",
    ]
    assert list(local_lines(record, layout)) == published
    elsewhere = record.model_copy(update={"volumes": {"out": str(tmp_path)}})
    layout.publish_report.write_text(json.dumps({**done, "uri": "pvc://out/output"}))
    assert list(local_lines(elsewhere, layout)) == published
