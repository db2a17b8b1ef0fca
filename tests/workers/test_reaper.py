"""What is taken back of lost workers, and when."""

from __future__ import annotations

from jobwire_server.domain.errors import StoreUnavailable
from jobwire_server.domain.options import BrokerOptions
from jobwire_server.store.connection.connect import connect
from jobwire_server.store.runner import ScriptRunner
from jobwire_server.store.upkeep import WHENEVER_MS
from jobwire_server.store.workers import LostWorker, WorkerStore
from jobwire_server.workers.reaper import Reaper

from tests.support.jobs import worker_spec


async def test_a_queue_that_can_not_be_reached_keeps_no_other_waiting(valkey_url: str) -> None:
    connection = connect(valkey_url)
    store = WorkerStore(runner := ScriptRunner(connection))
    for worker_id in ("w1", "w2"):
        await store.register(worker_spec(worker_id, queues=("away", "here")))
    runner.clock_shift_ms = 60_000
    taken: list[tuple[str, str]] = []
    away = True

    class Held:
        async def end_for_lost(self, worker: LostWorker, queue: str) -> int:
            if away and queue == "away":
                raise StoreUnavailable("the node of the queue is missing")
            taken.append((worker.worker_id, queue))
            return 0

        async def end_unnamed(self, *_: object) -> int:
            raise AssertionError("nobody attaches")

    reaper = Reaper(store, BrokerOptions(worker_timeout_ms=10_000), Held())
    await reaper.sweep(WHENEVER_MS)
    assert sorted(taken) == [("w1", "here"), ("w2", "here")]
    away = False
    taken.clear()
    await reaper.sweep(WHENEVER_MS)
    assert ("w1", "away") in taken
    assert ("w2", "away") in taken
    taken.clear()
    await reaper.sweep(WHENEVER_MS)
    assert taken == []
    await connection.close()
