"""Workers that make calls hear of cancellations in the answers to their claims."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any

import pytest

from jobwire_server.domain.errors import StoreUnavailable
from jobwire_server.domain.model import CancelNotice, JobState
from jobwire_server.store import keys
from jobwire_server.store.notices import Listener
from jobwire_server.workers import cancel_notices
from jobwire_server.workers.claims import ClaimWish

from tests.support.brokers import Broker, running_broker
from tests.support.jobs import new_job, worker_spec
from tests.support.waiting import eventually

S = JobState
LONG_MS = 60_000


async def poll(broker: Broker, worker_id: str = "w1", *, wait_ms: int = 0) -> list[CancelNotice]:
    """Returns what a claim tells of cancellations."""
    return [*(await broker.router.claim(ClaimWish(worker_id, wait_ms=wait_ms))).cancellations]


async def running(broker: Broker, worker_id: str = "w1") -> str:
    """Returns a job that the worker runs."""
    (ulid,) = await broker.submit()
    # A dispatcher that looked before hears of a new route by its notice.
    await broker.claim(worker_id, wait_ms=LONG_MS)
    return ulid


def untold(broker: Broker) -> list[str]:
    return [name for name in broker.dump() if name.startswith("cancels:")]


async def test_the_next_claim_tells_it_once(broker: Broker) -> None:
    await broker.register()
    await broker.register("w2")
    ulid = await running(broker)
    assert await poll(broker) == []
    await broker.router.cancel_job("default", ulid, "not needed")
    assert await poll(broker, "w2") == []
    (notice,) = await poll(broker)
    job = await broker.job(ulid)
    assert (notice.job_id, notice.fencing_token) == (job.job_id, 1)
    assert notice.reason == "not needed"
    assert notice.deadline_ms > broker.now_ms()
    assert await poll(broker) == []
    assert untold(broker) == []
    broker.check()


async def test_a_wait_ends_when_a_job_is_cancelled_through_another_server(store_url: str) -> None:
    async with (
        running_broker(store_url, server_id="s1") as one,
        running_broker(store_url, server_id="s2") as two,
    ):
        await one.register()
        for _ in range(3):
            ulid = await running(one)
            waiting = asyncio.create_task(poll(one, wait_ms=LONG_MS))
            await eventually(lambda: len(one.parts.waiting) > 0, "the poll waits")
            await two.router.cancel_job("default", ulid, "")
            (notice,) = await waiting
            assert notice.job_id[-26:] == ulid
            await one.confirm_cancel("default", ulid, "w1", 1)


async def test_what_was_cancelled_before_the_server_knew_the_worker_is_told(
    store_url: str,
) -> None:
    async with (
        running_broker(store_url, server_id="s1") as one,
        running_broker(store_url, server_id="s2") as two,
    ):
        await one.register()
        ulid = await running(one)
        await one.router.cancel_job("default", ulid, "")
        # At once, although it would wait.
        (notice,) = await poll(two, wait_ms=LONG_MS)
        assert notice.job_id[-26:] == ulid
        assert await poll(one) == []


async def test_a_claim_brings_jobs_and_cancellations_together(broker: Broker) -> None:
    await broker.register()
    ulid = await running(broker)
    await broker.router.cancel_job("default", ulid, "")
    (other,) = await broker.submit()
    assignments, _, told = await broker.router.claim(ClaimWish("w1", (), 5, LONG_MS))
    assert [one.job_id[-26:] for one in assignments] == [other]
    assert [one.job_id[-26:] for one in told] == [ulid]


async def test_a_job_of_any_queue_of_the_worker_is_told(broker: Broker) -> None:
    await broker.router.register_worker(worker_spec(queues=("default", "other")))
    ulid = await running(broker)
    await broker.router.cancel_job("default", ulid, "")
    _, _, told = await broker.router.claim(ClaimWish("w1", ("other",), 1, LONG_MS))
    assert [one.job_id[-26:] for one in told] == [ulid]


async def test_a_heartbeat_or_a_report_tells_it_as_well(broker: Broker) -> None:
    await broker.register()
    for beat in (True, False):
        ulid = await running(broker)
        assert await poll(broker) == []
        await broker.router.cancel_job("default", ulid, "")
        if beat:
            _, (renewal,), _, _ = await broker.router.heartbeat("w1", [("default", ulid, 1)])
        else:
            renewal = await broker.report("default", ulid, "w1", 1, b"half")
        assert renewal.cancel is not None
        assert untold(broker) == []
        assert await poll(broker) == []
        broker.check()


async def test_nothing_is_left_of_a_cancellation_that_nobody_was_told_of(broker: Broker) -> None:
    await broker.register(lease_ms=1_000)
    lost, succeeded, confirmed, late = [await running(broker) for _ in range(4)]
    for ulid in (lost, succeeded, confirmed, late):
        await broker.router.cancel_job("default", ulid, "")
    assert untold(broker) == ["cancels:w1"]
    await broker.succeed("default", succeeded, "w1", 1, b"")
    await broker.confirm_cancel("default", confirmed, "w1", 1)
    broker.check()
    await broker.after(1_001)
    assert await broker.state(lost) is S.CANCELLED
    assert untold(broker) == []
    assert await poll(broker) == []
    broker.check()


async def test_a_poll_that_is_woken_for_nothing_waits_on(broker: Broker) -> None:
    await broker.register()
    waiting = asyncio.create_task(broker.router.claim(ClaimWish("w1", (), 1, LONG_MS)))
    await eventually(lambda: len(broker.parts.waiting) > 0, "the poll waits")
    (before,) = broker.parts.waiting
    broker.client.spublish(keys.cancels_channel("default"), "w1")
    await eventually(lambda: {*broker.parts.waiting} not in ({before}, set()), "it waits anew")
    (ulid,) = await broker.submit()
    assignments, _, told = await waiting
    assert [one.job_id[-26:] for one in assignments] == [ulid]
    assert told == []


async def test_a_claim_without_news_asks_the_store_for_none(broker: Broker) -> None:
    await broker.register()
    await poll(broker)
    taken = []
    store = broker.parts.cancels
    once = store.take

    async def count(queue: str, worker_id: str) -> list[CancelNotice]:
        taken.append(worker_id)
        return await once(queue, worker_id)

    store.take = count  # type: ignore[method-assign]
    for _ in range(5):
        await broker.submit()
        assert await poll(broker, wait_ms=LONG_MS) == []
    assert taken == []


class _Clock:
    """The clock by which idle workers are let go, moved by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead_s = 0.0
        monkeypatch.setattr(cancel_notices, "monotonic", lambda: monotonic() + self.ahead_s)


