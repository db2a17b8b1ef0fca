"""A job that is submitted where a worker waits is accepted and leased in one step of the store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from jobwire_server.domain.errors import StoreUnavailable
from jobwire_server.domain.model import Assignment, JobState, NewJob
from jobwire_server.store import keys
from jobwire_server.store.notices import Listener
from jobwire_server.workers import dispatcher
from jobwire_server.workers.demand import Demand
from jobwire_server.workers.dispatcher import QueueDispatcher

from tests.support.brokers import Broker, running_broker
from tests.support.jobs import new_job, ulid_of, worker_spec
from tests.support.waiting import eventually

PATIENCE_S = 20.0


class _Taker(Demand):
    """Takes what it is given, as a stream with free credits."""

    def __init__(self, worker_id: str, free: int = 1, operations: tuple[str, ...] = ("work",)):
        super().__init__(worker_spec(worker_id, operations=operations), 30_000, free)
        self.got: list[str] = []

    def deliver(self, assignments: list[Assignment]) -> bool:
        self.got += [ulid_of(assignment.job_id) for assignment in assignments]
        return not self.closed


@pytest.fixture
async def broker(valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Broker]:
    """One that never looks for jobs by itself, and knows the routes of two operations."""
    monkeypatch.setattr(dispatcher, "POLL_S", 3_600.0)
    monkeypatch.setattr(dispatcher, "QUIET_POLL_S", 3_600.0)
    async with running_broker(valkey_url) as running:
        await running.router.register_worker(worker_spec("w0", operations=("work", "other")))
        await running.submit(new_job(), new_job(operation="other"))
        assert len(await running.claim("w0", 2)) == 2
        await running.parts.clocks.stop()
        yield running


async def _waiting(broker: Broker, *demands: Demand, queue: str = "default") -> QueueDispatcher:
    """Offer demands, and return once all of them wait for jobs."""
    found = broker.parts.dispatchers.of(queue)
    for demand in demands:
        found.offer(demand)
    await eventually(
        lambda: not found.demands.hot and {*demands} <= {*found.demands.idle, *found.demands.full},
        "all of them wait",
    )
    return found


def _calls(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The scripts that are called from now on, but for those about workers."""
    run, names = broker.parts.runner.run, list[str]()

    async def noted(name: str, key: str, args: Any) -> Any:
        if key == keys.queue_prefix("default"):
            names.append(name)
        return await run(name, key, args)

    monkeypatch.setattr(broker.parts.runner, "run", noted)
    return names


