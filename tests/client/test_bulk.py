# ruff: noqa: N802 - methods have the names of the contract
"""Actions on many jobs, over a broker that does as it is told."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest

from jobwire import AsyncClient, FailureOrigin, JobState, NotFound
from jobwire.v1 import admin_service_pb2 as admin
from jobwire.v1 import job_pb2
from jobwire.v1 import job_service_pb2 as jobs

from tests.client.broker import Broker, reason, rich_status

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


def progress(
    matched: int, changed: int, *, skipped: int = 0, done: bool = False
) -> jobs.BulkProgress:
    return jobs.BulkProgress(
        matched=matched, changed=changed, skipped=skipped, done=done, sample_job_ids=["q-1"]
    )


class BulkBroker(Broker):
    """Answers each call with the next list of words; a call without `done` is then cut off."""

    def __init__(self) -> None:
        super().__init__()
        self.words: deque[list[jobs.BulkProgress]] = deque()

    async def _act(self, name: str, answer: Any, request: Any, context: Any) -> AsyncIterator[Any]:
        await self.enter(name, request, context)
        for word in self.words.popleft():
            yield answer(progress=word)
            if word.done:
                return
        await context.abort(*rich_status(grpc.StatusCode.UNAVAILABLE, "cut off"))

    async def RetryJobs(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async for answer in self._act("RetryJobs", jobs.RetryJobsResponse, request, context):
            yield answer

    async def CancelJobs(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async for answer in self._act("CancelJobs", jobs.CancelJobsResponse, request, context):
            yield answer

    async def PurgeJobs(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async for answer in self._act("PurgeJobs", admin.PurgeJobsResponse, request, context):
            yield answer


@pytest.fixture
async def broker() -> AsyncIterator[BulkBroker]:
    made = BulkBroker()  # type: ignore[abstract]
    await made.start()
    yield made
    await made.stop()


async def test_a_filter_says_all_that_it_names(broker: BulkBroker, client: AsyncClient) -> None:
    broker.words.append([progress(3, 3, done=True)])
    last = await client.retry_jobs(
        "images",
        reason="mended",
        dry_run=True,
        max_jobs=5,
        max_per_second=2.5,
        states=[JobState.FAILED],
        operation="thumb",
        labels={"a": "b"},
        failure_type="Timeout",
        failure_origin=FailureOrigin.BROKER,
        submitted_after=NOON,
        finished_before=NOON,
        job_ids=["images-1"],
    ).wait()
    assert (last.matched, last.changed, last.done) == (3, 3, True)
    (request,) = broker.calls["RetryJobs"]
    assert (request.reason, request.dry_run, request.max_jobs) == ("mended", True, 5)
    assert request.max_per_second == 2.5
    found = request.filter
    assert (found.queue, found.operation, found.failure_type) == ("images", "thumb", "Timeout")
    assert found.failure_origin == job_pb2.FAILURE_ORIGIN_BROKER
    assert list(found.states) == [job_pb2.JOB_STATE_FAILED]
    assert dict(found.labels) == {"a": "b"}
    assert found.submitted_after.ToDatetime(tzinfo=UTC) == NOON
    assert found.finished_before.ToDatetime(tzinfo=UTC) == NOON
    assert not found.HasField("submitted_before")
    assert list(found.job_ids) == ["images-1"]


async def test_nothing_happens_before_it_is_iterated_over(
    broker: BulkBroker, client: AsyncClient
) -> None:
    action = client.cancel_jobs("images")
    assert not broker.calls["CancelJobs"]
    broker.words.append([progress(1, 1), progress(2, 2, skipped=0, done=True)])
    seen = [(word.changed, word.done) async for word in action]
    assert seen == [(1, False), (2, True)]


async def test_what_was_cut_off_goes_on_and_is_added(
    broker: BulkBroker, client: AsyncClient
) -> None:
    broker.words.extend(
        [[progress(4, 3, skipped=1)], [progress(3, 2, skipped=1), progress(6, 5, done=True)]]
    )
    words = [word async for word in client.cancel_jobs("images", max_jobs=10)]
    assert [(word.matched, word.changed) for word in words] == [(4, 3), (6, 5), (9, 8)]
    assert [call.max_jobs for call in broker.calls["CancelJobs"]] == [10, 7]


async def test_no_more_than_asked_for_is_changed_though_the_last_word_was_cut_off(
    broker: BulkBroker, client: AsyncClient
) -> None:
    broker.words.append([progress(2, 2)])
    words = [word async for word in client.cancel_jobs("images", max_jobs=2)]
    assert [(word.changed, word.done) for word in words] == [(2, False), (2, True)]
    assert len(broker.calls["CancelJobs"]) == 1


async def test_a_dry_run_that_was_cut_off_counts_anew(
    broker: BulkBroker, client: AsyncClient
) -> None:
    broker.words.extend([[progress(4, 4)], [progress(6, 6, done=True)]])
    last = await client.purge_jobs("images", dry_run=True).wait()
    assert (last.matched, last.changed) == (6, 6)


async def test_a_refusal_is_raised(broker: BulkBroker, client: AsyncClient) -> None:
    broker.fail(
        "PurgeJobs", rich_status(grpc.StatusCode.NOT_FOUND, "no queue", reason("QUEUE_NOT_FOUND"))
    )
    with pytest.raises(NotFound):
        await client.purge_jobs("nowhere").wait()
