"""Actions on many jobs: which they change, which they leave, and what they tell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest

from jobwire_server.broker import bulk
from jobwire_server.domain.decisions.filters import JobFilter
from jobwire_server.domain.errors import QueueNotFound, ServerDraining, StoreUnavailable
from jobwire_server.domain.model import BulkProgress, Failure, Job, JobState

from tests.support.brokers import Broker
from tests.support.dump import dump_queue
from tests.support.jobs import new_job, next_ulid

S = JobState
ALL = JobFilter("default")


async def told(steps: AsyncIterator[BulkProgress]) -> BulkProgress:
    """Returns the last answer of an action."""
    last = None
    async for step in steps:
        assert last is None or not last.done
        last = step
    assert last is not None
    assert last.done
    assert last.matched == last.changed + last.skipped
    return last


def retry(
    broker: Broker,
    wanted: JobFilter = ALL,
    *,
    dry_run: bool = False,
    most: int = 0,
    rate: float = 0.0,
) -> AsyncIterator[BulkProgress]:
    return broker.router.bulk.retry(
        wanted, "again", dry_run=dry_run, max_jobs=most, per_second=rate
    )


def cancel(
    broker: Broker, wanted: JobFilter = ALL, *, dry_run: bool = False, most: int = 0
) -> AsyncIterator[BulkProgress]:
    return broker.router.bulk.cancel(wanted, "not needed", dry_run=dry_run, max_jobs=most)


def purge(
    broker: Broker, wanted: JobFilter = ALL, *, dry_run: bool = False, most: int = 0
) -> AsyncIterator[BulkProgress]:
    return broker.router.bulk.purge(wanted, dry_run=dry_run, max_jobs=most)


async def fail_all(broker: Broker, count: int, type_: str = "Broken") -> None:
    claimed = await broker.claim("w1", count)
    assert len(claimed) == count
    for one in claimed:
        failure = Failure(type_, non_retryable=True)
        ulid, token = one.job_id[-26:], one.fencing_token
        await broker.fail("default", ulid, "w1", token, failure)


async def dead_letters(broker: Broker, count: int, type_: str = "Broken") -> list[str]:
    ulids = await broker.submit(*(new_job() for _ in range(count)))
    await fail_all(broker, count, type_)
    return ulids


async def states(broker: Broker, ulids: list[str]) -> list[JobState]:
    jobs = await broker.parts.jobs.read("default", ulids, full=False)
    return [job.state for job in jobs if job is not None]


async def test_all_dead_letters_are_put_back_over_many_pages(broker: Broker) -> None:
    await broker.register()
    ulids = await dead_letters(broker, 320)
    (other,) = await broker.submit()
    await broker.router.cancel_job("default", other, "")
    last = await told(retry(broker))
    assert (last.matched, last.changed, last.skipped) == (320, 320, 0)
    assert len(last.samples) == 100
    assert set(last.samples) <= {f"default-{ulid}" for ulid in ulids}
    assert set(await states(broker, ulids)) == {S.PENDING}
    assert await broker.state(other) is S.CANCELLED
    job = await broker.job(ulids[0])
    assert job.redrive is not None
    assert job.redrive.reason == "again"
    broker.check()
    assert (await told(retry(broker))).matched == 0


async def test_a_dry_run_counts_and_changes_nothing(broker: Broker) -> None:
    await broker.register()
    await dead_letters(broker, 7)
    await broker.submit(new_job(), new_job(delay_ms=9_000))
    before = dump_queue(broker.client)
    for steps, count in (
        (retry(broker, dry_run=True), 7),
        (cancel(broker, dry_run=True), 2),
        (purge(broker, dry_run=True), 7),
    ):
        last = await told(steps)
        assert (last.changed, len(last.samples)) == (count, count)
    assert dump_queue(broker.client) == before


async def test_no_more_than_was_asked_for_is_changed(broker: Broker) -> None:
    await broker.register()
    ulids = await dead_letters(broker, 90)
    assert (await told(retry(broker, most=60, dry_run=True))).changed == 60
    last = await told(retry(broker, most=60))
    assert (last.matched, last.changed) == (60, 60)
    # In the order in which they ended.
    assert await states(broker, ulids) == [S.PENDING] * 60 + [S.FAILED] * 30
    assert (await told(purge(broker, most=10))).changed == 10
    assert (await told(cancel(broker, most=5))).changed == 5
    broker.check()


async def test_a_filter_narrows(broker: Broker) -> None:
    await broker.register()
    broken = await dead_letters(broker, 3)
    slow = await dead_letters(broker, 2, "Slow")
    wanted = JobFilter("default", failure_type="Slow")
    assert (await told(retry(broker, wanted))).changed == 2
    assert set(await states(broker, slow)) == {S.PENDING}
    assert set(await states(broker, broken)) == {S.FAILED}
    wanted = JobFilter("default", ulids=(broken[0], broken[0], next_ulid()))
    last = await told(retry(broker, wanted))
    assert (last.matched, last.changed) == (1, 1)
    broker.check()


async def test_what_can_not_be_redriven_is_counted_and_left_alone(broker: Broker) -> None:
    await broker.register()
    await dead_letters(broker, 2)
    await broker.submit(new_job(), new_job())
    (claimed,) = await broker.claim()
    await broker.succeed("default", claimed.job_id[-26:], "w1", claimed.fencing_token, b"done")
    wanted = JobFilter("default", states=tuple(S))
    last = await told(retry(broker, wanted))
    assert (last.changed, last.skipped) == (2, 2)
    broker.check()


async def test_a_job_that_fails_again_at_once_is_not_redriven_for_ever(broker: Broker) -> None:
    await broker.register()
    ulids = await dead_letters(broker, 120)
    store = broker.parts.bulk_store
    once = store.redrive

    async def then_fail(queue: str, items: list[object]) -> object:
        outcomes = await once(queue, items)  # type: ignore[arg-type]
        broker.shift(10)
        await fail_all(broker, len(items))
        return outcomes

    store.redrive = then_fail  # type: ignore[assignment, method-assign]
    last = await told(retry(broker))
    assert last.changed == 120
    assert set(await states(broker, ulids)) == {S.FAILED}
    job = await broker.job(ulids[0])
    assert job.redrive is not None
    assert job.redrive.number == 1


async def test_a_rate_lets_jobs_become_ready_one_behind_the_other(broker: Broker) -> None:
    await broker.register()
    ulids = await dead_letters(broker, 30)
    asked = broker.now_ms()
    assert (await told(retry(broker, rate=2))).changed == 30
    answered = broker.now_ms()
    jobs = [await broker.job(ulid) for ulid in ulids]
    assert jobs[0].state is S.PENDING
    # The first ones become ready while this looks at them.
    later = [job for job in jobs if job.state is S.SCHEDULED]
    assert len(later) > 10
    assert later == jobs[-len(later) :]
    dues = [job.run_at_ms for job in later]
    assert {after - before for before, after in pairwise(dues)} == {500}
    start = dues[0] - 500 * (30 - len(later))
    assert asked <= start <= answered
    broker.check()
    # No server needs to do more than any does for a job that is due.
    earliest = broker.now_ms() + 6_000
    await broker.after(6_000)
    ready = len(await broker.claim("w1", 30))
    latest = broker.now_ms()
    assert (earliest - start) // 500 <= ready - 1 <= (latest - start) // 500
    await broker.after(10_000)
    assert len(await broker.claim("w1", 30)) == 30 - ready
    broker.check()


async def test_all_live_jobs_are_cancelled(broker: Broker) -> None:
    await broker.register()
    running = await broker.submit(*(new_job() for _ in range(5)))
    await broker.claim("w1", 5)
    await broker.router.cancel_job("default", running[0], "before")
    waiting = await broker.submit(
        *(new_job(priority=at % 2, delay_ms=9_000 * (at % 3 == 0)) for at in range(150))
    )
    last = await told(cancel(broker))
    # The one that was being cancelled already is left as it was.
    assert (last.matched, last.changed, last.skipped) == (155, 154, 1)
    assert set(await states(broker, waiting)) == {S.CANCELLED}
    assert set(await states(broker, running)) == {S.CANCELLING}
    assert (await broker.job(waiting[7])).cancel_reason == "not needed"
    assert (await broker.job(running[0])).cancel_reason == "before"
    broker.check()


async def test_a_job_that_starts_meanwhile_is_not_cancelled_as_a_pending_one(
    broker: Broker,
) -> None:
    await broker.register()
    ulids = await broker.submit(new_job(), new_job())
    jobs = broker.parts.jobs
    once = jobs.cancel

    async def claim_then_cancel(*args: object) -> object:
        await broker.claim("w1", 1)
        return await once(*args)  # type: ignore[arg-type]

    jobs.cancel = claim_then_cancel  # type: ignore[assignment, method-assign]
    last = await told(cancel(broker, JobFilter("default", states=(S.PENDING,))))
    assert (last.matched, last.changed, last.skipped) == (2, 1, 1)
    assert await states(broker, ulids) == [S.RUNNING, S.CANCELLED]
    broker.check()


async def test_what_has_ended_is_forgotten_with_all_that_is_kept(broker: Broker) -> None:
    await broker.register()
    await dead_letters(broker, 70)
    (live,) = await broker.submit(new_job(operation="nobody"))
    claimed = await broker.submit()
    (one,) = await broker.claim()
    await broker.succeed("default", claimed[0], "w1", one.fencing_token, b"x" * 100)
    assert (await told(purge(broker, JobFilter("default", states=(S.SUCCEEDED,))))).changed == 1
    assert (await told(purge(broker))).changed == 70
    dump = broker.check()
    assert [*dump.jobs] == [live]
    assert not [name for name in dump.keys if name[:2] in ("h:", "x:", "o:")]


async def test_a_job_that_is_redriven_meanwhile_is_not_forgotten(broker: Broker) -> None:
    await broker.register()
    ulids = await dead_letters(broker, 2)
    store = broker.parts.bulk_store
    once = store.forget

    async def redrive_then_forget(queue: str, jobs: object) -> object:
        await broker.router.retry_job(queue, ulids[0], "", 0)
        await fail_all(broker, 1)
        return await once(queue, jobs)  # type: ignore[arg-type]

    store.forget = redrive_then_forget  # type: ignore[assignment, method-assign]
    last = await told(purge(broker))
    assert (last.matched, last.changed, last.skipped) == (2, 1, 1)
    assert [*broker.check().jobs] == [ulids[0]]


async def test_progress_is_told_while_it_goes_on_and_breaking_off_stops(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "TELL_S", 0.0)
    await broker.register()
    ulids = await dead_letters(broker, 200)
    steps = retry(broker)
    first = await anext(steps)
    assert (first.changed, first.done) == (bulk.FIRST_PAGE, False)
    assert len(first.samples) == bulk.FIRST_PAGE
    await steps.aclose()  # type: ignore[attr-defined]
    assert (await states(broker, ulids)).count(S.PENDING) == bulk.FIRST_PAGE
    seen: list[str] = []
    async for step in retry(broker):
        seen += step.samples
    assert step.done
    # Each answer names others.
    assert len(seen) == len(set(seen))
    broker.check()


async def test_a_server_that_drains_ends_it(broker: Broker) -> None:
    await broker.register()
    await dead_letters(broker, 120)
    steps = retry(broker)
    broker.router.bulk.drain()
    with pytest.raises(ServerDraining):
        await anext(steps)


async def test_a_store_that_goes_away_ends_it_and_it_may_be_repeated(broker: Broker) -> None:
    await broker.register()
    await dead_letters(broker, 120)
    store = broker.parts.bulk_store
    once = store.redrive
    calls = 0

    async def away(queue: str, items: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise StoreUnavailable("gone")
        return await once(queue, items)  # type: ignore[arg-type]

    store.redrive = away  # type: ignore[assignment, method-assign]
    with pytest.raises(StoreUnavailable):
        await told(retry(broker))
    last = await told(retry(broker))
    assert last.changed == 120 - bulk.FIRST_PAGE
    broker.check()


async def test_two_at_once_change_each_job_once(broker: Broker) -> None:
    await broker.register()
    ulids = await dead_letters(broker, 150)
    one, two = await asyncio.gather(told(retry(broker)), told(retry(broker)))
    assert one.changed + two.changed == 150
    for ulid in ulids[::30]:
        job = await broker.job(ulid)
        assert job.redrive is not None
        assert job.redrive.number == 1
    broker.check()


async def test_payloads_make_no_short_pages_for_they_are_not_read(
    valkey_broker: Broker,
) -> None:
    broker = valkey_broker
    await broker.register()
    await broker.submit(*(new_job(payload="x" * (256 << 10)) for _ in range(70)))
    sizes: list[int] = []
    read = broker.parts.jobs.read

    async def count(queue: str, ulids: list[str], *, full: bool) -> list[Job | None]:
        sizes.append(len(ulids))
        jobs = await read(queue, ulids, full=full)
        assert all(job is not None and len(job.record) < 1_000 for job in jobs)
        return jobs

    broker.parts.jobs.read = count  # type: ignore[assignment, method-assign]
    assert (await told(cancel(broker))).changed == 70
    assert sizes[:2] == [50, 20]


async def test_a_queue_that_never_was_is_not_found(valkey_broker: Broker) -> None:
    for steps in (
        retry(valkey_broker, JobFilter("none")),
        cancel(valkey_broker, JobFilter("none")),
        purge(valkey_broker, JobFilter("none")),
    ):
        with pytest.raises(QueueNotFound):
            await told(steps)
