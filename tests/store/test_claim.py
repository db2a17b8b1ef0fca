"""claim.lua and claim_job.lua: who gets which job, and in what order."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from jobwire_server.domain.decisions.endings import Budget
from jobwire_server.domain.errors import JobNotFound, WrongState
from jobwire_server.domain.model import Assignment, JobState, Outcome
from jobwire_server.store.claims import ClaimRequest

from tests.support.fixtures import open_scripts
from tests.support.jobs import new_job, next_ulid, ulid_of
from tests.support.scripts import LEASE_MS, RETAIN_MS, Scripts

PLAIN = new_job().route.id
S = JobState


def _ids(assignments: Sequence[Assignment]) -> list[str]:
    return [assignment.job_id for assignment in assignments]


async def test_a_claim_leases_the_job_to_its_worker_and_nothing_else(scripts: Scripts) -> None:
    job, next_job = new_job(), new_job()
    await scripts.submit(job, next_job)
    before = scripts.dump()
    assert await scripts.claim("w1") == [(job.job_id, 1, 1, job.record, b"")]
    ulid, now = ulid_of(job), scripts.after(0)
    assert scripts.changed(before) == {
        f"j:{ulid}": {
            "s": "3",
            "t": "1",
            "n": "1",
            "v": "1",
            "w": "w1",
            "a": now,
            "rt": job.route.id,
            "p": "0",
            "b": str(len(job.record)),
        },
        f"l:{job.route.id}": [ulid_of(next_job)],
        "ready": {job.route.id: "1"},
        "leases": {ulid: scripts.after(LEASE_MS)},
        "held:w1": {ulid},
        "counts": {"2": "1", "3": "1"},
        "totals": {"submitted": "2", "started": "1"},
    }
    scripts.check()


async def test_an_empty_queue_gives_nothing_and_stays_as_it_is(scripts: Scripts) -> None:
    assert await scripts.claim() == []
    assert scripts.dump() == {}


async def test_jobs_come_in_order_of_priority_and_then_of_age(scripts: Scripts) -> None:
    jobs = [new_job(priority=priority) for priority in (0, 255, 7, 0, 255, 7)]
    await scripts.submit(*jobs)
    taken = _ids(await scripts.claim("w1", 4)) + _ids(await scripts.claim("w1", 4))
    assert taken == [jobs[at].job_id for at in (1, 4, 2, 5, 0, 3)]
    scripts.check()


async def test_over_several_routes_priority_comes_first_and_then_age(scripts: Scripts) -> None:
    jobs = [
        new_job(operation=f"op{at % 3}", priority=9 if at in (4, 5, 11) else 0) for at in range(12)
    ]
    await scripts.submit(*jobs)
    taken: list[str] = []
    while got := _ids(await scripts.claim("w1", 5, *jobs)):
        taken += got
    assert taken == [jobs[at].job_id for at in (4, 5, 11, 0, 1, 2, 3, 6, 7, 8, 9, 10)]
    scripts.check()


async def test_a_worker_gets_no_job_of_a_route_that_it_does_not_serve(scripts: Scripts) -> None:
    await scripts.submit(new_job(requirements={"gpu": "a100"}), new_job(operation="other"))
    before = scripts.dump()
    assert await scripts.claim("w1", 10) == []
    assert scripts.changed(before) == {}


async def test_requests_of_one_call_are_served_in_turn_and_each_gets_its_own(
    scripts: Scripts,
) -> None:
    special = [new_job(operation="special") for _ in range(2)]
    plain = [new_job() for _ in range(5)]
    await scripts.submit(*plain, *special)
    both = tuple(sorted({plain[0].route.id, special[0].route.id}))
    answers = await scripts.jobs.claim(
        "default",
        [
            ClaimRequest("w1", 2, LEASE_MS, (plain[0].route.id,)),
            ClaimRequest("w2", 9, 60_000, both),
            ClaimRequest("w3", 1, LEASE_MS, (plain[0].route.id,)),
        ],
        RETAIN_MS,
    )
    taken = [_ids(answer.assignments) for answer in answers]
    assert taken == [
        [job.job_id for job in plain[:2]],
        [job.job_id for job in [*special, *plain[2:]]],
        [],
    ]
    dump = scripts.check()
    assert dump.keys["leases"][ulid_of(special[0])] == scripts.after(60_000)
    assert "ready" not in dump.keys


async def test_a_route_without_jobs_costs_no_entry(scripts: Scripts) -> None:
    await scripts.submit(new_job(operation="a"))
    await scripts.claim("w1", 1, new_job(operation="a"))
    dump = scripts.check()
    assert "ready" not in dump.keys
    assert not dump.suffixes("l:")


async def test_a_repeated_call_gets_the_first_answer(scripts: Scripts) -> None:
    await scripts.submit(*(new_job() for _ in range(4)))
    first = await scripts.claim("w1", 3)
    before = scripts.dump()
    # As if the answer had been lost.
    scripts.runner.repeats_next = True
    assert await scripts.claim("w1", 3) == first
    assert scripts.changed(before) == {}
    scripts.check()


async def test_a_repeated_call_does_not_get_what_its_worker_was_given_since(
    scripts: Scripts,
) -> None:
    ulid = await scripts.running()
    # Taken back, and handed to the same worker by another server.
    await scripts.end(
        await scripts.read(ulid), S.PENDING, condition="lost", outcome=Outcome.CRASHED
    )
    scripts.shift(5)
    other = scripts.of_server("s2")
    (second,) = await other.claim("default", [ClaimRequest("w1", 1, LEASE_MS, (PLAIN,))], RETAIN_MS)
    assert _ids(second.assignments) == [f"default-{ulid}"]
    scripts.runner.repeats_next = True
    assert await scripts.claim() == []
    scripts.check()


async def test_the_calls_of_other_servers_are_not_taken_for_repeated_ones(
    scripts: Scripts,
) -> None:
    await scripts.submit(*(new_job() for _ in range(4)))
    first = await scripts.claim("w1", 2)
    other = scripts.of_server("s2")
    (second,) = await other.claim("default", [ClaimRequest("w2", 2, LEASE_MS, (PLAIN,))], RETAIN_MS)
    assert set(_ids(first)).isdisjoint(_ids(second.assignments))
    assert len(second.assignments) == 2
    scripts.check()


async def test_a_paused_queue_gives_nothing_and_takes_jobs(scripts: Scripts) -> None:
    await scripts.submit()
    await scripts.queues.set_paused("default", True)
    await scripts.submit()
    before = scripts.dump()
    assert await scripts.claim("w1", 5) == []
    assert scripts.changed(before) == {}
    await scripts.queues.set_paused("default", False)
    assert len(await scripts.claim("w1", 5)) == 2
    scripts.check()


async def test_a_repeated_call_gets_its_answer_although_the_queue_was_paused_meanwhile(
    scripts: Scripts,
) -> None:
    await scripts.submit()
    first = await scripts.claim()
    await scripts.queues.set_paused("default", True)
    scripts.runner.repeats_next = True
    assert await scripts.claim() == first


async def test_entries_of_cancelled_jobs_are_dropped_on_the_way(scripts: Scripts) -> None:
    jobs = [new_job(priority=at % 2) for at in range(6)]
    ulids = await scripts.submit(*jobs)
    for ulid in ulids[:4]:
        await scripts.cancel(ulid)
    scripts.check()
    taken = _ids(await scripts.claim("w1", 6))
    assert taken == [jobs[5].job_id, jobs[4].job_id]
    assert "ready" not in scripts.check().keys


async def test_a_call_drops_a_bounded_number_of_stale_entries_and_asks_to_come_again(
    scripts: Scripts,
) -> None:
    for _ in range(3):
        ulids = await scripts.submit(*(new_job() for _ in range(1000)))
        items = [(ulid, "") for ulid in ulids]
        await scripts.jobs.cancel("default", items, 0, RETAIN_MS)
    live = new_job()
    await scripts.submit(live)
    request = ClaimRequest("w1", 1, LEASE_MS, (PLAIN,))
    (first,) = await scripts.jobs.claim("default", [request], RETAIN_MS)
    assert (first.assignments, first.more) == ([], True)
    left = int(scripts.dump()["ready"][PLAIN])
    assert 0 < left < 3001
    (second,) = await scripts.jobs.claim("default", [request], RETAIN_MS)
    assert _ids(second.assignments) == [live.job_id]
    scripts.check()


async def test_a_job_past_its_expiry_is_not_delivered_but_ends(scripts: Scripts) -> None:
    job = new_job(expires_at_ms=scripts.now_ms + 1000)
    (ulid,) = await scripts.submit(job)
    scripts.shift(2000)
    assert await scripts.claim() == []
    found = await scripts.read(ulid)
    assert found.state is JobState.EXPIRED
    assert found.finished_at_ms == scripts.after(0)
    assert scripts.dump()["totals"] == {"submitted": "1", "expired": "1"}
    scripts.check()


async def test_an_execution_timeout_starts_with_the_claim(scripts: Scripts) -> None:
    job = new_job(execution_timeout_ms=5_000)
    ulid = await scripts.running(job)
    assert scripts.dump()["timers"] == {f"t{ulid}": scripts.after(5_000)}
    scripts.check()


async def test_the_fencing_token_grows_with_every_claim_of_a_job(scripts: Scripts) -> None:
    job = new_job()
    (ulid,) = await scripts.submit(job)
    for token in range(1, 6):
        (assignment,) = await scripts.claim(f"w{token}")
        assert assignment == (job.job_id, token, token, job.record, b"")
        released = await scripts.end(
            await scripts.read(ulid),
            JobState.PENDING,
            outcome=Outcome.RELEASED,
            budget=Budget.INTERRUPTIONS,
        )
        assert released.state is JobState.PENDING
        scripts.check()


async def test_a_claim_for_a_thousand_jobs_over_a_hundred_routes(scripts: Scripts) -> None:
    jobs = [new_job(operation=f"op{at % 100}", priority=at % 3) for at in range(1000)]
    await scripts.submit(*jobs)
    taken = await scripts.claim("w1", 1000, *jobs)
    expected = sorted(jobs, key=lambda job: (-job.priority, job.job_id))
    assert _ids(taken) == [job.job_id for job in expected]
    assert "ready" not in scripts.check().keys


# By id -----------------------------------------------------------------------


async def _claim_by_id(scripts: Scripts, ulid: str, worker: str = "w1") -> Assignment:
    return await scripts.jobs.claim_job("default", ulid, worker, LEASE_MS, PLAIN, 0)


async def test_a_job_claimed_by_id_is_delivered_to_nobody_else(scripts: Scripts) -> None:
    jobs = [new_job() for _ in range(3)]
    _, wanted, _ = await scripts.submit(*jobs)
    before = scripts.dump()
    assert await _claim_by_id(scripts, wanted) == (jobs[1].job_id, 1, 1, jobs[1].record, b"")
    changed = scripts.changed(before)
    assert changed.pop(f"j:{wanted}")["w"] == "w1"
    assert changed == {
        "leases": {wanted: scripts.after(LEASE_MS)},
        "held:w1": {wanted},
        "counts": {"2": "2", "3": "1"},
        "totals": {"submitted": "3", "started": "1"},
    }
    scripts.check()
    assert _ids(await scripts.claim("w2", 3)) == [jobs[0].job_id, jobs[2].job_id]
    assert "ready" not in scripts.check().keys


async def test_a_claim_by_id_that_is_repeated_gets_the_first_answer(scripts: Scripts) -> None:
    (ulid,) = await scripts.submit()
    first = await _claim_by_id(scripts, ulid)
    before = scripts.dump()
    assert await _claim_by_id(scripts, ulid) == first
    assert scripts.changed(before) == {}
    with pytest.raises(WrongState, match="RUNNING"):
        await _claim_by_id(scripts, ulid, "w2")
    assert scripts.changed(before) == {}


async def test_a_claim_by_id_of_an_unknown_job_changes_nothing(scripts: Scripts) -> None:
    with pytest.raises(JobNotFound):
        await _claim_by_id(scripts, next_ulid())
    assert scripts.dump() == {}


async def test_a_claim_by_id_on_a_paused_queue_changes_nothing(scripts: Scripts) -> None:
    (ulid,) = await scripts.submit()
    await scripts.queues.set_paused("default", True)
    before = scripts.dump()
    with pytest.raises(WrongState, match="paused"):
        await _claim_by_id(scripts, ulid)
    assert scripts.changed(before) == {}


async def test_a_claim_by_id_of_a_job_past_its_expiry_is_refused(scripts: Scripts) -> None:
    (ulid,) = await scripts.submit(new_job(expires_at_ms=scripts.now_ms + 1000))
    scripts.shift(2000)
    before = scripts.dump()
    with pytest.raises(WrongState, match="EXPIRED"):
        await _claim_by_id(scripts, ulid)
    assert scripts.changed(before) == {}


@pytest.mark.parametrize("priority", [0, 9])
async def test_a_job_claimed_by_id_and_given_back_stands_on_its_route_once(
    scripts: Scripts, priority: int
) -> None:
    jobs = [new_job(priority=priority) for _ in range(3)]
    ulids = await scripts.submit(*jobs)
    route = jobs[0].route.id
    for _ in range(3):
        await scripts.jobs.claim_job("default", ulids[1], "w1", LEASE_MS, route, priority)
        await scripts.end(await scripts.read(ulids[1]), JobState.PENDING)
        scripts.check()
    kind = "z" if priority else "l"
    assert [*scripts.dump()[f"{kind}:{route}"]] == ulids
    assert _ids(await scripts.claim("w1", 9, *jobs)) == [job.job_id for job in jobs]
    scripts.check()


async def test_two_stores_do_not_share_a_claim(store_url: str) -> None:
    async with open_scripts(store_url, "s1") as one, open_scripts(store_url, "s2") as two:
        await one.submit(*(new_job() for _ in range(10)))
        first, second = await one.claim("w1", 5), await two.claim("w2", 5)
        assert len({*_ids(first), *_ids(second)}) == 10
        one.check()