def _listened(broker: Broker) -> set[str]:
    """The channels of cancellations that somebody hears."""
    return {name.decode() for name in broker.client.pubsub_shardchannels("*:cancels")}


async def test_workers_that_poll_no_more_are_let_go(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = _Clock(monkeypatch)
    await broker.register("w1")
    await broker.router.register_worker(worker_spec("w2", queues=("other",)))
    await poll(broker, "w1")
    assert _listened(broker) == {"jw:{default}:cancels"}
    clock.ahead_s += 1_000
    await poll(broker, "w2")
    await eventually(lambda: _listened(broker) == {"jw:{other}:cancels"}, "the channel is silent")
    # It comes back as any.
    ulid = await running(broker)
    await broker.router.cancel_job("default", ulid, "")
    assert len(await poll(broker, "w1")) == 1


async def test_a_worker_that_comes_while_others_are_let_go_is_told(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = _Clock(monkeypatch)
    for name in ("default", "other"):
        await broker.submit(new_job(name))
        await broker.router.register_worker(worker_spec(f"of-{name}", queues=(name,)))
        await poll(broker, f"of-{name}")
    await broker.router.register_worker(worker_spec("late", queues=("default", "other")))
    await broker.router.register_worker(worker_spec("next", queues=("third",)))
    notices = broker.parts.notices
    silence = notices.silence

    async def meanwhile(channel: str, listener: Listener | None = None) -> None:
        monkeypatch.setattr(notices, "silence", silence)
        await broker.parts.cancel_notices.told("late")
        await silence(channel, listener)

    clock.ahead_s += 1_000
    monkeypatch.setattr(notices, "silence", meanwhile)
    # The first claim of a worker lets those go that are idle.
    await broker.parts.cancel_notices.told("next")
    assert _listened(broker) == {f"jw:{{{name}}}:cancels" for name in ("default", "other", "third")}


async def test_jobs_of_a_caller_that_goes_while_its_news_are_read_go_back(broker: Broker) -> None:
    await broker.register()
    ulid = await running(broker)
    await poll(broker)
    polls = broker.parts.cancel_notices
    reading = asyncio.Event()

    async def stand_still(queue: str, worker_id: str) -> list[CancelNotice]:
        reading.set()
        return await asyncio.Future()

    (given,) = await broker.submit()
    claim = broker.parts.claims.claim

    async def claim_then_cancel(*args: object, **more: object) -> object:
        found = await claim(*args, **more)  # type: ignore[arg-type]
        broker.parts.cancels.take = stand_still  # type: ignore[method-assign]
        # Private: in this very moment, where a message of the store would come too late.
        polls._workers["w1"].unread.add("default")
        return found

    broker.parts.claims.claim = claim_then_cancel  # type: ignore[assignment, method-assign]
    waiting = asyncio.create_task(poll(broker))
    await reading.wait()
    assert await broker.state(given) is S.RUNNING
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await broker.parts.tasks.finish()
    assert await broker.state(given) is S.PENDING
    assert await broker.state(ulid) is S.RUNNING
    broker.check()


@pytest.mark.parametrize("what", ["take", "listen"])
async def test_a_queue_that_hangs_or_fails_holds_up_no_claim_and_is_told_later(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(cancel_notices, "PATIENCE_S", 0.05)
    monkeypatch.setattr(cancel_notices, "RETRY_S", 0.05)
    gate, tried = asyncio.Event(), 0
    async with (
        running_broker(valkey_url, server_id="s1") as one,
        running_broker(valkey_url, server_id="s2") as two,
    ):
        await one.router.register_worker(worker_spec(queues=("default", "b")))
        ulid = await running(one)
        await one.router.cancel_job("default", ulid, "")
        owner = two.parts.cancels if what == "take" else two.parts.notices
        real = getattr(owner, what)

        async def held(name: str, *rest: Any) -> Any:
            nonlocal tried
            if name in ("default", keys.cancels_channel("default")) and not gate.is_set():
                tried += 1
                if tried == 1:
                    await gate.wait()
                raise StoreUnavailable("its node is away")
            return await real(name, *rest)

        monkeypatch.setattr(owner, what, held)
        async with asyncio.timeout(10):
            for _ in range(3):
                await two.router.submissions.submit("b", [new_job("b")])
                handed = await two.router.claim(ClaimWish("w1", wait_ms=LONG_MS))
                assert [assigned.job_id[:2] for assigned in handed.assignments] == ["b-"]
                assert not handed.cancellations
            assert tried
            gate.set()
            while not (told := await poll(two, wait_ms=20)):
                pass
        assert [notice.job_id[-26:] for notice in told] == [ulid]
        assert untold(two) == []


async def test_what_comes_late_of_a_queue_that_hung_ends_the_wait(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancel_notices, "PATIENCE_S", 0.05)
    gate = asyncio.Event()
    async with (
        running_broker(valkey_url, server_id="s1") as one,
        running_broker(valkey_url, server_id="s2") as two,
    ):
        await one.register()
        ulid = await running(one)
        await one.router.cancel_job("default", ulid, "")
        take = two.parts.cancels.take

        async def held(*rest: Any) -> Any:
            await gate.wait()
            return await take(*rest)

        monkeypatch.setattr(two.parts.cancels, "take", held)
        waiting = asyncio.create_task(poll(two, wait_ms=LONG_MS))
        await eventually(lambda: len(two.parts.waiting) > 0, "the poll waits")
        gate.set()
        async with asyncio.timeout(10):
            (notice,) = await waiting
        assert notice.job_id[-26:] == ulid
