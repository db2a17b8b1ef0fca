"""Watchers that keep what they are told, and a worker that writes output call by call."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any

import grpc

from jobwire.v1 import (
    admin_service_pb2_grpc,
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    worker_service_pb2,
    worker_service_pb2_grpc,
)

from tests.support.streams import PATIENCE_S
from tests.support.waiting import eventually

LOCAL = (("grpc.use_local_subchannel_pool", 1),)
"""Each channel has a connection of its own."""
State = job_pb2.JobState
Chunk = job_pb2.OutputChunk
ALL = job_service_pb2.WATCH_CONTENT_ALL
STATES = job_service_pb2.WATCH_CONTENT_STATES
OUTPUT = job_service_pb2.WATCH_CONTENT_OUTPUT
SUCCEEDED = job_pb2.JOB_STATE_SUCCEEDED
RUNNING = job_pb2.JOB_STATE_RUNNING
PENDING = job_pb2.JOB_STATE_PENDING
CANCELLED = job_pb2.JOB_STATE_CANCELLED


def chunk(content: bytes | str, offset: int, channel: str = "") -> job_pb2.OutputChunk:
    """Returns a chunk of bytes or text."""
    if isinstance(content, str):
        return Chunk(channel=channel, offset=offset, text=content)
    return Chunk(channel=channel, offset=offset, data=content)


def content_of(one: job_pb2.OutputChunk) -> bytes:
    """Returns a chunk's bytes."""
    return one.text.encode() if one.WhichOneof("content") == "text" else one.data


class Account:
    """What a watcher was told over all its streams, checked as it comes in.

    Output must continue what there is; a state must not be older than one that was seen.
    """

    def __init__(self) -> None:
        self.jobs: list[job_pb2.Job] = []
        self.output: dict[int, bytes] = {}
        self.starts: dict[int, int] = {}
        """Attempt -> offset of the first byte that was told of it."""
        self.order: list[str] = []
        """`job` or `output` for each answer that was one."""
        self.cursors: list[str] = []
        self.bookmarks = 0

    def take(self, answer: Any) -> None:
        """Notes an answer."""
        kind = answer.WhichOneof("event")
        assert kind is not None, "an answer without an event"
        assert answer.cursor, "an answer without a cursor"
        if kind == "bookmark":
            self.bookmarks += 1
        elif kind == "job":
            if self.jobs:
                assert answer.job.revision > self.jobs[-1].revision, "a state was told again"
            self.jobs.append(answer.job)
            self.order.append("job")
        else:
            self._take_output(answer.output)
            self.order.append("output")
        self.cursors.append(answer.cursor)

    def _take_output(self, output: job_service_pb2.Output) -> None:
        attempt = output.attempt
        assert attempt >= max(self.output, default=0), "output of an attempt that was over"
        for one in output.chunks:
            start = self.starts.setdefault(attempt, one.offset)
            assert one.offset == start + len(self.output.get(attempt, b"")), "a gap or a repeat"
            self.output[attempt] = self.output.get(attempt, b"") + content_of(one)

    @property
    def states(self) -> list[int]:
        return [job.state for job in self.jobs]

    @property
    def cursor(self) -> str:
        """The last one, '' before the first answer."""
        return self.cursors[-1] if self.cursors else ""

    @property
    def finished(self) -> bool:
        """True once the terminal state was told."""
        return bool(self.jobs) and self.jobs[-1].state >= SUCCEEDED


