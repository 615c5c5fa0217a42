"""The log names the part that broke, not those that went down with it."""

import asyncio

from finetune_operator.main import Operator
from finetune_operator.settings import Settings


def test_the_part_that_broke_is_named_though_others_were_cancelled_before(caplog):
    async def breaks():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0.05)
            raise RuntimeError("error in the stream") from None

    async def run():
        operator = Operator(Settings(trainer_image="x"))
        watch = asyncio.create_task(breaks())
        jobs = asyncio.create_task(asyncio.Event().wait())
        await asyncio.sleep(0)
        parts = {jobs: "the list of jobs", watch: "the watch"}
        for task in parts:
            task.cancel()
        done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        assert done == {jobs}
        assert await operator._fallen(done, parts) == 1
        assert operator.health.problem() == "the watch has stopped"

    asyncio.run(run())
    (record,) = caplog.records
    assert record.getMessage() == "the watch has stopped; the process ends"
    assert str(record.exc_info[1]) == "error in the stream"


def test_a_part_that_returns_is_named_too(caplog):
    async def run():
        operator = Operator(Settings(trainer_image="x"))
        jobs = asyncio.create_task(asyncio.sleep(0))
        await jobs
        assert await operator._fallen({jobs}, {jobs: "the list of jobs"}) == 1

    asyncio.run(run())
    assert [record.getMessage() for record in caplog.records] == [
        "the list of jobs has stopped; the process ends"
    ]
