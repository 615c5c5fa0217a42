"""A node is cut off with its pods, a second gang takes the job over, and the first one comes back.

The processes of the first gang stand still while the node is away, as on a machine that is paused,
and go on while the second gang owns the job's folder: they find its claim and change nothing. What
holds their containers stands still longer, until they have ended by themselves: else the kubelet that
comes back would kill them, and how fast the second gang is would say whether there is a first.
"""

from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from harness.checkpoint_folders import contents
from harness.disturbed import ONCE, Before, Disturbed, all_held
from harness.paused import let_go_on, pause_shims
from harness.stage_config import merged

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@dataclass(frozen=True)
class Parted:
    """A job whose node was cut off in mid-training, with its pods standing still."""

    job: Disturbed
    before: Before
    node: ExitStack
    """Closed, the node comes back."""
    pods: ExitStack
    """Closed, the processes of the first gang go on."""
    shims: ExitStack
    """Closed, the kubelet may end their containers."""


@pytest.fixture(scope="session")
def parted(cluster, tenant, twin, short_twin):
    """Until the node is let come back, tests run that need none."""
    twin()  # they have their pods no longer
    short_twin()
    grace = {"checkpoint": {"gracePeriodSeconds": 10}}  # the operator waits for it and a minute
    tenant.start("parted", merged(ONCE, {"backend": "PyTorchJob", **grace}))
    job = Disturbed(tenant, "parted")
    with ExitStack() as shims, ExitStack() as pods, ExitStack() as node:  # closed, whatever happens
        before = all_held([job], pods)[job.name]
        shims.callback(let_go_on, pause_shims(before.pods))
        node.callback(cluster.start_kubelet)
        cluster.stop_kubelet()
        yield Parted(job, before, node, pods, shims)


def test_a_node_is_cut_off(cluster, parted):
    cluster.wait_node_lost()
    assert parted.job.kept.claim(2) == {}


def test_a_gang_that_comes_back_is_fenced(tenant, parted):
    job, before = parted.job, parted.before
    # Should anything fail here, later tests have a node.
    with parted.shims, parted.pods, parted.node:
        # Unreachable for a minute, told to go, the grace period, and a minute of no sign.
        tenant.wait(
            lambda: (
                tenant.status("parted")["attempt"] == 2
                and tenant.status("parted")["child"].get("uid")
            ),
            "a second attempt is made although the first gave no sign",
            400,
        )
        old = {pod["metadata"]["uid"] for pod in before.pods}
        there = {pod["metadata"]["uid"] for pod in tenant.pods("parted")}
        assert old <= there, "nobody removes pods by force"
        parted.node.close()
        tenant.wait(lambda: job.kept.claim(2), "the second gang has its claim", 400)
        untouched = of_the_second(job.kept)
        parted.pods.close()
        tenant.wait(
            lambda: all(job.kept.end(1, node) for node in (0, 1)), "the first gang has ended"
        )
    assert [job.kept.end(1, node)["exitCode"] for node in (0, 1)] == [21, 21]
    assert job.kept.end(1)["problems"][0]["code"] == "fenced"
    assert job.kept.end(1)["checkpoint"]["step"] == before.checkpoint
    assert untouched.items() <= of_the_second(job.kept).items()


def test_the_second_gang_ends_as_if_there_had_been_no_other(tenant, short_twin, parted):
    undisturbed, job, before = short_twin(), parted.job, parted.before
    status = tenant.finished("parted", 600)
    assert status["outcome"] == "Succeeded"
    assert (status["attempt"], status["failures"], status["preemptions"]) == (2, 0, 1)
    (resume,) = status["resumes"]
    assert (resume["cause"], resume["fromStep"]) == ("LostInfrastructure", before.checkpoint)
    assert resume["stoppedAt"] >= before.checkpoint
    assert job.kept.losses() == undisturbed.losses()
    assert job.kept.adapter() == undisturbed.adapter()


def of_the_second(kept):
    """The files of the second claim and of the checkpoint that it began from."""
    return {
        name: data
        for name, data in contents(kept.root).items()
        if name.startswith(("claims/", "checkpoints/2/step-")) and not name.endswith(".tmp")
    }
