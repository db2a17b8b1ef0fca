"""Redrives: what comes back after its end, with which budgets, and what is kept."""

from __future__ import annotations

import asyncio

import pytest

from jobwire_server.domain.errors import AlreadyExists, JobNotFound, UniqueKeyTaken, WrongState
from jobwire_server.domain.model import (
    Failure,
    Job,
    JobState,
    OutputPosition,
    Piece,
    RetryPolicy,
    UniqueKey,
    UniqueScope,
    Written,
)

from tests.support.brokers import Broker, running_broker
from tests.support.dump import dump_queue
from tests.support.jobs import DAY_MS, new_job, next_ulid

S = JobState


async def retry(broker: Broker, ulid: str, reason: str = "again", delay_ms: int = 0) -> Job:
    return await broker.router.retry_job("default", ulid, reason, delay_ms)


async def fail(broker: Broker, ulid: str, token: int, *, final: bool = True) -> JobState:
    failure = Failure("Broken", "it broke", non_retryable=final)
    return (await broker.fail("default", ulid, "w1", token, failure)).state


async def dead_letter(broker: Broker, **fields: object) -> str:
    """Returns a job that failed for good in its first attempt."""
    (ulid,) = await broker.submit(new_job(**fields))  # type: ignore[arg-type]
    claimed = await broker.claim_one()
    assert await fail(broker, ulid, claimed.fencing_token) is S.FAILED
    return ulid


async def test_a_dead_letter_runs_again_under_a_higher_token(broker: Broker) -> None:
    await broker.register()
    ulid = await dead_letter(broker)
    before = await broker.job(ulid)
    job = await retry(broker, ulid, "the database is back")
    assert job.state is S.PENDING
    assert job.revision == before.revision + 1
    assert job.redrive is not None
    assert job.redrive.reason == "the database is back"
    assert job.redrive.from_state is S.FAILED
    assert job.redrive.number == 1
    assert abs(job.redrive.at_ms - broker.now_ms()) < 5_000
    assert (job.finished_at_ms, job.purge_at_ms) == (0, 0)
    broker.check()
    claimed = await broker.claim_one()
    assert claimed.job_id[-26:] == ulid
    assert (claimed.fencing_token, claimed.attempt) == (2, 2)
    await broker.succeed("default", ulid, "w1", 2, b"done")
    done = await broker.job(ulid)
    assert done.state is S.SUCCEEDED
    assert [attempt.number for attempt in done.attempts] == [1, 2]
    assert done.redrive is not None
    dump = broker.check()
    assert "done:6" not in dump.keys


async def test_budgets_begin_anew_and_attempts_stay(broker: Broker) -> None:
    await broker.register()
    (ulid,) = await broker.submit(new_job(retry=RetryPolicy(max_attempts=2, jitter=0)))
    for expected in (S.SCHEDULED, S.FAILED):
        await broker.after(10_000)
        claimed = await broker.claim_one()
        assert await fail(broker, ulid, claimed.fencing_token, final=False) is expected
    job = await retry(broker, ulid)
    assert (job.failures, job.crashes, job.interruptions) == (0, 0, 0)
    for expected in (S.SCHEDULED, S.FAILED):
        await broker.after(10_000)
        claimed = await broker.claim_one()
        assert await fail(broker, ulid, claimed.fencing_token, final=False) is expected
    job = await broker.job(ulid)
    assert [attempt.number for attempt in job.attempts] == [1, 2, 3, 4]
    assert job.failures == 2
    assert (await retry(broker, ulid)).redrive.number == 2  # type: ignore[union-attr]
    broker.check()


async def test_crashes_count_from_the_redrive(store_url: str) -> None:
    async with running_broker(store_url, max_crashes=2) as broker:
        await broker.register(lease_ms=1_000)
        (ulid,) = await broker.submit()
        for expected in (S.PENDING, S.FAILED, S.PENDING, S.FAILED):
            if await broker.state(ulid) is S.FAILED:
                await retry(broker, ulid)
            await broker.claim_one()
            await broker.after(1_001)
            assert await broker.state(ulid) is expected
        assert (await broker.job(ulid)).crashes == 2
        broker.check()


async def test_a_job_that_was_cancelled_or_expired_before_it_started_starts(
    broker: Broker,
) -> None:
    await broker.register()
    expiring = new_job(expires_at_ms=broker.now_ms() + 1_000, priority=3)
    cancelled, expired = await broker.submit(new_job(), expiring)
    await broker.router.cancel_job("default", cancelled, "not now")
    await broker.after(2_000)
    assert await broker.state(expired) is S.EXPIRED
    for ulid, state in ((cancelled, S.CANCELLED), (expired, S.EXPIRED)):
        job = await retry(broker, ulid)
        assert job.state is S.PENDING
        assert job.cancel_reason == ""
        assert job.redrive is not None
        assert job.redrive.from_state is state
    broker.check()
    # The time by which it had to start does not count any more.
    await broker.after(DAY_MS)
    claimed = await broker.claim("w1", 5)
    assert [one.job_id[-26:] for one in claimed] == [expired, cancelled]
    broker.check()


