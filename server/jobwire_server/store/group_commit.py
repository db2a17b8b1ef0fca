"""Group commit: what arrives while a call is under way goes to the store as the next call.

A lone request waits for nobody; under load one round trip carries hundreds.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import Generic, TypeVar

from jobwire_server.domain.errors import ServerBusy

Item = TypeVar("Item")
Answer = TypeVar("Answer")

DRY_PASSES = 8
"""Gathering ends after so many turns of the event loop without a new request.

Requests on their way arrive one a turn, so a busy server gathers for as long as they come. Eight
empty turns take some 30 microseconds.
"""
LONE_CALLS = 4
"""After so many calls in a row that carried one request, and during which no other came, the next
goes at once, until another comes during a call.

One such call says little: a busy loop is so slow to bring the next request that an answer may
overtake it, and a lane that no longer gathers would not find out that it is busy.
"""
BUSY_REQUESTS = 8
"""After a call that carried so many requests, the next one gathers by the clock.

Then many callers send at once, and each of them waits for the others anyway.
"""
TICK_S = 0.001
IDLE_S = 0.005
"""After so long a pause the next request is sent immediately."""


MAX_CALL_BYTES = 4 << 20
"""Roughly the most bytes of one call, because the store serves nobody else meanwhile.

A larger request is sent alone.
"""


class Backlog:
    """Counts what waits for the store in this server, and refuses more than a limit.

    Args:
        limit: The most items.
        limit_bytes: The most bytes of them; not less than the largest request.
    """

    def __init__(self, limit: int, limit_bytes: int) -> None:
        self.limit = limit
        self.limit_bytes = limit_bytes
        self.waiting = 0
        self.waiting_bytes = 0

    def check(self, count: int, size: int = 0) -> None:
        """Check that there is room for items and their bytes.

        Raises:
            ServerBusy: They would exceed a limit.
        """
        if self.waiting + count > self.limit or self.waiting_bytes + size > self.limit_bytes:
            raise ServerBusy(
                f"{self.waiting} requests with {self.waiting_bytes} bytes wait for the store"
                f" already, and {count} more would exceed a limit of this server; retry after the"
                " delay, or add servers"
            )

    def enter(self, count: int, size: int = 0) -> None:
        """Count items in, and their bytes.

        Raises:
            ServerBusy: They would exceed a limit; none was counted.
        """
        self.check(count, size)
        self.waiting += count
        self.waiting_bytes += size

    def leave(self, count: int, size: int = 0) -> None:
        """Count items out."""
        self.waiting -= count
        self.waiting_bytes -= size


class GroupCommit(Generic[Item, Answer]):
    """Gathers items into calls of one kind, one call at a time, in order.

    Args:
        write: Makes one call; answers item by item, in order. What it raises goes to every caller
            of that call.
        backlog: Shared by all that wait in this server.
        max_items: The most items of one call; a larger request is sent alone.
        weigh: Returns the bytes of an item. None: they need no counting.
        linger_s: How long a call is held at most while more requests keep coming; 0: not at all.
        with_caller: A lone call ends with its caller, if that is cancelled, and needs no task of
            its own. False: what was asked for is written whether or not anybody waits for it.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Item]], Awaitable[Sequence[Answer]]],
        backlog: Backlog,
        *,
        max_items: int = 500,
        weigh: Callable[[Item], int] | None = None,
        linger_s: float = 0.0,
        with_caller: bool = False,
    ) -> None:
        self._write = write
        self._backlog = backlog
        self._max_items = max_items
        self._weigh = weigh
        self._linger_s = linger_s
        self._with_caller = with_caller
        self._waiting: deque[tuple[Sequence[Item], int, asyncio.Future[Sequence[Answer]]]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._items_waiting = 0
        self._ended_at = 0.0
        self._last_requests = 0
        self._direct = False
        """A call is under way in the task of its caller."""
        self._lone_calls = 0
        """In a row, up to LONE_CALLS."""

    async def submit(self, items: Sequence[Item]) -> Sequence[Answer]:
        """Write the items together with whatever else waits; return their answers in order.

        Raises:
            ServerBusy: Too much waits already.
            JobwireError: What the call raised.
        """
        count = len(items)
        size = sum(map(self._weigh, items)) if self._weigh is not None else 0
        self._backlog.enter(count, size)
        try:
            if self._task is None and not self._direct:
                if self._with_caller and self._lone_calls == LONE_CALLS:
                    return await self._write_directly(items)
                self._task = asyncio.create_task(self._run(), name="group-commit")
            future: asyncio.Future[Sequence[Answer]] = asyncio.get_running_loop().create_future()
            self._waiting.append((items, size, future))
            self._items_waiting += count
            return await future
        finally:
            self._backlog.leave(count, size)

    async def one(self, item: Item) -> Answer:
        """Write one item, as `submit` does."""
        return (await self.submit((item,)))[0]

    async def _write_directly(self, items: Sequence[Item]) -> Sequence[Answer]:
        """Make a call in the task of its caller; what comes meanwhile is for a task to send.

        If the caller gives up, it is not known whether the call was made, as ever.
        """
        self._direct = True
        self._last_requests = 1
        try:
            return await self._write(items)
        finally:
            self._direct = False
            self._note_end()
            if self._waiting:
                self._task = asyncio.create_task(self._run(), name="group-commit")

    def _note_end(self) -> None:
        """Note the end of a call."""
        self._ended_at = monotonic()
        if self._waiting or self._last_requests > 1:
            self._lone_calls = 0
        elif self._lone_calls < LONE_CALLS:
            self._lone_calls += 1

    async def _run(self) -> None:
        try:
            while self._waiting:
                if (
                    self._linger_s
                    and self._lone_calls < LONE_CALLS
                    and monotonic() - self._ended_at < IDLE_S
                ):
                    await self._let_gather()
                group, items = self._gather()
                self._last_requests = len(group)
                await self._commit(group, items)
                self._note_end()
        finally:
            self._task = None
            # Callers are left only if this task was cancelled; they must not wait for ever.
            for _, _, future in self._waiting:
                future.cancel()
            self._waiting.clear()
            self._items_waiting = 0

    async def _let_gather(self) -> None:
        """Let the loop turn while it brings more requests, up to the longest pause."""
        until = monotonic() + self._linger_s
        busy = self._last_requests >= BUSY_REQUESTS
        pause_s, patience = (TICK_S, 1) if busy else (0.0, DRY_PASSES)
        seen, dry = len(self._waiting), 0
        while dry < patience and self._items_waiting < self._max_items and monotonic() < until:
            await asyncio.sleep(pause_s)
            count = len(self._waiting)
            dry = 0 if count > seen else dry + 1
            seen = count

    def _gather(
        self,
    ) -> tuple[list[tuple[int, asyncio.Future[Sequence[Answer]]]], list[Item]]:
        group: list[tuple[int, asyncio.Future[Sequence[Answer]]]] = []
        items: list[Item] = []
        total = 0
        while self._waiting:
            part, size, future = self._waiting[0]
            if items and (
                len(items) + len(part) > self._max_items or total + size > MAX_CALL_BYTES
            ):
                break
            self._waiting.popleft()
            self._items_waiting -= len(part)
            # A caller that gave up before the call was promised nothing.
            if not future.cancelled():
                total += size
                items.extend(part)
                group.append((len(part), future))
        return group, items

    async def _commit(
        self, group: list[tuple[int, asyncio.Future[Sequence[Answer]]]], items: list[Item]
    ) -> None:
        if not items:
            return
        try:
            answers = await self._write(items)
        except asyncio.CancelledError:
            for _, future in group:
                future.cancel()
            raise
        except Exception as error:
            for _, future in group:
                if not future.done():
                    future.set_exception(error)
            return
        at = 0
        for count, future in group:
            if not future.done():
                future.set_result(answers[at : at + count])
            at += count
