"""A look may begin with a job as it was remembered; what it does is done to one that is there now."""

from __future__ import annotations

from typing import Any

from finetune_operator.known_jobs import KnownJobs
from finetune_operator.kube import Unavailable
from finetune_operator.queue import Key
from harness.looks import NAMESPACE, Looks
from harness.played_runs import trains_forever

KEY = Key("team", "bot")
JOB = ("finetunejobs", NAMESPACE, "bot")


def job(version: str, **status: Any) -> dict[str, Any]:
    metadata = {"namespace": "team", "name": "bot", "uid": "1", "resourceVersion": version}
    return {"metadata": metadata, "spec": {"suspend": False}, "status": status}


def version(known: KnownJobs, key: Key = KEY) -> str | None:
    found = known.get(key)
    return found["metadata"]["resourceVersion"] if found is not None else None


def test_the_newest_version_is_kept_in_whatever_order_it_comes() -> None:
    known = KnownJobs()
    for told, kept in (("9", "9"), ("10", "10"), ("9", "10"), ("10", "10"), ("11", "11")):
        known.learn(job(told))
        assert version(known) == kept


def test_a_version_that_is_no_number_is_not_compared_with_any() -> None:
    known = KnownJobs()
    known.learn(job("9"))
    known.learn(job("a1"))
    assert version(known) is None


def test_of_a_job_that_has_ended_no_older_state_is_learned_again() -> None:
    known = KnownJobs()
    known.learn(job("12", outcome="Succeeded"))
    known.learn(job("11"))
    assert version(known) is None


def test_what_is_returned_can_be_changed_and_what_was_told_too() -> None:
    known = KnownJobs()
    told = job("9")
    known.learn(told)
    told["spec"]["suspend"] = True
    found = known.get(KEY)
    assert found is not None
    found["spec"]["suspend"] = True
    assert known.get(KEY) == job("9")


def test_who_wrote_which_field_is_not_kept() -> None:
    known = KnownJobs()
    told = job("9")
    known.learn({**told, "metadata": {**told["metadata"], "managedFields": [{"manager": "x"}]}})
    assert known.get(KEY) == told


def test_the_oldest_are_dropped() -> None:
    known = KnownJobs(limit=2)
    bodies = [job("1"), job("2"), job("3")]
    for number, body in enumerate(bodies):
        body["metadata"]["name"] = f"bot-{number}"
        known.learn(body)
    assert [version(known, Key("team", f"bot-{n}")) for n in range(3)] == [None, "2", "3"]
    assert len(known) == 2


def test_of_labels_and_annotations_only_what_is_read_is_kept() -> None:
    known = KnownJobs()
    told = job("9")
    labels = {"kueue.x-k8s.io/queue-name": "blue", "kueue.x-k8s.io/priority-class": "high"}
    told["metadata"] |= {
        "labels": {**labels, **{f"label-{number}": "x" * 63 for number in range(1000)}},
        "annotations": {"notes": "x" * 1024 * 1024},
        "ownerReferences": [{"name": "x" * 1024 * 1024}],
        "generation": 3,
        "creationTimestamp": "2026-11-22T10:00:00Z",
        "deletionTimestamp": "2026-11-22T10:10:00Z",
    }
    known.learn(told)
    found = known.get(KEY)
    assert found is not None
    assert found["metadata"] == {
        "namespace": "team",
        "name": "bot",
        "uid": "1",
        "resourceVersion": "9",
        "generation": 3,
        "creationTimestamp": "2026-11-22T10:00:00Z",
        "deletionTimestamp": "2026-11-22T10:10:00Z",
        "labels": labels,
    }
    assert known.size < 1024


def test_a_tenant_with_jobs_as_large_as_can_be_does_not_fill_the_memory() -> None:
    """100 specs of 120 kB; beyond 128 KiB a job is not kept, but its version is."""
    known = KnownJobs(room=1_000_000)
    for number in range(100):
        body = job("5")
        body["metadata"]["name"] = f"bot-{number}"
        body["spec"]["text"] = "x" * 120_000
        known.learn(body)
    assert len(known) == 8
    assert 960_000 < known.size <= 1_000_000
    assert version(known, Key("team", "bot-99")) == "5"

    large = job("7")
    large["spec"]["text"] = "x" * 200_000
    known.learn(large)
    known.learn(job("6"))
    assert version(known) is None


