"""The small parts at the edge: progress, what is kept of pods, settings, probes, refusals, Events."""

import asyncio
import json
import math

import kopf
import pytest
from aiohttp import web

from finetune_api.names import LABEL_JOB, LABEL_UID
from finetune_api.problem import Problem
from finetune_api.reports import Goodput, Progress
from finetune_api.status import Condition, JobStatus
from finetune_operator import progress as progress_module
from finetune_operator.answers import error_of
from finetune_operator.events import Recorder, transitions
from finetune_operator.kube import Conflict, Forbidden, NotFound, Unavailable
from finetune_operator.last_seen import LastSeen, is_worth_keeping
from finetune_operator.live_spec import changed_spec
from finetune_operator.probes import Health
from finetune_operator.progress import Puller, Source, accepted, is_news
from finetune_operator.queue import Key
from finetune_operator.refusal import refused, words
from finetune_operator.settings import Backoffs, kopf_settings, read_settings
from harness.simulation import START, make_job, ref

SOURCE = Source(Key("team", "bot"), "uid-1", 2, "127.0.0.1")


def progress(**changes):
    values = {"job_uid": "uid-1", "attempt": 2, "claim": 3, "step": 7, "total_steps": 60}
    return Progress(**(values | changes))


def body(**changes):
    return json.dumps(progress(**changes).to_json()).encode()


# Progress


def test_progress_of_this_attempt_is_believed():
    assert accepted(body(), SOURCE, None) == progress()
    assert accepted(body(), SOURCE, progress(step=1)) == progress()


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"not json",
        b"[]",
        b'{"jobUid": "uid-1"}',
        b'{"step": NaN}',
        body(job_uid="uid-2"),
        body(attempt=1),
        body() + b" " * (64 * 1024),
        b"[" * 60_000,
        body(step=2**53 - 1).replace(b"9007199254740991", b"1" + b"0" * 30),
        body(step=2**53 - 1).replace(b"9007199254740991", b"9" + b"0" * 18),
        body(eta_seconds=9e15).replace(b"9000000000000000.0", b"1e300"),
        body(step=7).replace(b'"step": 7', b'"step": 1e30'),
        body(loss=-1e308),
        body(tokens_per_second=1e308),
        body(goodput=Goodput(productive=1e308, lost=1e308)),
        body(checkpoint=ref(3, 2**53 - 1)).replace(b"9007199254740991", b"1" + b"0" * 30),
        body(peak_memory_bytes=2**53 - 1).replace(b"9007199254740991", b"1" + b"0" * 40),
    ],
)
def test_anything_else_is_not(said):
    assert accepted(said, SOURCE, None) is None


def test_large_numbers_that_a_status_can_hold_are_believed():
    assert accepted(body(step=2**53 - 1), SOURCE, None).step == 9_007_199_254_740_991
    diverged = {"loss": 700.0, "perplexity": math.exp(700.0)}
    assert accepted(body(evaluation=diverged), SOURCE, None).evaluation == diverged


def test_an_older_claim_is_not_believed():
    assert accepted(body(claim=2), SOURCE, progress(claim=3)) is None
    assert accepted(body(claim=2), SOURCE, progress(claim=3, attempt=1)) == progress(claim=2)


def test_a_new_eta_alone_is_no_news():
    assert not is_news(progress(eta_seconds=10), progress(eta_seconds=9, loss=1.0))
    assert is_news(progress(step=7), progress(step=8))
    assert is_news(progress(), progress(checkpoint=ref(3, 5)))
    assert is_news(None, progress())


