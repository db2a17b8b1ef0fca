"""Jobs that the broker itself gives back: who held them is told so, and not that all is well."""

from __future__ import annotations

import pytest

from jobwire_server.domain.errors import LeaseLost
from jobwire_server.domain.model import Failure, Former, JobState

from tests.support.brokers import Broker

S = JobState


async def _give_back(broker: Broker, how: str) -> tuple[str, int]:
    """Has the broker take a job from w1 behind its back; returns its ULID and the former token."""
    await broker.register()
    (ulid,) = await broker.submit()
    assignment = await broker.claim_one()
    attempts = broker.parts.attempts
    if how == "undelivered":
        attempts.give_back("w1", [assignment])
        await broker.parts.tasks.finish()
    elif how == "unnamed":
        await broker.parts.held.end_unnamed("default", "w1", set(), Former.SAME)
    elif how == "crashed":
        await broker.parts.held.end_unnamed("default", "w1", set(), Former.ENDED)
    else:
        await broker.router.deregister_worker("w1")
    assert await broker.state(ulid) is S.PENDING
    return ulid, assignment.fencing_token


@pytest.mark.parametrize("how", ["undelivered", "unnamed", "crashed", "deregistered"])
async def test_whoever_completes_a_job_that_was_given_back_hears_that_its_lease_is_lost(
    broker: Broker, how: str
) -> None:
    ulid, token = await _give_back(broker, how)
    before = broker.dump()
    with pytest.raises(LeaseLost):
        await broker.succeed("default", ulid, "w1", token, b"late")
    with pytest.raises(LeaseLost):
        await broker.fail("default", ulid, "w1", token, Failure("late"))
    with pytest.raises(LeaseLost):
        await broker.release("default", ulid, "w1", token, True, "")
    assert broker.dump() == before
    broker.check()


async def test_the_holder_that_gave_its_job_back_gets_its_answer_again(broker: Broker) -> None:
    await broker.register()
    (ulid,) = await broker.submit()
    token = (await broker.claim_one()).fencing_token
    for _ in range(2):
        ended = await broker.release("default", ulid, "w1", token, True, "shutdown")
        assert ended.state is S.PENDING
    broker.check()


async def test_a_job_is_given_back_while_it_is_cancelled(broker: Broker) -> None:
    await broker.register()
    (ulid,) = await broker.submit()
    assignment = await broker.claim_one()
    await broker.router.cancel_job("default", ulid, "no longer needed")
    broker.parts.attempts.give_back("w1", [assignment])
    await broker.parts.tasks.finish()
    assert await broker.state(ulid) is S.CANCELLED
    broker.check()
