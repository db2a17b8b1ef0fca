"""read.lua, list.lua and queue.lua: what is told of jobs and queues."""

from __future__ import annotations

import pytest

from jobwire_server.domain.model import JobState
from jobwire_server.store.bulk import BulkStore, RedriveItem
from jobwire_server.store.reads import PageToken

from tests.support.jobs import new_job, next_ulid, ulid_of
from tests.support.scripts import RETAIN_MS, Scripts

PLAIN = new_job().route.id
S = JobState


async def _pages(scripts: Scripts, state: JobState, most: int) -> list[list[str]]:
    pages, token = [], PageToken()
    while True:
        ids, following = await scripts.jobs.list_ids("default", state, most, token)
        assert len(ids) <= most
        pages.append(ids)
        if following is None:
            return pages
        token = following
        assert len(pages) < 1000, "the listing does not end"


async def test_a_plain_job_is_told_whole_although_little_is_stored(scripts: Scripts) -> None:
    job = new_job()
    (ulid,) = await scripts.submit(job)
    found = await scripts.read(ulid)
    assert (found.job_id, found.record, found.state) == (job.job_id, job.record, S.PENDING)
    assert (found.revision, found.attempt, found.attempts) == (1, 0, ())


async def test_jobs_are_read_in_order_and_unknown_ones_are_none(scripts: Scripts) -> None:
    ulids = await scripts.submit(*(new_job() for _ in range(3)))
    asked = [ulids[2], next_ulid(), ulids[0]]
    found = await scripts.jobs.read("default", asked, full=True)
    assert [job and job.job_id for job in found] == [
        f"default-{ulids[2]}",
        None,
        f"default-{ulids[0]}",
    ]


async def test_a_read_brings_as_many_jobs_as_fit_and_one_in_any_case(scripts: Scripts) -> None:
    record = b"r" * 1_000
    ulids = await scripts.submit(*(new_job()._replace(record=record) for _ in range(5)))
    for most_bytes, count in ((0, 1), (999, 1), (1_000, 1), (1_001, 2), (10_000, 5)):
        some = await scripts.jobs.read_some("default", ulids, full=True, most_bytes=most_bytes)
        assert [job and job.job_id[-26:] for job in some] == ulids[:count]
    every = await scripts.jobs.read("default", ulids, full=True)
    assert [job and job.job_id[-26:] for job in every] == ulids
    in_turn = [
        job.job_id[-26:]
        async for job in scripts.jobs.read_in_turn("default", [next_ulid(), *ulids], full=False)
    ]
    assert in_turn == ulids


async def test_a_bare_read_brings_how_jobs_stand_and_nothing_large(scripts: Scripts) -> None:
    ulid = await scripts.running()
    (bare,) = await scripts.jobs.read_bare("default", [next_ulid(), ulid])
    whole = await scripts.read(ulid)
    assert (bare.worker_id, bare.fencing_token, bare.state, bare.lease_expires_at_ms) == (
        whole.worker_id,
        whole.fencing_token,
        whole.state,
        whole.lease_expires_at_ms,
    )
    assert (bare.record, whole.record != b"") == (b"", True)


async def test_a_basic_read_leaves_out_long_results_and_all_but_the_last_attempt(
    scripts: Scripts,
) -> None:
    ulid = await scripts.running()
    for token in (1, 2):
        await scripts.end(await scripts.read(ulid), S.PENDING)
        await scripts.claim()
        assert (await scripts.read(ulid)).fencing_token == token + 1
    await scripts.succeed(ulid, 3, result=b"x" * 100)
    (basic,) = await scripts.jobs.read("default", [ulid], full=False)
    assert basic is not None
    assert basic.result == b""
    assert len(basic.attempts) == 2
    assert len((await scripts.read(ulid)).attempts) == 3


