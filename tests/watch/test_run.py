"""RunJob: one job however often it is asked for, and an end that is the caller's choice."""

from __future__ import annotations

import asyncio
import gc
from contextlib import suppress
from typing import Any

import grpc
import pytest

from jobwire.v1 import job_pb2, job_service_pb2
from jobwire_server.domain.errors import StoreUnavailable
from jobwire_server.domain.ids import UlidFactory

from tests.support.grpc_servers import refused
from tests.support.streams import StreamServer
from tests.support.waiting import eventually
from tests.watch.support import (
    CANCELLED,
    PENDING,
    RUNNING,
    SUCCEEDED,
    Account,
    Hands,
    chunk,
)

_next_ulid = UlidFactory(lambda: 1_800_000_000_000)


class Run:
    """A RunJob stream that is read in the background."""

    def __init__(self, hands: Hands, job_id: str = "", **fields: Any) -> None:
        self.account = Account()
        submit = job_service_pb2.SubmitJobRequest(
            job_id=job_id, spec=job_pb2.JobSpec(operation="work")
        )
        self.call = hands.jobs.RunJob(job_service_pb2.RunJobRequest(submit=submit, **fields))
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for answer in self.call:
            self.account.take(answer)

    async def sees(self, state: int) -> str:
        """Waits until it was told a state; returns the job's id."""
        await eventually(
            lambda: self.account.states[-1:] == [state] or self.task.done(), f"state {state}"
        )
        assert self.account.states[-1] == state
        return self.account.jobs[-1].job_id

    async def break_off(self) -> None:
        self.call.cancel()
        with suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
            await self.task


async def test_a_run_tells_the_job_its_output_and_its_end(hands: Hands) -> None:
    run = Run(hands)
    job_id = await run.sees(PENDING)
    lease = await hands.claim(job_id)
    await hands.write_all(lease, [b"one", b"two"])
    await hands.complete(lease)
    await run.task
    assert run.account.output == {1: b"onetwo"}
    assert run.account.states[-1] == SUCCEEDED
    assert run.account.order[0] == "job"
    assert run.account.order[-1] == "job"


async def test_a_run_that_is_asked_for_again_creates_no_second_job(hands: Hands) -> None:
    job_id = f"default-{_next_ulid()}"
    runs = [Run(hands, job_id) for _ in range(5)]
    for run in runs:
        assert await run.sees(PENDING) == job_id
    listed = await hands.jobs.ListJobs(job_service_pb2.ListJobsRequest())
    assert [job.job_id for job in listed.jobs] == [job_id]
    lease = await hands.claim(job_id)
    await hands.complete(lease)
    await asyncio.gather(*(run.task for run in runs))
    late = Run(hands, job_id)
    await late.task
    assert late.account.states == [SUCCEEDED]


async def test_a_run_under_an_id_that_is_taken_by_another_job_is_refused(hands: Hands) -> None:
    job_id = await hands.submit(operation="other")
    run = Run(hands, job_id)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await run.task
    assert refused(caught.value).reason == "ALREADY_EXISTS"


async def test_a_job_goes_on_without_its_caller_and_a_watch_picks_up(hands: Hands) -> None:
    run = Run(hands)
    job_id = await run.sees(PENDING)
    lease = await hands.claim(job_id)
    await run.sees(RUNNING)
    await hands.write(lease, chunk(b"told", 0))
    await eventually(lambda: run.account.output.get(1) == b"told", "the output is told")
    await run.break_off()
    await hands.write(lease, chunk(b" later", 4))
    await hands.complete(lease)
    account = await hands.watch(job_id, run.account, cursor=run.account.cursor).end()
    assert account.output == {1: b"told later"}
    assert account.states[-1] == SUCCEEDED


@pytest.mark.parametrize("running", [False, True])
async def test_a_job_is_cancelled_with_its_caller_where_the_request_says_so(
    hands: Hands, running: bool
) -> None:
    run = Run(hands, cancel_on_disconnect=True)
    job_id = await run.sees(PENDING)
    if running:
        await hands.claim(job_id)
        await run.sees(RUNNING)
    await run.break_off()
    async with hands.watch(job_id) as watcher:
        await watcher.sees(job_pb2.JOB_STATE_CANCELLING if running else CANCELLED)
        assert watcher.account.jobs[-1].cancel_reason


async def test_a_job_that_has_ended_is_left_as_it_is_when_its_caller_goes(
    hands: Hands, server: StreamServer
) -> None:
    run = Run(hands, cancel_on_disconnect=True)
    job_id = await run.sees(PENDING)
    lease = await hands.claim(job_id)
    await hands.complete(lease)
    await run.task
    await server.parts.tasks.finish()
    assert (await hands.job(job_id)).state == SUCCEEDED


async def test_a_caller_that_goes_before_the_job_is_accepted_has_it_cancelled(
    hands: Hands, server: StreamServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = server.parts.jobs
    once = store.submit
    sent, go = asyncio.Event(), asyncio.Event()

    async def slow(*args: Any) -> Any:
        sent.set()
        await go.wait()
        return await once(*args)

    monkeypatch.setattr(store, "submit", slow)
    job_id = f"default-{_next_ulid()}"
    run = Run(hands, job_id, cancel_on_disconnect=True)
    await sent.wait()
    await run.break_off()
    await eventually(lambda: len(server.parts.tasks) > 1, "the server knows")
    go.set()
    async with hands.watch(job_id) as watcher:
        await watcher.sees(CANCELLED)


@pytest.mark.parametrize("cancel", [False, True])
async def test_a_submission_that_fails_after_its_caller_has_gone_is_no_complaint(
    hands: Hands, server: StreamServer, monkeypatch: pytest.MonkeyPatch, cancel: bool
) -> None:
    complaints: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context["message"]))
    sent, go, over = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def failing(*args: Any) -> Any:
        sent.set()
        await go.wait()
        over.set()
        raise StoreUnavailable("the store is away")

    monkeypatch.setattr(server.parts.jobs, "submit", failing)
    run = Run(hands, f"default-{_next_ulid()}", cancel_on_disconnect=cancel)
    await sent.wait()
    await run.break_off()
    go.set()
    await over.wait()
    await eventually(lambda: not _tasks_of("chore"), "the work is over")
    gc.collect()
    await asyncio.sleep(0)
    assert complaints == []


def _tasks_of(name: str) -> list[asyncio.Task[Any]]:
    """Tasks of this name that run."""
    return [task for task in asyncio.all_tasks() if task.get_name() == name]
