"""A completion that was recorded is answered as recorded, whatever has become of the job since."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from jobwire_server.domain.errors import LeaseLost
from jobwire_server.domain.model import Completed, Failure, JobState, RetryPolicy

from tests.support.brokers import Broker
from tests.support.jobs import new_job

S = JobState
FAILURE = Failure("Broken", "it broke")
End = Callable[[Broker, str, int], Awaitable[Completed]]


async def _succeed(broker: Broker, ulid: str, token: int) -> Completed:
    return await broker.succeed("default", ulid, "w1", token, b"r")


async def _fail(broker: Broker, ulid: str, token: int) -> Completed:
    return await broker.fail("default", ulid, "w1", token, FAILURE)


async def _release(broker: Broker, ulid: str, token: int) -> Completed:
    return await broker.release("default", ulid, "w1", token, True, "deploy")


async def _unstarted(broker: Broker, ulid: str, token: int) -> Completed:
    return await broker.release("default", ulid, "w1", token, False, "deploy")


async def _confirm(broker: Broker, ulid: str, token: int) -> Completed:
    return await broker.confirm_cancel("default", ulid, "w1", token)


ENDS: dict[str, End] = {
    "failure": _fail,
    "release": _release,
    "release unstarted": _unstarted,
    "cancelled": _confirm,
}
FIRST = {
    "failure": S.SCHEDULED,
    "release": S.PENDING,
    "release unstarted": S.PENDING,
    "cancelled": S.CANCELLED,
}


async def _ended(broker: Broker, how: str) -> tuple[str, int, Completed]:
    """A job whose attempt w1 has ended in this way, its token, and what that was answered."""
    await broker.register("w1")
    await broker.register("w2")
    retry = RetryPolicy(initial_backoff_ms=5_000)
    (ulid,) = await broker.submit(new_job(retry=retry))
    token = (await broker.claim_one("w1")).fencing_token
    if how == "cancelled":
        await broker.router.cancel_job("default", ulid, "")
    answer = await ENDS[how](broker, ulid, token)
    assert (answer.state, answer.repeated) == (FIRST[how], False)
    return ulid, token, answer


async def _run_again(broker: Broker, ulid: str, state: JobState, worker_id: str) -> int:
    """Has the job claimed once more; returns the new token."""
    if state.terminal:
        await broker.router.retry_job("default", ulid, "", 0)
    await broker.after(10_000)
    return (await broker.claim_one(worker_id)).fencing_token


@pytest.mark.parametrize("worker_id", ["w1", "w2"])
@pytest.mark.parametrize("how", ENDS)
async def test_a_completion_is_answered_as_recorded_after_the_next_claim(
    broker: Broker, how: str, worker_id: str
) -> None:
    ulid, token, first = await _ended(broker, how)
    newer = await _run_again(broker, ulid, first.state, worker_id)
    before = broker.dump()
    again = await ENDS[how](broker, ulid, token)
    assert (again, again.repeated) == (first, True)
    assert broker.dump() == before
    done = await broker.succeed("default", ulid, worker_id, newer, b"r")
    assert (done.state, done.repeated) == (S.SUCCEEDED, False)
    # Also of the job that has ended by now.
    assert await ENDS[how](broker, ulid, token) == first
    broker.check()


@pytest.mark.parametrize("other", [_succeed, *ENDS.values()])
@pytest.mark.parametrize("how", ENDS)
async def test_another_outcome_for_a_recorded_attempt_is_answered_with_what_is_recorded(
    broker: Broker, how: str, other: End
) -> None:
    ulid, token, first = await _ended(broker, how)
    for again in (False, True):
        if again:
            await _run_again(broker, ulid, first.state, "w2")
        before = broker.dump()
        answer = await other(broker, ulid, token)
        assert (answer, answer.repeated) == (first, True)
        assert broker.dump() == before


@pytest.mark.parametrize("how", ENDS)
async def test_a_success_stays_recorded_whatever_its_worker_says_then(
    broker: Broker, how: str
) -> None:
    await broker.register()
    (ulid,) = await broker.submit()
    token = (await broker.claim_one()).fencing_token
    await _succeed(broker, ulid, token)
    before = broker.dump()
    answer = await ENDS[how](broker, ulid, token)
    assert (answer.state, answer.repeated) == (S.SUCCEEDED, True)
    assert broker.dump() == before


async def test_a_backoff_is_answered_as_it_was_when_the_job_is_due_and_when_it_is_over(
    broker: Broker,
) -> None:
    await broker.register()
    (ulid,) = await broker.submit()
    token = (await broker.claim_one()).fencing_token
    first = await _fail(broker, ulid, token)
    assert first.next_attempt_at_ms
    await broker.after(first.next_attempt_at_ms - broker.now_ms() + 1)
    assert await broker.state(ulid) is S.PENDING
    assert await _fail(broker, ulid, token) == first


@pytest.mark.parametrize("end", [_succeed, *ENDS.values()])
async def test_only_whoever_recorded_it_is_answered(broker: Broker, end: End) -> None:
    ulid, token, first = await _ended(broker, "failure")
    newer = await _run_again(broker, ulid, first.state, "w2")
    before = broker.dump()
    for wrong in (token + 7, newer):
        with pytest.raises(LeaseLost):
            await end(broker, ulid, wrong)
    # What the broker itself ended was answered to nobody.
    await broker.router.deregister_worker("w2")
    with pytest.raises(LeaseLost):
        await broker.fail("default", ulid, "w2", newer, FAILURE)
    assert before != broker.dump()
