"""Progress from a pod's log: the newest line that is this attempt's, and nothing else in it."""

import asyncio
import json
from dataclasses import replace

import pytest
from aiohttp import web

from finetune_api.checkpoint import CheckpointRef
from finetune_api.reports import Goodput, Progress
from finetune_api.status import JobStatus
from finetune_operator.kube import Forbidden, Kube, Unavailable
from finetune_operator.progress import Puller, Source
from finetune_operator.progress_log import LogReader, newest
from finetune_operator.queue import Key
from finetune_operator.said import claim_said
from finetune_operator.settings import read_settings
from harness.looks import Looks
from harness.played_runs import Run

SOURCE = Source(
    Key("team", "bot"), "uid-1", 2, "127.0.0.1", pod="bot-2-0-abcde", container="trainer"
)
DIGEST = "sha256:" + "a" * 64
LINE = {
    "event": "progress",
    "step": 7,
    "totalSteps": 60,
    "loss": 1.5,
    "learningRate": 0.0002,
    "tokensPerSecond": 812.5,
    "etaSeconds": 26.5,
    "checkpoint": {"step": 5, "path": "checkpoints/3/step-5", "digest": DIGEST},
    "resumedFrom": {"step": 4, "path": "checkpoints/2/step-4", "digest": DIGEST},
    "job": "uid-1",
    "attempt": 2,
    "claim": 3,
}
SAID = Progress(
    job_uid="uid-1",
    attempt=2,
    claim=3,
    phase="training",
    step=7,
    total_steps=60,
    loss=1.5,
    learning_rate=0.0002,
    tokens_per_second=812.5,
    eta_seconds=26.5,
    checkpoint=CheckpointRef(step=5, path="checkpoints/3/step-5", digest=DIGEST),
    resumed_from=CheckpointRef(step=4, path="checkpoints/2/step-4", digest=DIGEST),
)


def line(**changes):
    return json.dumps({**LINE, **changes}).encode()


def test_the_newest_line_counts_whatever_stands_around_it():
    text = b"\n".join(
        [
            b"d\xc3",
            line(step=6),
            b"Loading checkpoint shards: 100%|\xe2\x96\x88",
            line(),
            b'{"event": "evaluation", "step": 8, "loss": 1.0}',
            b'{"event": "progress", "step": 9',
            b"",
        ]
    )
    assert newest(text, SOURCE, None) == SAID


@pytest.mark.parametrize(
    "changes",
    [
        {"job": "uid-2"},
        {"attempt": 1},
        {"attempt": True},
        {"claim": 2},
        {"claim": "3"},
        {"claim": None},
        {"step": -1},
        {"step": None},
        {"loss": float("nan")},
        {"checkpoint": {"step": 5, "path": "../../etc", "digest": "no"}},
        {"event": "evaluation"},
        {"totalSteps": [60]},
        {"step": 10**30},
        {"etaSeconds": 1e300},
        {"loss": 1e308},
    ],
)
def test_a_line_that_does_not_match_is_dropped(changes):
    before = SAID.model_copy(update={"step": 1})
    assert newest(line(**changes), SOURCE, before) is None
    assert newest(line(step=5) + b"\n" + line(**changes), SOURCE, before).step == 5


@pytest.mark.parametrize(
    "text", [b"", b"{", b"\xff" * 99, b'["progress"]', b'{"progress":' * 30_000, b'"progress"']
)
def test_a_log_without_such_a_line_tells_nothing(text):
    assert newest(text, SOURCE, None) is None


def test_an_attempt_that_was_heard_in_its_log_alone_keeps_where_it_resumed_from():
    """Without it status said that the attempt began at step 0, and that all before it was lost."""
    puller = Puller(lambda key: None)
    puller._known["uid-1"] = newest(line(), SOURCE, None)
    claim = claim_said("uid-1", JobStatus(attempt=2), [], puller)
    assert (claim.sequence, claim.resumes_from.step) == (3, 4)


def test_what_the_line_does_not_hold_is_kept_from_before():
    before = SAID.model_copy(
        update={"step": 1, "peak_memory_bytes": 9, "goodput": Goodput(productive=3.0)}
    )
    found = newest(line(), SOURCE, before)
    assert (found.step, found.peak_memory_bytes, found.goodput.productive) == (7, 9, 3.0)
    newer = newest(line(claim=4), SOURCE, before)
    assert (newer.claim, newer.peak_memory_bytes) == (4, 0)