async def test_the_revision_grows_with_every_change(scripts: Scripts) -> None:
    (ulid,) = await scripts.submit(new_job(delay_ms=1_000))
    revisions = [(await scripts.read(ulid)).revision]

    async def note() -> None:
        revisions.append((await scripts.read(ulid)).revision)

    scripts.shift(2_000)
    await scripts.tick()
    await note()
    await scripts.claim()
    await note()
    await scripts.end(await scripts.read(ulid), S.PENDING)
    await note()
    await scripts.claim()
    await note()
    await scripts.cancel(ulid)
    await note()
    await scripts.succeed(ulid, 2)
    await note()
    assert revisions == sorted(set(revisions))


@pytest.mark.parametrize("state", JobState, ids=lambda state: state.name)
@pytest.mark.parametrize("most", [1, 7, 100])
async def test_every_job_of_a_state_is_listed_once_page_by_page(
    scripts: Scripts, state: JobState, most: int
) -> None:
    expiry = scripts.now_ms + 1_000 if state is S.EXPIRED else 0
    jobs = [
        new_job(
            operation=f"op{at % 3}",
            priority=at % 2,
            delay_ms=60_000 if state is S.SCHEDULED else 0,
            expires_at_ms=expiry,
        )
        for at in range(20)
    ]
    ulids = await scripts.submit(*jobs)
    if state in (S.RUNNING, S.CANCELLING, S.SUCCEEDED, S.FAILED):
        for ulid in [ulid_of(one.job_id) for one in await scripts.claim("w1", 20, *jobs)]:
            if state is S.SUCCEEDED:
                await scripts.succeed(ulid)
            elif state is S.FAILED:
                await scripts.end(await scripts.read(ulid), S.FAILED)
            elif state is S.CANCELLING:
                await scripts.cancel(ulid)
    elif state is S.CANCELLED:
        for ulid in ulids:
            await scripts.cancel(ulid)
    elif state is S.EXPIRED:
        scripts.shift(2_000)
        await scripts.tick()
    pages = await _pages(scripts, state, most)
    assert sorted(ulid for page in pages for ulid in page) == ulids
    scripts.check()


async def test_ids_with_the_same_score_are_listed_once(scripts: Scripts) -> None:
    # Cancelled by one call: all of them are forgotten at the same millisecond.
    ulids = await scripts.submit(*(new_job() for _ in range(50)))
    items = [(ulid, "") for ulid in ulids]
    await scripts.jobs.cancel("default", items, 0, 1_000)
    pages = await _pages(scripts, S.CANCELLED, 7)
    assert [ulid for page in pages for ulid in page] == ulids


async def test_a_listing_goes_on_where_it_was_while_jobs_are_taken_at_the_front(
    scripts: Scripts,
) -> None:
    ulids = await scripts.submit(*(new_job() for _ in range(60)))
    first, token = await scripts.jobs.list_ids("default", S.PENDING, 20, PageToken())
    assert first == ulids[:20]
    await scripts.claim("w1", 10)
    assert token is not None
    second, token = await scripts.jobs.list_ids("default", S.PENDING, 20, token)
    assert second == ulids[20:40]
    await scripts.claim("w1", 45)
    assert token is not None
    third, token = await scripts.jobs.list_ids("default", S.PENDING, 20, token)
    assert third == ulids[55:]
    assert token is None


async def test_a_listing_ends_although_jobs_that_were_redriven_stand_twice_on_their_route(
    scripts: Scripts,
) -> None:
    ulids = await scripts.submit(*(new_job() for _ in range(20)))
    await scripts.jobs.cancel("default", [(ulid, "") for ulid in ulids], 0, RETAIN_MS)
    items = [RedriveItem(ulid, PLAIN, 0, 0, "") for ulid in ulids]
    await BulkStore(scripts.runner).redrive("default", items)
    # Each page ends at a job whose former entry stands as far in front as a page is long.
    pages = await _pages(scripts, S.PENDING, 20)
    assert set().union(*pages) == set(ulids)


