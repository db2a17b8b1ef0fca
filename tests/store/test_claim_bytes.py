"""claim.lua bounds what it answers by bytes, and leaves the rest where it was."""

from __future__ import annotations

import pytest

from jobwire_server.domain.model import NewJob
from jobwire_server.store.claims import Claimed, ClaimRequest

from tests.support.jobs import new_job
from tests.support.scripts import LEASE_MS, RETAIN_MS, Scripts

MIB = 1 << 20
REQUEST_BYTES, CALL_BYTES = 2 * MIB, 8 * MIB


def _large(size: int, **fields: object) -> NewJob:
    return new_job(payload="x" * size, **fields)  # type: ignore[arg-type]


async def _claim(scripts: Scripts, *wishes: tuple[str, int], jobs: list[NewJob]) -> list[Claimed]:
    routes = tuple(sorted({job.route.id for job in jobs}))
    requests = [ClaimRequest(worker, most, LEASE_MS, routes) for worker, most in wishes]
    return await scripts.jobs.claim("default", requests, RETAIN_MS)


def _size(claimed: Claimed) -> int:
    return sum(len(one.record) for one in claimed.assignments)


async def test_a_claim_of_many_large_jobs_brings_as_many_as_fit_in_order(scripts: Scripts) -> None:
    jobs = [_large(300_000) for _ in range(40)]
    await scripts.submit(*jobs)
    taken: list[str] = []
    while len(taken) < len(jobs):
        (claimed,) = await _claim(scripts, ("w1", 500), jobs=jobs)
        assert 0 < _size(claimed) <= REQUEST_BYTES
        taken += [one.job_id for one in claimed.assignments]
        scripts.check()
        assert claimed.more is (len(taken) < len(jobs))
    assert taken == [job.job_id for job in jobs]


@pytest.mark.parametrize("ageing", [False, True])
async def test_what_does_not_fit_keeps_its_place_over_routes_and_priorities(
    scripts: Scripts, ageing: bool
) -> None:
    if ageing:
        scripts.client.hset("jw:{default}:config", "ageing", 3_600_000)
    jobs = [_large(400_000, priority=at % 3, operation=f"op{at % 2}") for at in range(30)]
    await scripts.submit(*jobs)
    expected = [job.job_id for job in sorted(jobs, key=lambda job: (-job.priority, job.job_id))]
    taken: list[str] = []
    for _ in range(30):
        (claimed,) = await _claim(scripts, ("w1", 500), jobs=jobs)
        taken += [one.job_id for one in claimed.assignments]
        scripts.check()
    assert taken == expected


async def test_a_job_larger_than_the_bound_is_brought_alone(scripts: Scripts) -> None:
    jobs = [_large(3 * MIB), _large(10), _large(3 * MIB)]
    await scripts.submit(*jobs)
    found = []
    for _ in range(3):
        (claimed,) = await _claim(scripts, ("w1", 10), jobs=jobs)
        found.append([one.job_id for one in claimed.assignments])
    assert found == [[job.job_id] for job in jobs]
    scripts.check()


async def test_a_call_for_many_workers_is_bounded_as_a_whole(scripts: Scripts) -> None:
    jobs = [_large(MIB) for _ in range(20)]
    await scripts.submit(*jobs)
    wishes = [(f"w{at}", 5) for at in range(10)]
    answers = await _claim(scripts, *wishes, jobs=jobs)
    assert sum(map(_size, answers)) <= CALL_BYTES
    # Who got nothing, or less than there is, is told to ask again.
    assert all(claimed.more for claimed in answers)
    scripts.check()


async def test_small_jobs_are_bounded_by_count_alone(scripts: Scripts) -> None:
    jobs = [new_job() for _ in range(500)]
    await scripts.submit(*jobs)
    (claimed,) = await _claim(scripts, ("w1", 500), jobs=jobs)
    assert [one.job_id for one in claimed.assignments] == [job.job_id for job in jobs]
    assert not claimed.more
    scripts.check()
