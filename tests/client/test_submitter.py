"""Many tasks that submit one job each, at once."""

from __future__ import annotations

import asyncio

import pytest
from google.protobuf.duration_pb2 import Duration

from jobwire import AsyncClient, InvalidRequest
from jobwire._requests import MAX_CHUNK_JOBS
from jobwire._submitter import LONGEST_WAIT_S, MAX_CALLS, AsyncSubmitter
from jobwire.errors import CallError, Unavailable
from jobwire.v1.errors_pb2 import ERROR_REASON_INVALID_FIELD, ERROR_REASON_QUEUE_FULL, ItemError
from jobwire.v1.job_service_pb2 import (
    SubmitJobRequest,
    SubmitJobResponse,
    SubmitJobsRequest,
    SubmitJobsResponse,
    SubmitResult,
)

from tests.support.waiting import eventually

INVALID_ARGUMENT, RESOURCE_EXHAUSTED = 3, 8


class Server:
    """Answers when `gate` is set; refuses items by their ids."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.alone: list[str] = []
        self.batches: list[list[str]] = []
        self.refusals: dict[str, ItemError] = {}
        self.down: CallError | None = None

    async def one(self, request: SubmitJobRequest) -> SubmitJobResponse:
        self.alone.append(request.job_id)
        await self.gate.wait()
        return SubmitJobResponse(job_id=request.job_id)

    async def many(self, request: SubmitJobsRequest) -> SubmitJobsResponse:
        ids = [item.job_id for item in request.requests]
        self.batches.append(ids)
        await self.gate.wait()
        if self.down is not None:
            raise self.down
        return SubmitJobsResponse(
            results=[
                SubmitResult(error=self.refusals[name])
                if name in self.refusals
                else SubmitResult(accepted=SubmitJobResponse(job_id=name))
                for name in ids
            ]
        )


async def submit_all(
    submitter: AsyncSubmitter, server: Server, count: int
) -> list[asyncio.Task[SubmitJobResponse]]:
    tasks = [
        asyncio.create_task(submitter.submit(SubmitJobRequest(job_id=str(at))))
        for at in range(count)
    ]
    await eventually(lambda: len(server.alone) == min(count, MAX_CALLS), "the first calls")
    return tasks


async def test_a_lone_job_goes_by_itself_at_once() -> None:
    server = Server()
    server.gate.set()
    submitter = AsyncSubmitter(server.one, server.many)
    answer = await submitter.submit(SubmitJobRequest(job_id="a"))
    assert (answer.job_id, server.alone, server.batches) == ("a", ["a"], [])


async def test_what_comes_while_calls_are_under_way_shares_the_next_one() -> None:
    server = Server()
    submitter = AsyncSubmitter(server.one, server.many)
    tasks = await submit_all(submitter, server, 50)
    server.gate.set()
    answers = await asyncio.gather(*tasks)
    assert [answer.job_id for answer in answers] == [str(at) for at in range(50)]
    assert server.batches == [[str(at) for at in range(MAX_CALLS, 50)]]


async def test_a_queue_that_gets_no_answer_holds_up_no_other() -> None:
    server = Server()
    submitter = AsyncSubmitter(server.one, server.many)
    tasks = await submit_all(submitter, server, 50)
    other = asyncio.create_task(submitter.submit(SubmitJobRequest(queue="other", job_id="x")))
    await eventually(lambda: "x" in server.alone, "the job of the other queue is sent")
    server.gate.set()
    await asyncio.gather(other, *tasks)
    assert not submitter.queues, "nothing is kept of queues that are done"


async def test_a_batch_is_cut_where_a_call_is_full() -> None:
    server = Server()
    submitter = AsyncSubmitter(server.one, server.many)
    tasks = await submit_all(submitter, server, 2_500)
    server.gate.set()
    await asyncio.gather(*tasks)
    sizes = [len(batch) for batch in server.batches]
    assert max(sizes) == MAX_CHUNK_JOBS
    assert sum(sizes) == 2_500 - MAX_CALLS


async def test_an_item_that_is_refused_fails_alone() -> None:
    server = Server()
    server.refusals["7"] = ItemError(
        code=INVALID_ARGUMENT, message="no", reason=ERROR_REASON_INVALID_FIELD
    )
    submitter = AsyncSubmitter(server.one, server.many)
    tasks = await submit_all(submitter, server, 10)
    server.gate.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(outcomes[7], InvalidRequest)
    assert sum(isinstance(outcome, SubmitJobResponse) for outcome in outcomes) == 9


async def test_an_item_that_is_refused_for_now_is_tried_on_alone() -> None:
    server = Server()
    server.refusals["7"] = ItemError(
        code=RESOURCE_EXHAUSTED, message="full", reason=ERROR_REASON_QUEUE_FULL
    )
    submitter = AsyncSubmitter(server.one, server.many)
    tasks = await submit_all(submitter, server, 10)
    server.gate.set()
    answers = await asyncio.gather(*tasks)
    assert server.alone[-1] == answers[7].job_id == "7"


async def test_an_item_that_is_refused_for_now_waits_as_long_as_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []

    async def note(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("jobwire._submitter.async_sleep", note)
    server = Server()
    server.refusals["7"] = ItemError(
        code=RESOURCE_EXHAUSTED,
        message="full",
        reason=ERROR_REASON_QUEUE_FULL,
        retry_delay=Duration(seconds=3),
    )
    server.refusals["8"] = ItemError(
        code=RESOURCE_EXHAUSTED,
        message="full",
        reason=ERROR_REASON_QUEUE_FULL,
        retry_delay=Duration(seconds=10_000),
    )
    submitter = AsyncSubmitter(server.one, server.many)
    tasks = await submit_all(submitter, server, 10)
    server.gate.set()
    answers = await asyncio.gather(*tasks)
    assert {answers[7].job_id, answers[8].job_id} == {"7", "8"}
    (first, second) = sorted(waits)
    assert 3 <= first <= 4
    assert LONGEST_WAIT_S <= second <= 1.2 * LONGEST_WAIT_S


async def test_a_batch_whose_call_fails_fails_each_of_its_jobs() -> None:
    server = Server()
    server.down = Unavailable("away")
    submitter = AsyncSubmitter(server.one, server.many)
    tasks = await submit_all(submitter, server, 10)
    server.gate.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(outcome, Unavailable) for outcome in outcomes] == [
        at >= MAX_CALLS for at in range(10)
    ]


async def test_a_task_that_is_cancelled_before_its_call_is_not_submitted() -> None:
    server = Server()
    submitter = AsyncSubmitter(server.one, server.many)
    tasks = await submit_all(submitter, server, 10)
    tasks[7].cancel()
    server.gate.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(outcomes[7], asyncio.CancelledError)
    assert server.batches == [["4", "5", "6", "8", "9"]]


@pytest.mark.parametrize("count", [200])
async def test_jobs_submitted_at_once_are_all_in_the_store(broker_address: str, count: int) -> None:
    async with AsyncClient(broker_address) as client:
        handles = await asyncio.gather(
            *(client.submit("work", {"number": at}) for at in range(count))
        )
        found = [job.id async for job in client.list_jobs(page_size=1000)]
    assert sorted(found) == sorted(handle.id for handle in handles)
    assert len(set(found)) == count