async def test_a_redrive_with_a_delay_is_due_then(broker: Broker) -> None:
    await broker.register()
    ulid = await dead_letter(broker, priority=2)
    job = await retry(broker, ulid, delay_ms=5_000)
    assert job.state is S.SCHEDULED
    assert abs(job.run_at_ms - broker.now_ms() - 5_000) < 2_000
    broker.check()
    assert await broker.claim() == []
    await broker.after(5_001)
    assert (await broker.claim_one()).job_id[-26:] == ulid
    broker.check()


async def test_repeating_a_redrive_changes_nothing(broker: Broker) -> None:
    await broker.register()
    ulid = await dead_letter(broker)
    await retry(broker, ulid)
    before = dump_queue(broker.client)
    assert (await retry(broker, ulid, "another")).state is S.PENDING
    assert dump_queue(broker.client) == before
    await broker.claim_one()
    before = dump_queue(broker.client)
    assert (await retry(broker, ulid, "another")).state is S.RUNNING
    assert dump_queue(broker.client) == before


async def test_what_has_succeeded_or_never_ended_is_not_redriven(broker: Broker) -> None:
    await broker.register()
    (ulid,) = await broker.submit()
    with pytest.raises(WrongState) as refusal:
        await retry(broker, ulid)
    assert refusal.value.metadata == {"state": "PENDING"}
    claimed = await broker.claim_one()
    await broker.succeed("default", ulid, "w1", claimed.fencing_token, b"")
    before = dump_queue(broker.client)
    with pytest.raises(WrongState) as refusal:
        await retry(broker, ulid)
    assert refusal.value.metadata == {"state": "SUCCEEDED"}
    with pytest.raises(JobNotFound):
        await retry(broker, next_ulid())
    assert dump_queue(broker.client) == before


async def test_a_redrive_wakes_who_waits_for_jobs(store_url: str) -> None:
    async with (
        running_broker(store_url, server_id="s1") as one,
        running_broker(store_url, server_id="s2") as two,
    ):
        await one.register()
        ulid = await dead_letter(one)
        poll = asyncio.create_task(one.claim(wait_ms=60_000))
        await retry(two, ulid)
        (claimed,) = await poll
        assert claimed.job_id[-26:] == ulid


async def test_who_watches_the_job_again_sees_it_go_on(broker: Broker) -> None:
    await broker.register()
    ulid = await dead_letter(broker)
    assert [job.state for job in [one async for one in broker.watch(ulid)] if job] == [S.FAILED]
    await retry(broker, ulid)
    seen = []
    async for job in broker.watch(ulid):
        assert job is not None
        seen.append(job.state)
        if job.state is S.PENDING:
            claimed = await broker.claim_one()
        elif job.state is S.RUNNING:
            await broker.succeed("default", ulid, "w1", claimed.fencing_token, b"")
    assert seen == [S.PENDING, S.RUNNING, S.SUCCEEDED]


async def test_output_of_the_life_before_is_kept(broker: Broker) -> None:
    await broker.register()
    (ulid,) = await broker.submit()
    await broker.claim_one()
    written = Written(1, 0, (Piece("stdout", True, b"first"),))
    await broker.report("default", ulid, "w1", 1, b"", written)
    await fail(broker, ulid, 1)
    await retry(broker, ulid)
    await broker.claim_one()
    written = Written(2, 0, (Piece("stdout", True, b"second"),))
    await broker.report("default", ulid, "w1", 2, b"", written)
    job = await broker.job(ulid)
    assert job.output_bytes == len("firstsecond")
    assert job.output_end == OutputPosition(2, 6)


async def test_a_worker_of_the_life_before_has_lost_its_lease(broker: Broker) -> None:
    await broker.register(lease_ms=1_000)
    (ulid,) = await broker.submit()
    await broker.claim_one()
    await broker.router.cancel_job("default", ulid, "")
    await broker.after(1_001)
    assert await broker.state(ulid) is S.CANCELLED
    await retry(broker, ulid)
    renewal = (await broker.router.heartbeat("w1", [("default", ulid, 1)]))[1][0]
    assert renewal.lost
    assert await broker.state(ulid) is S.PENDING
    broker.check()


async def test_a_forgotten_redrive_call_is_not_done_twice(broker: Broker) -> None:
    """The answer was lost, the job ran and failed again, and only then the call is repeated."""
    await broker.register()
    ulid = await dead_letter(broker)
    store = broker.parts.bulk_store
    items = []
    once = store.redrive

    async def remember(queue: str, batch: list[object]) -> object:
        items.extend(batch)
        return await once(queue, batch)  # type: ignore[arg-type]

    store.redrive = remember  # type: ignore[assignment, method-assign]
    await retry(broker, ulid)
    claimed = await broker.claim_one()
    await fail(broker, ulid, claimed.fencing_token)
    before = dump_queue(broker.client)
    (outcome,) = await once("default", items)  # type: ignore[arg-type]
    assert outcome == (S.FAILED, False)
    assert dump_queue(broker.client) == before


