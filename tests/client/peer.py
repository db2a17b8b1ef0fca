# ruff: noqa: N802 - methods have the names of the contract
"""The other end of worker streams over real gRPC, moved by a test's own hand."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc import aio

from jobwire import Context, Worker
from jobwire.v1 import errors_pb2, job_pb2
from jobwire.v1 import worker_service_pb2 as pb
from jobwire.v1 import worker_service_pb2_grpc as pb_grpc

from tests.client.broker import reason, rich_status

SUPERSEDED = rich_status(
    grpc.StatusCode.ABORTED,
    "another stream attached",
    reason("SUPERSEDED", same_process="false"),
)
SUPERSEDED_BY_ITSELF = rich_status(
    grpc.StatusCode.ABORTED,
    "another stream attached",
    reason("SUPERSEDED", same_process="true"),
)


class Stream:
    """One stream as its server sees it."""

    def __init__(self, peer: Peer, attach: pb.Attach) -> None:
        self._peer = peer
        self.attach = attach
        self.frames: list[pb.WorkRequest] = []
        self.brought: list[list[pb.Assignment]] = []
        """The assignments of each frame that has any."""
        self.outgoing: asyncio.Queue[pb.WorkResponse | tuple[Any, ...] | None] = asyncio.Queue()
        self.ended = False

    @property
    def acks(self) -> list[pb.LeaseRef]:
        return [ack for frame in self.frames for ack in frame.acks]

    @property
    def arrived(self) -> list[str]:
        """The jobs that the worker has acknowledged, one by one or by whole frames."""
        frames = max([frame.received for frame in self.frames], default=0)
        by_frame = [a.job_id for frame in self.brought[:frames] for a in frame]
        return [*by_frame, *(ack.job_id for ack in self.acks)]

    @property
    def reports(self) -> list[pb.Report]:
        return [report for frame in self.frames for report in frame.reports]

    @property
    def completions(self) -> list[pb.Completion]:
        return [completion for frame in self.frames for completion in frame.completions]

    @property
    def credits(self) -> int:
        """As the worker said last."""
        told = [frame.credits for frame in self.frames if frame.HasField("credits")]
        return [self.attach.credits, *told][-1]

    def send(self, **fields: Any) -> None:
        """Send a frame."""
        if fields.get("assignments"):
            self.brought.append(fields["assignments"])
        self.outgoing.put_nowait(pb.WorkResponse(**fields))

    def assign(self, *operations: str, payload: job_pb2.Payload | None = None) -> list[str]:
        """Send new jobs in one frame; return their ids."""
        assignments = [self._peer.new_job(operation, payload) for operation in operations]
        self.send(assignments=assignments)
        return [assignment.job_id for assignment in assignments]

    def end(self, status: tuple[Any, ...] | None = None) -> None:
        """End the stream: OK, or with a status of `rich_status`."""
        self.outgoing.put_nowait(status)

    async def completion(self, job_id: str) -> pb.Completion:
        """Wait for the end of a job."""
        await self._peer.until(lambda: any(c.job_id == job_id for c in self.completions))
        return next(c for c in self.completions if c.job_id == job_id)

    async def started(self, job_id: str) -> None:
        """Wait until a handler has reported anything."""
        await self._peer.until(lambda: any(r.job_id == job_id for r in self.reports))


class Peer(pb_grpc.WorkerServiceServicer):
    """A server of streams.

    Attributes:
        streams: Those attached so far.
        receipts: False: the test sends them.
        refusals: What the next completions of a job are refused with.
        lost: Leases to call lost in the next answers to an attachment.
    """

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.receipts = True
        self.refusals: dict[str, deque[errors_pb2.ItemError]] = defaultdict(deque)
        self.lost: list[pb.LeaseRef] = []
        self.heartbeat_s = 60.0
        self.lease_s = 30.0
        self.window_s = 5.0
        self.turned_away: list[Any] = []
        """What the next attachments are refused with."""
        self.answers = True
        self.features = ["received"]
        self.changed = asyncio.Condition()
        self.server: aio.Server | None = None
        self.port = 0
        self._jobs = 0

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        self.server = aio.server()
        pb_grpc.add_WorkerServiceServicer_to_server(self, self.server)
        self.port = self.server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self.server.start()

    async def stop(self) -> None:
        if self.server is not None:
            await self.server.stop(None)
            self.server = None

    def new_job(self, operation: str, payload: job_pb2.Payload | None = None) -> pb.Assignment:
        self._jobs += 1
        return pb.Assignment(
            job_id=f"default-{self._jobs:026d}",
            fencing_token=1,
            attempt=1,
            spec=job_pb2.JobSpec(operation=operation, payload=payload),
        )

    async def until(self, condition: Callable[[], object], timeout_s: float = 20.0) -> None:
        """Wait for a condition on what has arrived."""
        async with asyncio.timeout(timeout_s), self.changed:
            await self.changed.wait_for(condition)

    async def stream(self, number: int = 0) -> Stream:
        """Wait for an attachment."""
        await self.until(lambda: len(self.streams) > number)
        return self.streams[number]

    async def touch(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def Work(self, requests: AsyncIterator[pb.WorkRequest], context: Any) -> None:
        first = await anext(requests)
        if self.turned_away:
            await context.abort(*self.turned_away.pop())
        stream = Stream(self, first.attach)
        self.streams.append(stream)
        await self.touch()
        if not self.answers:
            await asyncio.Event().wait()
        lost, self.lost = self.lost, []
        attached = pb.Attached(
            server_id="test",
            heartbeat_interval=_duration(self.heartbeat_s),
            claim_timeout=Duration(seconds=5),
            reconnect_window=_duration(self.window_s),
            lease_duration=_duration(self.lease_s),
            lost_leases=lost,
            features=self.features,
        )
        await context.write(pb.WorkResponse(attached=attached))
        reader = asyncio.create_task(self._read(requests, stream))
        try:
            while (said := await stream.outgoing.get()) is not None:
                if isinstance(said, tuple):
                    await context.abort(*said)
                await context.write(said)
        finally:
            stream.ended = True
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _read(self, requests: AsyncIterator[pb.WorkRequest], stream: Stream) -> None:
        async for frame in requests:
            stream.frames.append(frame)
            if self.receipts and frame.sequence:
                stream.send(receipts=[self._receipt(frame)])
            if frame.HasField("detach"):
                stream.end()
            await self.touch()

    def _receipt(self, frame: pb.WorkRequest) -> pb.Receipt:
        receipt = pb.Receipt(sequence=frame.sequence)
        for completion in frame.completions:
            waiting = self.refusals[completion.job_id]
            if waiting:
                receipt.refused.add(
                    job_id=completion.job_id,
                    fencing_token=completion.fencing_token,
                    error=waiting.popleft(),
                )
        return receipt


def _duration(seconds: float) -> Duration:
    return Duration(seconds=int(seconds), nanos=round(seconds % 1 * 1e9))


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    """A server of streams that does as it is told."""
    made = Peer()
    await made.start()
    yield made
    await made.stop()


def streaming(peer: Peer, **handlers: Callable[[Context], Any]) -> Worker:
    """A worker with a handler for each operation named, and nothing kept ready."""
    worker = Worker(peer.target, concurrency=4, shutdown_grace_s=10, prefetch=0)
    for name, handler in handlers.items():
        worker.operation(name)(handler)
    return worker


def holding(gate: asyncio.Event) -> Callable[[Context], Any]:
    async def hold(context: Context) -> str:
        context.progress(None, "started")
        await gate.wait()
        return "held"

    return hold
