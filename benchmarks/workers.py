"""A worker that speaks the Work stream as any language would."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import grpc

from jobwire.v1 import worker_service_pb2 as pb
from jobwire.v1 import worker_service_pb2_grpc as worker_grpc

from benchmarks import jobs


class StreamWorker:
    """Holds a stream, acknowledges what comes by completing it at once, or keeps it.

    Args:
        channel: To the server.
        worker_id: Its name.
        credits: How many jobs it may hold.
        keep: True to acknowledge jobs and keep them.
        on_job: Called with each assignment as it is read.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        worker_id: str,
        *,
        credits: int,  # noqa: A002
        keep: bool = False,
        on_job: Callable[[pb.Assignment], None] = lambda assignment: None,
    ) -> None:
        self._channel = channel
        self._call: Any = None
        self._worker_id = worker_id
        self._credits = credits
        self._keep = keep
        self._on_job = on_job
        self._tasks: list[asyncio.Task[None]] = []
        self._writing = asyncio.Lock()
        self._sequence = 0
        self.held: list[pb.Assignment] = []

    async def attach(self) -> None:
        """Attaches, and works from then on."""
        # Not before: a server does not wait for ever for who it is that calls.
        self._call = worker_grpc.WorkerServiceStub(self._channel).Work()
        spec = pb.WorkerSpec(worker_id=self._worker_id, operations=[jobs.OPERATION])
        attach = pb.Attach(worker=spec, instance_id="bench", credits=self._credits)
        with suppress(asyncio.InvalidStateError):
            await self._send(pb.WorkRequest(attach=attach))
        first = await self._call.read()
        if first is grpc.aio.EOF:
            raise RuntimeError(f"not attached: {await self._call.details()}")
        self._tasks.append(asyncio.create_task(self._read()))
        beat_s = first.attached.heartbeat_interval.ToTimedelta().total_seconds()
        self._tasks.append(asyncio.create_task(self._beat(beat_s)))

    async def _send(self, frame: pb.WorkRequest) -> None:
        # A call takes one write at a time.
        async with self._writing:
            await self._call.write(frame)

    async def report(self, *reports: pb.Report) -> None:
        """Sends reports without waiting for their receipt."""
        self._sequence += 1
        await self._send(pb.WorkRequest(sequence=self._sequence, reports=reports))

    async def complete(self, assignments: Sequence[pb.Assignment]) -> None:
        """Completes jobs."""
        self._sequence += 1
        completions = [
            pb.Completion(job_id=one.job_id, fencing_token=one.fencing_token, success=pb.Success())
            for one in assignments
        ]
        await self._send(pb.WorkRequest(sequence=self._sequence, completions=completions))

    def check_alive(self) -> None:
        """Raises what ended the stream, if it has ended."""
        for task in self._tasks:
            if task.done():
                task.result()
                raise RuntimeError("the stream has ended")

    async def close(self) -> None:
        """Ends the stream."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with suppress(asyncio.CancelledError):
            self._call.cancel()

    async def _read(self) -> None:
        while (frame := await self._call.read()) is not grpc.aio.EOF:
            if frame.assignments:
                for assignment in frame.assignments:
                    self._on_job(assignment)
                if self._keep:
                    self.held.extend(frame.assignments)
                    await self._send(
                        pb.WorkRequest(
                            acks=[
                                pb.LeaseRef(job_id=one.job_id, fencing_token=one.fencing_token)
                                for one in frame.assignments
                            ]
                        )
                    )
                else:
                    for at in range(0, len(frame.assignments), 1000):
                        await self.complete(frame.assignments[at : at + 1000])
            for receipt in frame.receipts:
                if receipt.refused:
                    raise RuntimeError(f"refused: {receipt.refused[0].error}")

    async def _beat(self, interval_s: float) -> None:
        while True:
            await asyncio.sleep(interval_s * 0.8)
            await self._send(pb.WorkRequest(heartbeat=pb.Heartbeat()))