async def test_a_redrive_takes_the_unique_key_again(broker: Broker) -> None:
    await broker.register()
    ulid = await dead_letter(broker, unique=UniqueKey("k"))
    await retry(broker, ulid)
    broker.check()
    (answer,) = await broker.submitted(new_job(unique=UniqueKey("k")))
    assert answer.job_id == f"default-{ulid}"


async def test_a_redrive_is_refused_where_another_job_holds_the_key(broker: Broker) -> None:
    await broker.register()
    ulid = await dead_letter(broker, unique=UniqueKey("k"))
    (holder,) = await broker.submit(new_job(unique=UniqueKey("k")))
    before = dump_queue(broker.client)
    with pytest.raises(UniqueKeyTaken) as refused:
        await retry(broker, ulid)
    assert refused.value.metadata == {"job_id": f"default-{holder}", "state": "PENDING"}
    assert dump_queue(broker.client) == before
    await broker.router.cancel_job("default", holder, "")
    assert (await retry(broker, ulid)).state is S.PENDING
    broker.check()


async def test_a_redrive_of_a_job_that_was_handed_out_needs_no_key_of_the_pending(
    broker: Broker,
) -> None:
    await broker.register()
    key = UniqueKey("k", UniqueScope.PENDING)
    ulid = await dead_letter(broker, unique=key)
    (waiting,) = await broker.submit(new_job(unique=key))
    assert (await retry(broker, ulid)).state is S.PENDING
    (answer,) = await broker.submitted(new_job(unique=key))
    assert answer.job_id == f"default-{waiting}"
    broker.check()


async def test_a_redriven_job_counts_as_live_again(broker: Broker) -> None:
    await broker.register()
    ulid = await dead_letter(broker)
    size = len((await broker.job(ulid)).record)
    queue = await broker.router.operators.get_queue("default")
    assert (queue.live_bytes, queue.ended_bytes) == (0, size)
    await retry(broker, ulid)
    queue = await broker.router.operators.get_queue("default")
    assert (queue.live_bytes, queue.ended_bytes) == (size, 0)


async def test_the_id_of_a_redrive_stands_for_its_content(broker: Broker) -> None:
    async def redrive(reason: str, delay_ms: int, request_id: str = "a") -> Job:
        return await broker.router.retry_job("default", ulid, reason, delay_ms, request_id)

    others = (("why", 0), ("why", 60_001), ("because", 60_000), ("", 60_000))
    await broker.register()
    ulid = await dead_letter(broker)
    scheduled = await redrive("why", 60_000)
    assert scheduled.state is S.SCHEDULED
    # While it is live, and once it has ended again.
    for _ in range(2):
        for reason, delay_ms in others:
            with pytest.raises(AlreadyExists, match="request_id a ") as refused:
                await redrive(reason, delay_ms)
            assert refused.value.metadata["job_id"] == scheduled.job_id
        assert (await redrive("why", 60_000)).redrive == scheduled.redrive
        if await broker.state(ulid) is S.SCHEDULED:
            await broker.after(60_001)
            await fail(broker, ulid, (await broker.claim_one()).fencing_token)
    assert (await redrive("because", 0, "b")).state is S.PENDING
    broker.check()


async def test_of_two_redrives_under_one_id_at_once_the_other_content_is_refused(
    broker: Broker,
) -> None:
    await broker.register()
    ulid = await dead_letter(broker)
    outcomes = await asyncio.gather(
        *(broker.router.retry_job("default", ulid, reason, 0, "a") for reason in "xxyy"),
        return_exceptions=True,
    )
    job = await broker.job(ulid)
    assert job.redrive is not None
    for reason, outcome in zip("xxyy", outcomes, strict=True):
        if reason == job.redrive.reason:
            assert isinstance(outcome, Job)
        else:
            assert isinstance(outcome, AlreadyExists)


async def test_a_repeated_request_redrives_once(broker: Broker) -> None:
    async def again(request_id: str) -> Job:
        return await broker.router.retry_job("default", ulid, "", 0, request_id)

    await broker.register()
    ulid = await dead_letter(broker)
    assert (await again("a")).state is S.PENDING
    await fail(broker, ulid, (await broker.claim_one()).fencing_token)
    revision = (await broker.job(ulid)).revision
    repeated = await again("a")
    assert (repeated.state, repeated.revision) == (S.FAILED, revision)
    job = await again("b")
    assert (job.state, job.redrive and job.redrive.number) == (S.PENDING, 2)
    await fail(broker, ulid, (await broker.claim_one()).fencing_token)
    # Only the latest is kept; and one without an id is always another one.
    assert (await again("a")).state is S.PENDING
    await fail(broker, ulid, (await broker.claim_one()).fencing_token)
    assert (await again("")).state is S.PENDING
    await fail(broker, ulid, (await broker.claim_one()).fencing_token)
    assert (await again("a")).state is S.PENDING
    broker.check()