async def serving(answer):
    """Serve progress as a pod does, on a free port of this machine."""
    app = web.Application()
    app.router.add_get("/progress", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner


@pytest.fixture
def patient(monkeypatch):
    """An answer may take as long as this machine needs."""
    monkeypatch.setattr(progress_module, "TIMEOUT", 60.0)


@pytest.mark.usefixtures("patient")
def test_a_pod_is_asked_once_in_an_interval_and_news_is_told():
    async def run():
        said, asked, told = [progress()], [], []

        async def answer(request):
            asked.append(request.path)
            return web.json_response(said[0].to_json())

        runner = await serving(answer)
        now = [0.0]
        port = runner.addresses[0][1]
        puller = Puller(told.append, every=60.0, rate=1000.0, port=port, clock=lambda: now[0])

        async def pull(at, expected):
            now[0] = at
            puller.want(SOURCE)
            await asyncio.gather(*puller._tasks)
            assert len(asked) == expected

        await pull(0.0, 1)
        await pull(59.0, 1)
        await pull(60.0, 2)
        assert told == [SOURCE.key], "the same step again is no news"
        said[0] = progress(step=8)
        await pull(120.0, 3)
        assert told == [SOURCE.key] * 2
        assert puller.known("uid-1").step == 8
        said[0] = progress(job_uid="uid-2", step=9)
        await pull(180.0, 4)
        assert puller.known("uid-1").step == 8
        await runner.cleanup()
        await pull(240.0, 4)
        await puller.close()

    asyncio.run(asyncio.wait_for(run(), 60))


@pytest.mark.usefixtures("patient")
def test_a_pod_is_asked_again_by_itself_until_its_job_is_left():
    async def run():
        asked = []

        async def answer(request):
            asked.append(request.path)
            return web.json_response(progress(step=len(asked)).to_json())

        runner = await serving(answer)
        told = []
        puller = Puller(told.append, every=0.05, rate=1000.0, port=runner.addresses[0][1])
        puller.want(SOURCE)
        while len(asked) < 3:
            await asyncio.sleep(0.01)
        puller.forget("uid-1")
        await asyncio.gather(*puller._tasks)
        number = len(asked)
        await asyncio.sleep(0.2)
        assert len(asked) == number == len(told), "a job that is over is not asked"
        await runner.cleanup()
        puller.want(SOURCE)
        await asyncio.gather(*puller._tasks)
        assert puller._again, "a pod that does not answer is asked again too"
        puller.leave("uid-1")
        assert not puller._again
        await puller.close()

    asyncio.run(asyncio.wait_for(run(), 60))


# Pods that go


def pod(uid, job="job-1", **status):
    labels = {LABEL_UID: job, LABEL_JOB: "bot"}
    metadata = {"name": f"pod-{uid}", "namespace": "team", "uid": uid, "labels": labels}
    metadata["managedFields"] = ["large"]
    return {"metadata": metadata, "spec": {"containers": ["large"]}, "status": status}


def test_the_last_state_of_a_pod_is_kept_without_its_template():
    seen = LastSeen()
    seen.keep(pod("1", phase="Running"))
    seen.keep(pod("1", phase="Failed"))
    seen.keep(pod("2", job="job-2", phase="Failed"))

    key = Key("team", "bot")
    (kept,) = seen.of_job(key, "job-1")
    assert kept["status"] == {"phase": "Failed"}
    assert "managedFields" not in kept["metadata"]
    assert "spec" not in kept
    seen.forget(key, "job-1")
    assert seen.of_job(key, "job-1") == []
    assert len(seen) == 1


def test_the_table_is_bounded_and_drops_the_oldest():
    seen = LastSeen(limit=3)
    for number in range(5):
        seen.keep(pod(str(number)))

    assert [kept["metadata"]["uid"] for kept in seen.of_job(Key("team", "bot"), "job-1")] == [
        "2",
        "3",
        "4",
    ]


@pytest.mark.parametrize(
    ("one", "deleted", "worth"),
    [
        (pod("1", phase="Running"), False, False),
        (pod("1", phase="Pending"), False, False),
        (pod("1", phase="Running"), True, True),
        (pod("1", phase="Failed"), False, True),
        (pod("1", phase="Succeeded"), False, True),
    ],
)
def test_pods_that_end_are_worth_keeping(one, deleted, worth):
    assert is_worth_keeping(one, deleted) is worth


def going(one):
    one["metadata"]["deletionTimestamp"] = "2026-11-22T10:00:00Z"
    return one


@pytest.mark.parametrize(
    ("before", "now", "deleted", "tells"),
    [
        (None, pod("1", phase="Running"), False, False),
        (None, pod("1", phase="Failed"), False, True),
        (None, pod("1", phase="Running"), True, True),
        (pod("1", phase="Failed"), pod("1", phase="Failed"), False, False),
        (pod("1", phase="Failed"), pod("1", phase="Failed"), True, False),
        (pod("1", phase="Failed"), going(pod("1", phase="Failed")), False, True),
        (going(pod("1", phase="Running")), going(pod("1", phase="Running")), False, False),
        (going(pod("1", phase="Running")), going(pod("1", phase="Failed")), False, True),
        (going(pod("1", phase="Running")), going(pod("1", phase="Running")), True, True),
    ],
)
def test_the_end_of_a_pod_is_told_once(before, now, deleted, tells):
    """Its controller writes to it again, and it is removed: that is looked at with other changes."""
    seen = LastSeen()
    if before is not None:
        seen.keep(before)
    assert seen.tells(now, deleted) is tells


# Settings


def test_a_flag_wins_over_a_variable():
    environment = {"FINETUNE_OPERATOR_WORKERS": "3", "FINETUNE_OPERATOR_NAMESPACES": "a, b"}

    found = read_settings(["--workers", "5"], environment)
    assert (found.workers, found.namespaces) == (5, ("a", "b"))
    assert read_settings([], {}).namespaces == ()
    assert read_settings(["--namespaces", "b,a,b,"], {}).namespaces == ("b", "a")


@pytest.mark.parametrize(
    ("flags", "environment", "text"),
    [
        (["--workers", "0"], {}, "--workers"),
        (["--probe-port", "x"], {}, "--probe-port"),
        ([], {"FINETUNE_OPERATOR_NAMESPACES": " , "}, "--namespaces: it names none"),
        (["--namespaces", ""], {"FINETUNE_OPERATOR_NAMESPACES": "a"}, "--namespaces: it names"),
        (["--namespaces", "a,team-*"], {}, "--namespaces: String should match pattern"),
        (["--namespaces", "Team"], {}, "--namespaces: String should match pattern"),
    ],
)
def test_a_setting_that_is_wrong_is_named(flags, environment, text, capsys):
    with pytest.raises(SystemExit) as ended:
        read_settings(flags, environment)
    assert ended.value.code == 2
    assert text in capsys.readouterr().err


def test_delays_have_no_end_and_stay_bounded():
    delays = [delay for delay, _ in zip(Backoffs(), range(200), strict=False)]

    assert len(delays) == 200
    assert 0.5 <= delays[0] <= 1.0
    assert all(15.0 <= delay <= 30.0 for delay in delays[10:])


def test_the_library_writes_nothing_and_stands_alone():
    found = kopf_settings(4)

    assert found.posting.enabled is False
    assert found.peering.standalone is True
    assert found.scanning.disabled is True
    assert found.watching.inactivity_timeout == 70
    assert found.watching.chunk_size == 50
    assert found.queueing.idle_timeout == 0.1


@pytest.mark.parametrize(
    ("kind", "selectors"),
    [
        (("", "v1", "pods"), ["app.kubernetes.io/managed-by=finetune-operator"]),
        (("", "v1", "persistentvolumeclaims"), ["app.kubernetes.io/managed-by=finetune-operator"]),
        (("batch", "v1", "jobs"), ["app.kubernetes.io/managed-by=finetune-operator"]),
        (
            ("kubeflow.org", "v1", "pytorchjobs"),
            ["app.kubernetes.io/managed-by=finetune-operator"],
        ),
        (("finetune.dev", "v1alpha1", "finetunejobs"), []),
        (("finetune.dev", "v1alpha1", "finetuneprofiles"), []),
    ],
)
def test_of_children_the_api_server_sends_those_with_our_label_alone(kind, selectors):
    group, version, plural = kind
    resource = kopf.Resource(group, version, plural, kind="X", namespaced=True, preferred=True)

    assert list(kopf_settings(4).watching.label_selectors.collect(resource)) == selectors


# Probes


def test_probes_fail_when_a_part_has_stopped():
    now = [1000.0]
    health = Health(clock=lambda: now[0], relist_every=300.0)
    assert health.problem() == ""
    assert health.unready() == "the first lists were not seen yet"
    now[0] = 1007.0
    assert health.relist_age == 7.0, "where nothing can be listed, this grows too"
    health.watching, health.last_relist = True, 1000.0
    assert health.unready() == ""
    now[0] = 1901.0
    assert health.unready() == "the jobs were last listed 901 s ago"
    assert health.relist_age == 901.0
    assert health.problem() == ""
    health.looking_since[3] = 1500.0
    assert health.problem() == "worker 3 has been at one look for 401 s"
    health.looking_since.clear()
    health.stopped = "the watch"
    assert health.problem() == health.unready() == "the watch has stopped"


# What users read


def test_a_refusal_names_the_first_and_says_all_that_has_room():
    problems = [
        Problem(code="unknown-field", field="spec.a", message="unknown field", fix="remove it"),
        Problem(code="out-of-range", field="spec.b", message="too large"),
    ]
    assert words(problems) == (
        "UnknownField",
        "spec.a: unknown field [unknown-field] fix: remove it; spec.b: too large [out-of-range]",
    )
    reason, message = words([p for p in problems for _ in range(40)])
    assert reason == "UnknownField"
    assert len(message) <= 1024
    assert message.endswith(" more")


def test_a_refusal_said_again_keeps_its_time():
    later = START.replace(year=2027)
    first = refused(JobStatus(), 1, "UnknownField", "no", START)
    again = refused(first, 1, "UnknownField", "no", later)

    assert again == first
    assert first.phase == "Pending"
    assert first.conditions[0].last_transition_time == "2026-01-01T00:00:00Z"


def condition(kind, status, reason, message=""):
    return Condition(
        type=kind, status=status, reason=reason, message=message, last_transition_time="t"
    )


def test_events_follow_changes_of_conditions():
    before = JobStatus(conditions=(condition("Running", "True", "Training", "x"),))
    after = JobStatus(
        conditions=(
            condition("Running", "False", "Preempted", "made room"),
            condition("Recovering", "True", "BackOff", "later"),
            condition("Finished", "True", "Succeeded"),
        )
    )
    assert transitions(before, after) == [
        ("Normal", "Preempted", "made room"),
        ("Warning", "BackOff", "later"),
    ]
    assert transitions(after, after) == []


def test_an_event_is_written_once():
    class Api:
        """Counts; refuses a name that it has."""

        def __init__(self):
            self.names = []

        async def create(self, body):
            if body["metadata"]["name"] in self.names:
                raise Conflict(409, "exists")
            self.names.append(body["metadata"]["name"])
            return body

    job = {"metadata": {"name": "bot", "namespace": "team", "uid": "u"}}

    async def run():
        api = Api()
        for recorder in (Recorder(api, "one"), Recorder(api, "two")):
            for _ in range(2):
                await recorder.record(job, "Normal", "Training", "attempt 1 is running")
        return api.names

    (name,) = asyncio.run(run())
    assert name.startswith("bot.")


def test_answers_become_typed_errors():
    assert isinstance(error_of(404, {}, "", None), NotFound)
    assert isinstance(error_of(409, {}, "", None), Conflict)
    assert isinstance(error_of(403, {}, "", None), Forbidden)
    limited = error_of(429, {"message": "slow down"}, "", 7.0)
    assert isinstance(limited, Unavailable)
    assert limited.retry_after == 7.0
    assert isinstance(error_of(503, {}, "", None), Unavailable)


# What may change


def test_fields_that_may_change_are_taken_from_the_object_and_no_others():
    job = make_job({"recovery": {"maxFailures": 5}, "activeDeadlineSeconds": 100})
    spec = job.spec.to_json() | {
        "suspend": True,
        "recovery": {"maxFailures": 1, "retryGeneration": 2},
        "activeDeadlineSeconds": 200,
        "training": {"learningRate": 9.0},
    }
    found, problems = changed_spec(job, spec)

    assert problems == ()
    assert found.suspend is True
    assert (found.recovery.max_failures, found.recovery.retry_generation) == (1, 2)
    assert found.active_deadline_seconds == 200
    assert found.training == job.spec.training


def test_a_change_that_is_not_valid_does_not_count():
    job = make_job({"recovery": {"maxFailures": 5}})
    found, problems = changed_spec(job, {"recovery": {"maxFailures": -1}, "suspend": True})

    assert found.recovery.max_failures == 5
    assert found.suspend is True
    assert [problem.field for problem in problems] == ["spec.recovery"]
