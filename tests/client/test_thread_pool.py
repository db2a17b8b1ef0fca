"""The threads of sync handlers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

from jobwire.worker.threads import ThreadPool

from tests.support.waiting import eventually


class Outcomes:
    """Collects what a pool hands back."""

    def __init__(self) -> None:
        self.batches: list[Sequence[tuple[int, Any]]] = []

    @property
    def all(self) -> list[tuple[int, Any]]:
        return [outcome for batch in self.batches for outcome in batch]


def pool_of(limit: int, run: Callable[[int], Any]) -> tuple[ThreadPool[int, Any], Outcomes]:
    outcomes = Outcomes()
    return ThreadPool(limit, str, run, outcomes.batches.append), outcomes


async def test_jobs_that_block_all_run_at_once_up_to_the_limit() -> None:
    gate, running, most = threading.Event(), set[int](), [0]

    def block(job: int) -> int:
        running.add(job)
        most[0] = max(most[0], len(running))
        gate.wait(30)
        running.discard(job)
        return job * 2

    pool, outcomes = pool_of(20, block)
    pool.submit(range(50))
    await eventually(lambda: len(running) == 20, "twenty jobs run")
    gate.set()
    await eventually(lambda: len(outcomes.all) == 50, "all are done")
    pool.close()
    assert most == [20]
    assert sorted(outcomes.all) == [(job, job * 2) for job in range(50)]


async def test_a_burst_of_short_jobs_is_done_by_few_threads_and_handed_back_in_batches() -> None:
    threads: set[int] = set()

    def note(job: int) -> None:
        threads.add(threading.get_ident())

    pool, outcomes = pool_of(1000, note)
    for _ in range(10):
        pool.submit(range(500))
        await asyncio.sleep(0)
    await eventually(lambda: len(outcomes.all) == 5000, "all are done")
    pool.close()
    assert len(threads) < 50
    assert len(outcomes.batches) < 1000


async def test_a_parked_thread_takes_what_comes_later() -> None:
    threads: set[int] = set()

    def note(job: int) -> None:
        threads.add(threading.get_ident())

    pool, outcomes = pool_of(4, note)
    for job in range(20):
        pool.submit([job])
        await eventually(lambda job=job: len(outcomes.all) == job + 1, "it is done")  # type: ignore[misc]
    pool.close()
    assert len(threads) <= 2


async def test_a_closed_pool_ends_its_threads() -> None:
    before = threading.active_count()
    pool, outcomes = pool_of(4, lambda job: threading.current_thread().name)
    pool.submit(range(4))
    await eventually(lambda: len(outcomes.all) == 4, "all are done")
    assert {name for _, name in outcomes.all} == {"0", "1", "2", "3"}
    pool.close()
    await eventually(lambda: threading.active_count() <= before, "no thread is left")
