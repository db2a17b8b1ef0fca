"""Makes calls of bytes, and says what came of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from tests.fuzz.inputs import Input
from tests.fuzz.surface import Method

OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
)
"""A connection of its own; how large an answer is, is a finding and no reason to refuse it."""
END_S = 20.0
"""A stream whose caller has said that it is over ends within so long."""
LISTEN_S = 0.03
"""How long each frame waits for an answer to the one before."""
MOST_ANSWERS = 30
"""Read of one stream; then it is cancelled."""
OF_THE_LIBRARY = "Internal error from Core"
"""What gRPC makes of a write to a stream that its end has just reached. The server knows nothing of
it.
"""

Hear = Callable[[bytes], None]
Next = Callable[[int], bytes | None]
"""The frame of a number, from 0; None: no more."""


@dataclass(slots=True)
class Outcome:
    """What came of a call."""

    sent: list[bytes] = field(default_factory=list)
    code: grpc.StatusCode = grpc.StatusCode.OK
    message: str = ""
    trailers: tuple[tuple[str, str | bytes], ...] = ()
    answers: list[bytes] = field(default_factory=list)
    seconds: float = 0.0
    hangs: bool = False
    """The server did not end a stream that was over."""
    gone: bool = False
    """The caller ended it itself: its status says nothing."""


class Caller:
    """Makes calls over some connections.

    Args:
        address: HOST:PORT.
        connections: How many.
    """

    def __init__(self, address: str, connections: int = 4) -> None:
        self._address = address
        self._channels = [
            grpc.aio.insecure_channel(address, options=OPTIONS) for _ in range(connections)
        ]
        self._calls: dict[tuple[int, str], Any] = {}

    async def close(self) -> None:
        """Close the connections."""
        for channel in self._channels:
            await channel.close()

    async def make(self, what: Input, lane: int = 0, hear: Hear | None = None) -> Outcome:
        """Make a call once more."""

        def frame(number: int) -> bytes | None:
            return what.frames[number] if number < len(what.frames) else None

        return await self.call(what, frame, lane, hear)

    async def call(
        self, what: Input, frames: Next, lane: int = 0, hear: Hear | None = None
    ) -> Outcome:
        """Make a call whose frames are asked for as it goes.

        Args:
            what: All but its frames.
            frames: Gives them.
            lane: Says which connection to use.
            hear: Is told every answer as it comes.
        """
        outcome = Outcome()
        began = asyncio.get_running_loop().time()
        async with self._channel(what, lane) as (number, channel):
            start = self._start(what.method, number, channel)
            run = _stream if what.method.streams_in else _one_request
            try:
                await run(start, what, frames, outcome, hear or (lambda data: None))
            except grpc.aio.AioRpcError as error:
                outcome.code, outcome.message = error.code(), error.details() or ""
                outcome.trailers = tuple(error.trailing_metadata() or ())
            except (asyncio.InvalidStateError, grpc.aio.UsageError):
                outcome.gone = True
            except asyncio.CancelledError:
                # Of the call, as its connections are closed when the server has ended.
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                outcome.gone = True
        outcome.seconds = asyncio.get_running_loop().time() - began
        return outcome

    @contextlib.asynccontextmanager
    async def _channel(self, what: Input, lane: int) -> AsyncIterator[tuple[int, Any]]:
        if what.ending != "drop":
            number = lane % len(self._channels)
            yield number, self._channels[number]
            return
        channel = grpc.aio.insecure_channel(self._address, options=OPTIONS)
        try:
            yield -1, channel
        finally:
            await channel.close()

    def _start(self, method: Method, number: int, channel: Any) -> Any:
        found = self._calls.get((number, method.path))
        if found is None:
            kind = "_".join(
                "stream" if streams else "unary"
                for streams in (method.streams_in, method.streams_out)
            )
            found = getattr(channel, kind)(method.path)
            if number >= 0:
                self._calls[number, method.path] = found
        return found


async def _one_request(start: Any, what: Input, frames: Next, outcome: Outcome, hear: Hear) -> None:
    frame = frames(0) or b""
    outcome.sent.append(frame)
    call = start(frame, timeout=what.timeout_s, metadata=what.metadata)
    if what.method.streams_out:
        await _read_out(call, what, outcome, hear)
        return
    if what.ending != "read":
        # Somewhere on its way, wherever that is.
        await asyncio.sleep(0.002 if what.ending == "cancel" else 0)
        outcome.gone = True
        if what.ending == "cancel":
            call.cancel()
        return
    answer = await call
    outcome.answers.append(answer)
    hear(answer)


async def _read_out(call: Any, what: Input, outcome: Outcome, hear: Hear) -> None:
    """Reads a stream of answers for as long as there is something to hear."""
    if what.ending == "leave":
        await asyncio.sleep(4 * LISTEN_S)
    else:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(10 * LISTEN_S):
                while len(outcome.answers) < MOST_ANSWERS:
                    answer = await call.read()
                    if answer is grpc.aio.EOF:
                        await _ended(call, outcome)
                        return
                    outcome.answers.append(answer)
                    hear(answer)
    outcome.gone = True
    if what.ending != "drop":
        call.cancel()


async def _stream(start: Any, what: Input, frames: Next, outcome: Outcome, hear: Hear) -> None:
    call = start(timeout=what.timeout_s, metadata=what.metadata)
    heard = asyncio.Event()

    async def listen() -> None:
        while (answer := await call.read()) is not grpc.aio.EOF:
            if len(outcome.answers) < 4 * MOST_ANSWERS:
                outcome.answers.append(answer)
            hear(answer)
            heard.set()

    reads = what.ending != "leave"
    listener = asyncio.ensure_future(listen()) if reads else None
    try:
        await _say(call, frames, outcome, listener, heard)
        if what.ending == "close":
            await call.done_writing()
            if not await _over(call, listener, END_S):
                outcome.hangs = True
        else:
            await _over(call, listener, LISTEN_S if what.ending == "cancel" else 4 * LISTEN_S)
    except (asyncio.InvalidStateError, grpc.aio.UsageError, grpc.aio.AioRpcError):
        # It is over, and its status says why.
        await _over(call, listener, END_S)
    finally:
        if not call.done():
            outcome.gone = True
            if what.ending != "drop":
                call.cancel()
        if listener is not None:
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)
    if not outcome.gone:
        await _ended(call, outcome)


async def _say(
    call: Any,
    frames: Next,
    outcome: Outcome,
    listener: asyncio.Future[None] | None,
    heard: asyncio.Event,
) -> None:
    """Sends the frames, and listens for a moment after each, longer after the first."""
    number = 0
    while (frame := frames(number)) is not None and not call.done():
        heard.clear()
        outcome.sent.append(frame)
        await call.write(frame)
        if listener is not None and not listener.done():
            hearing = asyncio.ensure_future(heard.wait())
            await asyncio.wait(
                {listener, hearing},
                timeout=LISTEN_S if number else 1.0,
                return_when=asyncio.FIRST_COMPLETED,
            )
            hearing.cancel()
        number += 1


async def _over(call: Any, listener: asyncio.Future[None] | None, within_s: float) -> bool:
    """Waits for a call's end; tells whether it came."""
    if listener is not None:
        await asyncio.wait({listener}, timeout=within_s)
        return listener.done()
    end = asyncio.ensure_future(call.code())
    await asyncio.wait({end}, timeout=within_s)
    end.cancel()
    return bool(call.done())


async def _ended(call: Any, outcome: Outcome) -> None:
    outcome.code = await call.code()
    outcome.message = await call.details() or ""
    outcome.trailers = tuple(await call.trailing_metadata() or ())
    outcome.gone = outcome.message == OF_THE_LIBRARY and not outcome.trailers
