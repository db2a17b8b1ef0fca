"""Watching: a snapshot, every end, and no moment in which a change can be missed."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from jobwire_server.domain.errors import JobNotFound, ServerDraining
from jobwire_server.domain.model import Failure, Job, JobState

from tests.support.brokers import QUIET, Broker, running_broker
from tests.support.jobs import new_job, next_ulid
from tests.support.waiting import eventually

S = JobState


class Watcher:
    """A watch stream that is read in the background."""

    def __init__(self, broker: Broker, ulid: str) -> None:
        self.seen: list[Job] = []
        self.quiet = 0
        self._stream = broker.watch(ulid)
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async with aclosing(self._stream) as stream:
            async for job in stream:
                if job is None:
                    self.quiet += 1
                else:
                    self.seen.append(job)

    @property
    def states(self) -> list[JobState]:
        return [job.state for job in self.seen]

    async def sees(self, state: JobState) -> None:
        await eventually(lambda: self.states[-1:] == [state], f"the watcher sees {state.name}")


async def _end(broker: Broker, ulid: str, worker: str = "w1") -> None:
    claimed = await broker.claim_one(worker)
    await broker.succeed("default", ulid, worker, claimed.fencing_token, b"r")


async def test_a_watcher_sees_the_job_as_it_stands_and_every_change_until_its_end(
    broker: Broker,
) -> None:
    await broker.register()
    (ulid,) = await broker.submit(new_job(delay_ms=60_000))
    watcher = Watcher(broker, ulid)
    await watcher.sees(S.SCHEDULED)
    await broker.after(60_001)
    await watcher.sees(S.PENDING)
    token = (await broker.claim_one()).fencing_token
    await watcher.sees(S.RUNNING)
    await broker.report("default", ulid, "w1", token, b"half")
    await eventually(lambda: watcher.seen[-1].progress == b"half", "the report")
    await broker.fail("default", ulid, "w1", token, Failure("x", retry_after_ms=9_000))
    await watcher.sees(S.SCHEDULED)
    await broker.after(9_001)
    await watcher.sees(S.PENDING)
    token = (await broker.claim_one()).fencing_token
    await watcher.sees(S.RUNNING)
    await broker.router.cancel_job("default", ulid, "")
    await watcher.sees(S.CANCELLING)
    await broker.succeed("default", ulid, "w1", token, b"result")
    await watcher.task
    assert watcher.states[-1] is S.SUCCEEDED
    assert watcher.seen[-1].result == b"result"
    revisions = [job.revision for job in watcher.seen]
    assert revisions == sorted(set(revisions))


async def test_a_finished_job_is_answered_once(broker: Broker) -> None:
    await broker.register()
    (ulid,) = await broker.submit()
    await _end(broker, ulid)
    for _ in range(3):
        watcher = Watcher(broker, ulid)
        await watcher.task
        assert watcher.states == [S.SUCCEEDED]


async def test_a_watch_of_an_unknown_job_is_refused(broker: Broker) -> None:
    watcher = Watcher(broker, next_ulid())
    with pytest.raises(JobNotFound):
        await watcher.task


async def test_changes_made_through_another_server_are_seen(store_url: str) -> None:
    async with (
        running_broker(store_url, server_id="s1") as one,
        running_broker(store_url, server_id="s2") as two,
    ):
        await two.register()
        (ulid,) = await one.submit()
        watcher = Watcher(one, ulid)
        await watcher.sees(S.PENDING)
        await _end(two, ulid)
        await watcher.task
        assert watcher.states[-1] is S.SUCCEEDED


async def test_no_end_is_missed_however_a_watch_and_an_end_race(valkey_broker: Broker) -> None:
    broker = valkey_broker
    await broker.register()
    for number in range(200):
        (ulid,) = await broker.submit()
        claimed = await broker.claim_one()
        before = [Watcher(broker, ulid)]
        # Each round lets the watcher get a little further before the job ends.
        for _ in range(number % 25):
            await asyncio.sleep(0)
        ending = asyncio.create_task(
            broker.succeed("default", ulid, "w1", claimed.fencing_token, b"r")
        )
        before.append(Watcher(broker, ulid))
        await ending
        before.append(Watcher(broker, ulid))
        async with asyncio.timeout(10):
            await asyncio.gather(*(watcher.task for watcher in before))
        assert [watcher.states[-1] for watcher in before] == [S.SUCCEEDED] * 3


async def test_many_watchers_of_one_job_all_see_its_end_and_leave_nothing(
    valkey_broker: Broker,
) -> None:
    broker = valkey_broker
    await broker.register()
    (ulid,) = await broker.submit()
    watchers = [Watcher(broker, ulid) for _ in range(100)]
    for watcher in watchers:
        await watcher.sees(S.PENDING)
    leaving = watchers[:50]
    for watcher in leaving:
        watcher.task.cancel()
    await asyncio.gather(*(watcher.task for watcher in leaving), return_exceptions=True)
    await _end(broker, ulid)
    await asyncio.gather(*(watcher.task for watcher in watchers[50:]))
    assert {watcher.states[-1] for watcher in watchers[50:]} == {S.SUCCEEDED}
    assert not any(queue.jobs for queue in broker.parts.job_watch.queues.values())


async def test_a_slow_watcher_sees_the_newest_state_and_not_each_in_between(
    valkey_broker: Broker,
) -> None:
    broker = valkey_broker
    await broker.register()
    (ulid,) = await broker.submit()
    token = (await broker.claim_one()).fencing_token
    stream = broker.watch(ulid)
    first = await anext(stream)
    assert first is not None
    for number in range(50):
        await broker.report("default", ulid, "w1", token, f"{number}".encode())
    await broker.succeed("default", ulid, "w1", token, b"r")
    last = await broker.job(ulid)
    watch = broker.parts.job_watch

    def read() -> bool:
        event = watch.queues["default"].jobs[ulid].event
        return event is not None and event.job.revision == last.revision

    await eventually(read, "the end was read")
    rest = [job async for job in stream]
    assert [job and job.state for job in rest] == [S.SUCCEEDED]


async def test_a_quiet_stream_carries_bookmarks(valkey_url: str) -> None:
    async with running_broker(valkey_url, QUIET, bookmark_ms=20) as broker:
        (ulid,) = await broker.submit()
        watcher = Watcher(broker, ulid)
        await eventually(lambda: watcher.quiet >= 2, "two bookmarks")
        assert watcher.states == [S.PENDING]
        watcher.task.cancel()
        await asyncio.gather(watcher.task, return_exceptions=True)


async def test_draining_ends_the_watchers_and_refuses_new_ones(broker: Broker) -> None:
    (ulid,) = await broker.submit()
    watcher = Watcher(broker, ulid)
    await watcher.sees(S.PENDING)
    await broker.router.drain()
    with pytest.raises(ServerDraining):
        await watcher.task
    with pytest.raises(ServerDraining):
        await Watcher(broker, ulid).task


async def test_the_end_of_a_retention_ends_a_watch(broker: Broker) -> None:
    await broker.register()
    (ulid,) = await broker.submit()
    watcher = Watcher(broker, ulid)
    await watcher.sees(S.PENDING)
    broker.client.delete(f"jw:{{default}}:r:{ulid}")
    broker.client.spublish("jw:{default}:events", ulid)
    with pytest.raises(JobNotFound):
        await watcher.task
