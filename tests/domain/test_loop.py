"""Loops in the background: they go on whatever a step does, and are woken, started and stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from jobwire_server.domain.background import Alarm, Loop, OwnedTasks
from jobwire_server.domain.errors import StoreUnavailable

from tests.support.waiting import eventually

FAR_S = 3_600.0


class _Steps:
    """Counts steps, and does something in each."""

    def __init__(self, *does: Callable[[], Awaitable[float]]) -> None:
        self.taken = 0
        self._does = does

    async def __call__(self) -> float:
        self.taken += 1
        if self.taken <= len(self._does):
            return await self._does[self.taken - 1]()
        return FAR_S


async def _refused() -> float:
    raise StoreUnavailable("away")


async def _broken() -> float:
    raise RuntimeError("a defect")


async def _at_once() -> float:
    return 0.0


@pytest.mark.parametrize("fails", [_refused, _broken])
async def test_a_loop_goes_on_after_a_step_that_failed(
    fails: Callable[[], Awaitable[float]],
) -> None:
    steps = _Steps(fails, fails)
    loop = Loop("test", steps, error_pause_s=0.0)
    loop.start()
    await eventually(lambda: steps.taken == 3, "the third step")
    await loop.stop()


async def test_a_loop_waits_for_as_long_as_its_step_says() -> None:
    steps = _Steps(_at_once)
    loop = Loop("test", steps)
    loop.start()
    await eventually(lambda: steps.taken == 2, "the second step")
    await asyncio.sleep(0.02)
    assert steps.taken == 2
    await loop.stop()


async def test_a_loop_that_is_woken_during_a_step_takes_another() -> None:
    go_on = asyncio.Event()

    async def slow() -> float:
        await go_on.wait()
        return FAR_S

    steps = _Steps(slow)
    loop = Loop("test", steps)
    loop.start()
    await eventually(lambda: steps.taken == 1, "the first step")
    loop.wake()
    go_on.set()
    await eventually(lambda: steps.taken == 2, "the second step")
    loop.wake()
    await eventually(lambda: steps.taken == 3, "the third step")
    await loop.stop()


async def test_a_loop_may_be_stopped_before_it_was_started_and_begun_twice() -> None:
    steps = _Steps()
    loop = Loop("test", steps)
    await loop.stop()
    loop.start()
    loop.start()
    await eventually(lambda: steps.taken > 0, "a step")
    assert (steps.taken, loop.runs) == (1, True)
    await loop.stop()
    await loop.stop()
    assert not loop.runs
    loop.start()
    await eventually(lambda: steps.taken == 2, "it begins anew")
    await loop.stop()


async def test_stopping_a_loop_breaks_off_its_step() -> None:
    ended = False

    async def endless() -> float:
        nonlocal ended
        try:
            await asyncio.Future()
        finally:
            ended = True
        return 0.0

    steps = _Steps(endless)
    loop = Loop("test", steps)
    loop.start()
    await eventually(lambda: steps.taken == 1, "the first step")
    await loop.stop()
    assert ended


async def test_an_alarm_rings_at_the_earliest_of_what_is_due() -> None:
    alarm = Alarm()
    alarm.due_in(FAR_S)
    alarm.due_in(0.01)
    alarm.due_in(FAR_S)
    async with asyncio.timeout(5):
        await alarm.sleep(FAR_S)


async def test_an_alarm_forgets_what_was_due_once_it_rang() -> None:
    alarm = Alarm()
    alarm.due_in(0)
    await alarm.sleep(FAR_S)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await alarm.sleep(FAR_S)


async def test_owned_tasks_are_cancelled_to_their_end() -> None:
    tasks = OwnedTasks()
    cleaned = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Future()
        finally:
            await asyncio.sleep(0)
            cleaned.set()

    task = tasks.begin(work())
    await asyncio.sleep(0)
    await tasks.cancel()
    assert cleaned.is_set()
    assert task.cancelled()
    await tasks.finish()
