"""worker_*.lua: the registry of workers."""

from __future__ import annotations

from typing import Any

import pytest

from jobwire_server.domain.model import WorkerStatus
from jobwire_server.store.codec import decode_worker
from jobwire_server.store.upkeep import WHENEVER_MS
from jobwire_server.store.workers import LostWorker, SignOfLife, WorkerStore

from tests.support.jobs import worker_spec
from tests.support.scripts import Scripts

TIMEOUT_MS = 15_000
RETAIN_MS = 3_600_000


async def _lost(scripts: Scripts, until_ms: int = WHENEVER_MS) -> list[LostWorker]:
    _, lost = await scripts.workers.sweep(TIMEOUT_MS, RETAIN_MS, 100, until_ms)
    return lost


async def _sweep(scripts: Scripts) -> list[str]:
    return [one.worker_id for one in await _lost(scripts)]


async def _touch(scripts: Scripts, *worker_ids: str) -> list[Any]:
    return await scripts.workers.touch([SignOfLife(worker_id) for worker_id in worker_ids])


async def test_a_registered_worker_is_ready_and_seen(scripts: Scripts) -> None:
    spec = worker_spec("w1", queues=("a", "b"), labels={"gpu": "a100"}, lease_ms=5_000)
    assert not (await scripts.workers.register(spec)).left
    dump = scripts.workers_dump()
    fields = dump.pop("w:w1")
    assert decode_worker("w1", fields.pop("spec").encode()) == spec
    assert fields == {"status": "1", "at": scripts.after(0), "server": "s1"}
    assert dump == {"seen": {"w1": scripts.after(0)}, "ids": {"w1": 0.0}}
    worker = await scripts.workers.read("w1")
    assert worker is not None
    assert (worker.spec, worker.status) == (spec, WorkerStatus.READY)
    assert worker.last_seen_at_ms == scripts.after(0)


async def test_registering_again_replaces_the_description(scripts: Scripts) -> None:
    await scripts.workers.register(worker_spec("w1"))
    await scripts.workers.set_status("w1", WorkerStatus.DRAINING)
    again = worker_spec("w1", operations=("other",))
    await scripts.workers.register(again)
    worker = await scripts.workers.read("w1")
    assert worker is not None
    assert (worker.spec, worker.status) == (again, WorkerStatus.READY)


async def test_a_sign_of_life_is_recorded_for_live_workers_only(scripts: Scripts) -> None:
    await scripts.workers.register(worker_spec("w1"))
    await scripts.workers.register(worker_spec("silent"))
    scripts.shift(TIMEOUT_MS - 1_000)
    assert await _touch(scripts, "w1", "unknown") == [WorkerStatus.READY, None]
    scripts.shift(2_000)
    assert await _sweep(scripts) == ["silent"]
    before = scripts.workers_dump()
    assert await _touch(scripts, "silent") == [WorkerStatus.LOST]
    assert scripts.workers_dump() == before


async def test_a_silent_worker_is_lost_until_its_jobs_are_back_and_listed_for_a_while(
    scripts: Scripts,
) -> None:
    spec = worker_spec("w1", queues=("a", "b"))
    await scripts.workers.register(spec)
    before = scripts.workers_dump()
    assert await _sweep(scripts) == []
    after = scripts.workers_dump()
    assert after.pop("servers") == {"s1": scripts.after(0)}
    assert after == before
    scripts.shift(TIMEOUT_MS)
    for _ in range(2):
        (lost,) = await _lost(scripts)
        assert (lost.worker_id, lost.queues) == ("w1", ("a", "b"))
        assert lost.lost_at_ms == scripts.after(0)
    await scripts.workers.jobs_are_back("w1")
    assert await _sweep(scripts) == []
    worker = await scripts.workers.read("w1")
    assert worker is not None
    assert worker.status is WorkerStatus.LOST
    scripts.shift(RETAIN_MS)
    await _sweep(scripts)
    assert [*scripts.workers_dump()] == ["servers"]


async def test_a_lost_worker_that_registers_again_is_not_lost(scripts: Scripts) -> None:
    await scripts.workers.register(worker_spec("w1"))
    scripts.shift(TIMEOUT_MS)
    assert await _sweep(scripts) == ["w1"]
    # What it held before is still to be taken back.
    assert (await scripts.workers.register(worker_spec("w1"))).left
    assert await _sweep(scripts) == ["w1"]
    await scripts.workers.jobs_are_back("w1")
    assert await _sweep(scripts) == []
    scripts.shift(TIMEOUT_MS - 1_000)
    await _touch(scripts, "w1")
    scripts.shift(RETAIN_MS)
    await _touch(scripts, "w1")
    assert await _sweep(scripts) == []
    assert await scripts.workers.read("w1") is not None