@pytest.mark.parametrize("batch", [1, 3])
async def test_jobs_reach_a_worker_that_waits_with_one_call_to_the_store(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    taker = _Taker("w1", 10)
    found = await _waiting(broker, taker)
    calls = _calls(broker, monkeypatch)
    ulids = await broker.submit(*(new_job() for _ in range(batch)))
    # With the answer, and not a turn of the loop later.
    assert taker.got == ulids
    assert taker.free == 10 - batch
    assert calls == ["submit_claim"]
    assert [*found.demands.idle] == [taker]
    assert await broker.state(ulids[0]) is JobState.RUNNING
    broker.check()


async def test_workers_that_wait_take_turns(broker: Broker) -> None:
    takers = [_Taker(f"w{at}", 100) for at in range(3)]
    await _waiting(broker, *takers)
    for _ in range(6):
        await broker.submit()
    assert [len(taker.got) for taker in takers] == [2, 2, 2]


async def test_each_job_goes_to_who_serves_it_and_the_rest_stays_and_is_announced(
    broker: Broker,
) -> None:
    one = _Taker("w1", 2)
    other = _Taker("w2", 5, ("other",))
    await _waiting(broker, one, other)
    heard: list[bytes] = []
    await broker.parts.notices.listen(
        keys.ready_channel("default"), Listener(heard.append, lambda: None)
    )
    ulids = await broker.submit(
        *(new_job() for _ in range(3)), new_job(operation="other"), new_job(delay_ms=3_600_000)
    )
    assert one.got == ulids[:2]
    assert other.got == [ulids[3]]
    await eventually(lambda: bool(heard), "what stays ready is announced")
    assert heard == [f"{new_job().route.id}:1".encode()]
    # To whoever is free next.
    one.unreserve(1)
    await eventually(lambda: one.got == ulids[:3], "it is not lost")
    assert await broker.state(ulids[4]) is JobState.SCHEDULED
    broker.check()


async def test_what_is_ready_already_goes_first(broker: Broker) -> None:
    taker = _Taker("w1", 1)
    found = await _waiting(broker, taker)
    # Ready, and its notice still on its way.
    await broker.parts.notices.silence(found._channel)
    (older,) = await _submitted_elsewhere(broker)
    assert taker.got == []
    (newer,) = await broker.submit()
    assert taker.got == [older]
    assert await broker.state(newer) is JobState.PENDING


async def _submitted_elsewhere(broker: Broker, *jobs: NewJob) -> list[str]:
    """Submit through a server without workers."""
    given = jobs or (new_job(),)
    await broker.parts.jobs.submit("default", given)
    return [ulid_of(job) for job in given]


async def test_a_paused_queue_hands_over_nothing_and_wakes_everybody_once_it_goes_on(
    broker: Broker,
) -> None:
    taker = _Taker("w1", 5)
    await _waiting(broker, taker)
    await broker.router.operators.set_paused("default", True)
    ulids = await broker.submit()
    assert taker.got == []
    await broker.router.operators.set_paused("default", False)
    await eventually(lambda: taker.got == ulids, "the job comes")
    assert taker.free == 4


async def test_a_job_that_was_there_is_handed_over_once(broker: Broker) -> None:
    taker = _Taker("w1", 5)
    await _waiting(broker, taker)
    job = new_job()
    await broker.submit(job)
    answers = await broker.submitted(job)
    assert [answer.existed for answer in answers] == [True]
    assert (taker.got, taker.free) == ([ulid_of(job)], 4)


@pytest.mark.parametrize("lost", [False, True])
async def test_what_is_reserved_comes_back_when_the_call_fails(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    taker = _Taker("w1", 1)
    await _waiting(broker, taker)
    runner = broker.parts.runner
    run, failed = runner.run, list[str]()

    async def fails_once(name: str, key: str, args: Any) -> Any:
        if name != "submit_claim" or failed:
            return await run(name, key, args)
        failed.append(name)
        if lost:
            await run(name, key, args)
        raise StoreUnavailable("away")

    monkeypatch.setattr(runner, "run", fails_once)
    job = new_job()
    with pytest.raises(StoreUnavailable):
        await broker.submit(job)
    assert failed
    await broker.submit(job)
    # Given back by the claim that tells of it, and claimed anew.
    await eventually(lambda: taker.got == [ulid_of(job)], "the job comes")
    assert taker.free == 0
    found = await broker.job(ulid_of(job))
    assert (found.state, found.attempt, found.crashes) == (JobState.RUNNING, 1, 0)
    broker.check()


async def test_the_first_job_of_a_route_is_looked_for_though_a_claim_was_under_way(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    taker = _Taker("w1", 1, ("new",))
    store = broker.parts.jobs
    claim = store.claim
    submitted: list[str] = []

    async def slow(*args: Any) -> Any:
        answer = await claim(*args)
        if not submitted:
            submitted.extend(await _submitted_elsewhere(broker, new_job(operation="new")))
            # Private: nothing else tells that the dispatcher has heard it.
            await eventually(lambda: found._routes.stale, "the route is announced")
        return answer

    # It serves a route that is known, or nothing would be claimed for it.
    taker.spec = worker_spec("w1", operations=("work", "new"))
    monkeypatch.setattr(store, "claim", slow)
    found = broker.parts.dispatchers.of("default")
    found.offer(taker)
    await eventually(lambda: bool(taker.got), "the job comes", timeout_s=5.0)
    assert taker.got == submitted
