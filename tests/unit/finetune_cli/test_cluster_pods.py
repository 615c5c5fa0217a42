"""Which pods a reader of logs means."""

from __future__ import annotations

import pytest

from finetune_cli.cluster.pods import JobPod, Wanted, choose, from_run, read_pod


def pod(stage: str, attempt: int, rank: int = 0) -> JobPod:
    name = f"bot-{stage}-{attempt}-{rank}"
    return JobPod(name, f"uid-{name}", stage, attempt, rank, "trainer", "running")


PODS = [
    pod("publish", 1),
    pod("train", 2, 1),
    pod("train", 10, 0),
    pod("train", 2, 0),
    pod("prepare", 1),
    pod("train", 1, 0),
    pod("train", 10, 1),
]


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        (Wanted(), ["bot-publish-1-0"]),
        (Wanted(stage="train"), ["bot-train-10-0", "bot-train-10-1"]),
        (Wanted(attempt=2), ["bot-train-2-0", "bot-train-2-1"]),
        (Wanted(attempt=2, rank=1), ["bot-train-2-1"]),
        (Wanted(stage="train", rank=1), ["bot-train-10-1"]),
        (Wanted(attempt=1, stage="prepare"), ["bot-prepare-1-0"]),
        (Wanted(previous=True), ["bot-train-10-0", "bot-train-10-1"]),
        (Wanted(stage="train", previous=True), ["bot-train-2-0", "bot-train-2-1"]),
        (Wanted(stage="prepare", previous=True), []),
        (Wanted(attempt=7), []),
        (Wanted(stage="train", rank=9), []),
    ],
)
def test_choice(wanted: Wanted, names: list[str]) -> None:
    assert [one.name for one in choose(PODS, wanted)] == names


def test_later_runs_follow_unless_one_alone_is_wanted() -> None:
    from_two = from_run(PODS, Wanted(), (1, 2))
    assert [one.name for one in from_two] == [
        "bot-train-2-0",
        "bot-train-2-1",
        "bot-train-10-0",
        "bot-train-10-1",
        "bot-publish-1-0",
    ]
    only = from_run(PODS, Wanted(attempt=2), (1, 2))
    assert [one.name for one in only] == ["bot-train-2-0", "bot-train-2-1"]
    train = from_run(PODS, Wanted(stage="train", rank=0), (1, 2))
    assert [one.name for one in train] == ["bot-train-2-0", "bot-train-10-0"]


def body(labels: dict[str, str], status: dict[str, object] | None = None) -> dict[str, object]:
    return {
        "metadata": {"name": "bot-1-worker-3", "uid": "u", "labels": labels},
        "spec": {"containers": [{"name": "istio-proxy"}, {"name": "pytorch"}]},
        "status": status or {},
    }


LABELS = {
    "finetune.dev/stage": "train",
    "finetune.dev/attempt": "2",
    "training.kubeflow.org/replica-index": "3",
}


@pytest.mark.parametrize(
    ("status", "state", "why"),
    [
        (None, "waiting", "not scheduled yet"),
        (
            {
                "containerStatuses": [
                    {"name": "istio-proxy", "state": {"running": {}}},
                    {"name": "pytorch", "state": {"waiting": {"reason": "ImagePullBackOff"}}},
                ]
            },
            "waiting",
            "ImagePullBackOff",
        ),
        ({"containerStatuses": [{"name": "pytorch", "state": {"running": {}}}]}, "running", ""),
        (
            {"containerStatuses": [{"name": "pytorch", "state": {"terminated": {"exitCode": 1}}}]},
            "ended",
            "",
        ),
        ({"phase": "Failed"}, "ended", ""),
    ],
)
def test_a_pod_of_a_job(status: dict[str, object] | None, state: str, why: str) -> None:
    assert read_pod(body(LABELS, status)) == JobPod(
        "bot-1-worker-3", "u", "train", 2, 3, "pytorch", state, why
    )


def test_a_pod_of_an_indexed_job_and_foreign_ones() -> None:
    indexed = {**LABELS, "batch.kubernetes.io/job-completion-index": "5"}
    del indexed["training.kubeflow.org/replica-index"]
    found = read_pod(body(indexed))
    assert found is not None
    assert found.rank == 5
    assert read_pod(body({"finetune.dev/stage": "train"})) is None
    assert read_pod(body({"finetune.dev/stage": "brew", "finetune.dev/attempt": "1"})) is None