@pytest.mark.parametrize("status", [WorkerStatus.PAUSED, WorkerStatus.DRAINING])
async def test_a_status_is_kept_over_signs_of_life(scripts: Scripts, status: WorkerStatus) -> None:
    await scripts.workers.register(worker_spec("w1"))
    assert await scripts.workers.set_status("w1", status)
    assert await _touch(scripts, "w1") == [status]


async def test_a_worker_that_is_lost_or_unknown_gets_no_status(scripts: Scripts) -> None:
    assert not await scripts.workers.set_status("w1", WorkerStatus.READY)
    await scripts.workers.register(worker_spec("w1"))
    scripts.shift(TIMEOUT_MS)
    await _sweep(scripts)
    before = scripts.workers_dump()
    assert not await scripts.workers.set_status("w1", WorkerStatus.READY)
    assert scripts.workers_dump() == before


async def test_a_removed_worker_leaves_nothing(scripts: Scripts) -> None:
    await scripts.workers.register(worker_spec("w1"))
    assert await scripts.workers.remove("w1")
    assert scripts.workers_dump() == {}
    assert not await scripts.workers.remove("w1")
    await scripts.workers.register(worker_spec("w1"))
    scripts.shift(TIMEOUT_MS)
    await _sweep(scripts)
    assert await scripts.workers.remove("w1")
    assert [*scripts.workers_dump()] == ["servers"]


async def test_what_another_process_of_the_id_held_is_to_be_taken_back_at_once(
    scripts: Scripts,
) -> None:
    assert not (await scripts.workers.register(worker_spec("w1", queues=("a", "b")), "i1")).left
    scripts.shift(1_000)
    assert (await scripts.workers.register(worker_spec("w1", queues=("c",)), "i2")).left
    (left,) = await _lost(scripts)
    assert (left.worker_id, left.queues, left.unheard) == ("w1", ("a", "b"), False)
    assert left.lost_at_ms == scripts.after(0)
    await scripts.workers.jobs_are_back("w1")
    # It is alive, and the same call again, its answer lost, finds nothing more.
    assert await _touch(scripts, "w1") == [WorkerStatus.READY]
    assert not (await scripts.workers.register(worker_spec("w1", queues=("c",)), "i2")).left
    assert await _lost(scripts) == []


async def test_a_process_that_registers_again_and_one_that_does_not_say_which_it_is_keep_jobs(
    scripts: Scripts,
) -> None:
    await scripts.workers.register(worker_spec("w1"), "i1")
    assert not (await scripts.workers.register(worker_spec("w1"), "i1")).left
    assert not (await scripts.workers.register(worker_spec("w1"))).left
    assert await _lost(scripts) == []


async def test_a_worker_whose_server_fell_silent_with_it_is_unheard_of(scripts: Scripts) -> None:
    await _lost(scripts)  # the server is there
    await scripts.workers.register(worker_spec("w1"))
    other = WorkerStore(scripts.runner, "s2")
    scripts.shift(TIMEOUT_MS)
    _, (lost,) = await other.sweep(TIMEOUT_MS, RETAIN_MS, 100, WHENEVER_MS)
    assert (lost.worker_id, lost.unheard) == ("w1", True)


async def test_a_worker_that_falls_silent_at_a_server_that_speaks_is_not(scripts: Scripts) -> None:
    await scripts.workers.register(worker_spec("w1"))
    other = WorkerStore(scripts.runner, "s2")
    scripts.shift(TIMEOUT_MS - 1_000)
    await _lost(scripts)
    scripts.shift(1_000)
    _, (lost,) = await other.sweep(TIMEOUT_MS, RETAIN_MS, 100, WHENEVER_MS)
    assert (lost.worker_id, lost.unheard) == ("w1", False)


@pytest.mark.parametrize("until_ms", [0, 1])
async def test_a_look_that_comes_too_late_or_is_not_to_judge_loses_nobody(
    scripts: Scripts, until_ms: int
) -> None:
    """As when the store stood still while the call waited."""
    await scripts.workers.register(worker_spec("w1"))
    scripts.shift(10 * TIMEOUT_MS)
    assert await _lost(scripts, until_ms) == []
    assert await _touch(scripts, "w1") == [WorkerStatus.READY]


async def test_a_clock_that_is_set_back_keeps_no_silent_worker_alive(scripts: Scripts) -> None:
    scripts.shift(40_000)
    await scripts.workers.register(worker_spec("w1"))
    scripts.shift(-40_000)
    assert await _sweep(scripts) == []
    scripts.shift(TIMEOUT_MS)
    assert await _sweep(scripts) == ["w1"]


async def test_workers_are_listed_by_id_page_by_page(scripts: Scripts) -> None:
    for name in ("c", "a", "b", "a.1"):
        await scripts.workers.register(worker_spec(name))
    first = await scripts.workers.page("", 3)
    assert [one.spec.worker_id for one in first] == ["a", "a.1", "b"]
    rest = await scripts.workers.page("b", 3)
    assert [one.spec.worker_id for one in rest] == ["c"]
