"""The demand of one ClaimJob call, over several queues at once."""

from __future__ import annotations

import pytest

from jobwire_server.domain.errors import StoreUnavailable
from jobwire_server.domain.model import Assignment
from jobwire_server.workers.demand import OneShot

from tests.support.jobs import worker_spec

JOBS = [Assignment("a-01", 1, 1, b"")]
MORE = [Assignment("b-02", 1, 1, b"")]


def _demand() -> OneShot:
    return OneShot(worker_spec(queues=("a", "b")), 30_000, 10, ("a", "b"), patient=True)


async def test_jobs_of_two_queues_that_come_in_one_moment_go_together() -> None:
    demand = _demand()
    assert demand.deliver(JOBS[:])
    assert demand.deliver(MORE[:])
    assert demand.take() == JOBS + MORE


async def test_jobs_that_come_after_the_answer_was_taken_are_refused() -> None:
    demand = _demand()
    assert demand.deliver(JOBS[:])
    assert demand.take() == JOBS
    assert not demand.deliver(MORE[:])


async def test_jobs_of_one_queue_are_refused_once_the_look_at_another_failed() -> None:
    # Whoever claimed them gives them back then; an exception here would leave them leased.
    demand = _demand()
    demand.failed(StoreUnavailable("the node of one is away"), "a")
    assert not demand.answer.done()
    demand.failed(StoreUnavailable("and that of the other"), "b")
    assert not demand.deliver(JOBS[:])
    with pytest.raises(StoreUnavailable):
        await demand.answer
