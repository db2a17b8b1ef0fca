"""Workers through the router: who gets jobs, who is lost, who leaves."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from jobwire_server.domain.errors import JobNotFound, LeaseLost, WorkerNotFound, WrongState
from jobwire_server.domain.model import JobState, LeaseRef, WorkerStatus
from jobwire_server.workers.claims import ClaimWish

from tests.support.brokers import QUIET, Broker, running_broker
from tests.support.jobs import new_job, next_ulid, worker_spec
from tests.support.waiting import eventually

S = JobState
TIMEOUT_MS = 15_000


async def test_a_worker_gets_the_jobs_of_its_queues_operations_and_labels_only(
    broker: Broker,
) -> None:
    router = broker.router
    spec = worker_spec(queues=("a", "b"), operations=("x", "y"), labels={"gpu": "a100"})
    await router.register_worker(spec)
    mine = [
        new_job("a", operation="x"),
        new_job("b", operation="y"),
        new_job("a", operation="y", requirements={"gpu": "a100"}),
    ]
    others = [
        new_job("c", operation="x"),
        new_job("a", operation="z"),
        new_job("b", operation="x", requirements={"gpu": "h100"}),
        new_job("b", operation="x", requirements={"gpu": "a100", "zone": "1"}),
    ]
    for job in [*mine, *others]:
        await router.submissions.submit(job.queue, [job])
    taken = await broker.claim("w1", 100)
    if len(taken) < 3:  # jobs of several queues may come by several calls
        taken += await broker.claim("w1", 100)
    assert {one.job_id for one in taken} == {job.job_id for job in mine}
    assert await broker.claim("w1", 100) == []
    for queue in "abc":
        broker.check(queue)


async def test_a_claim_may_be_narrowed_to_some_of_the_queues(broker: Broker) -> None:
    await broker.router.register_worker(worker_spec(queues=("a", "b")))
    for queue in ("a", "b"):
        await broker.router.submissions.submit(queue, [new_job(queue)])
    taken = await broker.claim("w1", 10, queues=("b", "c"))
    assert [one.job_id[0] for one in taken] == ["b"]
    assert await broker.claim("w1", 10, queues=("c",)) == []


async def test_one_claim_never_brings_more_than_it_asked_for_from_several_queues(
    broker: Broker,
) -> None:
    queues = tuple("abcd")
    await broker.router.register_worker(worker_spec(queues=queues))
    for queue in queues:
        await broker.router.submissions.submit(queue, [new_job(queue) for _ in range(5)])
    taken = 0
    while got := await broker.claim("w1", 3):
        assert len(got) <= 3
        taken += len(got)
    assert taken == 20
    for queue in queues:
        broker.check(queue)


async def test_the_lease_is_the_one_that_the_worker_asked_for(broker: Broker) -> None:
    await broker.register("short", lease_ms=2_000)
    await broker.submit()
    (claimed,), lease_ms, _ = await broker.router.claim(ClaimWish("short"))
    assert lease_ms == 2_000
    lease_end = (await broker.job(claimed.job_id[-26:])).lease_expires_at_ms
    assert abs(lease_end - broker.now_ms() - 2_000) < 1_000
    await broker.after(2_001)
    assert await broker.state(claimed.job_id[-26:]) is S.PENDING


async def test_an_unknown_worker_gets_nothing(broker: Broker) -> None:
    (ulid,) = await broker.submit()
    before = broker.dump()
    for call in (
        broker.claim("nobody"),
        broker.claim_job("nobody", "default", ulid),
        broker.router.heartbeat("nobody", []),
        broker.router.set_worker_status("nobody", WorkerStatus.PAUSED),
    ):
        with pytest.raises(WorkerNotFound):
            await call
    assert broker.dump() == before


@pytest.mark.parametrize("status", [WorkerStatus.PAUSED, WorkerStatus.DRAINING])
async def test_a_worker_that_is_paused_or_draining_gets_none(
    broker: Broker, status: WorkerStatus
) -> None:
    await broker.register()
    (ulid,) = await broker.submit()
    await broker.router.set_worker_status("w1", status)
    assert await broker.claim("w1", 5, wait_ms=50) == []
    with pytest.raises(WrongState):
        await broker.claim_job("w1", "default", ulid)
    assert (await broker.router.heartbeat("w1", []))[0] is status
    await broker.router.set_worker_status("w1", WorkerStatus.READY)
    assert len(await broker.claim("w1", 5)) == 1


async def test_a_paused_queue_delivers_nothing_until_it_is_resumed(broker: Broker) -> None:
    await broker.register()
    (ulid,) = await broker.submit()
    queue = await broker.router.operators.set_paused("default", True)
    assert queue.paused
    await broker.submit()
    assert await broker.claim("w1", 5) == []
    with pytest.raises(WrongState, match="paused"):
        await broker.claim_job("w1", "default", ulid)
    await broker.router.operators.set_paused("default", False)
    assert len(await broker.claim("w1", 5)) == 2
    broker.check()


# By id -----------------------------------------------------------------------


async def test_a_claim_by_id_brings_that_job_and_no_other(broker: Broker) -> None:
    await broker.register()
    first, wanted = await broker.submit(new_job(), new_job(priority=0))
    claimed = await broker.claim_job("w1", "default", wanted)
    assert claimed.job_id == f"default-{wanted}"
    assert await broker.state(first) is S.PENDING
    assert [one.job_id[-26:] for one in await broker.claim("w1", 9)] == [first]
    broker.check()


async def test_a_claim_by_id_is_refused_to_a_worker_that_does_not_serve_the_job(
    broker: Broker,
) -> None:
    (ulid,) = await broker.submit(new_job(requirements={"gpu": "a100"}))
    for spec in (
        worker_spec("no-label"),
        worker_spec("no-operation", operations=("other",), labels={"gpu": "a100"}),
        worker_spec("no-queue", queues=("other",), labels={"gpu": "a100"}),
    ):
        await broker.router.register_worker(spec)
        before = broker.dump()
        with pytest.raises(WrongState):
            await broker.claim_job(spec.worker_id, "default", ulid)
        assert broker.dump() == before
    with pytest.raises(JobNotFound):
        await broker.claim_job("no-label", "default", next_ulid())


# Signs of life ---------------------------------------------------------------


async def test_a_heartbeat_answers_each_lease_in_its_place(broker: Broker) -> None:
    await broker.router.register_worker(worker_spec(queues=("a", "b")))
    tokens = {}
    for queue in ("a", "b"):
        await broker.router.submissions.submit(queue, [new_job(queue) for _ in range(2)])
        for _ in range(2):
            (claimed,) = await broker.claim("w1", queues=(queue,))
            tokens[claimed.job_id] = claimed.fencing_token
    (a1, a2, b1, b2) = sorted(tokens)
    await broker.router.cancel_job("b", b1[-26:], "why")
    await broker.succeed("a", a2[-26:], "w1", 1, b"")
    leases = [
        ("b", b1[-26:], 1),
        ("a", a2[-26:], 1),
        ("a", a1[-26:], 1),
        ("b", b2[-26:], 7),
        ("b", next_ulid(), 1),
    ]
    status, renewals, lease_ms, _ = await broker.router.heartbeat("w1", leases)
    assert status is WorkerStatus.READY
    assert lease_ms == 30_000
    assert [renewal.lost for renewal in renewals] == [False, True, False, True, True]
    assert [renewal.cancel is not None for renewal in renewals] == [True, *[False] * 4]


async def test_a_silent_worker_is_lost_and_its_jobs_go_back_at_once(store_url: str) -> None:
    async with running_broker(store_url, QUIET, worker_timeout_ms=TIMEOUT_MS) as broker:
        await broker.register("silent", lease_ms=3_600_000)
        await broker.register("lively")
        ulids = await broker.submit(*(new_job() for _ in range(5)))
        token = (await broker.claim("silent", 3))[0].fencing_token
        await broker.router.cancel_job("default", ulids[2], "")
        broker.shift(TIMEOUT_MS - 1_000)
        await broker.router.heartbeat("lively", [])
        broker.shift(1_001)
        await broker.sweep()
        states = [await broker.state(ulid) for ulid in ulids]
        assert states == [S.PENDING, S.PENDING, S.CANCELLED, S.PENDING, S.PENDING]
        job = await broker.job(ulids[0])
        assert (job.crashes, job.attempt) == (1, 1)
        assert job.failure is not None
        assert "silent" in job.failure.message
        broker.check()
        # They stand where they stood, and the lost worker is fenced off.
        assert [one.job_id[-26:] for one in await broker.claim("lively", 2)] == ulids[:2]
        with pytest.raises(LeaseLost):
            await broker.succeed("default", ulids[0], "silent", token, b"")
        with pytest.raises(WorkerNotFound):
            await broker.router.heartbeat("silent", [])
        worker = await broker.router.operators.find_worker("silent")
        assert worker is not None
        assert (worker.status, worker.held_jobs) == (WorkerStatus.LOST, 0)
        broker.check()


async def test_two_servers_that_sweep_at_once_take_a_job_back_once(store_url: str) -> None:
    async with (
        running_broker(store_url, QUIET, "s1", worker_timeout_ms=TIMEOUT_MS) as one,
        running_broker(store_url, QUIET, "s2", worker_timeout_ms=TIMEOUT_MS) as two,
    ):
        await one.register("silent", lease_ms=3_600_000)
        ulids = await one.submit(*(new_job() for _ in range(20)))
        await one.claim("silent", 20)
        for broker in (one, two):
            broker.shift(TIMEOUT_MS + 1)
        await asyncio.gather(one.sweep(), two.sweep())
        assert {(await one.job(ulid)).crashes for ulid in ulids} == {1}
        one.check()


async def test_a_worker_that_registers_again_keeps_its_leases(broker: Broker) -> None:
    await broker.register()
    (ulid,) = await broker.submit()
    token = (await broker.claim_one()).fencing_token
    await broker.register()
    assert await broker.claim() == []
    _, (renewal,), _, _ = await broker.router.heartbeat("w1", [("default", ulid, token)])
    assert not renewal.lost
    await broker.succeed("default", ulid, "w1", token, b"")
    broker.check()


async def test_what_a_worker_serves_changes_when_it_registers_again(broker: Broker) -> None:
    await broker.register()
    await broker.submit(new_job(operation="other"))
    assert await broker.claim() == []
    await broker.router.register_worker(worker_spec(operations=("other",)))
    assert len(await broker.claim()) == 1


async def test_a_worker_that_registers_anew_elsewhere_is_served_by_its_new_description(
    valkey_url: str,
) -> None:
    async with (
        running_broker(valkey_url, QUIET, "s1") as one,
        running_broker(valkey_url, QUIET, "s2") as two,
    ):
        await one.register()
        # Known by its former description, there as well.
        assert await two.claim() == []
        waiting = asyncio.create_task(two.claim(wait_ms=60_000))
        await eventually(lambda: len(two.parts.waiting) == 1, "the claim waits")
        await one.router.register_worker(worker_spec(operations=("other",)), "another process")
        # Whoever waits by the former one is not served by it any more.
        assert await waiting == []
        (ulid,) = await one.submit(new_job(operation="other"))
        await one.submit()
        assert [each.job_id[-26:] for each in await two.claim(most=2)] == [ulid]


async def test_a_worker_that_leaves_gives_its_jobs_back_as_interruptions(broker: Broker) -> None:
    await broker.register("leaving")
    await broker.register("staying")
    ulids = await broker.submit(*(new_job() for _ in range(3)))
    await broker.claim("leaving", 2)
    assert await broker.router.deregister_worker("leaving") == 2
    job = await broker.job(ulids[0])
    assert (job.state, job.interruptions, job.crashes) == (S.PENDING, 1, 0)
    assert await broker.router.deregister_worker("leaving") == 0
    assert [one.job_id[-26:] for one in await broker.claim("staying", 5)] == ulids
    with pytest.raises(WorkerNotFound):
        await broker.claim("leaving")
    broker.check()


async def test_a_worker_is_told_with_the_leases_that_it_holds(broker: Broker) -> None:
    await broker.register("w1")
    await broker.register("w2")
    await broker.submit(*(new_job() for _ in range(3)))
    taken = await broker.claim("w1", 2)
    await broker.claim("w2", 1)
    worker = await broker.router.operators.find_worker("w1")
    assert worker is not None
    assert worker.held_jobs == 2
    assert set(worker.leases) == {LeaseRef(one.job_id, one.fencing_token) for one in taken}
    listed = await broker.router.operators.workers_after("", 10)
    assert [(one.spec.worker_id, one.held_jobs) for one in listed] == [("w1", 2), ("w2", 1)]
    assert await broker.router.operators.find_worker("nobody") is None


async def test_a_status_that_changes_during_a_sign_of_life_is_not_taken_back(
    valkey_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = valkey_broker
    await broker.register()
    await broker.router.set_worker_status("w1", WorkerStatus.PAUSED)
    workers = broker.parts.workers
    touch = workers.touch
    answered, go_on = asyncio.Event(), asyncio.Event()

    async def slow(signs: Any, moved: Any) -> Any:
        statuses = await touch(signs, moved)
        answered.set()
        await go_on.wait()
        return statuses

    monkeypatch.setattr(workers, "touch", slow)
    beating = asyncio.create_task(broker.router.heartbeat("w1", []))
    await answered.wait()
    await broker.router.set_worker_status("w1", WorkerStatus.READY)
    go_on.set()
    await beating
    assert (await broker.parts.known.get("w1"))[1] is WorkerStatus.READY
