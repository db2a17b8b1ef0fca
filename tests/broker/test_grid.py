"""The whole grid of state and event over the real stores, illegal pairs included."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from jobwire_server.domain.decisions.lifecycle import TRANSITIONS, Event
from jobwire_server.domain.errors import JobwireError
from jobwire_server.domain.model import Completed, Failure, JobState

from tests.support.brokers import QUIET, Broker, running_broker
from tests.support.jobs import DAY_MS, new_job, worker_spec

SOON_MS = 1_000
"""When what the event waits for is due; everything else is due in a day."""
S = JobState


@dataclass
class Case:
    """One job, brought into its state, at which one event is aimed."""

    broker: Broker
    event: Event
    ulid: str = ""
    token: int = 1

    async def bring_to(self, state: JobState) -> None:
        broker, event = self.broker, self.event
        now = broker.now_ms()
        expiring = event is Event.EXPIRE or state is S.EXPIRED
        delay = SOON_MS if event is Event.DUE else DAY_MS
        job = new_job(
            delay_ms=delay if state is S.SCHEDULED else 0,
            expires_at_ms=now + SOON_MS if expiring else 0,
            execution_timeout_ms=SOON_MS if event is Event.TIME_OUT else 0,
            # Behind the expiry, where there is one.
            deadline_ms=now + (1 + 2 * expiring) * SOON_MS if event is Event.DEADLINE else 0,
        )
        lease = SOON_MS if event in (Event.CRASH, Event.CRASH_FINALLY) else DAY_MS
        await broker.router.register_worker(worker_spec(lease_ms=lease))
        (self.ulid,) = await broker.submit(job)
        if state in (S.RUNNING, S.CANCELLING, S.SUCCEEDED, S.FAILED):
            self.token = (await broker.claim_one()).fencing_token
        if state is S.CANCELLING or state is S.CANCELLED:
            await broker.router.cancel_job("default", self.ulid, "seed")
        elif state is S.SUCCEEDED:
            await self.succeed()
        elif state is S.FAILED:
            await self.fail(final=True)
        elif state is S.EXPIRED:
            await broker.after(2 * SOON_MS)
        assert await broker.state(self.ulid) is state

    async def happen(self) -> Completed | None:
        """Lets the event happen; returns what a completion answered."""
        broker, router = self.broker, self.broker.router
        match self.event:
            case Event.CLAIM:
                await broker.claim()
            case Event.PROGRESS:
                await broker.report("default", self.ulid, "w1", self.token, b"half")
            case Event.SUCCEED:
                return await self.succeed()
            case Event.FAIL_RETRYABLE:
                return await self.fail(final=False)
            case Event.FAIL_FINALLY:
                return await self.fail(final=True)
            case Event.RELEASE:
                return await broker.release("default", self.ulid, "w1", self.token, True, "")
            case Event.CONFIRM_CANCEL:
                return await broker.confirm_cancel("default", self.ulid, "w1", self.token)
            case Event.REDRIVE:
                await router.retry_job("default", self.ulid, "again", 0)
            case Event.CANCEL:
                await router.cancel_job("default", self.ulid, "not needed")
            case _:
                await broker.after(2 * SOON_MS)
        return None

    async def succeed(self) -> Completed:
        return await self.broker.succeed("default", self.ulid, "w1", self.token, b"done")

    async def fail(self, *, final: bool) -> Completed:
        failure = Failure("Broken", "it broke", non_retryable=final)
        return await self.broker.fail("default", self.ulid, "w1", self.token, failure)


def _settled(dump: dict[str, object]) -> dict[str, object]:
    """Leaves out the routes: the entry of a job that ended while PENDING is dropped by the next
    claim, or by a look of the clock.
    """
    return {name: value for name, value in dump.items() if name[:2] not in ("l:", "z:", "re")}


@pytest.mark.both_engines
@pytest.mark.parametrize("event", Event, ids=lambda event: event.name.lower())
@pytest.mark.parametrize("state", JobState, ids=lambda state: state.name.lower())
async def test_each_event_moves_each_state_as_the_table_says_or_changes_nothing(
    state: JobState, event: Event, store_url: str
) -> None:
    grace = SOON_MS if event is Event.GRACE_OVER else DAY_MS
    crashes = 1 if event is Event.CRASH_FINALLY else 3
    async with running_broker(
        store_url, QUIET, cancel_grace_ms=grace, max_crashes=crashes
    ) as broker:
        case = Case(broker, event)
        await case.bring_to(state)
        broker.check()
        before = broker.dump()
        refusal = answer = None
        try:
            answer = await case.happen()
        except JobwireError as error:
            refusal = error
        target = TRANSITIONS.get((state, event))
        assert await broker.state(case.ulid) is (target or state)
        if target is None:
            dump = broker.dump()
            if state.terminal:
                before, dump = _settled(before), _settled(dump)
            assert dump == before
            # A completion is refused, or is a repetition that hears the state as it is.
            assert answer is None or answer.state is state
        else:
            assert refusal is None
            assert answer is None or answer.state is target
        broker.check()


async def test_a_claim_by_id_takes_pending_jobs_only(broker: Broker) -> None:
    for state in JobState:
        case = Case(broker, Event.CLAIM)
        await case.bring_to(state)
        before = broker.dump()
        if state is S.PENDING:
            await broker.claim_job("w1", "default", case.ulid)
            assert await broker.state(case.ulid) is S.RUNNING
        elif state is S.RUNNING:
            # A repeated call of the holder gets its claim again.
            again = await broker.claim_job("w1", "default", case.ulid)
            assert again.fencing_token == case.token
            assert broker.dump() == before
        else:
            with pytest.raises(JobwireError, match="only a PENDING job"):
                await broker.claim_job("w1", "default", case.ulid)
            assert broker.dump() == before
        broker.check()
