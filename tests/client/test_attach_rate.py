"""However streams end, a worker does not attach in a hurry: counted on a clock that jumps."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from grpc import aio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jobwire._connection import ConnectionOptions
from jobwire.errors import CallError
from jobwire.v1 import job_pb2
from jobwire.v1 import worker_service_pb2 as pb
from jobwire.worker.transport import StreamTransport, UnaryTransport

from tests.client.broker import reason, rich_status

MINUTE_S = 30.0
MOST_IN_A_SECOND = 10
MOST_LATER = 4
"""A second, once the first few seconds are over."""


class _Selector(selectors.SelectSelector):
    """Waits for nothing: time jumps to the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self._turns = 0
        """Of the loop without any time passing."""

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        if not found:
            assert timeout is not None, "nothing will ever happen"
            # Less than the clock can tell would be no time at all.
            self.now += max(timeout, 1e-6) if timeout > 0 else 0.0
            self._turns = 0 if timeout > 0 else self._turns + 1
            assert self._turns < 100_000, f"busy without end at {self.now}"
        return found


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop that does not wait."""

    def __init__(self) -> None:
        self._jumping = _Selector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


@dataclass(frozen=True)
class Way:
    """How one stream goes on after its first frame, and ends."""

    attached: bool
    """False: it ends without an answer."""
    lasts_s: float
    end: str
    """A status of gRPC, or `eof`, `empty` (a frame without fields), `drain`, `silence`, `refusals`.
    """
    broker: str = ""
    """The reason that a broker gives; '' for what a proxy or gRPC itself says."""


class Call:
    """A `Work` call as grpc.aio has them."""

    def __init__(self, way: Way) -> None:
        self._way = way
        self._told = False
        self._answered = False
        self._over: asyncio.Event = asyncio.Event()
        self.sequences: list[int] = []

    async def write(self, frame: pb.WorkRequest) -> None:
        if frame.sequence:
            self.sequences.append(frame.sequence)

    def cancel(self) -> None:
        self._over.set()

    async def read(self) -> Any:
        way = self._way
        if not self._answered and way.attached:
            self._answered = True
            frame = pb.WorkResponse()
            frame.attached.heartbeat_interval.FromSeconds(5)
            frame.attached.lease_duration.FromSeconds(30)
            frame.attached.contact_timeout.FromSeconds(20)
            return frame
        if way.end == "drain" and way.attached and not self._told:
            self._told = True
            return pb.WorkResponse(drain=pb.Drain(reason="the server shuts down"))
        if way.end == "refusals" and self.sequences:
            no = pb.Refused(job_id="default-x", fencing_token=1)
            no.error.code = 13
            return pb.WorkResponse(
                receipts=[pb.Receipt(sequence=self.sequences.pop(0), refused=[no])]
            )
        with suppress(TimeoutError):
            async with asyncio.timeout(None if way.end == "silence" else way.lasts_s):
                await self._over.wait()
        if self._over.is_set():
            raise asyncio.CancelledError
        if way.end in ("eof", "drain", "refusals"):
            return aio.EOF
        if way.end == "empty":
            if self._told:
                return aio.EOF
            self._told = True
            return pb.WorkResponse()
        code = getattr(grpc.StatusCode, way.end)
        details: Any = ()
        if way.broker:
            _, _, details = rich_status(code, "no", reason(way.broker, same_process="true"))
        raise aio.AioRpcError(code, aio.Metadata(), aio.Metadata(*details), details="no")


class Channel:
    """Opens streams that go one way after the other, and again."""

    def __init__(self, ways: Sequence[Way]) -> None:
        self._ways = ways
        self.attached_at: list[float] = []

    def _open(self, **_: Any) -> Call:
        way = self._ways[len(self.attached_at) % len(self._ways)]
        self.attached_at.append(asyncio.get_running_loop().time())
        return Call(way)

    def stream_stream(self, *_: Any, **__: Any) -> Any:
        return self._open

    def unary_unary(self, *_: Any, **__: Any) -> Any:
        return None


class Host:
    """A worker with one job that has just ended."""

    def __init__(self) -> None:
        self.spec = pb.WorkerSpec(worker_id="w1", operations=["x"])
        self.capacity, self.stuck = 10, 0

    def free_slots(self) -> int:
        return 10

    async def wait_for_free_slots(self) -> int:
        return 10

    def leases(self) -> Sequence[pb.LeaseRef]:
        return []

    def _ignored(self, *_: Any) -> None:
        return None

    assign = cancel = lose = lose_all = saved = recorded = refused = drain = _ignored


def attachments(ways: Sequence[Way], say: Callable[[StreamTransport], None]) -> list[float]:
    """When a worker attached within a minute, if its streams go these ways in turn."""
    channel = Channel(ways)

    async def run() -> None:
        transport = StreamTransport(ConnectionOptions(target="nowhere:1"), channel)  # type: ignore[arg-type]
        with suppress(TimeoutError, CallError):
            async with asyncio.timeout(MINUTE_S):
                await transport.open(Host())  # type: ignore[arg-type]
                say(transport)
                await transport.run()
        await transport.close()

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(run())
    return channel.attached_at


STATUSES = [code.name for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
ENDS = [*STATUSES, "eof", "empty", "drain", "silence", "refusals"]
BROKERS = ["", "SUPERSEDED", "STORE_UNAVAILABLE", "SERVER_DRAINING", "INTERNAL"]
WAYS = st.builds(
    Way,
    attached=st.booleans(),
    lasts_s=st.sampled_from([0.0, 0.001, 0.3, 0.99, 1.01, 7.0]),
    end=st.sampled_from(ENDS),
    broker=st.sampled_from(BROKERS),
)


def _completes(transport: StreamTransport) -> None:
    success = pb.Success(result=job_pb2.Payload(json="1"))
    transport.complete([pb.Completion(job_id="default-x", fencing_token=1, success=success)])


def _check(ways: Sequence[Way]) -> None:
    at = attachments(ways, _completes)
    for first, tenth in zip(at, at[MOST_IN_A_SECOND:], strict=False):
        assert tenth - first > 1.0, f"{at[:20]}"
    later = [when for when in at if when > 10.0]
    assert len(later) <= MOST_LATER * (MINUTE_S - 10.0), f"{len(later)} in 20 s"


@pytest.mark.parametrize("attached", [True, False])
@pytest.mark.parametrize("end", ENDS)
def test_streams_that_all_end_in_one_way_are_not_followed_in_a_hurry(
    end: str, attached: bool
) -> None:
    for broker in BROKERS:
        _check([Way(attached, 0.0, end, broker)])


# The same ones each time: what other lists of ways come to is looked for beside the suite.
@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.lists(WAYS, min_size=1, max_size=5))
@example([Way(True, 0.0, "INTERNAL"), Way(False, 0.0, "UNAVAILABLE")])
def test_streams_that_end_in_any_ways_are_not_followed_in_a_hurry(ways: list[Way]) -> None:
    _check(ways)


def test_a_stream_that_held_for_long_is_followed_at_once() -> None:
    at = attachments([Way(True, 7.0, "UNAVAILABLE")], _completes)
    assert len(at) == 5
    assert at[1] == pytest.approx(7.0)


class Forgetful:
    """A channel to servers that take any worker, and forget it at once."""

    def __init__(self) -> None:
        self.registered_at: list[float] = []

    def unary_unary(self, path: str, **_: Any) -> Any:
        async def call(request: Any, **_: Any) -> Any:
            if path.endswith("RegisterWorker"):
                self.registered_at.append(asyncio.get_running_loop().time())
                answer = pb.RegisterWorkerResponse()
                answer.heartbeat_interval.FromSeconds(5)
                answer.lease_duration.FromSeconds(30)
                return answer
            details = rich_status(grpc.StatusCode.NOT_FOUND, "no", reason("WORKER_NOT_FOUND"))[2]
            raise aio.AioRpcError(
                grpc.StatusCode.NOT_FOUND, aio.Metadata(), aio.Metadata(*details), details="no"
            )

        return call

    def stream_stream(self, *_: Any, **__: Any) -> Any:
        return None


def test_a_worker_that_is_forgotten_does_not_register_in_a_hurry() -> None:
    channel = Forgetful()

    async def run() -> None:
        transport = UnaryTransport(ConnectionOptions(target="nowhere:1"), channel)  # type: ignore[arg-type]
        await transport.open(Host())  # type: ignore[arg-type]
        with suppress(TimeoutError):
            async with asyncio.timeout(MINUTE_S):
                await transport.run()
        await transport.close()

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(run())
    at = channel.registered_at
    assert len(at) > 5
    for first, tenth in zip(at, at[MOST_IN_A_SECOND:], strict=False):
        assert tenth - first > 1.0, f"{at[:20]}"
    assert len(at) <= MOST_LATER * MINUTE_S
