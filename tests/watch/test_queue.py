"""WatchJobs: every change of the jobs that a filter lets through, over any break."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import grpc
import pytest

from jobwire.v1 import admin_service_pb2, job_service_pb2
from jobwire.v1.worker_service_pb2 import Released
from jobwire_server.watch import queue_watch as many

from tests.support.grpc_servers import refused
from tests.support.stores import StoreProcess
from tests.support.streams import PATIENCE_S, StreamServer, stream_server
from tests.support.waiting import eventually
from tests.watch.support import CANCELLED, PENDING, RUNNING, SUCCEEDED, Hands


class Many:
    """A WatchJobs stream that is read in the background. Use it as a context manager."""

    def __init__(self, hands: Hands, **request: Any) -> None:
        self.told: list[tuple[str, int]] = []
        """(job id, state) in the order in which they came."""
        self.cursor = ""
        self.cursors: list[str] = []
        self.caught_up = 0
        names = job_service_pb2.JobFilter.DESCRIPTOR.fields_by_name
        wanted = {name: request.pop(name) for name in names if name in request}
        self.call = hands.jobs.WatchJobs(
            job_service_pb2.WatchJobsRequest(filter=job_service_pb2.JobFilter(**wanted), **request)
        )
        self.task = asyncio.create_task(self._read())
        self._newest: dict[str, int] = {}

    async def __aenter__(self) -> Many:
        await self.until(lambda: self.caught_up == 1, "caught up")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.call.cancel()
        with suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
            await self.task

    async def _read(self) -> None:
        async for answer in self.call:
            if answer.HasField("job"):
                job = answer.job
                assert job.revision >= self._newest.get(job.job_id, 0), "an older state"
                self._newest[job.job_id] = job.revision
                self.told.append((job.job_id, job.state))
            else:
                self.caught_up += answer.bookmark.caught_up
            self.cursor = answer.cursor or self.cursor
            self.cursors.append(answer.cursor)

    async def until(self, condition: Any, what: str) -> None:
        await eventually(lambda: condition() or self.task.done(), what, timeout_s=PATIENCE_S)
        if not condition():
            await self.task
            raise AssertionError(f"the stream ended without: {what}")

    async def sees(self, job_id: str, state: int) -> None:
        """Waits until it was told a job in a state."""
        await self.until(lambda: (job_id, state) in self.told, f"{job_id} in {state}")

    async def fails(self) -> Any:
        async with asyncio.timeout(PATIENCE_S):
            try:
                await self.task
            except grpc.aio.AioRpcError as error:
                return refused(error)
        raise AssertionError("the stream was not refused")


async def _keep_log(hands: Hands, entries: int) -> None:
    await hands.admin.ConfigureQueue(
        admin_service_pb2.ConfigureQueueRequest(
            queue="default", config=admin_service_pb2.QueueConfig(event_log_entries=entries)
        )
    )


async def _run(hands: Hands, job_id: str) -> None:
    await hands.complete(await hands.claim(job_id))


async def test_live_jobs_come_first_and_then_every_change(hands: Hands) -> None:
    ended, waiting = await hands.submit(), await hands.submit()
    await _run(hands, ended)
    async with Many(hands) as many_:
        assert many_.told == [(waiting, PENDING)]
        await _run(hands, waiting)
        await many_.sees(waiting, SUCCEEDED)
        new = await hands.submit()
        await many_.sees(new, PENDING)


async def test_only_changes_leaves_out_what_is_there(hands: Hands) -> None:
    await hands.submit()
    async with Many(hands, only_changes=True) as many_:
        new = await hands.submit()
        await many_.sees(new, PENDING)
        assert many_.told == [(new, PENDING)]


async def test_filters_let_through_what_matches_all_of_them(hands: Hands) -> None:
    plain = await hands.submit()
    other = await hands.submit(operation="other")
    red = await hands.submit(labels={"colour": "red", "size": "big"})
    async with (
        Many(hands, operation="other") as by_operation,
        Many(hands, labels={"colour": "red"}) as by_label,
        Many(hands, job_ids=[plain]) as by_id,
        Many(hands, operation="other", labels={"colour": "red"}) as by_both,
        Many(hands) as everything,
    ):
        both = await hands.submit(operation="other", labels={"colour": "red"})
        for job_id in (plain, other, red, both):
            await _run(hands, job_id)
        for job_id in (plain, other, red, both):
            await everything.sees(job_id, SUCCEEDED)
        await by_operation.sees(both, SUCCEEDED)
        await by_label.sees(both, SUCCEEDED)
        await by_id.sees(plain, SUCCEEDED)
        await by_both.sees(both, SUCCEEDED)
        assert {job_id for job_id, _ in by_operation.told} == {other, both}
        assert {job_id for job_id, _ in by_label.told} == {red, both}
        assert {job_id for job_id, _ in by_id.told} == {plain}
        assert {job_id for job_id, _ in by_both.told} == {both}


async def test_a_job_that_leaves_the_states_that_are_wanted_is_told_once_more(
    hands: Hands,
) -> None:
    job_id = await hands.submit()
    async with Many(hands, states=[PENDING]) as many_:
        lease = await hands.claim(job_id)
        await many_.sees(job_id, RUNNING)
        await hands.progress(lease, "half")
        await hands.complete(lease, released=Released())
        await many_.until(lambda: many_.told[-1] == (job_id, PENDING), "it is back")
        await hands.cancel(job_id)
        await many_.sees(job_id, CANCELLED)
        assert [state for _, state in many_.told] == [PENDING, RUNNING, PENDING, CANCELLED]


async def test_jobs_that_are_named_are_told_even_when_they_have_ended(hands: Hands) -> None:
    job_id = await hands.submit()
    await _run(hands, job_id)
    async with Many(hands, job_ids=[job_id]) as many_:
        assert many_.told == [(job_id, SUCCEEDED)]


async def test_a_watcher_resumes_by_cursor_and_misses_no_job(hands: Hands) -> None:
    old = await hands.submit()
    await _keep_log(hands, 1000)
    async with Many(hands) as many_:
        seen = await hands.submit()
        await many_.sees(seen, PENDING)
        await _run(hands, seen)
        await many_.sees(seen, SUCCEEDED)
        cursor = many_.cursor
        assert cursor
    while_away = [await hands.submit() for _ in range(5)]
    for job_id in (old, *while_away[:3]):
        await _run(hands, job_id)
    async with Many(hands, cursor=cursor) as resumed:
        told = {**dict(resumed.told)}
        expected = dict.fromkeys((old, *while_away[:3]), SUCCEEDED)
        expected.update(dict.fromkeys(while_away[3:], PENDING))
        assert {job_id: told.get(job_id) for job_id in expected} == expected
        late = await hands.submit()
        await resumed.sees(late, PENDING)


async def test_a_resumed_watcher_that_has_caught_up_is_told_nothing_twice(hands: Hands) -> None:
    await hands.submit()
    await _keep_log(hands, 1000)
    async with Many(hands) as many_:
        cursor = many_.cursor
    while_away = {await hands.submit() for _ in range(3)}
    async with Many(hands, cursor=cursor) as resumed:
        assert {job_id for job_id, _ in resumed.told} == while_away
        cursor = resumed.cursor
    async with Many(hands, cursor=cursor) as again:
        assert again.told == []


async def test_a_resumed_watcher_is_told_what_left_the_states_that_are_wanted(
    hands: Hands,
) -> None:
    away, later, never = [await hands.submit() for _ in range(3)]
    await _keep_log(hands, 1000)
    async with Many(hands, states=[PENDING]) as many_:
        assert {job_id for job_id, _ in many_.told} == {away, later, never}
        cursor = many_.cursor
    await hands.claim(away)
    async with Many(hands, states=[PENDING], cursor=cursor) as resumed:
        assert resumed.told == [(away, RUNNING)]
        lease = await hands.claim(later)
        await resumed.sees(later, RUNNING)
        await hands.complete(lease)
        end = await hands.submit()
        await resumed.sees(end, PENDING)
        # Once, not at each change from then on.
        assert [one for one in resumed.told if one[0] == later] == [(later, RUNNING)]


async def test_a_log_that_does_not_reach_back_is_said(hands: Hands) -> None:
    await hands.submit()
    await _keep_log(hands, 1000)
    first = await hands.submit()
    async with Many(hands) as many_:
        cursor = many_.cursor
    for _ in range(5):
        await hands.submit()
    await _keep_log(hands, 2)
    said = await Many(hands, cursor=cursor).fails()
    assert (said.code, said.reason) == (grpc.StatusCode.OUT_OF_RANGE, "CURSOR_COMPACTED")
    await _keep_log(hands, 0)
    said = await Many(hands, cursor=cursor).fails()
    assert said.reason == "CURSOR_COMPACTED"
    async with Many(hands) as again:
        assert (first, PENDING) in again.told
        assert not any(again.cursors), "a queue without a log gives no cursors"


async def test_the_log_stays_within_its_bound(hands: Hands, server: StreamServer) -> None:
    await hands.submit()
    await _keep_log(hands, 100)
    for _ in range(400):
        await hands.submit()
    store = server.parts.runner
    # Trimmed by whole blocks of a hundred entries.
    assert await store.command("XLEN", "jw:{default}:log") <= 300


async def test_a_watcher_that_is_too_far_behind_is_told_to_begin_anew(
    hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many, "MOST_WAITING", 10)
    watcher = many.QueueWatcher()
    watcher.changed([f"{number:026d}" for number in range(11)], "", ends=True)
    watcher.changed([f"{number:026d}" for number in range(11, 13)], "", ends=True)
    assert watcher.lagged
    assert not watcher.waiting
    watcher.changed(["x" * 26], "", ends=True)
    assert not watcher.waiting, "nothing more is kept for it"
    assert await watcher.wait(0)


@pytest.mark.parametrize("log_entries", [0, 10_000])
async def test_a_broken_subscription_hides_no_change(
    own_store: StoreProcess, log_entries: int
) -> None:
    async with stream_server(own_store.url) as server, Hands(server.address) as hands:
        await hands.register()
        jobs = [await hands.submit() for _ in range(20)]
        if log_entries:
            await _keep_log(hands, log_entries)
        async with Many(hands) as everything, Many(hands, states=[PENDING]) as pending:
            with own_store.client() as client:
                for number, job_id in enumerate(jobs):
                    if number % 5 == 0:
                        client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
                    await _run(hands, job_id)
                client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
                new = await hands.submit()
            for job_id in jobs:
                await everything.sees(job_id, SUCCEEDED)
                await pending.until(
                    lambda job_id=job_id: any(
                        told == job_id and state != PENDING for told, state in pending.told
                    ),
                    "it is told to have left",
                )
            await everything.sees(new, PENDING)


async def test_what_makes_no_sense_is_refused(hands: Hands) -> None:
    job_id = await hands.submit()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"cursor": "x"}, "cursor"),
        ({"cursor": "x", "only_changes": True}, "only_changes"),
        ({"job_ids": ["nonsense"]}, "filter.job_ids[0]"),
        ({"queue": "other", "job_ids": [job_id]}, "filter.job_ids[0]"),
        ({"states": [99]}, "filter.states[0]"),
    ]
    for request, field in wrong:
        said = await Many(hands, **request).fails()
        assert said.code == grpc.StatusCode.INVALID_ARGUMENT
        assert field in said.fields
    assert (await Many(hands, queue="nobody").fails()).reason == "QUEUE_NOT_FOUND"