class Cluster(Kube):
    """Answers the question for a log with one thing after another."""

    def __init__(self, *answers):
        super().__init__()
        self.answers = list(answers)
        self.asked = []

    async def log(self, namespace, pod, container, *, lines, limit):
        self.asked.append((namespace, pod, container, lines, limit))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_a_pod_that_cannot_be_reached_is_asked_through_its_log():
    async def run():
        kube, told = Cluster(line(), line(), line(step=8)), []
        now = [0.0]
        puller = Puller(
            told.append,
            every=60.0,
            rate=1000.0,
            port=9,  # nobody listens there
            clock=lambda: now[0],
            instead=LogReader(kube).read,
        )
        for at in (0.0, 60.0, 120.0):
            now[0] = at
            puller.want(SOURCE)
            await asyncio.gather(*puller._tasks)
        assert kube.asked == [("team", "bot-2-0-abcde", "trainer", 64, 65536)] * 3
        assert told == [SOURCE.key] * 2, "the same step again is no news"
        assert puller.known("uid-1").step == 8
        await puller.close()

    asyncio.run(asyncio.wait_for(run(), 20))


def test_without_the_right_it_is_not_asked_again_for_a_while_and_an_outage_passes():
    async def run():
        now = [50.0]
        kube = Cluster(Unavailable(0, "no answer"), line(), Forbidden(403, "pods/log"), line())
        reader = LogReader(kube, lambda: now[0])
        found = [await reader.read(SOURCE, None) for _ in range(5)]
        assert found == [None, SAID, None, None, None]
        assert len(kube.asked) == 3
        now[0] = 649.9
        assert await reader.read(SOURCE, None) is None
        assert len(kube.asked) == 3
        now[0] = 650.0
        assert await reader.read(SOURCE, None) == SAID

    asyncio.run(run())


def test_what_is_refused_in_one_namespace_is_read_in_another():
    async def run():
        kube = Cluster(Forbidden(403, "pods/log"), line())
        reader = LogReader(kube)
        gone = replace(SOURCE, key=Key("gone", "bot"))
        assert await reader.read(gone, None) is None
        assert await reader.read(SOURCE, None) == SAID
        assert [namespace for namespace, *_ in kube.asked] == ["gone", "team"]

    asyncio.run(run())


def test_no_more_is_read_than_was_asked_for(monkeypatch):
    asked = []

    async def answer(request):
        asked.append((request.path, dict(request.query)))
        if "gone" in request.path:
            return web.json_response({"message": "pods gone not found"}, status=404)
        return web.Response(body=b"x" * 300_000)

    async def run():
        app = web.Application()
        app.router.add_get("/{rest:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        import kopf

        server = f"http://127.0.0.1:{runner.addresses[0][1]}"
        monkeypatch.setattr(
            "finetune_operator.kube.login", lambda: kopf.ConnectionInfo(server=server)
        )
        kube = Kube()
        text = await kube.log("team", "bot-1", "trainer", lines=64, limit=65536)
        assert text == b"x" * 65536
        assert (
            await LogReader(kube).read(
                Source(Key("team", "bot"), "uid-1", 2, "", pod="gone", container="trainer"), None
            )
            is None
        )
        await kube.close()
        await runner.cleanup()

    asyncio.run(asyncio.wait_for(run(), 20))
    query = {"container": "trainer", "tailLines": "64", "limitBytes": "65536"}
    assert asked[0] == ("/api/v1/namespaces/team/pods/bot-1/log", query)


def test_the_pod_of_the_first_node_is_named():
    looks, wanted = Looks(script=lambda stage, *_: Run(forever=stage == "train")), []
    looks.puller.want = wanted.append
    looks.create()
    for _ in range(12):
        looks.turn()
    looks.settle()
    assert (wanted[-1].pod, wanted[-1].container) == ("bot-1-0-abcde", "trainer")


def test_it_can_be_switched_off():
    assert read_settings([], {}).progress_from_logs
    assert not read_settings(["--progress-from-logs", "false"], {}).progress_from_logs
    assert not read_settings(
        [], {"FINETUNE_OPERATOR_PROGRESS_FROM_LOGS": "false"}
    ).progress_from_logs