async def test_a_queue_tells_its_depths_totals_and_oldest_job(scripts: Scripts) -> None:
    jobs = [new_job(), new_job(priority=5), new_job(delay_ms=60_000)]
    await scripts.submit(*jobs)
    queue = await scripts.queues.read("default", detail=True)
    assert queue.counts == {S.SCHEDULED: 1, S.PENDING: 2}
    assert queue.totals == {"submitted": 3}
    assert not queue.paused
    assert queue.now_ms == scripts.after(0)
    assert queue.oldest_pending_record == jobs[0].record
    await scripts.cancel(ulid_of(jobs[0]))
    queue = await scripts.queues.read("default", detail=True)
    assert queue.oldest_pending_record == jobs[1].record


async def test_a_job_that_became_ready_late_is_as_old_as_its_readiness(
    scripts: Scripts,
) -> None:
    await scripts.submit(new_job(delay_ms=60_000))
    scripts.shift(61_000)
    await scripts.tick()
    ready_at = scripts.now_ms
    scripts.shift(5_000)
    queue = await scripts.queues.read("default", detail=True)
    assert abs(queue.oldest_pending_ms - ready_at) < 2_000
    assert queue.oldest_pending_record == b""


async def test_queues_are_listed_by_name(scripts: Scripts) -> None:
    for name in ("b", "a", "c.d", "a"):
        await scripts.queues.register(name)
    assert await scripts.queues.names() == ["a", "b", "c.d"]
    assert await scripts.queues.names("a", 1) == ["b"]
    assert await scripts.queues.exists("c.d")
    assert not await scripts.queues.exists("c")


async def test_a_look_at_a_queue_writes_nothing(scripts: Scripts) -> None:
    ulid = await scripts.running()
    await scripts.submit(new_job(delay_ms=1))
    before = scripts.dump()
    scripts.shift(100_000)
    await scripts.queues.read("default", detail=True)
    await scripts.read(ulid)
    for state in JobState:
        await scripts.jobs.list_ids("default", state, 10, PageToken())
    assert scripts.changed(before) == {}


async def test_a_page_among_thousands_with_one_score_takes_few_steps(scripts: Scripts) -> None:
    ids = sorted(next_ulid() for _ in range(3_000))
    key = "jw:{default}:scheduled"
    scripts.client.zadd(key, dict.fromkeys(ids, 1764190000000))
    # The last one that was seen may be gone.
    scripts.client.zrem(key, ids[2_500])

    def steps() -> int:
        calls = scripts.client.info("commandstats")
        return sum(calls[name]["calls"] for name in calls if name in ("cmdstat_zrange",))

    before = steps()
    token = PageToken("z", ids[2_500], "1764190000000")
    found, following = await scripts.jobs.list_ids("default", S.SCHEDULED, 2, token)
    assert found == ids[2_501:2_503]
    assert following == PageToken("z", ids[2_502], "1764190000000")
    assert steps() - before < 20


async def test_jobs_in_a_rare_state_are_found_among_thousands_with_a_lease(
    scripts: Scripts,
) -> None:
    ids = sorted(next_ulid() for _ in range(1_800))
    scripts.client.zadd("jw:{default}:leases", {ulid: at % 7 for at, ulid in enumerate(ids)})
    pipeline = scripts.client.pipeline()
    for at, ulid in enumerate(ids):
        state = S.CANCELLING if at % 600 == 599 else S.RUNNING
        pipeline.hset(f"jw:{{default}}:j:{ulid}", "s", int(state))
    pipeline.execute()
    for most in (1, 2, 50):
        pages = await _pages(scripts, S.CANCELLING, most)
        assert [ulid for page in pages for ulid in page] == ids[599::600]
    running = [ulid for page in await _pages(scripts, S.RUNNING, 700) for ulid in page]
    assert running == [ulid for at, ulid in enumerate(ids) if at % 600 != 599]
