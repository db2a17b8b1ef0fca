"""Limits and retention of a queue: what is refused, what goes early, and exact tallies."""

from __future__ import annotations

import pytest

from jobwire_server.domain.errors import QueueFull
from jobwire_server.domain.model import (
    Accepted,
    JobState,
    Piece,
    QueueSettings,
    UniqueConflict,
    UniqueKey,
    Written,
)
from jobwire_server.store.attempts import ReportToWrite

from tests.support.jobs import new_job, ulid_of
from tests.support.scripts import RETAIN_MS, Scripts

S = JobState
HOUR_MS = 3_600_000


async def written(scripts: Scripts, text: str = "hello", **fields: int) -> str:
    """A running job that has written output."""
    ulid = await scripts.running(new_job(**fields))  # type: ignore[arg-type]
    piece = Piece("stdout", True, text.encode())
    report = ReportToWrite(ulid, "w1", 1, 30_000, b"", Written(0, 0, (piece,)))
    (renewal,) = await scripts.jobs.report("default", [report])
    assert renewal.refusal is None
    return ulid


async def limited(scripts: Scripts, count: int, **limits: int) -> list[Accepted | Exception]:
    jobs = [new_job() for _ in range(count)]
    return [*await scripts.jobs.submit("default", jobs, RETAIN_MS, **limits)]


# Limits of what waits ---------------------------------------------------------


async def test_a_batch_is_taken_as_far_as_there_is_room(scripts: Scripts) -> None:
    answers = await limited(scripts, 5, max_pending=3)
    assert [isinstance(answer, Accepted) for answer in answers] == [True] * 3 + [False] * 2
    error = answers[3]
    assert isinstance(error, QueueFull)
    assert error.retry_after_ms
    assert error.metadata == {
        "queue": "default",
        "limit": "max_pending_jobs",
        "maximum": "3",
        "present": "3",
    }
    assert "max_pending_jobs" in error.message
    assert "ConfigureQueue" in error.message
    assert len(scripts.check().jobs) == 3


async def test_a_started_job_makes_room(scripts: Scripts) -> None:
    await limited(scripts, 2, max_pending=2)
    assert isinstance((await limited(scripts, 1, max_pending=2))[0], QueueFull)
    await scripts.claim()
    assert isinstance((await limited(scripts, 1, max_pending=2))[0], Accepted)
    scripts.check()


async def test_scheduled_jobs_count_as_waiting(scripts: Scripts) -> None:
    await scripts.submit(new_job(delay_ms=60_000))
    assert isinstance((await limited(scripts, 1, max_pending=1))[0], QueueFull)


async def test_the_bytes_of_live_jobs_are_limited(scripts: Scripts) -> None:
    size = len(new_job().record)
    answers = await limited(scripts, 4, max_live_bytes=2 * size)
    assert [isinstance(answer, Accepted) for answer in answers] == [True, True, False, False]
    (ulid, _) = scripts.check().jobs
    await scripts.cancel(ulid)
    small, large = new_job(), new_job(payload="x" * 1000)
    one, two = await scripts.jobs.submit(
        "default", [large, small], RETAIN_MS, max_live_bytes=2 * size
    )
    assert isinstance(one, QueueFull)
    assert one.metadata["limit"] == "max_live_bytes"
    assert isinstance(two, Accepted)
    scripts.check()


async def test_a_repeated_submission_is_answered_by_a_full_queue(scripts: Scripts) -> None:
    job = new_job()
    await scripts.submit(job)
    again = await scripts.jobs.submit("default", [job, new_job()], RETAIN_MS, max_pending=1)
    assert again[0] == (job.job_id, S.PENDING, job.record)
    assert isinstance(again[1], QueueFull)


async def test_a_replacement_needs_no_room_of_its_own(scripts: Scripts) -> None:
    def keyed() -> object:
        return new_job(unique=UniqueKey("k", conflict=UniqueConflict.REPLACE_PENDING))

    await scripts.submit(keyed())  # type: ignore[arg-type]
    size = len(new_job().record)
    (answer,) = await scripts.jobs.submit(
        "default",
        [keyed()],  # type: ignore[list-item]
        RETAIN_MS,
        max_pending=1,
        max_live_bytes=size,
    )
    assert isinstance(answer, Accepted)
    assert not answer.existed
    dump = scripts.check()
    assert len(dump.in_state(S.PENDING)) == 1
    assert isinstance((await limited(scripts, 1, max_pending=1))[0], QueueFull)


# Retention ---------------------------------------------------------------------


@pytest.mark.parametrize("end", ["succeed", "fail", "cancel", "expire"])
@pytest.mark.parametrize("retention_ms", [0, 5_000, 40 * 86_400_000])
async def test_a_job_may_say_how_long_it_is_kept(
    scripts: Scripts, end: str, retention_ms: int
) -> None:
    expires_at_ms = scripts.now_ms + 60_000 if end == "expire" else 0
    job = new_job(retention_ms=retention_ms, expires_at_ms=expires_at_ms)
    ulid = ulid_of(job)
    await scripts.submit(job)
    if end in ("succeed", "fail"):
        await scripts.claim()
    if end == "succeed":
        await scripts.succeed(ulid)
    elif end == "fail":
        await scripts.end(await scripts.read(ulid), S.FAILED)
    elif end == "cancel":
        await scripts.cancel(ulid)
    else:
        scripts.shift(60_001)
        await scripts.tick()
    ended = await scripts.read(ulid)
    assert ended.state.terminal
    assert ended.purge_at_ms - ended.finished_at_ms == retention_ms
    scripts.check()
    scripts.shift(retention_ms)
    assert (await scripts.upkeep.purge("default", 10))[0] == 1
    assert scripts.check().jobs == {}


