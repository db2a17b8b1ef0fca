"""A job that is submitted where a worker waits is accepted and leased in one step of the store."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import pytest

from jobwire_server.domain.errors import StoreUnavailable
from jobwire_server.domain.model import Assignment, JobState, NewJob
from jobwire_server.store import group_commit, keys
from jobwire_server.store.notices import Listener
from jobwire_server.workers import dispatcher
from jobwire_server.workers.demand import Demand
from jobwire_server.workers.dispatcher import QueueDispatcher

from tests.support.brokers import Broker, running_broker
from tests.support.dump import QueueDump
from tests.support.jobs import new_job, ulid_of, worker_spec
from tests.support.waiting import eventually

PATIENCE_S = 20.0


class _Taker(Demand):
    """Takes what it is given, as a stream with free credits."""

    def __init__(self, worker_id: str, free: int = 1, operations: tuple[str, ...] = ("work",)):
        super().__init__(worker_spec(worker_id, operations=operations), 30_000, free)
        self.got: list[str] = []

    def deliver(self, assignments: list[Assignment]) -> bool:
        if not self.closed:
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
    await eventually(lambda: taker.free == 4, "nothing stays reserved")


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


async def test_a_producer_that_gives_up_leaves_no_job_leased_to_nobody(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    taker = _Taker("w1", 3)
    await _waiting(broker, taker)
    # A lone call is made in the task of its caller, once there were some.
    for _ in range(group_commit.LONE_CALLS):
        await broker.submit()
        taker.unreserve(1)
    runner = broker.parts.runner
    run, gate, asked = runner.run, asyncio.Event(), list[str]()

    async def held(name: str, key: str, args: Any) -> Any:
        answer = await run(name, key, args)
        asked.append(name)
        if len(asked) == 1:
            await gate.wait()
        return answer

    monkeypatch.setattr(runner, "run", held)
    taker.got.clear()
    job = new_job()
    producer = asyncio.create_task(broker.submit(job))
    await eventually(lambda: bool(asked), "it is accepted, and nobody has heard of it")
    producer.cancel()
    await asyncio.gather(producer, return_exceptions=True)
    assert producer.cancelled()
    await eventually(lambda: taker.got == [ulid_of(job)], "the job comes")
    # By the same call, and not by way of a lost answer.
    assert {name for name in asked if "claim" in name} == {"submit_claim"}
    assert (await broker.job(ulid_of(job))).fencing_token == 1
    assert taker.free == 2
    broker.check()


@pytest.mark.parametrize("seed", range(6))
async def test_no_job_is_forgotten_whatever_happens_at_the_same_time(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng = random.Random(seed)
    runner = broker.parts.runner
    run = runner.run

    async def unsteady(name: str, key: str, args: Any) -> Any:
        if name not in ("submit", "claim", "submit_claim"):
            return await run(name, key, args)
        for _ in range(rng.randrange(4)):
            await asyncio.sleep(0)
        fate = rng.random()
        if fate < 0.05:
            raise StoreUnavailable("not done")
        answer = await run(name, key, args)
        for _ in range(rng.randrange(4)):
            await asyncio.sleep(0)
        if fate > 0.95:
            raise StoreUnavailable("done, and the answer lost")
        return answer

    monkeypatch.setattr(runner, "run", unsteady)
    monkeypatch.setattr(dispatcher, "ERROR_PAUSE_S", 0.005)
    found = broker.parts.dispatchers.of("default")
    number = count(1)
    takers: list[_Taker] = []
    gone: list[_Taker] = []
    wanted: dict[str, None] = {}

    def come() -> None:
        operations = rng.choice((("work",), ("other",), ("work", "other"), ("third", "work")))
        taker = _Taker(f"w{next(number)}", rng.randint(0, 3), operations)
        takers.append(taker)
        found.offer(taker)

    def go() -> None:
        if takers:
            taker = takers.pop(rng.randrange(len(takers)))
            gone.append(taker)
            taker.closed = True
            found.withdraw(taker)

    def free() -> None:
        for taker in takers:
            taker.unreserve(rng.randint(0, 2))

    async def submit() -> None:
        jobs = [
            new_job(operation=rng.choice(("work", "work", "other", "third")), priority=p)
            for p in rng.choices((0, 3), k=rng.choice((1, 1, 2, 20)))
        ]
        wanted.update(dict.fromkeys(map(ulid_of, jobs)))
        elsewhere = rng.random() < 0.3
        while True:
            try:
                await (_submitted_elsewhere(broker, *jobs) if elsewhere else broker.submit(*jobs))
            except StoreUnavailable:
                continue
            return

    def left_over() -> list[str]:
        """The operations for which jobs are ready and somebody waits."""
        able = {op for taker in takers if taker.open for op in taker.spec.operations}
        ready = broker.client.hkeys("jw:{default}:ready")
        return [op for op in able if new_job(operation=op).route.id.encode() in ready]

    def unknown() -> list[str]:
        """The jobs that are leased to nobody, or to somebody who does not know."""
        jobs = QueueDump(broker.dump()).jobs
        got = {taker.spec.worker_id: taker.got for taker in gone + takers}
        return [ulid for ulid in wanted if ulid not in got.get(jobs[ulid].get("w", ""), ())]

    acts = [come, come, go, free, free, None, None, None, None]
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
        for _ in range(60):
            act = rng.choice(acts)
            if act is None:
                tasks.create_task(submit())
            else:
                act()
            for _ in range(rng.randrange(6)):
                await asyncio.sleep(0)
    try:
        await eventually(lambda: not left_over(), "whoever can take a job has it")
        last = _Taker("last", 10_000, ("work", "other", "third"))
        takers.append(last)
        found.offer(last)
        # What nobody heard of goes back first.
        await eventually(lambda: not unknown(), "whoever has a job knows of it")
    finally:
        monkeypatch.undo()
    broker.check()
