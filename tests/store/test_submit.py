"""submit.lua: what a submission writes, and what a repeated or refused one does not."""

from __future__ import annotations

import asyncio

import pytest

from jobwire_server.domain.model import JobState, RetryPolicy

from tests.support.jobs import DAY_MS, new_job, next_ulid, ulid_of
from tests.support.scripts import Scripts


async def test_a_plain_job_is_its_record_and_one_entry_on_its_route(scripts: Scripts) -> None:
    job = new_job()
    (accepted,) = await scripts.jobs.submit("default", [job])
    assert accepted == (job.job_id, JobState.PENDING, None)
    ulid, route = ulid_of(job), job.route.id
    assert scripts.changed({}) == {
        f"r:{ulid}": job.record,
        f"l:{route}": [ulid],
        "ready": {route: "1"},
        "routes": {route: job.route.descriptor.decode()},
        "counts": {"2": "1"},
        "totals": {"submitted": "1"},
        "usage": {"live": str(len(job.record))},
    }
    scripts.check()


async def test_a_job_above_priority_0_waits_in_the_sorted_set(scripts: Scripts) -> None:
    job = new_job(priority=7)
    await scripts.submit(job)
    changed = scripts.changed({})
    assert changed[f"z:{job.route.id}"] == {ulid_of(job): 248.0}
    assert f"l:{job.route.id}" not in changed
    scripts.check()


async def test_a_delayed_job_waits_for_its_time_by_the_clock_of_the_store(
    scripts: Scripts,
) -> None:
    scripts.shift(5 * DAY_MS)
    job = new_job(delay_ms=60_000, priority=3)
    (accepted,) = await scripts.jobs.submit("default", [job])
    due = scripts.after(60_000)
    assert accepted.state is JobState.SCHEDULED
    ulid = ulid_of(job)
    assert scripts.changed({}) == {
        f"r:{ulid}": job.record,
        f"j:{ulid}": {"s": "1", "d": due, "rt": job.route.id, "p": "3"},
        "scheduled": {ulid: due},
        "routes": {job.route.id: job.route.descriptor.decode()},
        "counts": {"1": "1"},
        "totals": {"submitted": "1"},
        "usage": {"live": str(len(job.record))},
    }
    scripts.check()


async def test_a_start_in_the_past_is_now(scripts: Scripts) -> None:
    job = new_job(run_at_ms=scripts.now_ms - 1)
    (accepted,) = await scripts.jobs.submit("default", [job])
    assert accepted.state is JobState.PENDING
    scripts.check()


async def test_expiry_timeout_and_retry_policy_are_kept_with_the_job(scripts: Scripts) -> None:
    expires_at = scripts.now_ms + 60_000
    job = new_job(
        expires_at_ms=expires_at, execution_timeout_ms=500, retry=RetryPolicy(max_attempts=9)
    )
    (ulid,) = await scripts.submit(job)
    changed = scripts.changed({})
    assert changed[f"j:{ulid}"] == {
        "s": "2",
        "y": "1",
        "ex": str(expires_at),
        "xt": "500",
        "o": '{"max_attempts":9}',
    }
    assert changed["timers"] == {f"e{ulid}": expires_at}
    assert (await scripts.read(ulid)).retry == RetryPolicy(max_attempts=9)
    scripts.check()


@pytest.mark.parametrize("delay_ms", [0, 1000])
async def test_a_repeated_submission_writes_nothing_and_answers_what_there_is(
    scripts: Scripts, delay_ms: int
) -> None:
    job = new_job(delay_ms=delay_ms)
    await scripts.submit(job)
    before = scripts.dump()
    other = new_job(ulid=ulid_of(job), payload="another", priority=9)
    (accepted,) = await scripts.jobs.submit("default", [other])
    state = JobState.SCHEDULED if delay_ms else JobState.PENDING
    assert accepted == (job.job_id, state, job.record)
    assert scripts.changed(before) == {}


async def test_a_repeated_submission_of_a_running_job_does_not_make_it_ready_again(
    scripts: Scripts,
) -> None:
    job = new_job()
    await scripts.running(job)
    before = scripts.dump()
    (accepted,) = await scripts.jobs.submit("default", [job])
    assert accepted.state is JobState.RUNNING
    assert scripts.changed(before) == {}
    assert await scripts.claim() == []


@pytest.mark.parametrize("priority", [0, 5])
async def test_an_id_twice_in_one_batch_is_accepted_once(scripts: Scripts, priority: int) -> None:
    job = new_job(priority=priority)
    same = new_job(ulid=ulid_of(job), payload="another", priority=priority)
    first, second = await scripts.jobs.submit("default", [job, same])
    assert first.existing_record is None
    assert second == (job.job_id, JobState.PENDING, job.record)
    assert scripts.dump()[f"r:{ulid_of(job)}"] == job.record
    scripts.check()
    assert len(await scripts.claim("w1", 10)) == 1


async def test_new_jobs_of_a_batch_are_written_beside_a_repeated_one(scripts: Scripts) -> None:
    old, new, later = new_job(), new_job(), new_job(delay_ms=1000)
    await scripts.submit(old)
    answers = await scripts.jobs.submit("default", [old, new, later])
    assert [answer.existing_record is None for answer in answers] == [False, True, True]
    assert scripts.dump()["totals"] == {"submitted": "3"}
    scripts.check()


async def test_a_thousand_jobs_on_many_routes_keep_their_order(scripts: Scripts) -> None:
    jobs = [new_job(operation=f"op{at % 40}", payload="x" * 100) for at in range(1000)]
    answers = await scripts.jobs.submit("default", jobs)
    assert [answer.job_id for answer in answers] == [job.job_id for job in jobs]
    dump = scripts.check()
    assert len(dump.in_state(JobState.PENDING)) == 1000
    for job in jobs[:40]:
        expected = [ulid_of(other) for other in jobs if other.route == job.route]
        assert dump.keys[f"l:{job.route.id}"] == expected


async def test_jobs_that_become_ready_are_announced_with_route_and_count(
    scripts: Scripts,
) -> None:
    with scripts.client.pubsub() as pubsub:  # type: ignore[no-untyped-call]
        pubsub.ssubscribe("jw:{default}:ready", "jw:{default}:events")
        for _ in range(2):
            pubsub.get_sharded_message(timeout=5)
        job = new_job()
        await scripts.submit(job, new_job(), new_job(delay_ms=1000))
        heard = {}
        for _ in range(2):
            message = pubsub.get_sharded_message(timeout=5)
            heard[message["channel"]] = message["data"]
        assert heard[b"jw:{default}:ready"] == f"{job.route.id}:2".encode()
        events = heard[b"jw:{default}:events"].decode()
        assert len(events) == 3 * 26 + 1
        assert events.endswith("+"), "none of them has ended"
        assert events.startswith(ulid_of(job))


async def test_submissions_of_the_same_ids_at_once_are_accepted_once(scripts: Scripts) -> None:
    jobs = [new_job(ulid=next_ulid()) for _ in range(50)]
    rounds = await asyncio.gather(*(scripts.jobs.submit("default", jobs) for _ in range(8)))
    written = [answer.job_id for answers in rounds for answer in answers if not answer[2]]
    assert sorted(written) == sorted(job.job_id for job in jobs)
    assert scripts.dump()["totals"] == {"submitted": "50"}
    scripts.check()


async def test_a_flushed_script_is_sent_again(scripts: Scripts) -> None:
    await scripts.submit()
    scripts.client.script_flush()
    await scripts.submit()
    assert scripts.dump()["totals"] == {"submitted": "2"}
    scripts.check()