async def test_above_the_limit_those_go_that_would_be_forgotten_first(scripts: Scripts) -> None:
    kept: list[str] = []
    for retention in (9_000_000, 1_000_000, 5_000_000, 3_000_000, 7_000_000):
        ulid = await scripts.running(new_job(retention_ms=retention))
        kept.append(ulid)
        if retention == 5_000_000:
            await scripts.end(await scripts.read(ulid), S.FAILED)
        else:
            await scripts.succeed(ulid)
    settings = QueueSettings(max_ended_jobs=2)
    assert (await scripts.upkeep.purge("default", 2, settings))[0] == 2
    assert set(scripts.check().jobs) == {kept[0], kept[2], kept[4]}
    assert (await scripts.upkeep.purge("default", 2, settings))[0] == 1
    assert set(scripts.check().jobs) == {kept[0], kept[4]}
    assert (await scripts.upkeep.purge("default", 2, settings))[0] == 0


async def test_the_bytes_of_ended_jobs_are_limited_with_their_results(scripts: Scripts) -> None:
    for size in (10, 1_000, 2_000):
        await scripts.succeed(await scripts.running(), result=b"x" * size)
        scripts.shift(1)
    live = await scripts.running()
    settings = QueueSettings(max_ended_bytes=2_200)
    assert (await scripts.upkeep.purge("default", 10, settings))[0] == 2
    dump = scripts.check()
    assert len(dump.jobs) == 2
    assert live in dump.jobs
    assert int(dump.keys["usage"]["ended"]) <= 2_200


async def test_tallies_are_exact_after_everything_is_gone(scripts: Scripts) -> None:
    await scripts.succeed(await written(scripts), result=b"y" * 500)
    await scripts.cancel((await scripts.submit())[0])
    await scripts.end(await scripts.read(await scripts.running()), S.FAILED)
    scripts.check()
    scripts.shift(15 * 86_400_000)
    await scripts.upkeep.purge("default", 10)
    dump = scripts.check()
    assert dump.jobs == {}
    assert dump.keys["usage"] == {"live": "0", "ended": "0", "output": "0"}


# Output and the event log --------------------------------------------------------


async def test_output_of_an_ended_job_goes_before_the_job(scripts: Scripts) -> None:
    settings = QueueSettings(retain_output_ms=HOUR_MS)
    ended, running = await written(scripts), await written(scripts)
    await scripts.succeed(ended)
    assert await scripts.upkeep.trim("default", 10, settings) == 2
    scripts.check()
    scripts.shift(HOUR_MS + 1)
    assert await scripts.upkeep.trim("default", 10, settings) == 2
    dump = scripts.check()
    assert f"o:{ended}" not in dump.keys
    assert f"o:{running}" in dump.keys
    assert dump.keys["usage"]["output"] == "5"
    job = await scripts.read(ended)
    assert (job.output_bytes, job.output_first, job.output_end) == (0, (1, 5), (1, 5))
    # The other one still runs; it is looked at again.
    await scripts.succeed(running)
    scripts.shift(HOUR_MS + 1)
    assert await scripts.upkeep.trim("default", 10, settings) == 1
    assert "written" not in scripts.check().keys


async def test_a_call_looks_at_a_bounded_number_of_jobs(scripts: Scripts) -> None:
    for _ in range(5):
        await scripts.succeed(await written(scripts))
    settings = QueueSettings(retain_output_ms=0)
    looked = [await scripts.upkeep.trim("default", 2, settings) for _ in range(4)]
    assert looked == [2, 2, 1, 0]
    scripts.check()


async def test_without_a_setting_output_is_kept_as_long_as_the_job(scripts: Scripts) -> None:
    await scripts.succeed(await written(scripts))
    scripts.shift(HOUR_MS)
    assert await scripts.upkeep.trim("default", 10, QueueSettings()) == 0
    assert scripts.check().keys["usage"]["output"] == "5"


async def test_old_entries_of_the_event_log_go_but_for_the_newest_of_them(
    scripts: Scripts,
) -> None:
    await scripts.queues.configure("default", {"event_log_entries": 1000})
    for _ in range(3):
        await scripts.submit()
    settings = QueueSettings(retain_event_log_ms=60_000)
    key = "jw:{default}:log"
    entries = scripts.client.xrange(key)
    await scripts.upkeep.trim("default", 10, settings)
    assert scripts.client.xrange(key) == entries
    scripts.shift(60_001)
    await scripts.upkeep.trim("default", 10, settings)
    assert scripts.client.xrange(key) == entries[-1:]
    # A watcher that waits behind it misses nothing of what follows.
    last = entries[-1][0].decode()
    await scripts.submit()
    page = await scripts.jobs.log_page("default", last, 10)
    assert page is not None
    assert len(page.ulids) == 1


async def test_forgotten_jobs_leave_no_key_behind(scripts: Scripts) -> None:
    ulid = await written(scripts)
    await scripts.succeed(ulid, result=b"z" * 100)
    scripts.shift(2 * RETAIN_MS)
    await scripts.upkeep.purge("default", 10)
    assert [key for key in scripts.dump() if ulid in key] == []
    assert "written" not in scripts.dump()
