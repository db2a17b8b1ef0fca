"""Listing jobs and queues page by page through the router."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
import redis

from jobwire.v1 import job_pb2
from jobwire_server.broker.listing import MAX_CALLS, PAGE_BYTES
from jobwire_server.domain.decisions.filters import JobFilter
from jobwire_server.domain.errors import BadPageToken, QueueNotFound
from jobwire_server.domain.model import Failure, Job, JobState
from jobwire_server.servicers.records import JobSpecRecords, content_of, created_at_ms

from tests.support.brokers import Broker
from tests.support.jobs import new_job, worker_spec

S = JobState


@pytest.fixture
def calls_of_the_store(valkey_broker: Broker) -> Callable[[], int]:
    """Tells how many scripts and commands the store has been sent."""
    client: redis.Redis = valkey_broker.client

    def count() -> int:
        stats = client.info("commandstats")
        named = ("cmdstat_evalsha", "cmdstat_eval", "cmdstat_smembers", "cmdstat_zrangebylex")
        return sum(stats.get(name, {"calls": 0})["calls"] for name in named)

    return count


async def _all(
    broker: Broker, states: list[JobState], page_size: int, operation: str = ""
) -> list[Job]:
    found: list[Job] = []
    token = ""
    while True:
        page, token = await broker.router.listing.page(
            JobFilter("default", states=tuple(states), operation=operation),
            page_size,
            token,
            full=False,
        )
        assert len(page) <= page_size
        found += page
        if not token:
            return found


async def _one_in_each_state(broker: Broker, count: int) -> dict[JobState, set[str]]:
    """Fills the queue with `count` jobs of each state."""
    router = broker.router
    await broker.register()
    expected: dict[JobState, set[str]] = {}
    expiry = broker.now_ms() + 1_000
    expected[S.EXPIRED] = {
        *await broker.submit(*(new_job(expires_at_ms=expiry) for _ in range(count)))
    }
    await broker.after(2_000)
    for state in (S.SUCCEEDED, S.FAILED, S.CANCELLING, S.RUNNING):
        ulids = await broker.submit(*(new_job() for _ in range(count)))
        for claimed in await broker.claim("w1", count):
            ulid, token = claimed.job_id[-26:], claimed.fencing_token
            if state is S.SUCCEEDED:
                await broker.succeed("default", ulid, "w1", token, b"")
            elif state is S.FAILED:
                failure = Failure("x", non_retryable=True)
                await broker.fail("default", ulid, "w1", token, failure)
            elif state is S.CANCELLING:
                await router.cancel_job("default", ulid, "")
        expected[state] = {*ulids}
    expected[S.CANCELLED] = {*await broker.submit(*(new_job() for _ in range(count)))}
    for ulid in expected[S.CANCELLED]:
        await router.cancel_job("default", ulid, "")
    expected[S.SCHEDULED] = {
        *await broker.submit(*(new_job(delay_ms=3_600_000) for _ in range(count)))
    }
    expected[S.PENDING] = {
        *await broker.submit(
            *(new_job(priority=at % 3, operation=f"op{at % 4}") for at in range(count))
        )
    }
    broker.check()
    return expected


@pytest.mark.parametrize("page_size", [1, 7, 100])
async def test_every_job_is_listed_once_in_its_state(valkey_broker: Broker, page_size: int) -> None:
    broker = valkey_broker
    expected = await _one_in_each_state(broker, 12)
    for state in S:
        listed = [job.job_id[-26:] for job in await _all(broker, [state], page_size)]
        assert len(listed) == len(set(listed))
        assert set(listed) == expected[state], state.name
    listed_all = await _all(broker, [], page_size)
    assert len(listed_all) == 12 * len(S)
    # State by state, live ones first.
    assert [job.state for job in listed_all] == sorted(job.state for job in listed_all)


async def test_states_are_listed_in_the_order_of_the_filter(valkey_broker: Broker) -> None:
    await _one_in_each_state(valkey_broker, 3)
    order = [S.FAILED, S.PENDING, S.FAILED, S.SCHEDULED]
    states = [job.state for job in await _all(valkey_broker, order, 2)]
    assert states == [S.FAILED] * 3 + [S.PENDING] * 3 + [S.SCHEDULED] * 3


async def test_250_jobs_that_stay_are_listed_once_each_while_others_come_and_go(
    broker: Broker,
) -> None:
    await broker.register()
    going = [new_job() for _ in range(200)]
    staying = [new_job(delay_ms=3_600_000) for _ in range(50)]
    staying += [new_job(operation="nobody-serves-it", priority=at % 2) for at in range(150)]
    await broker.submit(*going[:100])
    await broker.submit(*staying)
    await broker.submit(*going[100:])
    running = await broker.claim("w1", 50)
    kept_ids = {job.job_id for job in staying} | {one.job_id for one in running}
    assert len(kept_ids) == 250
    stop = asyncio.Event()

    async def churn() -> None:
        while not stop.is_set():
            for claimed in await broker.claim("w1", 3):
                ulid, token = claimed.job_id[-26:], claimed.fencing_token
                await broker.succeed("default", ulid, "w1", token, b"")
            await broker.submit()
            leases = [("default", one.job_id[-26:], one.fencing_token) for one in running[::7]]
            await broker.router.heartbeat("w1", leases)

    churning = asyncio.create_task(churn())
    try:
        for page_size in (3, 20):
            listed = [job.job_id for job in await _all(broker, [], page_size)]
            seen = [job_id for job_id in listed if job_id in kept_ids]
            assert set(seen) == kept_ids
            assert len(seen) == len(kept_ids), "a job that stayed was listed twice"
    finally:
        stop.set()
        await churning
    broker.check()


async def test_running_jobs_whose_leases_are_renewed_between_pages_are_listed_once(
    broker: Broker,
) -> None:
    await broker.register()
    ulids = await broker.submit(*(new_job() for _ in range(20)))
    await broker.claim("w1", 20)
    seen: list[str] = []
    token = ""
    while True:
        page, token = await broker.router.listing.page(
            JobFilter("default", states=(S.RUNNING,)), 3, token, full=False
        )
        seen += [job.job_id[-26:] for job in page]
        if not token:
            break
        assert len(seen) <= 20, "renewed jobs come again and again"
        broker.shift(1_000)
        await broker.router.heartbeat("w1", [("default", ulid, 1) for ulid in ulids])
    # Oldest first, as every live job.
    assert seen == ulids


async def test_an_operation_filters_and_pages_still_end(valkey_broker: Broker) -> None:
    await _one_in_each_state(valkey_broker, 9)
    listed = await _all(valkey_broker, [], 2, "op1")
    assert len(listed) == 2
    assert {JobSpecRecords().facts(job.record).operation for job in listed} == {"op1"}


async def test_a_queue_that_never_was_is_not_found(valkey_broker: Broker) -> None:
    with pytest.raises(QueueNotFound):
        await valkey_broker.router.listing.page(JobFilter("none"), 10, "", full=False)
    with pytest.raises(QueueNotFound):
        await valkey_broker.router.operators.get_queue("none")
    with pytest.raises(QueueNotFound):
        await valkey_broker.router.operators.set_paused("none", True)


async def test_a_token_holds_for_its_own_filter_only(valkey_broker: Broker) -> None:
    router = valkey_broker.router
    await valkey_broker.submit(*(new_job() for _ in range(5)))
    _, token = await router.listing.page(
        JobFilter("default", states=(S.PENDING,)), 2, "", full=False
    )
    assert token
    for wanted, full in (
        (JobFilter("default", states=(S.RUNNING,)), False),
        (JobFilter("default"), False),
        (JobFilter("default", states=(S.PENDING,)), True),
        (JobFilter("default", states=(S.PENDING,), operation="op"), False),
        (JobFilter("other", states=(S.PENDING,)), False),
    ):
        with pytest.raises(BadPageToken):
            await router.listing.page(wanted, 2, token, full=full)


async def test_queues_are_listed_with_their_depths(valkey_broker: Broker) -> None:
    router = valkey_broker.router
    for queue, count in (("b", 2), ("a", 1), ("c", 3)):
        await router.submissions.submit(queue, [new_job(queue) for _ in range(count)])
    first, token = await router.operators.list_queues(2)
    assert [(queue.name, dict(queue.counts)) for queue in first] == [
        ("a", {S.PENDING: 1}),
        ("b", {S.PENDING: 2}),
    ]
    rest, end = await router.operators.list_queues(2, token)
    assert ([queue.name for queue in rest], end) == (["c"], "")


async def test_a_filter_that_nothing_fits_costs_a_few_calls_of_the_store(
    valkey_broker: Broker, calls_of_the_store: Callable[[], int]
) -> None:
    await valkey_broker.submit(*(new_job() for _ in range(3_000)))
    wanted, token, pages, found = JobFilter("default", operation="nope"), "", 0, 0
    while True:
        before = calls_of_the_store()
        page, token = await valkey_broker.router.listing.page(wanted, 1, token, full=False)
        assert calls_of_the_store() - before <= MAX_CALLS + 2
        pages, found = pages + 1, found + len(page)
        if not token:
            break
    assert (pages, found) == (2, 0)


@pytest.mark.parametrize("page_size", [1, 3, 50])
async def test_a_filter_brings_each_job_that_fits_once_whatever_the_page(
    valkey_broker: Broker, page_size: int
) -> None:
    jobs = [new_job(operation="rare" if at % 7 == 0 else "common") for at in range(120)]
    await valkey_broker.submit(*jobs)
    expected = [job.job_id for job in jobs if job.route.operation == "rare"]
    found = [job.job_id for job in await _all(valkey_broker, [], page_size, "rare")]
    assert sorted(found) == sorted(expected)
    assert len(found) == len(expected)


async def test_pages_of_workers_and_queues_end_after_some_calls_of_the_store(
    valkey_broker: Broker, calls_of_the_store: Callable[[], int]
) -> None:
    names = [f"q{at}" for at in range(64)]
    for at in range(12):
        spec = replace(worker_spec(f"w{at:02}"), queues=tuple(names))
        await valkey_broker.router.register_worker(spec)
    operators, token, found = valkey_broker.router.operators, "", []
    while True:
        before = calls_of_the_store()
        page, token = await operators.list_workers(100, token)
        assert calls_of_the_store() - before <= 400
        found += [worker.spec.worker_id for worker in page]
        if not token:
            break
    assert found == [f"w{at:02}" for at in range(12)]


@pytest.mark.parametrize("operation", ["", "op"])
async def test_a_page_ends_when_its_jobs_have_many_bytes(
    valkey_broker: Broker, operation: str
) -> None:
    record = JobSpecRecords().stamp(1)
    spec = job_pb2.JobSpec(operation="op", payload=job_pb2.Payload(data=bytes(400_000)))
    large = spec.SerializeToString() + record
    await valkey_broker.submit(*(new_job()._replace(record=large) for _ in range(20)))
    wanted, token, found = JobFilter("default", operation=operation), "", []
    while True:
        page, token = await valkey_broker.router.listing.page(wanted, 100, token, full=True)
        assert 0 < sum(len(job.record) for job in page) <= PAGE_BYTES
        found += [job.job_id for job in page]
        if not token:
            break
    assert len(found) == len(set(found)) == 20


async def test_a_page_of_workers_with_long_descriptions_ends_early(valkey_broker: Broker) -> None:
    operations = frozenset(f"{at:03}-{'o' * 120}" for at in range(512))
    for at in range(40):
        spec = replace(worker_spec(f"w{at:02}"), operations=operations)
        await valkey_broker.router.register_worker(spec)
    operators, token, pages = valkey_broker.router.operators, "", []
    while True:
        page, token = await operators.list_workers(1_000, token)
        pages.append([worker.spec.worker_id for worker in page])
        if not token:
            break
    assert [name for page in pages for name in page] == [f"w{at:02}" for at in range(40)]
    assert 0 < len(pages[0]) < 40


@pytest.mark.parametrize("labelled", [True, False])
async def test_a_job_that_does_not_fit_into_a_page_begins_the_next(
    valkey_broker: Broker, labelled: bool
) -> None:
    sizes = [1_500_000, 1_000_000, 1_000_000, 100, 4_000_000, 4_000_000, 100, 100]
    for size in sizes:
        labels = {"a": "b"} if labelled else {}
        payload = job_pb2.Payload(data=bytes(size))
        spec = job_pb2.JobSpec(operation="op", payload=payload, labels=labels)
        record = spec.SerializeToString() + JobSpecRecords().stamp(1)
        await valkey_broker.submit(new_job()._replace(record=record))
        await valkey_broker.submit(new_job(operation="other"))
    wanted = JobFilter("default", labels={"a": "b"} if labelled else {}, operation="op")
    token, pages = "", []
    while True:
        page, token = await valkey_broker.router.listing.page(wanted, 100, token, full=True)
        pages += [[len(job.record) // 100 * 100 for job in page]] if page else []
        if not token:
            break
    assert pages == [
        [1_500_000, 1_000_000],
        [1_000_000, 100],
        [4_000_000],
        [4_000_000],
        [100, 100],
    ]


async def test_a_list_in_short_reads_no_payloads(valkey_broker: Broker) -> None:
    for at in range(20):
        payload = job_pb2.Payload(data=bytes(500_000))
        spec = job_pb2.JobSpec(operation="op", payload=payload, labels={"at": str(at)})
        record = spec.SerializeToString() + JobSpecRecords().stamp(1)
        await valkey_broker.submit(new_job()._replace(record=record))
    client: redis.Redis = valkey_broker.client
    before = client.info("stats")["total_net_output_bytes"]
    wanted = JobFilter("default", labels={"at": "7"})
    (job,), _ = await valkey_broker.router.listing.page(wanted, 100, "", full=False)
    page, _ = await valkey_broker.router.listing.page(JobFilter("default"), 100, "", full=False)
    assert len(page) == 20
    assert client.info("stats")["total_net_output_bytes"] - before < 100_000
    whole = await valkey_broker.job(job.job_id[-26:])
    spec = job_pb2.JobSpec.FromString(content_of(whole.record))
    spec.ClearField("payload")
    assert job_pb2.JobSpec.FromString(content_of(job.record)) == spec
    assert created_at_ms(job.record) == 1


async def test_jobs_that_stay_are_listed_once_from_the_end_while_others_come_and_go(
    valkey_broker: Broker,
) -> None:
    broker = valkey_broker
    await broker.register()
    await broker.submit(*(new_job(priority=at % 2) for at in range(40)))
    staying = {*await broker.submit(*(new_job(priority=at % 2) for at in range(40)))}
    listed: list[str] = []
    token = ""
    wanted = JobFilter("default", states=(S.PENDING,))
    while True:
        page, token = await broker.router.listing.page(wanted, 7, token, full=False, reverse=True)
        listed += [job.job_id[-26:] for job in page]
        if not token:
            break
        (claimed, *_) = await broker.claim("w1", 2)
        await broker.submit(new_job(priority=1), new_job())
        # One goes back to the front.
        await broker.release(
            "default", claimed.job_id[-26:], "w1", claimed.fencing_token, False, "deploy"
        )
    assert len(listed) == len(set(listed))
    assert staying <= {*listed}
