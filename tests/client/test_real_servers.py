"""The SDK on real servers and a real store: what is promised about retries and identity holds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pytest

from jobwire import (
    AlreadyExists,
    AsyncBatchError,
    AsyncClient,
    AttemptOutcome,
    ChangedMeanwhile,
    Context,
    FailureOrigin,
    Fatal,
    Job,
    JobState,
    NewJob,
    QueueFull,
    QueueInUse,
    QueueNotFound,
    Retry,
    RetryPolicy,
    ScheduleNotFound,
    UniqueKey,
    UniqueKeyTaken,
    Worker,
)

from tests.support.streams import QUICK, stream_server
from tests.support.workers import WorkerProcess

AT_ONCE = RetryPolicy(initial_backoff=0, max_backoff=0)
Way = Literal["stream", "unary"]


@pytest.fixture
async def address(valkey_url: str) -> AsyncIterator[str]:
    """A server in this process."""
    async with stream_server(valkey_url, QUICK) as server:
        yield server.address


@pytest.fixture
async def client(address: str) -> AsyncIterator[AsyncClient]:
    """A client of it."""
    async with AsyncClient(address, timeout_s=20) as made:
        yield made


@pytest.fixture(params=["stream", "unary"])
def way(request: pytest.FixtureRequest) -> Way:
    """Each transport in turn."""
    found: Way = request.param
    return found


@asynccontextmanager
async def working(
    address: str, way: Way, **handlers: Callable[[Context], Any]
) -> AsyncIterator[Worker]:
    worker = Worker(address, transport=way, concurrency=4, shutdown_grace_s=0.5)
    for name, handler in handlers.items():
        worker.operation(name)(handler)
    async with worker:
        yield worker


async def test_a_retry_begins_where_the_attempt_before_saved(
    address: str, client: AsyncClient, way: Way
) -> None:
    async def count(context: Context) -> list[Any]:
        done = context.checkpoint or []
        await context.save_checkpoint([*done, context.attempt])
        if context.attempt < 3:
            raise Retry("not yet", after=timedelta(0))
        return list(done)

    async with working(address, way, count=count):
        handle = await client.submit("count", retry=AT_ONCE)
        assert await handle.result(timeout=20) == [1, 2]
    assert [a.outcome for a in (await handle.get()).attempts] == [
        AttemptOutcome.FAILED,
        AttemptOutcome.FAILED,
        AttemptOutcome.SUCCEEDED,
    ]


async def test_a_sync_handler_that_dies_leaves_its_checkpoint_behind(
    address: str, client: AsyncClient, way: Way
) -> None:
    def give_up(context: Context) -> Any:
        if context.checkpoint:
            return context.checkpoint
        context.save_checkpoint({"rows": 7})
        raise Fatal("out of paper", type="Paper")

    async with working(address, way, work=give_up):
        handle = await client.submit("work")
        job = await handle.wait(timeout=20)
        assert (job.state, job.checkpoint) == (JobState.FAILED, {"rows": 7})
        assert job.failure is not None
        assert (job.failure.type, job.failure.non_retryable) == ("Paper", True)
        again = await handle.retry("new paper")
        assert again.last_redrive is not None
        assert (again.last_redrive.reason, again.last_redrive.number) == ("new paper", 1)
        assert again.last_redrive.from_state is JobState.FAILED
        failed = [one async for one in client.list_attempts(handle.id, page_size=1)][-1]
        assert failed.failure is not None
        assert (failed.number, failed.failure.origin) == (1, FailureOrigin.WORKER)
        assert await handle.result(timeout=20) == {"rows": 7}


@pytest.mark.parametrize(
    ("limits", "kind"),
    [
        ({"execution_timeout": 0.3}, "EXECUTION_TIMEOUT"),
        ({"deadline": timedelta(seconds=2)}, "DEADLINE_EXCEEDED"),
    ],
)
async def test_a_handler_past_its_time_is_stopped_and_its_job_fails(
    address: str, client: AsyncClient, way: Way, limits: Any, kind: str
) -> None:
    stopped: asyncio.Queue[tuple[str, bool]] = asyncio.Queue()

    async def hang(context: Context) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await stopped.put((context.stop_reason, context.deadline is not None))

    async with working(address, way, hang=hang):
        handle = await client.submit("hang", retry=RetryPolicy(max_attempts=1), **limits)
        job = await handle.wait(timeout=20)
        reason, knew = await asyncio.wait_for(stopped.get(), 20)
    assert (job.state, knew) == (JobState.FAILED, True)
    assert job.failure is not None
    # Whoever is first: this worker's clock, or the broker, which takes the job back.
    assert (job.failure.type, job.failure.origin) == (kind, FailureOrigin.BROKER)
    assert reason in ("timeout", "deadline", "lease_lost")


async def test_a_lease_below_the_interval_of_heartbeats_is_kept(valkey_url: str, way: Way) -> None:
    starts = 0

    async def outlast(context: Context) -> None:
        nonlocal starts
        starts += 1
        await asyncio.sleep(1.5)

    patient = replace(QUICK, heartbeat_interval_ms=5_000, worker_timeout_ms=20_000)
    async with stream_server(valkey_url, patient) as server, AsyncClient(server.address) as client:
        worker = Worker(server.address, lease_s=1, transport=way)
        worker.operation("outlast")(outlast)
        async with worker:
            job = await (await client.submit("outlast")).wait(timeout=20)
    assert (job.state, starts) == (JobState.SUCCEEDED, 1)


async def test_a_cancellation_ends_a_claim_that_waits(address: str, client: AsyncClient) -> None:
    began = asyncio.Event()

    async def hang(context: Context) -> None:
        began.set()
        await asyncio.Event().wait()

    async with working(address, "unary", hang=hang):
        handle = await client.submit("hang")
        await asyncio.wait_for(began.wait(), 20)
        await handle.cancel("enough")
        job = await handle.wait(timeout=20)
    assert job.state is JobState.CANCELLED
    assert job.attempts[-1].outcome is AttemptOutcome.CANCELLED


async def test_the_same_request_twice_is_one_job(client: AsyncClient) -> None:
    first = await client.submit("work", 1, request_id="order-1")
    again = await client.submit("work", 1, request_id="order-1")
    assert (again.id, first.existed, again.existed) == (first.id, False, True)
    with pytest.raises(AlreadyExists):
        await client.submit("work", 2, request_id="order-1")


async def test_the_same_batch_twice_is_one_batch(client: AsyncClient) -> None:
    jobs = [NewJob(operation="work", payload=number) for number in range(1200)]
    first = await client.submit_many(jobs, request_id="nightly")
    again = await client.submit_many(jobs, request_id="nightly")
    assert [handle.id for handle in again] == [handle.id for handle in first]
    assert all(handle.existed for handle in again)
    assert len({handle.id for handle in first}) == 1200


async def test_a_unique_key_answers_with_its_holder_or_refuses(
    address: str, client: AsyncClient
) -> None:
    holder = await client.submit("work", unique_key="invoice-1")
    other = await client.submit("work", "other", unique_key="invoice-1")
    assert (other.id, other.existed) == (holder.id, True)
    with pytest.raises(UniqueKeyTaken) as caught:
        await client.submit("work", unique_key=UniqueKey("invoice-1", on_conflict="reject"))
    assert caught.value.job_id == holder.id
    watch = await client.run("work", unique_key="invoice-1")
    assert watch.job_id == holder.id
    async with working(address, "stream", work=lambda context: "done"):
        last = [event async for event in watch][-1]
    assert isinstance(last, Job)
    assert last.result == "done"
    free = await client.submit("work", unique_key="invoice-1")
    assert not free.existed


async def test_a_pending_job_is_replaced_where_that_is_asked_for(client: AsyncClient) -> None:
    key = UniqueKey("k", on_conflict="replace_pending")
    old = await client.submit("work", 1, unique_key=key)
    new = await client.submit("work", 2, unique_key=key)
    assert new.id != old.id
    assert (await old.get()).state is JobState.CANCELLED
    assert (await new.get()).unique_key == replace(key, scope="unfinished")


async def test_a_full_queue_says_so_and_when_to_come_back(
    address: str, client: AsyncClient
) -> None:
    await client.submit("work")
    await client.configure_queue("default", max_pending_jobs=1)
    async with AsyncClient(address, timeout_s=0.2) as hasty:
        with pytest.raises(QueueFull) as caught:
            await hasty.submit("work")
        assert caught.value.retry_after_s
        with pytest.raises(AsyncBatchError) as batch:
            await hasty.submit_many([NewJob(operation="work")])
    assert isinstance(batch.value.errors[0], QueueFull)


async def test_the_settings_of_a_queue_come_back_as_they_were_given(client: AsyncClient) -> None:
    await client.submit("work")
    given: dict[str, Any] = {
        "event_log_entries": 10,
        "max_output_bytes": 1 << 20,
        "retry": RetryPolicy(max_attempts=9, initial_backoff=timedelta(seconds=2)),
        "max_pending_jobs": 100,
        "max_live_bytes": 1 << 22,
        "retain_succeeded": timedelta(hours=1),
        "retain_ended": timedelta(days=2),
        "max_ended_jobs": 50,
        "max_ended_bytes": 1 << 21,
        "retain_output": timedelta(minutes=5),
        "retain_event_log": timedelta(minutes=6),
        "priority_ageing": timedelta(minutes=7),
        "default_priority": 3,
    }
    config = (await client.configure_queue("default", **given)).config
    assert {name: getattr(config, name) for name in given} == given
    spans: dict[str, Any] = dict.fromkeys(
        ["retain_succeeded", "retain_ended", "retain_output", "retain_event_log"], "default"
    )
    info = await client.configure_queue("default", retry=RetryPolicy(multiplier=3))
    assert info.config.retry == replace(given["retry"], multiplier=3)
    with pytest.raises(ChangedMeanwhile):
        await client.configure_queue("default", max_ended_jobs=1, revision=info.revision - 1)
    changed = await client.configure_queue(
        "default", priority_ageing="default", retry="default", revision=info.revision, **spans
    )
    assert changed.revision == info.revision + 1
    assert changed.config.max_pending_jobs == 100
    assert changed.config.retry == RetryPolicy()
    assert changed.config.priority_ageing is None
    assert changed.config.retain_succeeded is None
    with pytest.raises(QueueNotFound):
        await client.pause("new")
    assert (await client.pause("new", allow_missing=True)).paused
    await client.delete_queue("new")
    with pytest.raises(QueueNotFound):
        await client.queue("new")
    with pytest.raises(QueueInUse) as caught:
        await client.delete_queue("default")
    assert caught.value.metadata["live_jobs"] == "1"
    assert (await client.server_info()).max_queues == 10_000
    assert (await client.configure_queue("other", allow_missing=True)).revision == 1


async def test_jobs_of_several_queues_are_listed_and_purged_by_a_pattern(
    client: AsyncClient,
) -> None:
    jobs = [await client.submit("work", queue=queue) for queue in ("x-a", "x-b", "x-b", "y")]
    ids = [job.id for job in jobs]
    listed = client.list_jobs("x-*", order="state_reverse", page_size=1)
    assert [job.id async for job in listed] == [ids[0], ids[2], ids[1]]
    named = client.list_jobs("*", job_ids=[ids[3], ids[1]], states=[JobState.PENDING])
    assert [job.id async for job in named] == [ids[1], ids[3]]
    assert [
        job
        async for job in client.list_jobs("x-*", submitted_before=datetime(2020, 1, 1, tzinfo=UTC))
    ] == []
    assert (await client.cancel_jobs("x-*").wait()).changed == 3
    assert (await client.purge_jobs("*", dry_run=True).wait()).changed == 3


async def failed_jobs(client: AsyncClient, address: str, count: int) -> list[str]:
    async def fail(context: Context) -> None:
        raise Fatal(str(context.payload), type="Odd" if context.payload % 2 else "Even")

    jobs = [
        NewJob(operation="fail", payload=n, queue="q", labels={"n": str(n)}) for n in range(count)
    ]
    handles = await client.submit_many(jobs)
    worker = Worker(address, queues=["q"], shutdown_grace_s=1)
    worker.operation("fail")(fail)
    async with worker:
        for handle in handles:
            await handle.wait(timeout=20)
    return [handle.id for handle in handles]


async def test_dead_letters_are_found_counted_redriven_cancelled_and_purged(
    address: str, client: AsyncClient
) -> None:
    ids = await failed_jobs(client, address, 6)
    odd = [job.id async for job in client.list_jobs("q", failure_type="Odd")]
    assert sorted(odd) == sorted(ids[1::2])
    (labelled,) = [job.id async for job in client.list_jobs("q", labels={"n": "4"})]
    assert labelled == ids[4]
    counted = await client.retry_jobs("q", failure_type="Odd", dry_run=True).wait()
    assert (counted.matched, counted.changed, counted.done) == (3, 3, True)
    redriven = await client.retry_jobs("q", failure_type="Odd", reason="mended").wait()
    assert (redriven.changed, redriven.skipped) == (3, 0)
    job = await client.get(ids[1])
    assert job.state is JobState.PENDING
    assert job.last_redrive is not None
    cancelled = await client.cancel_jobs("q", job_ids=ids[:2], reason="no").wait()
    assert (cancelled.matched, cancelled.changed) == (1, 1)
    long_ago = datetime.now(UTC) - timedelta(days=1)
    assert (await client.purge_jobs("q", finished_before=long_ago).wait()).matched == 0
    purged = await client.purge_jobs("q", states=[JobState.FAILED]).wait()
    assert purged.changed == 3
    left = [job.id async for job in client.list_jobs("q")]
    assert sorted(left) == sorted(ids[1::2])


async def test_retention_may_be_the_jobs_own(address: str, client: AsyncClient) -> None:
    async with working(address, "stream", work=lambda context: None):
        handle = await client.submit("work", retention=timedelta(hours=3))
        job = await handle.wait(timeout=20)
    assert job.retention == timedelta(hours=3)
    assert job.finished_at is not None
    assert job.purge_at == job.finished_at + timedelta(hours=3)


async def test_a_schedule_submits_its_job_and_the_jobs_run(
    address: str, client: AsyncClient
) -> None:
    made = await client.create_schedule(
        "tick", "work", {"n": 1}, every=timedelta(seconds=1), labels={"a": "b"}, overlap="allow"
    )
    assert (made.every, made.payload, len(made.next_runs)) == (timedelta(seconds=1), {"n": 1}, 5)
    same = await client.create_schedule(
        "tick", "work", {"n": 1}, every=timedelta(seconds=1), labels={"a": "b"}, overlap="allow"
    )
    assert same.revision == made.revision
    async with working(address, "stream", work=lambda context: context.payload):
        seen = client.watch_jobs(labels={"jobwire.schedule": "tick"})
        async with asyncio.timeout(20), aclosing(seen):
            while not (job := await anext(seen)).state.is_terminal:
                continue
    job = await client.get(job.id)
    found = await client.get_schedule("tick")
    assert job.id in [run.job_id for run in found.recent_runs]
    assert (job.state, job.result) == (JobState.SUCCEEDED, {"n": 1})
    assert job.labels["jobwire.schedule"] == "tick"
    assert job.labels["a"] == "b"


async def test_a_schedule_is_changed_stopped_triggered_and_removed(client: AsyncClient) -> None:
    await client.create_schedule("nightly", "work", cron="30 6 * * *", time_zone="Europe/Berlin")
    with pytest.raises(AlreadyExists):
        await client.create_schedule("nightly", "other", cron="@daily")
    changed = await client.update_schedule("nightly", overlap="cancel_previous", priority=4)
    assert (changed.cron, changed.time_zone) == ("30 6 * * *", "Europe/Berlin")
    assert (changed.overlap, changed.priority, changed.revision) == ("cancel_previous", 4, 2)
    paused = await client.pause_schedule("nightly", "holidays")
    assert (paused.paused, paused.pause_reason, paused.next_runs) == (True, "holidays", ())
    first = await client.trigger_schedule("nightly", request_id="now")
    assert await client.trigger_schedule("nightly", request_id="now") == first
    assert (await client.get(first)).priority == 4
    assert len((await client.resume_schedule("nightly")).next_runs) == 5
    assert [found.id async for found in client.list_schedules()] == ["nightly"]
    await client.delete_schedule("nightly")
    await client.delete_schedule("nightly")
    with pytest.raises(ScheduleNotFound):
        await client.get_schedule("nightly")


@pytest.mark.processes
async def test_what_a_killed_worker_saved_the_next_one_gets(
    address: str, client: AsyncClient
) -> None:
    first = WorkerProcess(address, "tests.client.dying")
    first.start()
    handle = await client.submit("count")
    async with asyncio.timeout(30), aclosing(handle.watch()) as states:
        async for job in states:
            if job.progress is not None:
                break
    first.kill()
    second = WorkerProcess(address, "tests.client.dying")
    second.start()
    try:
        assert await handle.result(timeout=60) == {"from": {"rows": 1200}, "attempt": 2}
    finally:
        second.stop()
    job = await handle.get()
    assert (job.crashes, job.failures, job.checkpoint) == (1, 0, None)