class Watcher:
    """A WatchJob stream that is read in the background. Use it as a context manager.

    Args:
        stub: Of JobService.
        job_id: The job.
        account: What it was told before; a new one if unset.
        request: Fields of WatchJobRequest.
    """

    def __init__(
        self, stub: Any, job_id: str, account: Account | None = None, **request: Any
    ) -> None:
        self.account = account or Account()
        self.call = stub.WatchJob(job_service_pb2.WatchJobRequest(job_id=job_id, **request))
        self._task = asyncio.create_task(self._read())

    async def __aenter__(self) -> Watcher:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.break_off()

    async def _read(self) -> None:
        async for answer in self.call:
            self.account.take(answer)

    async def break_off(self) -> None:
        """Ends the stream from this side."""
        self.call.cancel()
        with suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
            await self._task

    async def end(self) -> Account:
        """Waits for the end of the stream, which must be OK."""
        async with asyncio.timeout(PATIENCE_S):
            await self._task
            assert await self.call.code() == grpc.StatusCode.OK
        return self.account

    async def fails(self) -> grpc.aio.AioRpcError:
        """Waits for the end of the stream, which must be a refusal."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                await self._task
            except grpc.aio.AioRpcError as error:
                return error
        raise AssertionError("the stream was not refused")

    async def sees(self, state: int) -> None:
        """Waits until the newest state it was told is this one."""
        await self._eventually(lambda: self.account.states[-1:] == [state], f"state {state}")

    async def reads(self, attempt: int, content: bytes) -> None:
        """Waits until it was told exactly this output of an attempt."""
        await self._eventually(
            lambda: len(self.account.output.get(attempt, b"")) >= len(content),
            f"{len(content)} bytes of output",
        )
        assert self.account.output.get(attempt, b"") == content

    async def _eventually(self, condition: Any, what: str) -> None:
        await eventually(
            lambda: condition() or self._task.done(), f"told {what}", timeout_s=PATIENCE_S
        )
        if not condition():
            await self._task
            raise AssertionError(f"the stream ended without {what}")


class Hands:
    """A producer, an operator, and a worker of unary calls, at one server.

    Args:
        address: HOST:PORT.
        worker_id: Its name as a worker.
    """

    def __init__(self, address: str, worker_id: str = "w1") -> None:
        self.channel = grpc.aio.insecure_channel(address, options=LOCAL)
        self.jobs: Any = job_service_pb2_grpc.JobServiceStub(self.channel)
        self.workers: Any = worker_service_pb2_grpc.WorkerServiceStub(self.channel)
        self.admin: Any = admin_service_pb2_grpc.AdminServiceStub(self.channel)
        self.worker_id = worker_id

    async def __aenter__(self) -> Hands:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.channel.close()

    def watch(self, job_id: str, account: Account | None = None, **request: Any) -> Watcher:
        """Begins to watch a job."""
        return Watcher(self.jobs, job_id, account, **request)

    async def submit(self, queue: str = "default", **spec: Any) -> str:
        """Submits a job; returns its id."""
        request = job_service_pb2.SubmitJobRequest(
            queue=queue, spec=job_pb2.JobSpec(**{"operation": "work", **spec})
        )
        answer: job_service_pb2.SubmitJobResponse = await self.jobs.SubmitJob(request)
        return answer.job_id

    async def register(self, *queues: str) -> None:
        """Registers the worker."""
        spec = worker_service_pb2.WorkerSpec(
            worker_id=self.worker_id, queues=queues, operations=["work", "other"]
        )
        await self.workers.RegisterWorker(worker_service_pb2.RegisterWorkerRequest(worker=spec))

    async def claim(self, job_id: str = "") -> worker_service_pb2.Assignment:
        """Claims a job, by id if one is named."""
        request = worker_service_pb2.ClaimJobRequest(worker_id=self.worker_id, job_id=job_id)
        if not job_id:
            request.wait.FromSeconds(10)
        answer = await self.workers.ClaimJob(request)
        assignment: worker_service_pb2.Assignment = answer.assignments[0]
        return assignment

    async def running(self, **spec: Any) -> worker_service_pb2.Assignment:
        """Submits a job and claims it."""
        return await self.claim(await self.submit(**spec))

    async def write(
        self, lease: worker_service_pb2.Assignment, *chunks: job_pb2.OutputChunk
    ) -> worker_service_pb2.UpdateProgressResponse:
        """Writes output of a job."""
        answer: worker_service_pb2.UpdateProgressResponse = await self.workers.UpdateProgress(
            worker_service_pb2.UpdateProgressRequest(
                worker_id=self.worker_id,
                job_id=lease.job_id,
                fencing_token=lease.fencing_token,
                output=chunks,
            )
        )
        return answer

    async def write_all(
        self, lease: worker_service_pb2.Assignment, pieces: Iterable[bytes], offset: int = 0
    ) -> int:
        """Writes pieces one call each; returns the offset behind them."""
        for piece in pieces:
            await self.write(lease, chunk(piece, offset))
            offset += len(piece)
        return offset

    async def progress(self, lease: worker_service_pb2.Assignment, message: str) -> None:
        """Reports progress."""
        await self.workers.UpdateProgress(
            worker_service_pb2.UpdateProgressRequest(
                worker_id=self.worker_id,
                job_id=lease.job_id,
                fencing_token=lease.fencing_token,
                progress=job_pb2.Progress(message=message),
            )
        )

    async def complete(self, lease: worker_service_pb2.Assignment, **outcome: Any) -> None:
        """Completes a job, with a result unless another outcome is named."""
        given = outcome or {"success": worker_service_pb2.Success()}
        await self.workers.CompleteJob(
            worker_service_pb2.CompleteJobRequest(
                worker_id=self.worker_id,
                completion=worker_service_pb2.Completion(
                    job_id=lease.job_id, fencing_token=lease.fencing_token, **given
                ),
            )
        )

    async def job(self, job_id: str) -> job_pb2.Job:
        """Returns a job as it stands."""
        answer = await self.jobs.GetJob(job_service_pb2.GetJobRequest(job_id=job_id))
        job: job_pb2.Job = answer.job
        return job

    async def cancel(self, job_id: str) -> None:
        """Asks for a job's end."""
        await self.jobs.CancelJob(job_service_pb2.CancelJobRequest(job_id=job_id))
