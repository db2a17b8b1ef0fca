"""What a lone submission costs its client: turns of the loop, tasks, messages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import grpc

from jobwire import AsyncClient
from jobwire.v1 import job_service_pb2 as jobs


class Call:
    """A stream whose server answers at once, in this loop."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self._answers: asyncio.Queue[Any] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    async def write(self, data: bytes) -> None:
        self.frames.append(data)
        frame = jobs.ProduceRequest.FromString(data)
        answer = jobs.ProduceResponse()
        if frame.HasField("open"):
            answer.opened.max_unanswered = 1000
        if frame.sequence:
            found = answer.answers.add(sequence=frame.sequence)
            for item in frame.submissions:
                found.results.add().accepted.job_id = item.request.job_id
        # As gRPC does: the write is done a turn later.
        written = self._loop.create_future()
        self._loop.call_soon(written.set_result, None)
        self._answers.put_nowait(answer)
        await written

    async def read(self) -> Any:
        return await self._answers.get()

    async def done_writing(self) -> None:
        self._answers.put_nowait(grpc.aio.EOF)

    def cancel(self) -> None:
        pass


class Channel:
    """A channel with that stream."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def stream_stream(self, *_: Any, **__: Any) -> Callable[..., Call]:
        return self._open

    def _open(self, metadata: object) -> Call:
        self.calls.append(Call())
        return self.calls[-1]


async def test_a_lone_submission_takes_no_task_and_few_turns() -> None:
    channel = Channel()
    loop = asyncio.get_running_loop()
    client = AsyncClient(channel=cast("grpc.aio.Channel", channel))
    await client.submit("work")
    turns = 0
    over = False

    def turn() -> None:
        nonlocal turns
        turns += 1
        if not over:
            loop.call_soon(turn)

    tasks: list[str] = []

    def make(loop: asyncio.AbstractEventLoop, coro: Any, **more: Any) -> asyncio.Task[Any]:
        tasks.append(repr(coro))
        return asyncio.Task(coro, loop=loop, **more)

    loop.call_soon(turn)
    await asyncio.sleep(0)
    loop.set_task_factory(make)
    before, count = turns, 100
    for number in range(count):
        await client.submit("work", number)
    took = turns - before
    loop.set_task_factory(None)
    over = True
    assert tasks == []
    # The reader wakes up, then the caller.
    assert took <= 2 * count + 2
    (call,) = channel.calls
    assert len(call.frames) == 1 + count
    await client.close()


async def test_a_hundred_at_once_share_frames() -> None:
    channel = Channel()
    client = AsyncClient(channel=cast("grpc.aio.Channel", channel))
    await client.submit("work")
    await asyncio.gather(*(client.submit("work", number) for number in range(100)))
    (call,) = channel.calls
    assert len(call.frames) <= 6
    await client.close()
