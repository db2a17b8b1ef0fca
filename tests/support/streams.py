"""Workers that speak the `Work` stream frame by frame, and servers in this process to speak to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Any

import grpc

from jobwire.v1 import job_pb2, job_service_pb2, job_service_pb2_grpc, worker_service_pb2_grpc
from jobwire.v1.worker_service_pb2 import (
    Assignment,
    Attach,
    Attached,
    CancelNotice,
    Completion,
    Detach,
    Drain,
    Heartbeat,
    LeaseRef,
    Receipt,
    Released,
    Report,
    Success,
    WorkerSpec,
    WorkerStatus,
    WorkRequest,
    WorkResponse,
)
from jobwire_server.broker.router import Router
from jobwire_server.broker.wiring import Parts, build_parts
from jobwire_server.domain.options import BrokerOptions
from jobwire_server.domain.server_info import ServerFacts, StoreInfo
from jobwire_server.servicers import generic_handlers
from jobwire_server.servicers.interceptor import CallInterceptor
from jobwire_server.servicers.records import JobSpecRecords
from jobwire_server.store.connection.connect import connect
from jobwire_server.telemetry.metrics import RpcMetrics

from tests.support.waiting import eventually

PATIENCE_S = 20.0
"""How long a test waits for what should come at once, on a machine that is busy."""

QUICK = BrokerOptions(
    lease_ms=10_000,
    heartbeat_interval_ms=300,
    worker_timeout_ms=10_000,
    claim_timeout_ms=400,
    reconnect_window_ms=600,
    tick_ms=100,
)
"""A clockwork that turns as fast as a busy machine lets it."""

_LOCAL = (("grpc.use_local_subchannel_pool", 1),)
"""Each channel has a connection of its own."""


class StreamServer:
    """A router with its gRPC server, in this process.

    Args:
        router: Started.
        parts: What it is made of.
        address: HOST:PORT.
        server: That of gRPC.
        calls: What is around its calls.
    """

    def __init__(
        self,
        router: Router,
        parts: Parts,
        address: str,
        server: grpc.aio.Server,
        calls: CallInterceptor,
    ) -> None:
        self.calls = calls
        self.router = router
        self.parts = parts
        self.address = address
        self.server = server


@asynccontextmanager
async def stream_server(
    url: str, options: BrokerOptions = QUICK, server_id: str = "s1"
) -> AsyncIterator[StreamServer]:
    """Runs a server on the store."""
    connection = connect(url)
    parts = build_parts(connection, options, JobSpecRecords(), server_id)
    router = Router(parts)
    facts = ServerFacts(server_id, "0", 0, StoreInfo("valkey", "0", ""), options.limits)
    calls = CallInterceptor(RpcMetrics())
    server = grpc.aio.server(
        interceptors=(calls,),
        options=(("grpc.max_receive_message_length", options.limits.max_message_bytes),),
    )
    server.add_generic_rpc_handlers(tuple(generic_handlers(router, facts)))
    port = server.add_insecure_port("127.0.0.1:0")
    await router.start()
    await server.start()
    try:
        yield StreamServer(router, parts, f"127.0.0.1:{port}", server, calls)
    finally:
        await router.drain(1.0)
        await server.stop(None)
        await router.stop()
        await connection.close()


def completion(assignment: Assignment, **outcome: Any) -> Completion:
    """Returns the end of an attempt, a success unless another outcome is named."""
    given = outcome or {"success": Success(result=job_pb2.Payload(json="1"))}
    return Completion(job_id=assignment.job_id, fencing_token=assignment.fencing_token, **given)


def lease_of(assignment: Assignment) -> LeaseRef:
    """Returns the name of an assignment's lease."""
    return LeaseRef(job_id=assignment.job_id, fencing_token=assignment.fencing_token)