def test_a_job_with_a_megabyte_of_annotations_lives_as_any_other() -> None:
    looks = Looks()
    body = looks.create()
    looks.api.objects[JOB]["metadata"]["annotations"] = {"notes": "x" * 1024 * 1024}
    assert looks.live()["outcome"] == "Succeeded"
    assert looks.api.objects[JOB]["metadata"]["uid"] == body["metadata"]["uid"]
    assert len(looks.api.objects[JOB]["metadata"]["annotations"]["notes"]) == 1024 * 1024


def test_a_list_that_has_an_older_version_has_the_job_read_again() -> None:
    """A store that was brought back from a copy begins its versions anew."""
    known = KnownJobs()
    known.learn(job("900"))
    known.listed(job("20"))
    assert version(known) is None
    known.learn(job("21"))
    assert version(known) == "21"
    known.listed(job("22"))
    assert version(known) == "22"


def reads(looks: Looks) -> list[str]:
    """Have the reads of the job itself listed from now on."""
    found: list[str] = []

    def listen(method: str, path: str) -> None:
        if method == "GET" and path.endswith("/finetunejobs/bot"):
            found.append(path)

    looks.kube.refuse = listen  # type: ignore[assignment]
    return found


def test_a_life_reads_its_job_only_to_act_without_having_written() -> None:
    """A watch tells of everything here."""
    looks = Looks(script=trains_forever)
    looks.create()
    looks.tell()
    looks.watches = True
    asked = reads(looks)
    looks.train()
    assert asked == []


def test_a_job_that_was_suspended_unnoticed_starts_nothing() -> None:
    """The ledger names an attempt that could not be made; its user suspends the job meanwhile."""
    looks = Looks()
    looks.create()
    looks.kube.refuse = lambda method, path: (
        503
        if method == "POST" and path.endswith("/jobs") and looks.status.get("prepared")
        else None
    )
    for _ in range(12):
        try:
            looks.turn()
        except Unavailable:
            break
    assert (looks.status["attempt"], looks.children()) == (1, ["bot-prepare"])
    looks.kube.refuse = lambda method, path: None
    looks.tell()
    looks.change(suspend=True)
    looks.watches = False

    looks.look()

    assert looks.children() == ["bot-prepare"]
    assert looks.conditions()["Suspended"][0] == "True"


def test_a_job_of_the_same_name_is_another_one() -> None:
    """The watch has told of neither the end of the old one nor of the new one."""
    looks = Looks(script=trains_forever)
    looks.create()
    looks.train()
    before = looks.worker.known.get(looks.key)
    assert before is not None
    for key in [key for key in looks.api.objects if key[0] != "namespaces"]:
        del looks.api.objects[key]
    looks.create()
    looks.watches = False

    looks.look()

    after = looks.worker.known.get(looks.key)
    assert after is not None
    assert after["metadata"]["uid"] != before["metadata"]["uid"]
    looks.watches = False
    looks.look()
    child = looks.api.objects[("jobs", NAMESPACE, "bot-prepare")]
    assert child["metadata"]["ownerReferences"][0]["uid"] == after["metadata"]["uid"]


def test_what_acts_on_a_job_that_has_not_changed_asks_for_nothing_twice() -> None:
    """The gang saves and ends: each look tells it again, after it has read the job once."""
    looks = Looks(script=trains_forever)
    looks.create()
    looks.train()
    looks.change(suspend=True)
    looks.look()
    looks.tell()
    asked: list[str] = []
    looks.kube.refuse = lambda method, path: asked.append(f"{method} {path.rpartition('/')[2]}")
    looks.look()
    assert looks.conditions()["Suspended"][0] == "False"
    assert sorted(asked) == ["GET bot", "GET bot-workspace", "GET jobs", "GET pods"]
