"""A claim fills up from all of its worker's queues, in turn, and within its bytes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from jobwire_server.broker.wiring import Parts
from jobwire_server.domain.errors import StoreUnavailable
from jobwire_server.store.claims import ClaimRequest
from jobwire_server.workers import demand as demands
from jobwire_server.workers import dispatcher
from jobwire_server.workers.claims import ClaimWish

from tests.support.brokers import Broker
from tests.support.jobs import new_job, worker_spec
from tests.support.streams import Producer, RawWorker, stream_server
from tests.support.waiting import eventually

MIB = 1 << 20


def _queues(assignments: Sequence[Any]) -> dict[str, int]:
    return dict(Counter(one.job_id[:-27] for one in assignments))


async def _fill(broker: Broker, **jobs: int) -> None:
    await broker.router.register_worker(worker_spec(queues=tuple(jobs)))
    await _submit(broker, **jobs)


async def _submit(broker: Broker, **jobs: int) -> None:
    for queue, count in jobs.items():
        if count:
            await broker.router.submissions.submit(queue, [new_job(queue) for _ in range(count)])


def _counted(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The queues of the claims that go to the store from now on."""
    claim, asked = broker.parts.jobs.claim, list[str]()

    async def noted(queue: str, requests: Sequence[ClaimRequest], *rest: Any) -> Any:
        asked.append(queue)
        return await claim(queue, requests, *rest)

    monkeypatch.setattr(broker.parts.jobs, "claim", noted)
    return asked


@pytest.mark.parametrize("wait_ms", [0, 5_000])
async def test_one_job_in_each_of_three_queues_comes_with_one_call(
    broker: Broker, wait_ms: int
) -> None:
    await _fill(broker, a=1, b=1, c=1)
    assert _queues(await broker.claim("w1", 10, wait_ms=wait_ms)) == {"a": 1, "b": 1, "c": 1}
    for queue in "abc":
        broker.check(queue)


@pytest.mark.parametrize(
    ("most", "jobs"), [(1, (3, 3, 3)), (3, (1, 1, 5)), (7, (2, 0, 4)), (600, (300, 200, 300))]
)
async def test_a_claim_brings_as_many_as_it_may_and_there_are(
    broker: Broker, most: int, jobs: tuple[int, ...]
) -> None:
    await _fill(broker, **dict(zip("abc", jobs, strict=True)))
    got = await broker.claim("w1", most)
    assert len(got) == min(most, sum(jobs))
    rest = 0
    while more := await broker.claim("w1", 1_000):
        rest += len(more)
    assert len(got) + rest == sum(jobs)
    for queue in "abc":
        broker.check(queue)


async def test_the_next_jobs_behind_a_completion_come_from_all_queues(broker: Broker) -> None:
    await _fill(broker, a=1, b=1, c=1)
    handed = await broker.router.claim_next(ClaimWish("w1", max_jobs=10))
    assert _queues(handed.assignments) == {"a": 1, "b": 1, "c": 1}


async def test_queues_have_their_turn_where_all_of_them_have_jobs(broker: Broker) -> None:
    await _fill(broker, a=30, b=30, c=30)
    got = [await broker.claim("w1", 2) for _ in range(15)]
    assert _queues([one for some in got for one in some]) == {"a": 10, "b": 10, "c": 10}