class RawWorker:
    """A worker as another language would write it. Use it as a context manager.

    Args:
        address: HOST:PORT of a server.
        worker_id: Its name.
        instance: Of its process.
        queues: What it serves.
        operations: What it has handlers for.
        credits: How many jobs it may hold.
        credit_bytes: How many bytes of them; 0: no limit.
        lease_s: The lease that it asks for; 0: none.
        acks: True to acknowledge every assignment at once.
        beats: True to send a heartbeat every 100 ms.
        options: Of the channel.
    """

    def __init__(
        self,
        address: str,
        worker_id: str = "w1",
        *,
        instance: str = "i1",
        queues: Sequence[str] = ("default",),
        operations: Sequence[str] = ("work",),
        credits: int = 10,  # noqa: A002
        credit_bytes: int = 0,
        lease_s: int = 0,
        acks: bool = True,
        beats: bool = True,
        options: Sequence[tuple[str, Any]] = (),
    ) -> None:
        self.worker_id = worker_id
        self.first = Attach(
            worker=WorkerSpec(worker_id=worker_id, queues=queues, operations=operations),
            instance_id=instance,
            credits=credits,
            credit_bytes=credit_bytes,
        )
        if lease_s:
            self.first.worker.lease_duration.FromSeconds(lease_s)
        self.acks = acks
        self.beats = beats
        self.channel = grpc.aio.insecure_channel(address, options=(*_LOCAL, *options))
        stub = worker_service_pb2_grpc.WorkerServiceStub(self.channel)
        self.call: Any = stub.Work()
        self.attached: Attached | None = None
        self.held: dict[str, Assignment] = {}
        self.peak = 0
        """The most jobs that it held at once, as it saw it."""
        self.got: list[Assignment] = []
        self.lost: list[LeaseRef] = []
        self.receipts: dict[int, Receipt] = {}
        self.cancellations: list[CancelNotice] = []
        self.drains: list[Drain] = []
        self.frames: list[WorkResponse] = []
        self.sequence = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._writing = asyncio.Lock()
        self._said_all = False

    async def __aenter__(self) -> RawWorker:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.break_off()

    async def attach(self, leases: Iterable[Assignment] = ()) -> Attached:
        """Attaches, and from then on reads."""
        self.first.leases.extend(lease_of(lease) for lease in leases)
        self.held.update({lease.job_id: lease for lease in leases})
        await self.send(attach=self.first)
        self._tasks.append(asyncio.create_task(self._read()))
        if self.beats:
            self._tasks.append(asyncio.create_task(self._beat()))
        await eventually(
            lambda: self.attached is not None or self.call.done(),
            "an answer to attach",
            timeout_s=PATIENCE_S,
        )
        assert self.attached is not None, f"{await self.call.code()} {await self.call.details()}"
        return self.attached

    async def attach_unread(self) -> None:
        """Attaches and sends heartbeats, but reads nothing."""
        await self.send(attach=self.first)
        self._tasks.append(asyncio.create_task(self._beat()))

    async def send(self, **fields: Any) -> None:
        """Sends a frame."""
        await self.write(WorkRequest(**fields))

    async def write(self, frame: WorkRequest) -> None:
        """Sends a frame as it is."""
        # With two writes in hand grpc ends the call as INTERNAL, and heartbeats are written too.
        async with self._writing:
            if not self._said_all:
                await self.call.write(frame)

    async def write_last(self, frame: WorkRequest) -> None:
        """Sends a frame that the server ends the stream for, and nothing behind it.

        Where a stream ends while something is written, grpc may call that INTERNAL.
        """
        async with self._writing:
            self._said_all = True
            await self.call.write(frame)

    async def done_writing(self) -> None:
        """Sends nothing more."""
        async with self._writing:
            await self.call.done_writing()

    async def ack(self, *assignments: Assignment) -> None:
        """Acknowledges."""
        await self.send(acks=[lease_of(assignment) for assignment in assignments])

    async def post(
        self, completions: Sequence[Completion] = (), reports: Sequence[Report] = ()
    ) -> int:
        """Sends completions and reports; returns their sequence."""
        self.sequence += 1
        sequence = self.sequence
        for each in completions:
            self.held.pop(each.job_id, None)
        await self.send(sequence=sequence, completions=completions, reports=reports)
        return sequence

    async def receipt(self, sequence: int) -> Receipt:
        """Waits for a receipt."""
        await eventually(
            lambda: sequence in self.receipts, f"receipt {sequence}", timeout_s=PATIENCE_S
        )
        return self.receipts[sequence]

    async def complete(self, *assignments: Assignment, **outcome: Any) -> Receipt:
        """Completes and waits for the receipt."""
        return await self.receipt(
            await self.post([completion(assignment, **outcome) for assignment in assignments])
        )

    async def release(self, *assignments: Assignment, started: bool = True) -> Receipt:
        """Gives jobs back and waits for the receipt."""
        return await self.complete(*assignments, released=Released(not_started=not started))

    async def jobs(self, count: int) -> list[Assignment]:
        """Waits until it was assigned so many jobs, over all; returns them."""
        await eventually(
            lambda: len(self.got) >= count,
            f"{self.worker_id} is assigned {count} jobs",
            timeout_s=PATIENCE_S,
        )
        return self.got[:count]

    async def loses(self, assignment: Assignment) -> None:
        """Waits until it is told that a lease is lost."""
        lease = lease_of(assignment)
        await eventually(
            lambda: lease in self.lost, f"{lease} is told to be lost", timeout_s=PATIENCE_S
        )

    async def end(self) -> tuple[grpc.StatusCode, str]:
        """Waits for the end of the stream, which it reads; returns its status."""
        async with asyncio.timeout(PATIENCE_S):
            if self.attached is None:
                await self._read()
            return await self.call.code(), await self.call.details()

    async def leave(self) -> tuple[grpc.StatusCode, str]:
        """Detaches; returns the status of the stream."""
        await self.send(detach=Detach())
        return await self.end()

    async def set_status(self, status: WorkerStatus.ValueType) -> None:
        """Wishes to take jobs or not."""
        await self.send(status=status)

    async def break_off(self) -> None:
        """Cuts the connection without a word."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        self.call.cancel()
        await self.channel.close()

    async def _read(self) -> None:
        with suppress(grpc.aio.AioRpcError):
            async for frame in self.call:
                self._take(frame)
                if frame.assignments and self.acks:
                    await self.ack(*frame.assignments)

    def _take(self, frame: WorkResponse) -> None:
        self.frames.append(frame)
        if frame.HasField("attached"):
            self.lost += frame.attached.lost_leases
            for lease in frame.attached.lost_leases:
                self.held.pop(lease.job_id, None)
            self.attached = frame.attached
        for assignment in frame.assignments:
            self.held[assignment.job_id] = assignment
            self.got.append(assignment)
        for lease in frame.lost_leases:
            self.lost.append(lease)
            held = self.held.get(lease.job_id)
            if held is not None and held.fencing_token == lease.fencing_token:
                del self.held[lease.job_id]
        self.peak = max(self.peak, len(self.held))
        self.cancellations += frame.cancellations
        for receipt in frame.receipts:
            self.receipts[receipt.sequence] = receipt
        if frame.HasField("drain"):
            self.drains.append(frame.drain)

    async def _beat(self) -> None:
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while not self.call.done():
                await self.send(heartbeat=Heartbeat())
                await asyncio.sleep(0.1)


class Producer:
    """Submits jobs and looks at them, over gRPC. Use it as a context manager."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=_LOCAL)
        self.stub = job_service_pb2_grpc.JobServiceStub(self._channel)

    async def __aenter__(self) -> Producer:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._channel.close()

    async def submit(
        self, count: int = 1, queue: str = "default", size: int = 2, **spec: Any
    ) -> list[str]:
        """Submits so many jobs with `size` bytes of payload each; returns their ids."""
        payload = job_pb2.Payload(data=b"x" * size)
        given = job_pb2.JobSpec(**{"operation": "work", "payload": payload, **spec})
        request = job_service_pb2.SubmitJobRequest(queue=queue, spec=given)
        job_ids: list[str] = []
        at_once = max(1, min(1000, (1 << 20) // (size + 1)))
        for at in range(0, count, at_once):
            answer = await self.stub.SubmitJobs(
                job_service_pb2.SubmitJobsRequest(requests=[request] * min(at_once, count - at))
            )
            job_ids += [result.accepted.job_id for result in answer.results]
        assert all(job_ids)
        return job_ids

    async def job(self, job_id: str) -> job_pb2.Job:
        """Returns a job as it stands."""
        answer = await self.stub.GetJob(job_service_pb2.GetJobRequest(job_id=job_id))
        return answer.job

    async def until(self, job_id: str, state: job_pb2.JobState.ValueType) -> job_pb2.Job:
        """Waits until a job is in a state; returns it."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                job = await self.job(job_id)
                if job.state == state:
                    return job
                await asyncio.sleep(0.01)

    async def cancel(self, job_id: str) -> None:
        """Asks for a job's end."""
        await self.stub.CancelJob(job_service_pb2.CancelJobRequest(job_id=job_id))
