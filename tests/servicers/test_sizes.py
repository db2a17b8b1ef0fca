"""No answer is larger than clients take by default, and all that it leaves out can be had."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from jobwire_server.domain.model import Failure, FailureOrigin, JobState, RetryPolicy
from jobwire_server.domain.options import Limits
from jobwire_server.servicers.records import content_of
from jobwire_server.store.codec import HISTORY

from tests.support.contract import job_pb2, jobs
from tests.support.grpc_servers import Served, refusal, served_broker
from tests.support.jobs import STAMP, new_job

LARGEST = 3_500 << 10
FULL, BASIC = job_pb2.JOB_VIEW_FULL, job_pb2.JOB_VIEW_BASIC


@pytest.fixture
async def roomy(valkey_url: str) -> AsyncIterator[Served]:
    """A server with the limits of a default one."""
    async with served_broker(valkey_url, Limits()) as running:
        yield running


async def _failed_often(served: Served, times: int, size: int = 16 << 10) -> str:
    """Returns the id of a job of the largest kind, with so many large failures."""
    broker = served.broker
    await broker.register()
    job = new_job(
        retry=RetryPolicy(max_attempts=1_000, initial_backoff_ms=0), payload="x" * 1_040_000
    )
    (ulid,) = await broker.submit(job)
    details = job_pb2.Payload(data=b"d" * (size - 5)).SerializeToString()
    for at in range(times):
        one = await broker.claim_one()
        failure = Failure(f"E{at}", "m" * 4_096, "s" * size, details, origin=FailureOrigin.WORKER)
        await broker.fail("default", ulid, "w1", one.fencing_token, failure)
        await broker.settle()
    return str(job.job_id)


async def _attempts(served: Served, job_id: str, page_size: int = 0) -> list[list[Any]]:
    pages, token = [], ""
    while True:
        request = jobs.ListAttemptsRequest(job_id=job_id, page_size=page_size, page_token=token)
        answer = await served.jobs.ListAttempts(request)
        assert answer.ByteSize() <= LARGEST
        assert answer.attempts
        pages.append(list(answer.attempts))
        token = answer.next_page_token
        if not token:
            return pages


async def test_a_job_that_failed_often_fits_and_its_attempts_come_in_pages(roomy: Served) -> None:
    job_id = await _failed_often(roomy, HISTORY + 3)
    answer = await roomy.jobs.GetJob(jobs.GetJobRequest(job_id=job_id))
    assert answer.ByteSize() <= LARGEST
    newest = [attempt.number for attempt in answer.job.attempts]
    assert newest == list(range(newest[0], HISTORY + 4))
    assert 10 < len(newest) < HISTORY
    assert sum(attempt.ByteSize() for attempt in answer.job.attempts) <= 512 << 10
    pages = await _attempts(roomy, job_id, 1_000)
    numbers = [attempt.number for page in pages for attempt in page]
    assert numbers == list(range(HISTORY + 3, 3, -1))
    assert 1 < len(pages) < 4
    assert pages[0][0] == answer.job.attempts[-1]
    async for step in roomy.jobs.WatchJob(jobs.WatchJobRequest(job_id=job_id)):
        assert step.job.attempts == answer.job.attempts
        break


async def test_attempts_are_listed_newest_first_whatever_the_page(roomy: Served) -> None:
    job_id = await _failed_often(roomy, 4, 10)
    one = await roomy.broker.claim_one()
    pages = await _attempts(roomy, job_id, 2)
    assert [[a.number for a in page] for page in pages] == [[5, 4], [3, 2], [1]]
    assert pages[0][0].outcome == job_pb2.ATTEMPT_OUTCOME_RUNNING
    assert [a.number for (a,) in await _attempts(roomy, job_id, 1)] == [5, 4, 3, 2, 1]
    await roomy.broker.succeed("default", job_id[-26:], "w1", one.fencing_token, b"")
    ((last, *_),) = await _attempts(roomy, job_id)
    assert (last.number, last.outcome) == (5, job_pb2.ATTEMPT_OUTCOME_SUCCEEDED)


async def test_a_page_of_attempts_is_refused_by_field(roomy: Served) -> None:
    job_id = await _failed_often(roomy, 3, 10)
    spec = job_pb2.JobSpec(operation="op")
    other = (await roomy.jobs.SubmitJob(jobs.SubmitJobRequest(spec=spec))).job_id
    page = await roomy.jobs.ListAttempts(jobs.ListAttemptsRequest(job_id=job_id, page_size=1))
    cases = [
        ({"job_id": "nonsense"}, "job_id"),
        ({"job_id": job_id, "page_size": 1_001}, "page_size"),
        ({"job_id": job_id, "page_size": -1}, "page_size"),
        ({"job_id": job_id, "page_token": "x"}, "page_token"),
        ({"job_id": other, "page_token": page.next_page_token}, "page_token"),
    ]
    for fields, field in cases:
        said = await refusal(roomy.jobs.ListAttempts(jobs.ListAttemptsRequest(**fields)))
        assert (said.code.name, said.fields) == ("INVALID_ARGUMENT", {field})
    nobody = jobs.ListAttemptsRequest(job_id="default-" + 26 * "0")
    assert (await refusal(roomy.jobs.ListAttempts(nobody))).reason == "JOB_NOT_FOUND"


@pytest.mark.parametrize("view", [FULL, BASIC])
async def test_pages_of_large_jobs_fit_and_bring_each_job_once(roomy: Served, view: int) -> None:
    broker = roomy.broker
    stored = new_job(payload="x" * 1_000_000)
    ids = [(await broker.submit(stored._replace(job_id=new_job().job_id)))[0] for _ in range(12)]
    found, token = [], ""
    while True:
        request = jobs.ListJobsRequest(page_size=1_000, view=view, page_token=token)
        answer = await roomy.jobs.ListJobs(request)
        assert answer.ByteSize() <= LARGEST
        found += [job.job_id[-26:] for job in answer.jobs]
        token = answer.next_page_token
        if not token:
            break
    assert found == ids


def _records() -> list[bytes]:
    specs = []
    for operation in ("o", "o" * 127, "o" * 128):
        for size in (0, 1, 90, 127, 128, 800, 1_000, 16_383, 16_384, 2_100_000):
            specs.append(
                job_pb2.JobSpec(operation=operation, payload={"data": bytes(size)}, priority=3)
            )
    specs.append(job_pb2.JobSpec(operation="o"))
    specs.append(job_pb2.JobSpec(operation="o", labels={str(n): "x" * 63 for n in range(16)}))
    long = {str(n): "\x12" * 500 for n in range(16)}
    specs.append(job_pb2.JobSpec(operation="o", headers=long))
    specs.append(
        job_pb2.JobSpec(
            operation="o",
            payload={"json": '"' + "x" * 5_000 + '"', "metadata": {"a": bytes(4_000)}},
            labels={"a": "b"},
        )
    )
    # A field of a newer contract, before all others and behind them.
    newer = b"\xfa\x01\x82\x08" + bytes(1_026)
    contents = [spec.SerializeToString() for spec in specs]
    return [*contents, newer + contents[5], contents[5] + newer, newer]


async def test_a_record_in_short_lacks_its_payload_and_nothing_else(roomy: Served) -> None:
    contents = _records()
    added = [new_job()._replace(record=content + STAMP) for content in contents]
    for job in added:
        await roomy.broker.submit(job)
    store = roomy.broker.parts.jobs
    ulids = [job.job_id[-26:] for job in added]
    found = await store.read("default", ulids, full=False)
    for content, job in zip(contents, found, strict=True):
        assert job is not None
        assert job.state is JobState.PENDING
        assert job.record.endswith(STAMP)
        whole = job_pb2.JobSpec.FromString(content)
        short = job_pb2.JobSpec.FromString(content_of(job.record))
        small = len(content) <= 1_024 or content[:1] != b"\x0a"
        assert small or not short.HasField("payload")
        whole.ClearField("payload")
        short.ClearField("payload")
        assert short == whole