async def test_a_claim_that_the_first_queue_fills_asks_no_other(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _fill(broker, a=9, b=9, c=9)
    await broker.claim("w1", 1, queues=("c",))  # all of them are known now
    asked = _counted(broker, monkeypatch)
    assert len(await broker.claim("w1", 3)) == 3
    assert len(asked) == 1


async def test_a_waiting_claim_that_has_seen_all_queues_asks_only_where_a_job_came(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _fill(broker, a=1, b=1, c=1)
    await broker.claim("w1", 10)
    waiting = asyncio.create_task(broker.claim("w1", 10, wait_ms=60_000))
    await eventually(lambda: len(broker.parts.waiting) == 1, "the claim waits")
    (demand,) = broker.parts.waiting
    looked = [broker.parts.dispatchers.of(queue).demands.idle for queue in "abc"]
    await eventually(lambda: all(demand in idle for idle in looked), "it has seen all queues")
    asked = _counted(broker, monkeypatch)
    # More than would be handed over without a claim.
    await _submit(broker, b=20)
    assert _queues(await waiting) == {"b": 10}
    assert set(asked) == {"b"}


@pytest.mark.parametrize("size", [300_000, 700_000, 1_000_000])
async def test_a_claim_brings_some_three_mib_and_no_more(broker: Broker, size: int) -> None:
    queues = tuple("abcdef")
    await broker.router.register_worker(worker_spec(queues=queues))
    for queue in queues:
        jobs = [new_job(queue, payload="p" * (size - 60)) for _ in range(2)]
        await broker.router.submissions.submit(queue, jobs)
    brought, calls = 0, 0
    while got := await broker.claim("w1", 1_000):
        held = sum(one.size for one in got)
        assert held <= demands.MOST_BYTES
        brought, calls = brought + len(got), calls + 1
        if brought < 12:
            # Neither does it bring less than there is room for.
            assert held + size > demands.FULL_BYTES
    assert brought == 12
    for queue in queues:
        broker.check(queue)


async def test_what_one_queue_brought_is_handed_out_if_another_does_not_answer(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _fill(broker, a=1, b=1)
    await broker.claim("w1", 1, queues=("c",))
    claim = broker.parts.jobs.claim

    async def failing(queue: str, *rest: Any) -> Any:
        if queue == "b":
            raise StoreUnavailable("its node is away")
        return await claim(queue, *rest)

    monkeypatch.setattr(broker.parts.jobs, "claim", failing)
    got = []
    for _ in range(2):  # one of them begins with `a`
        try:
            got += await broker.claim("w1", 10)
        except StoreUnavailable:
            continue
    assert _queues(got) == {"a": 1}


async def test_what_one_queue_brought_does_not_wait_for_one_that_is_slow(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demands, "FILL_S", 0.02)
    await _fill(broker, a=1, b=1)
    claim, go_on = broker.parts.jobs.claim, asyncio.Event()

    async def slow(queue: str, *rest: Any) -> Any:
        if queue == "b":
            await go_on.wait()
        return await claim(queue, *rest)

    monkeypatch.setattr(broker.parts.jobs, "claim", slow)
    await broker.router.register_worker(worker_spec("w2", queues=("b", "a")))
    # Its turns begin with the second of its queues.
    got = await broker.claim("w2", 10)
    assert _queues(got) == {"a": 1}
    go_on.set()
    # What was under way for the claim goes back, and nothing is held by nobody.
    assert _queues(await broker.claim("w2", 10, wait_ms=5_000)) == {"b": 1}
    for queue in "ab":
        broker.check(queue)


class Hanging:
    """Holds the claims on one queue until they are let go."""

    def __init__(self, parts: Parts, queue: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = 0
        self._gate = asyncio.Event()
        self.error: Exception | None = None
        claim = parts.jobs.claim

        async def held(of: str, *rest: Any) -> Any:
            if of == queue:
                self.asked += 1
                await self._gate.wait()
                if self.error:
                    raise self.error
            return await claim(of, *rest)

        monkeypatch.setattr(parts.jobs, "claim", held)
        monkeypatch.setattr(dispatcher, "PATIENCE_S", 0.05)

    def let_go(self, error: Exception | None = None) -> None:
        """Lets them go on to the store, or fail."""
        self.error = error
        self._gate.set()


@pytest.mark.parametrize("wait_ms", [0, 30_000])
@pytest.mark.parametrize("known", [True, False])
async def test_a_claim_does_not_wait_for_a_queue_that_hangs(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, wait_ms: int, known: bool
) -> None:
    await _fill(broker, a=5, b=5)
    if known:
        for queue in "ab":
            assert len(await broker.claim("w1", 1, queues=(queue,))) == 1
    hanging = Hanging(broker.parts, "a", monkeypatch)
    async with asyncio.timeout(10):
        # Whichever of them has its turn first.
        for _ in range(4):
            assert _queues(await broker.claim("w1", 1, wait_ms=wait_ms)) == {"b": 1}
    assert hanging.asked
    hanging.let_go()
    async with asyncio.timeout(10):
        left = 5 - known
        while left:
            left -= _queues(await broker.claim("w1", 10, wait_ms=1_000)).get("a", 0)
    broker.check("a")
    broker.check("b")


async def test_a_waiting_claim_gets_what_comes_late_of_a_queue_that_hung(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _fill(broker, a=1, b=0, c=0)
    hanging = Hanging(broker.parts, "a", monkeypatch)
    waiting = asyncio.create_task(broker.claim("w1", 5, wait_ms=30_000))
    await eventually(lambda: hanging.asked == 1, "the queue is asked")
    (demand,) = broker.parts.waiting
    await eventually(lambda: demand.free == 5, "what was reserved is free again")
    hanging.let_go()
    async with asyncio.timeout(10):
        assert _queues(await waiting) == {"a": 1}
    broker.check("a")


@pytest.mark.parametrize("wait_ms", [0, 30_000])
async def test_a_claim_fails_once_none_of_its_queues_can_be_reached(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, wait_ms: int
) -> None:
    await _fill(broker, a=1, b=0)
    hanging = Hanging(broker.parts, "a", monkeypatch)
    claims = [
        asyncio.create_task(broker.claim("w1", 5, queues=("a",), wait_ms=wait_ms)),
        asyncio.create_task(broker.claim("w1", 5, wait_ms=wait_ms)),
    ]
    await eventually(lambda: hanging.asked == 1, "the queue is asked")
    if not wait_ms:
        assert await claims[1] == []
    hanging.let_go(StoreUnavailable("its node is away"))
    async with asyncio.timeout(10):
        with pytest.raises(StoreUnavailable):
            await claims[0]
    # The other queue may still bring something.
    assert claims[1].done() is not bool(wait_ms)
    claims[1].cancel()


async def test_a_stream_gets_jobs_of_other_queues_while_one_hangs(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        stream_server(valkey_url) as server,
        Producer(server.address) as producer,
        RawWorker(server.address, queues=("a", "b"), credits=2) as worker,
    ):
        hanging = Hanging(server.parts, "a", monkeypatch)
        await producer.submit(2, queue="a")
        await worker.attach()
        await eventually(lambda: hanging.asked == 1, "the queue is asked")
        await producer.submit(2, queue="b")
        jobs = await worker.jobs(2)
        assert _queues(jobs) == {"b": 2}
        hanging.let_go()
        await worker.complete(*jobs)
        assert _queues((await worker.jobs(4))[2:]) == {"a": 2}
        assert worker.peak == 2
