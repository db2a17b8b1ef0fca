"""succeed.lua and end_attempt.lua: how attempts end, for their holders and for everybody else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobwire_server.domain.decisions.endings import Budget, Ending
from jobwire_server.domain.errors import JobNotFound, LeaseLost
from jobwire_server.domain.model import (
    Assignment,
    Completed,
    Failure,
    JobState,
    Outcome,
    Piece,
    Written,
)
from jobwire_server.store.attempts import EndToWrite, ReportToWrite, SuccessToWrite

from tests.support.jobs import new_job, next_ulid, ulid_of
from tests.support.scripts import LEASE_MS, RETAIN_MS, Scripts

ROUTE = new_job().route.id
S = JobState


# With a result ---------------------------------------------------------------


async def test_a_result_ends_the_job_and_frees_its_worker(scripts: Scripts) -> None:
    ulid = await scripts.running()
    before = scripts.dump()
    assert await scripts.succeed(ulid, result=b"42") == Completed(S.SUCCEEDED)
    changed = scripts.changed(before)
    assert changed.pop(f"j:{ulid}") == {
        **before[f"j:{ulid}"],
        "s": "5",
        "v": "2",
        "e": scripts.after(0),
        "pg": scripts.after(RETAIN_MS),
        "r": "42",
    }
    assert changed == {
        "leases": None,
        "held:w1": None,
        "done:5": {ulid: scripts.after(RETAIN_MS)},
        "counts": {"2": "0", "3": "0", "5": "1"},
        "totals": {"submitted": "1", "started": "1", "succeeded": "1"},
        "usage": {"live": "0", "ended": str(len(before[f"r:{ulid}"]) + 2)},
    }
    scripts.check()


@pytest.mark.parametrize("size", [0, 1, 64, 65, 100_000])
async def test_a_result_of_any_length_is_read_back(scripts: Scripts, size: int) -> None:
    result = bytes(at % 251 for at in range(size))
    ulid = await scripts.running()
    await scripts.succeed(ulid, result=result)
    assert (await scripts.read(ulid)).result == result
    assert (f"x:{ulid}" in scripts.dump()) == (size > 64)
    scripts.check()


async def test_success_is_told_with_its_attempt(scripts: Scripts) -> None:
    ulid = await scripts.running()
    await scripts.succeed(ulid)
    (attempt,) = (await scripts.read(ulid)).attempts
    assert (attempt.number, attempt.worker_id, attempt.fencing_token) == (1, "w1", 1)
    assert attempt.outcome is Outcome.SUCCEEDED
    assert attempt.ended_at_ms == scripts.after(0)


async def test_a_repeated_success_gets_the_first_answer(scripts: Scripts) -> None:
    ulid = await scripts.running()
    first = await scripts.succeed(ulid, result=b"first")
    before = scripts.dump()
    assert await scripts.succeed(ulid, result=b"second") == first
    assert scripts.changed(before) == {}


@pytest.mark.parametrize(
    ("token", "worker"), [(0, "w1"), (2, "w1"), (1, "w2"), (2**63, "w1")], ids=str
)
async def test_success_without_the_lease_changes_nothing(
    scripts: Scripts, token: int, worker: str
) -> None:
    ulid = await scripts.running()
    before = scripts.dump()
    assert isinstance(await scripts.succeed(ulid, token, worker), LeaseLost)
    assert scripts.changed(before) == {}


async def test_success_of_a_job_that_was_never_claimed_changes_nothing(scripts: Scripts) -> None:
    (ulid,) = await scripts.submit()
    before = scripts.dump()
    assert isinstance(await scripts.succeed(ulid, 0, ""), LeaseLost)
    assert isinstance(await scripts.succeed(next_ulid()), JobNotFound)
    assert scripts.changed(before) == {}


async def test_each_item_of_a_batch_of_results_is_answered_by_itself(scripts: Scripts) -> None:
    jobs = [new_job() for _ in range(300)]
    await scripts.submit(*jobs)
    mine = await scripts.claim("w1", 100)
    theirs = await scripts.claim("w2", 100)

    def item(assignment: Assignment, worker: str) -> SuccessToWrite:
        return SuccessToWrite(ulid_of(assignment.job_id), worker, assignment.fencing_token, b"")

    items = [
        item(one, worker)
        for pair in zip(mine, theirs, strict=True)
        for one, worker in zip(pair, ("w1", "w1"), strict=True)
    ]
    answers = await scripts.jobs.succeed("default", items, RETAIN_MS)
    assert [isinstance(answer, Completed) for answer in answers] == [True, False] * 100
    dump = scripts.check()
    assert len(dump.in_state(S.SUCCEEDED)) == 100
    assert len(dump.in_state(S.RUNNING)) == 100


async def test_the_same_result_twice_in_a_batch_counts_once(scripts: Scripts) -> None:
    ulid = await scripts.running()
    item = SuccessToWrite(ulid, "w1", 1, b"x")
    answers = await scripts.jobs.succeed("default", [item, item], RETAIN_MS)
    assert answers == [Completed(S.SUCCEEDED)] * 2
    assert scripts.dump()["totals"]["succeeded"] == "1"
    scripts.check()


async def test_success_of_a_job_with_timeout_and_cancellation_leaves_no_timer(
    scripts: Scripts,
) -> None:
    ulid = await scripts.running(new_job(execution_timeout_ms=60_000))
    await scripts.cancel(ulid)
    assert await scripts.succeed(ulid) == Completed(S.SUCCEEDED)
    assert "timers" not in scripts.check().keys


# Otherwise -------------------------------------------------------------------


async def test_a_retry_waits_out_its_backoff(scripts: Scripts) -> None:
    ulid = await scripts.running()
    job = await scripts.read(ulid)
    before = scripts.dump()
    answer = await scripts.end(job, S.SCHEDULED, backoff_ms=5_000)
    due = scripts.after(5_000)
    assert answer == Completed(S.SCHEDULED, answer.next_attempt_at_ms)
    assert answer.next_attempt_at_ms == due
    changed = scripts.changed(before)
    history = changed.pop(f"h:{ulid}")
    assert history == [
        f"1 1 {job.started_at_ms} {history[0].split()[3]} 2 w1 1 {answer.next_attempt_at_ms}\n"
    ]
    assert changed == {
        f"j:{ulid}": {**before[f"j:{ulid}"], "s": "1", "v": "2", "f": "1", "d": due},
        "leases": None,
        "held:w1": None,
        "scheduled": {ulid: due},
        "counts": {"1": "1", "2": "0", "3": "0"},
        "totals": {"submitted": "1", "started": "1", "retried": "1"},
    }
    scripts.check()


@pytest.mark.parametrize(
    ("target", "name"), [(S.FAILED, "failed"), (S.CANCELLED, "cancelled")], ids=str
)
async def test_a_terminal_ending_files_the_job(
    scripts: Scripts, target: JobState, name: str
) -> None:
    ulid = await scripts.running()
    assert await scripts.end(await scripts.read(ulid), target) == Completed(target)
    dump = scripts.check()
    assert dump.keys[f"done:{target.value}"] == {ulid: scripts.after(RETAIN_MS)}
    assert dump.keys["totals"][name] == "1"


async def test_a_failure_is_kept_with_its_attempt(scripts: Scripts) -> None:
    failure = Failure("Broken", "it bröke\n\x00", "a\nb", b"\x00\xff", True, 7)
    ulid = await scripts.running()
    ending = Ending(Outcome.FAILED, S.FAILED, Budget.FAILURES, failure=failure)
    end = EndToWrite(await scripts.read(ulid), "worker", ending)
    await scripts.jobs.end_attempts("default", [end], RETAIN_MS)
    job = await scripts.read(ulid)
    assert job.failure == failure
    assert (job.failures, job.crashes, job.interruptions) == (1, 0, 0)


@pytest.mark.parametrize("budget", list(Budget), ids=lambda budget: budget.name)
async def test_an_ending_counts_into_its_own_budget(scripts: Scripts, budget: Budget) -> None:
    ulid = await scripts.running()
    await scripts.end(await scripts.read(ulid), S.PENDING, budget=budget)
    job = await scripts.read(ulid)
    counted = {Budget.FAILURES: job.failures, Budget.CRASHES: job.crashes}
    counted[Budget.INTERRUPTIONS] = job.interruptions
    assert counted == {name: int(name is budget) for name in counted}
    scripts.check()


@pytest.mark.parametrize("priority", [0, 5])
async def test_a_job_that_comes_back_takes_its_old_place(scripts: Scripts, priority: int) -> None:
    jobs = [new_job(priority=priority) for _ in range(6)]
    await scripts.submit(*jobs)
    ulids = [ulid_of(one.job_id) for one in await scripts.claim("w1", 4, *jobs)]
    for at in (2, 0, 3, 1):
        await scripts.end(await scripts.read(ulids[at]), S.PENDING)
        scripts.check()
    taken = await scripts.claim("w2", 6, *jobs)
    assert [one.job_id for one in taken] == [job.job_id for job in jobs]


async def test_jobs_that_come_back_in_any_order_are_all_delivered_again(
    scripts: Scripts,
) -> None:
    jobs = [new_job() for _ in range(200)]
    await scripts.submit(*jobs[:150])
    await scripts.submit(*jobs[151:])
    await scripts.submit(jobs[150])
    early = await scripts.claim("w1", 199)
    (late,) = await scripts.claim("w1", 1)
    assert late.job_id == jobs[150].job_id
    ends = [await scripts.read(ulid_of(one.job_id)) for one in early]
    for job in ends:
        await scripts.end(job, S.PENDING)
    await scripts.end(await scripts.read(ulid_of(late.job_id)), S.PENDING)
    scripts.check()
    order = [one.job_id for one in await scripts.claim("w2", 200)]
    assert sorted(order) == [job.job_id for job in jobs]


async def test_an_undelivered_attempt_does_not_count_as_one(scripts: Scripts) -> None:
    ulid = await scripts.running()
    job = await scripts.read(ulid)
    await scripts.end(job, S.PENDING, outcome=Outcome.UNDELIVERED, budget=Budget.NONE)
    (again,) = await scripts.claim("w2")
    assert (again.attempt, again.fencing_token) == (1, 2)
    scripts.check()


async def test_an_undelivered_job_may_expire_again(scripts: Scripts) -> None:
    job = new_job(expires_at_ms=scripts.now_ms + 60_000)
    ulid = await scripts.running(job)
    await scripts.end(
        await scripts.read(ulid), S.PENDING, outcome=Outcome.UNDELIVERED, budget=Budget.NONE
    )
    scripts.check()
    scripts.shift(61_000)
    await scripts.tick()
    assert (await scripts.read(ulid)).state is S.EXPIRED
    scripts.check()


async def test_the_history_keeps_the_latest_hundred_attempts(scripts: Scripts) -> None:
    (ulid,) = await scripts.submit()
    for _ in range(103):
        await scripts.claim()
        await scripts.end(
            await scripts.read(ulid), S.PENDING, outcome=Outcome.UNDELIVERED, budget=Budget.NONE
        )
    await scripts.claim()
    attempts = (await scripts.read(ulid)).attempts
    assert [attempt.fencing_token for attempt in attempts] == list(range(5, 105))
    scripts.check()


async def test_a_repeated_ending_gets_the_first_answer(scripts: Scripts) -> None:
    ulid = await scripts.running()
    job = await scripts.read(ulid)
    first = await scripts.end(job, S.SCHEDULED, backoff_ms=5_000)
    before = scripts.dump()
    assert await scripts.end(job, S.SCHEDULED, backoff_ms=9_000) == first
    assert scripts.changed(before) == {}


async def test_a_job_given_back_as_undelivered_does_not_expire_if_it_wrote_output(
    scripts: Scripts,
) -> None:
    ulid = await scripts.running(new_job(expires_at_ms=scripts.now_ms + 60_000))
    output = Written(1, 0, (Piece("stdout", True, b"here"),))
    await scripts.jobs.report("default", [ReportToWrite(ulid, "w1", 1, LEASE_MS, b"", output)])
    job = await scripts.read(ulid)
    await scripts.end(job, S.PENDING, outcome=Outcome.UNDELIVERED, budget=Budget.NONE)
    assert "timers" not in scripts.check().keys


async def _running_after_a_delay(scripts: Scripts) -> str:
    (ulid,) = await scripts.submit(new_job(delay_ms=1_000))
    scripts.shift(1_001)
    await scripts.tick()
    await scripts.claim()
    return ulid


async def test_a_repeated_last_ending_tells_of_no_other_attempt(scripts: Scripts) -> None:
    job = await scripts.read(await _running_after_a_delay(scripts))
    first = await scripts.end(job, S.FAILED)
    assert await scripts.end(job, S.FAILED) == first == Completed(S.FAILED)


async def test_a_repeated_success_tells_of_no_other_attempt(scripts: Scripts) -> None:
    ulid = await _running_after_a_delay(scripts)
    first = await scripts.succeed(ulid)
    assert await scripts.succeed(ulid) == first == Completed(S.SUCCEEDED)


async def test_an_ending_by_somebody_else_is_refused_and_changes_nothing(
    scripts: Scripts,
) -> None:
    ulid = await scripts.running()
    job = await scripts.read(ulid)
    before = scripts.dump()
    for wrong in (replace(job, fencing_token=2), replace(job, worker_id="w2")):
        assert isinstance(await scripts.end(wrong, S.SCHEDULED), LeaseLost)
    unknown = replace(job, job_id=f"default-{next_ulid()}")
    assert isinstance(await scripts.end(unknown, S.SCHEDULED), JobNotFound)
    assert scripts.changed(before) == {}


async def test_an_ending_decided_on_another_state_is_to_be_decided_again(
    scripts: Scripts,
) -> None:
    ulid = await scripts.running()
    job = await scripts.read(ulid)
    await scripts.cancel(ulid)
    before = scripts.dump()
    assert await scripts.end(job, S.SCHEDULED) is None
    assert scripts.changed(before) == {}


@pytest.mark.parametrize("condition", ["lease", "timeout", "grace"])
async def test_the_clock_ends_no_attempt_before_its_time(scripts: Scripts, condition: str) -> None:
    ulid = await scripts.running(new_job(execution_timeout_ms=40_000))
    await scripts.cancel(ulid)
    job = await scripts.read(ulid)
    before = scripts.dump()
    assert isinstance(await scripts.end(job, S.CANCELLED, condition=condition), LeaseLost)
    assert scripts.changed(before) == {}
    scripts.shift(60_000)
    assert await scripts.end(job, S.CANCELLED, condition=condition) == Completed(S.CANCELLED)
    scripts.check()


@pytest.mark.parametrize("condition", ["lease", "lost"])
async def test_a_holder_who_lost_the_lease_is_told_whatever_it_does(
    scripts: Scripts, condition: str
) -> None:
    ulid = await scripts.running()
    job = await scripts.read(ulid)
    scripts.shift(31_000)
    await scripts.end(job, S.PENDING, condition=condition, outcome=Outcome.CRASHED)
    before = scripts.dump()
    assert isinstance(await scripts.succeed(ulid), LeaseLost)
    assert isinstance(await scripts.end(job, S.FAILED), LeaseLost)
    assert scripts.changed(before) == {}
    await scripts.claim("w1")
    before = scripts.dump()
    # The same worker, but an earlier lease.
    assert isinstance(await scripts.succeed(ulid, 1), LeaseLost)
    assert scripts.changed(before) == {}
    scripts.check()


async def test_a_thousand_endings_at_once(scripts: Scripts) -> None:
    await scripts.submit(*(new_job() for _ in range(1000)))
    taken = await scripts.claim("w1", 1000)
    ulids = [ulid_of(one.job_id) for one in taken]
    jobs = await scripts.jobs.read("default", ulids, full=False)
    ending = Ending(Outcome.RELEASED, S.PENDING, Budget.INTERRUPTIONS)
    ends = [EndToWrite(job, "worker", ending) for job in jobs if job]
    # 500 are the most that one group commit gathers.
    for part in (ends[500:], ends[:500]):
        await scripts.jobs.end_attempts("default", part, RETAIN_MS)
    dump = scripts.check()
    assert sorted(dump.keys[f"l:{ROUTE}"]) == ulids
