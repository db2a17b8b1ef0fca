"""report.lua and cancel.lua."""

from __future__ import annotations

import pytest

from jobwire_server.domain.errors import JobNotFound, WrongState
from jobwire_server.domain.model import CancelNotice, JobState, Renewal
from jobwire_server.store.attempts import ReportToWrite

from tests.support.jobs import new_job, next_ulid
from tests.support.scripts import GRACE_MS, RETAIN_MS, Scripts

S = JobState


async def _report(
    scripts: Scripts, ulid: str, progress: bytes = b"", *, token: int = 1, worker: str = "w1"
) -> Renewal:
    (renewal,) = await scripts.jobs.report(
        "default", [ReportToWrite(ulid, worker, token, 60_000, progress)]
    )
    return renewal


async def test_a_report_is_kept_and_renews_the_lease(scripts: Scripts) -> None:
    ulid = await scripts.running()
    before = scripts.dump()
    renewal = await _report(scripts, ulid, b"half")
    lease_end = scripts.after(60_000)
    assert renewal == Renewal(False, renewal.lease_expires_at_ms)
    assert renewal.lease_expires_at_ms == lease_end
    assert scripts.changed(before) == {
        f"j:{ulid}": {**before[f"j:{ulid}"], "v": "2", "g": "half", "u": scripts.after(0)},
        "leases": {ulid: lease_end},
    }
    scripts.check()


async def test_a_renewal_without_a_report_is_no_change_of_the_job(scripts: Scripts) -> None:
    ulid = await scripts.running()
    before = scripts.dump()
    assert not (await _report(scripts, ulid)).lost
    assert scripts.changed(before) == {"leases": {ulid: scripts.after(60_000)}}


@pytest.mark.parametrize(("token", "worker"), [(2, "w1"), (1, "w2"), (0, "w1")])
async def test_a_report_without_the_lease_changes_nothing(
    scripts: Scripts, token: int, worker: str
) -> None:
    ulid = await scripts.running()
    before = scripts.dump()
    assert (await _report(scripts, ulid, b"x", token=token, worker=worker)).lost
    assert (await _report(scripts, next_ulid(), b"x")).lost
    assert scripts.changed(before) == {}


@pytest.mark.parametrize("state", [S.PENDING, S.SUCCEEDED, S.SCHEDULED])
async def test_a_report_about_a_job_that_does_not_run_changes_nothing(
    scripts: Scripts, state: JobState
) -> None:
    ulid = await scripts.running()
    if state is S.SUCCEEDED:
        await scripts.succeed(ulid)
    else:
        await scripts.end(await scripts.read(ulid), state, backoff_ms=60_000)
    before = scripts.dump()
    assert (await _report(scripts, ulid, b"x")).lost
    assert scripts.changed(before) == {}


async def test_a_report_tells_the_worker_of_a_cancellation(scripts: Scripts) -> None:
    ulid = await scripts.running()
    await scripts.cancel(ulid, "wrong input")
    renewal = await _report(scripts, ulid, b"x")
    assert renewal.cancel is not None
    deadline = renewal.cancel.deadline_ms
    assert deadline == scripts.after(GRACE_MS)
    assert renewal.cancel == CancelNotice(f"default-{ulid}", 1, "wrong input", deadline)
    scripts.check()


async def test_a_report_twice_in_one_batch_leaves_the_later_one(scripts: Scripts) -> None:
    ulid = await scripts.running()
    reports = [ReportToWrite(ulid, "w1", 1, 1_000, text) for text in (b"one", b"two")]
    await scripts.jobs.report("default", reports)
    assert (await scripts.read(ulid)).progress == b"two"


@pytest.mark.parametrize("delay_ms", [0, 60_000])
async def test_a_job_that_has_not_started_is_cancelled_at_once(
    scripts: Scripts, delay_ms: int
) -> None:
    job = new_job(delay_ms=delay_ms, expires_at_ms=scripts.now_ms + 100_000)
    (ulid,) = await scripts.submit(job)
    assert await scripts.cancel(ulid, "not needed") is S.CANCELLED
    found = await scripts.read(ulid)
    assert (found.state, found.cancel_reason) == (S.CANCELLED, "not needed")
    assert found.finished_at_ms == scripts.after(0)
    dump = scripts.check()
    assert "scheduled" not in dump.keys
    assert "timers" not in dump.keys
    assert dump.keys["done:7"] == {ulid: scripts.after(RETAIN_MS)}
    assert dump.keys["totals"] == {"submitted": "1", "cancelled": "1"}


async def test_a_running_job_has_its_grace(scripts: Scripts) -> None:
    ulid = await scripts.running()
    before = scripts.dump()
    assert await scripts.cancel(ulid) is S.CANCELLING
    deadline = scripts.after(GRACE_MS)
    assert scripts.changed(before) == {
        f"j:{ulid}": {**before[f"j:{ulid}"], "s": "4", "v": "2", "ca": "why", "cd": deadline},
        "timers": {f"c{ulid}": deadline},
        "counts": {"2": "0", "3": "0", "4": "1"},
        "cancels:w1": {ulid},
    }
    scripts.check()


@pytest.mark.parametrize("running", [True, False])
async def test_a_repeated_cancellation_keeps_the_first_reason_and_deadline(
    scripts: Scripts, running: bool
) -> None:
    ulid = await scripts.running() if running else (await scripts.submit())[0]
    first = await scripts.cancel(ulid, "first")
    before = scripts.dump()
    scripts.shift(1_000)
    assert await scripts.cancel(ulid, "second") is first
    assert scripts.changed(before) == {}


async def test_cancelling_what_has_finished_or_is_unknown_changes_nothing(
    scripts: Scripts,
) -> None:
    ulid = await scripts.running()
    await scripts.succeed(ulid)
    before = scripts.dump()
    refusal = await scripts.cancel(ulid)
    assert isinstance(refusal, WrongState)
    assert refusal.metadata == {"state": "SUCCEEDED"}
    assert isinstance(await scripts.cancel(next_ulid()), JobNotFound)
    assert scripts.changed(before) == {}


async def test_the_same_job_twice_in_one_batch_is_cancelled_once(scripts: Scripts) -> None:
    (ulid,) = await scripts.submit()
    items = [(ulid, "a"), (ulid, "b")]
    assert await scripts.jobs.cancel("default", items, GRACE_MS, RETAIN_MS) == [S.CANCELLED] * 2
    assert scripts.dump()["totals"]["cancelled"] == "1"
    scripts.check()
