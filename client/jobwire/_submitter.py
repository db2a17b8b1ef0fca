"""Single submissions: each by itself, or several that come at once in one call."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from jobwire._repeat import Backoff, async_sleep
from jobwire._requests import MAX_CHUNK_BYTES, MAX_CHUNK_JOBS
from jobwire.errors import CallError, ResourceExhausted, Unavailable, from_result
from jobwire.v1.job_service_pb2 import (
    SubmitJobRequest,
    SubmitJobResponse,
    SubmitJobsRequest,
    SubmitJobsResponse,
)

MAX_CALLS = 4
"""How many calls may be under way before jobs wait for the next one. Fewer would make a few tasks
wait for each other; more would carry fewer jobs each."""

LONGEST_WAIT_S = 30.0
"""The longest that an item which was refused for now waits before it is sent again."""

_Item: TypeAlias = "tuple[SubmitJobRequest, asyncio.Future[SubmitJobResponse | CallError]]"


class AsyncSubmitter:
    """Sends jobs as they come; those that come while calls of their queue are under way share one.

    A lone job never waits, and a thousand tasks that submit at once make a few calls. Each queue
    has its own calls, so that one that can't be reached holds up no other; and so has each event
    loop, whose tasks and futures no other loop may touch.

    Args:
        one: Makes a SubmitJob call.
        many: Makes a SubmitJobs call.
    """

    def __init__(
        self,
        one: Callable[[SubmitJobRequest], Awaitable[SubmitJobResponse]],
        many: Callable[[SubmitJobsRequest], Awaitable[SubmitJobsResponse]],
    ) -> None:
        self._one = one
        self._many = many
        self._by_queue: dict[tuple[str, asyncio.AbstractEventLoop], _QueueCalls] = {}

    @property
    def queues(self) -> set[str]:
        """The queues with calls under way."""
        return {queue for queue, _ in self._by_queue}

    async def submit(self, request: SubmitJobRequest) -> SubmitJobResponse:
        """Submit one job.

        Raises:
            CallError: It was refused, or no server answered.
        """
        key = request.queue, asyncio.get_running_loop()
        calls = self._by_queue.get(key)
        if calls is None:
            self._drop_ended_loops()
            calls = self._by_queue[key] = _QueueCalls(self._one, self._many)
        try:
            return await calls.submit(request)
        finally:
            # A later one may have taken its place by now.
            if calls.idle and self._by_queue.get(key) is calls:
                del self._by_queue[key]

    def _drop_ended_loops(self) -> None:
        # What was under way when its loop ended is never finished, nor found idle.
        for key in [*self._by_queue]:
            if key[1].is_closed():
                self._by_queue.pop(key, None)


class _QueueCalls:
    """The calls of one queue."""

    def __init__(
        self,
        one: Callable[[SubmitJobRequest], Awaitable[SubmitJobResponse]],
        many: Callable[[SubmitJobsRequest], Awaitable[SubmitJobsResponse]],
    ) -> None:
        self._one = one
        self._many = many
        self._waiting: deque[_Item] = deque()
        self._calls: set[asyncio.Task[None]] = set()
        self._alone = 0

    @property
    def idle(self) -> bool:
        """True if nothing is under way."""
        return not (self._waiting or self._calls or self._alone)

    async def submit(self, request: SubmitJobRequest) -> SubmitJobResponse:
        if not self._waiting and self._alone + len(self._calls) < MAX_CALLS:
            self._alone += 1
            try:
                return await self._one(request)
            finally:
                self._alone -= 1
                self._send_waiting()
        future: asyncio.Future[SubmitJobResponse | CallError]
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        answer = await future
        if not isinstance(answer, CallError):
            return answer
        # An item that was refused for now is sent again alone, when the server said it may be, and
        # for as long as any call is repeated.
        if answer.retry_after_s is not None:
            await async_sleep(Backoff().next_s(min(answer.retry_after_s, LONGEST_WAIT_S)))
        return await self._one(request)

    def _send_waiting(self) -> None:
        while self._alone + len(self._calls) < MAX_CALLS and (items := self._next_items()):
            call = asyncio.get_running_loop().create_task(self._send(items))
            self._calls.add(call)
            call.add_done_callback(self._call_is_over)

    def _next_items(self) -> list[_Item]:
        """Take what goes into one call."""
        items: list[_Item] = []
        size = 0
        while self._waiting and len(items) < MAX_CHUNK_JOBS:
            request, future = self._waiting[0]
            # Whoever stopped waiting has not been promised anything.
            if not future.done():
                size += request.ByteSize()
                if items and size > MAX_CHUNK_BYTES:
                    break
                items.append((request, future))
            self._waiting.popleft()
        return items

    def _call_is_over(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        self._send_waiting()

    async def _send(self, items: list[_Item]) -> None:
        try:
            await self._deliver(items)
        finally:
            # Before its waiters wake up and check whether anything is under way.
            if (call := asyncio.current_task()) is not None:
                self._call_is_over(call)

    async def _deliver(self, items: list[_Item]) -> None:
        try:
            answer = await self._many(SubmitJobsRequest(requests=[request for request, _ in items]))
        except BaseException as error:
            for _, future in items:
                if not future.done():
                    future.set_exception(error)
            if not isinstance(error, CallError):
                raise
            return
        for (_, future), result in zip(items, answer.results, strict=True):
            if future.done():
                continue
            if result.WhichOneof("outcome") == "accepted":
                future.set_result(result.accepted)
                continue
            refusal = from_result(result)
            if isinstance(refusal, Unavailable | ResourceExhausted):
                future.set_result(refusal)
            else:
                future.set_exception(refusal)


class Submitter:
    """Sends each job by itself, in the caller's thread.

    Args:
        one: Makes a SubmitJob call.
        many: Not used.
    """

    def __init__(
        self,
        one: Callable[[SubmitJobRequest], SubmitJobResponse],
        many: Callable[[SubmitJobsRequest], SubmitJobsResponse],
    ) -> None:
        self._one = one

    def submit(self, request: SubmitJobRequest) -> SubmitJobResponse:
        """Submit one job.

        Raises:
            CallError: It was refused, or no server answered.
        """
        return self._one(request)
