"""Coroutines that share tasks until they wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

from jobwire.worker.tasks import MOST_AT_ONCE, TaskPool

from tests.support.waiting import eventually

Job = Callable[[], Awaitable[Any]]
colour: ContextVar[str] = ContextVar("colour", default="none")


class Pool:
    """A pool, what it told, and the tasks that its jobs ran in."""

    def __init__(self) -> None:
        self.ended: list[Any] = []
        self.tells = 0
        self.waiting: dict[asyncio.Task[None], Job] = {}
        self.tasks: list[asyncio.Task[Any] | None] = []
        self.pool: TaskPool[Job, Any] = TaskPool(self._run, self._waits, self._end)

    async def _run(self, job: Job) -> Any:
        self.tasks.append(asyncio.current_task())
        try:
            return await job()
        except (Exception, asyncio.CancelledError) as error:
            return error

    def _waits(self, job: Job, task: asyncio.Task[None]) -> None:
        self.waiting[task] = job

    def _end(self, ended: Sequence[tuple[Job, Any]]) -> None:
        self.tells += 1
        self.ended += [outcome for _, outcome in ended]

    async def until(self, count: int) -> None:
        await eventually(lambda: len(self.ended) >= count, f"{count} jobs ended")


@asynccontextmanager
async def pool() -> AsyncIterator[Pool]:
    made = Pool()
    yield made
    await made.pool.close(1.0)


async def test_jobs_that_do_not_wait_share_a_task_and_are_told_together() -> None:
    async def quick() -> str:
        return "done"

    async with pool() as made:
        made.pool.submit([quick] * (MOST_AT_ONCE + 1))
        await made.until(MOST_AT_ONCE + 1)
    assert len(set(made.tasks)) == 1
    assert made.tells == 2
    assert not made.waiting


async def test_a_job_that_waits_keeps_its_task_and_others_go_on_in_another() -> None:
    gate = asyncio.Event()
    seen: list[bool] = []

    async def slow() -> str:
        before = asyncio.current_task()
        await gate.wait()
        seen.append(asyncio.current_task() is before)
        return "slow"

    async def quick() -> str:
        return "quick"

    async with pool() as made:
        made.pool.submit([quick, slow, quick, slow, quick])
        await made.until(3)
        assert made.ended == ["quick"] * 3
        assert list(made.waiting.values()) == [slow, slow]
        gate.set()
        await made.until(5)
    assert seen == [True, True]
    assert made.tasks[1] is not made.tasks[3]
    assert made.tasks[2] is not made.tasks[1]


async def test_each_job_has_context_variables_of_its_own() -> None:
    found: list[str] = []

    async def paint() -> None:
        found.append(colour.get())
        colour.set("red")
        await asyncio.sleep(0)
        found.append(colour.get())

    async def look() -> None:
        found.append(colour.get())
        colour.set("blue")

    async with pool() as made:
        made.pool.submit([look, paint, look])
        await made.until(3)
    assert sorted(found) == ["none", "none", "none", "red"]


async def test_timeouts_and_groups_inside_a_job_are_its_own() -> None:
    async def timed() -> str:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            return "timed out"
        return "never"

    async def grouped() -> int:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(asyncio.sleep(0, at)) for at in range(3)]
        return sum(task.result() for task in tasks)

    async with pool() as made:
        made.pool.submit([timed, grouped, timed])
        await made.until(3)
    assert sorted(map(str, made.ended)) == ["3", "timed out", "timed out"]


async def test_a_job_that_cancels_its_own_task_harms_no_other() -> None:
    async def rash() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return "rash"

    async def quick() -> str:
        return "quick"

    async with pool() as made:
        made.pool.submit([rash, quick, quick])
        await made.until(3)
    assert sorted(made.ended) == ["quick", "quick", "rash"]


async def test_a_job_that_waits_can_be_cancelled_alone() -> None:
    async def hang() -> None:
        await asyncio.Event().wait()

    async with pool() as made:
        made.pool.submit([hang, hang])
        await eventually(lambda: len(made.waiting) == 2, "both wait")
        first, second = made.waiting
        first.cancel()
        await made.until(1)
        assert isinstance(made.ended[0], asyncio.CancelledError)
        assert not second.done()


async def test_many_that_wait_are_all_started() -> None:
    gate = asyncio.Event()

    async def slow() -> int:
        await gate.wait()
        return 1

    async with pool() as made:
        made.pool.submit([slow] * 1_000)
        await eventually(lambda: len(made.waiting) == 1_000, "all wait")
        gate.set()
        await made.until(1_000)
    assert len(set(made.tasks)) == 1_000
