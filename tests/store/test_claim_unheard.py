"""claim.lua: what becomes of jobs whose claim nobody heard the answer of."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from jobwire_server.domain.model import Assignment, JobState
from jobwire_server.store import runner as runner_module
from jobwire_server.store.claims import ClaimRequest, assignments

from tests.support.brokers import running_broker
from tests.support.jobs import new_job
from tests.support.scripts import LEASE_MS, RETAIN_MS, AnswerLost, Scripts
from tests.support.stores import StoreProcess
from tests.support.waiting import eventually

PLAIN = new_job().route.id


class _Unheard:
    """Collects what a claim says about earlier ones."""

    def __init__(self) -> None:
        self.leases: list[tuple[str, str, int]] = []

    def __call__(self, worker_id: str, assignments: Sequence[Assignment]) -> None:
        self.leases += [(worker_id, a.job_id, a.fencing_token) for a in assignments]


async def _claim(scripts: Scripts, worker: str, most: int, unheard: _Unheard) -> list[Assignment]:
    request = ClaimRequest(worker, most, LEASE_MS, (PLAIN,))
    (claimed,) = await scripts.jobs.claim("default", [request], RETAIN_MS, unheard)
    return claimed.assignments


async def _lost(scripts: Scripts, worker: str, most: int) -> list[Assignment]:
    """Claim as the store sees it, while the server hears nothing of the answer."""
    scripts.runner.loses_next = True
    with pytest.raises(AnswerLost) as lost:
        await _claim(scripts, worker, most, _Unheard())
    (_, _, _, answer) = lost.value.args[0]
    return assignments("default", answer)


async def test_the_next_claim_tells_of_jobs_whose_claim_was_not_heard(scripts: Scripts) -> None:
    await scripts.submit(*(new_job() for _ in range(6)))
    unheard = _Unheard()
    await _claim(scripts, "w1", 1, unheard)
    lost = await _lost(scripts, "w2", 2)
    assert unheard.leases == []
    taken = await _claim(scripts, "w1", 1, unheard)
    assert unheard.leases == [("w2", a.job_id, a.fencing_token) for a in lost]
    assert {a.job_id for a in taken}.isdisjoint(a.job_id for a in lost)
    # Said once.
    unheard.leases.clear()
    await _claim(scripts, "w1", 1, unheard)
    await _claim(scripts, "w1", 9, unheard)
    assert unheard.leases == []
    scripts.check()


async def test_it_is_told_by_a_claim_that_brings_nothing_as_well_and_once(
    scripts: Scripts,
) -> None:
    await scripts.submit(*(new_job() for _ in range(2)))
    lost = await _lost(scripts, "w2", 2)
    unheard = _Unheard()
    for _ in range(3):
        assert await _claim(scripts, "w1", 1, unheard) == []
    assert unheard.leases == [("w2", a.job_id, a.fencing_token) for a in lost]


async def test_it_is_told_although_the_queue_is_paused(scripts: Scripts) -> None:
    await scripts.submit()
    lost = await _lost(scripts, "w2", 1)
    await scripts.queues.set_paused("default", True)
    unheard = _Unheard()
    for _ in range(2):
        assert await _claim(scripts, "w1", 1, unheard) == []
    assert unheard.leases == [("w2", a.job_id, a.fencing_token) for a in lost]


async def test_several_claims_in_a_row_that_were_not_heard_are_all_told(scripts: Scripts) -> None:
    await scripts.submit(*(new_job() for _ in range(3)))
    lost = [*await _lost(scripts, "w1", 1), *await _lost(scripts, "w2", 1)]
    unheard = _Unheard()
    await _claim(scripts, "w3", 1, unheard)
    assert sorted(job_id for _, job_id, _ in unheard.leases) == [a.job_id for a in lost]


async def test_a_repeated_claim_tells_it_again(scripts: Scripts) -> None:
    await scripts.submit(*(new_job() for _ in range(2)))
    await _lost(scripts, "w2", 1)
    first, again = _Unheard(), _Unheard()
    taken = await _claim(scripts, "w1", 1, first)
    scripts.runner.repeats_next = True
    assert await _claim(scripts, "w1", 1, again) == taken
    assert first.leases == again.leases != []


async def test_a_store_that_stood_still_during_a_claim_costs_no_job_a_crash(
    own_store: StoreProcess,
) -> None:
    async with running_broker(own_store.url) as broker:
        await broker.register("w1")
        await broker.submit()
        await broker.claim("w1")
        (ulid,) = await broker.submit()
        own_store.pause()
        poll = asyncio.create_task(broker.claim("w1", wait_ms=60_000))
        (outcome,) = await asyncio.gather(poll, return_exceptions=True)
        assert isinstance(outcome, Exception), "the store did not answer in time"
        own_store.resume()
        await eventually(lambda: broker.client.ping() is True, "the store is back")
        # Whichever came first, the claim that nobody heard of or this one: the job is delivered
        # now, not when a lease ends, and no budget is touched.
        async with asyncio.timeout(runner_module.RETRY_WINDOW_S + 8):
            (claimed,) = await broker.claim("w1", wait_ms=60_000)
        assert claimed.job_id[-26:] == ulid
        job = await broker.job(ulid)
        assert (job.state, job.crashes, job.attempt) == (JobState.RUNNING, 0, 1)
        broker.check()
