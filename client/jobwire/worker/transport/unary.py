"""A worker's conversation in single calls: one loop that claims, one that sends heartbeats."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn, cast

import grpc
from grpc import aio

from jobwire._channels import AsyncChannels
from jobwire._connection import ConnectionOptions
from jobwire._convert import to_duration
from jobwire._retry import Backoff, worth_retrying
from jobwire.errors import (
    CallError,
    DeadlineExceeded,
    LeaseLost,
    NotFound,
    OutputFull,
    Unavailable,
    from_rpc_error,
)
from jobwire.output import OutputLog
from jobwire.v1 import worker_service_pb2 as pb
from jobwire.v1 import worker_service_pb2_grpc as worker_grpc
from jobwire.v1.job_pb2 import Payload, Progress
from jobwire.worker.transport.base import Host, Terms
from jobwire.worker.transport.doubt import DOUBTFUL, START_PATIENCE_S
from jobwire.worker.transport.outbox import mend_output

log = logging.getLogger("jobwire.worker")

# A server's bug, or a proxy's way to break a connection off.
_DEFECTS = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN})
MAX_DEFECTS = 5

CLAIM_WAIT_S = 25.0
CALL_TIMEOUT_S = 10.0
# A server that answers no heartbeat for so long may hang; another connection may lead to another.
HEARTBEAT_TIMEOUT_S = 1.5
LEAST_HEARTBEAT_TIMEOUT_S = 0.5
# Doubled for each one in a row without an answer: it may be slow rather than dead.
MOST_HEARTBEAT_TIMEOUT_S = 6.0
REPORT_TIMEOUT_S = 5.0
LEAVE_TIMEOUT_S = 2.0
# How long a claim under way may go on once the broker knows that the worker drains: what was
# handed out before that arrives now, and nothing after it.
LAST_CLAIM_S = 0.25


class UnaryTransport:
    """Talks in single calls; see `Transport`.

    Args:
        options: Where the servers are.
        channel: An open channel to use in place of one of its own; it stays the caller's.
        patience_s: How long a first registration is tried where the refusal may be a proxy's word.
    """

    def __init__(
        self,
        options: ConnectionOptions,
        channel: aio.Channel | None = None,
        patience_s: float = START_PATIENCE_S,
    ) -> None:
        self._patience_s = patience_s
        self._own_channel = channel is None
        self._options = options
        self._channel = AsyncChannels(options, channel)
        self._left: set[asyncio.Task[None]] = set()
        """Connections that were left, while they are closed."""
        self._address = options.address
        self.heard_beside_at = float("-inf")
        self._metadata = tuple(options.metadata.items())
        self._instance_id = secrets.token_hex(8)
        self._stub = _stub(self._channel)
        self._leases_end: asyncio.TimerHandle | None = None
        self._registering = asyncio.Lock()
        self._registration = 0
        self._terms = Terms(heartbeat_interval_s=5.0, lease_s=30.0, server_id="")
        self._contact_s = 30.0
        self._given_up: list[pb.LeaseRef] = []
        self._claims = True
        self._claim: asyncio.Task[pb.ClaimJobResponse] | None = None
        self._reachable = True
        self._newest: dict[str, pb.UpdateProgressRequest] = {}
        self._logs: dict[str, OutputLog] = {}
        self._reporters: dict[str, asyncio.Task[None]] = {}
        self._completing: set[asyncio.Task[None]] = set()

    async def open(self, host: Host) -> Terms:
        """Registers the worker, trying on while no server answers."""
        self._host = host
        async with self._registering:
            await self._register()
        return self._terms

    async def _register(self) -> None:
        request = pb.RegisterWorkerRequest(worker=self._host.spec, instance_id=self._instance_id)
        answer = await self._persist("RegisterWorker", request, first=not self._registration)
        self._registration += 1
        self._contact_s = (
            answer.contact_timeout.ToTimedelta().total_seconds()
            or answer.lease_duration.ToTimedelta().total_seconds()
        )
        self._hears(asyncio.get_running_loop().time())
        self._terms = Terms(
            heartbeat_interval_s=answer.heartbeat_interval.ToTimedelta().total_seconds() or 5.0,
            lease_s=answer.lease_duration.ToTimedelta().total_seconds(),
            server_id=answer.server_id,
        )

    async def _register_again(self, registration: int) -> None:
        """After WORKER_NOT_FOUND to a call made under `registration`."""
        async with self._registering:
            # Several calls may learn of it at once; the first one acts.
            if registration != self._registration:
                return
            log.warning("the broker does not know this worker any more; registering again")
            self._host.lose_all()
            await self._register()

    async def run(self) -> None:
        """Brings jobs and keeps leases until cancelled; outlives servers."""
        self._hears(asyncio.get_running_loop().time())
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._claim_loop())
                group.create_task(self._heartbeat_loop())
        finally:
            if self._leases_end is not None:
                self._leases_end.cancel()

    def _hears(self, asked_at: float) -> None:
        """Takes note of an answer: until a while after it was asked for the leases are this
        worker's.
        """
        if self._leases_end is not None:
            self._leases_end.cancel()
        self._leases_end = asyncio.get_running_loop().call_at(
            asked_at + self._contact_s, self._give_up_leases
        )

    def _give_up_leases(self) -> None:
        left_s = self.heard_beside_at + self._contact_s - asyncio.get_running_loop().time()
        if left_s > 0:
            # This loop stood still, and was spoken for.
            self._leases_end = asyncio.get_running_loop().call_later(left_s, self._give_up_leases)
            return
        if self._host.leases():
            log.warning(
                "no server answered for %g s: its jobs may run elsewhere by now, so their handlers"
                " are stopped",
                self._contact_s,
            )
        self._given_up += self._host.leases()
        self._host.lose_all()

    def _return_given_up(self) -> None:
        """Gives back what was given up while no server could hear of it; nobody need wait for the
        leases to end.
        """
        leases, self._given_up = self._given_up, []
        for lease in leases:
            task = asyncio.create_task(self._return(lease))
            self._completing.add(task)
            task.add_done_callback(self._completing.discard)

    async def _return(self, lease: pb.LeaseRef) -> None:
        released = pb.Released(not_started=True, reason="no server answered its worker")
        completion = pb.Completion(
            job_id=lease.job_id, fencing_token=lease.fencing_token, released=released
        )
        worker_id = self._host.spec.worker_id
        request = pb.CompleteJobRequest(worker_id=worker_id, completion=completion)
        # Where it is somebody else's by now there is nothing to return.
        with suppress(CallError):
            await self._persist("CompleteJob", request)

    def _leave_connection(self) -> None:
        """Goes on over another connection: what hangs at the end of this one answers nothing."""
        if not self._own_channel:
            return
        left, self._channel = self._channel, AsyncChannels(self._options)
        self._stub = _stub(self._channel)
        closing = asyncio.create_task(left.close())
        self._left.add(closing)
        closing.add_done_callback(self._left.discard)

    async def _claim_loop(self) -> None:
        backoff = Backoff()
        while not self._stopped_claiming():
            slots = await self._host.wait_for_free_slots()
            registration = self._registration
            request = pb.ClaimJobRequest(
                worker_id=self._host.spec.worker_id,
                max_jobs=min(slots, 1000),
                wait=to_duration(CLAIM_WAIT_S),
            )
            self._claim = asyncio.ensure_future(
                self._call("ClaimJob", request, CLAIM_WAIT_S + CALL_TIMEOUT_S)
            )
            try:
                answer = await self._claim
            except CallError as error:
                await self._after_failure(error, registration, backoff)
                continue
            except asyncio.CancelledError:
                if not self._stopped_claiming():
                    raise
                return  # stop_claiming ended the call, not this task
            finally:
                self._claim = None
            backoff.reset()
            for notice in answer.cancellations:
                self._host.cancel(notice)
            self._host.assign(answer.assignments)

    def _stopped_claiming(self) -> bool:
        return not self._claims

    async def _heartbeat_loop(self) -> None:
        backoff = Backoff(max_s=1.0)
        while True:
            # Jitter keeps workers that started together from beating together.
            await asyncio.sleep(self._terms.heartbeat_interval_s * random.uniform(0.85, 1.0))
            timeout_s = min(
                HEARTBEAT_TIMEOUT_S,
                max(LEAST_HEARTBEAT_TIMEOUT_S, self._terms.heartbeat_interval_s),
            )
            while not await self._beat(backoff, timeout_s):
                timeout_s = min(2 * timeout_s, MOST_HEARTBEAT_TIMEOUT_S)
            backoff.reset()

    async def _beat(self, backoff: Backoff, timeout_s: float) -> bool:
        registration = self._registration
        request = pb.HeartbeatRequest(
            worker_id=self._host.spec.worker_id,
            leases=self._host.leases(),
            stuck=self._host.stuck,
        )
        asked_at = asyncio.get_running_loop().time()
        try:
            answer = await self._call("Heartbeat", request, timeout_s)
        except CallError as error:
            if isinstance(error, DeadlineExceeded):
                log.warning("%s answers no heartbeat, trying another connection", self._address)
                self._leave_connection()
            await self._after_failure(error, registration, backoff)
            return False
        self._hears(asked_at)
        self._return_given_up()
        self._host.lose(answer.lost_leases)
        for notice in answer.cancellations:
            self._host.cancel(notice)
        if answer.drain:
            self._host.drain("the broker asked for it")
        return True

    async def _after_failure(self, error: CallError, registration: int, backoff: Backoff) -> None:
        """Waits or registers again, so that the loop may go on.

        Raises:
            CallError: The broker refuses for good.
        """
        if _is_unknown_worker(error):
            await self._register_again(registration)
            return
        if error.code is grpc.StatusCode.INVALID_ARGUMENT:
            raise error
        if not _passing(error) and error.code not in DOUBTFUL:
            log.error("the broker failed, trying on: %s", error)
        await asyncio.sleep(backoff.next_s(error.retry_after_s))

    async def stop_claiming(self) -> None:
        """Takes no more jobs; returns when none can arrive any more."""
        self._claims = False
        request = pb.UpdateWorkerStatusRequest(
            worker_id=self._host.spec.worker_id, status=pb.WORKER_STATUS_DRAINING
        )
        try:
            await self._call("UpdateWorkerStatus", request, LEAVE_TIMEOUT_S)
        except CallError as error:
            log.info("the broker could not be told of the drain: %s", error)
        claim = self._claim
        if claim is not None:
            await asyncio.wait({claim}, timeout=LAST_CLAIM_S)
            claim.cancel()

    def capacity_changed(self) -> None:
        """Does nothing: the claims ask for what is free."""

    def report(
        self,
        lease: pb.LeaseRef,
        progress: Progress | None,
        output: OutputLog | None = None,
        checkpoint: Payload | None = None,
    ) -> None:
        """Has what a job says recorded, one call at a time for each job."""
        request = self._newest.get(lease.job_id)
        if request is None or request.fencing_token != lease.fencing_token:
            request = pb.UpdateProgressRequest(
                worker_id=self._host.spec.worker_id,
                job_id=lease.job_id,
                fencing_token=lease.fencing_token,
            )
            self._newest[lease.job_id] = request
        if progress is not None:
            request.progress.CopyFrom(progress)
        if checkpoint is not None:
            request.checkpoint.CopyFrom(checkpoint)
        if output is not None:
            self._logs[lease.job_id] = output
        if lease.job_id not in self._reporters:
            task = asyncio.create_task(self._send_reports(lease.job_id))
            self._reporters[lease.job_id] = task

    async def _send_reports(self, job_id: str) -> None:
        try:
            while job_id in self._newest:
                await self._send_report(self._newest.pop(job_id), self._logs.pop(job_id, None))
        finally:
            del self._reporters[job_id]

    async def _send_report(
        self, request: pb.UpdateProgressRequest, output: OutputLog | None
    ) -> None:
        """Sends a report; output and a checkpoint until they are recorded or refused for good."""
        lease = pb.LeaseRef(job_id=request.job_id, fencing_token=request.fencing_token)
        backoff = Backoff()
        while True:
            saves = request.HasField("checkpoint")
            if output is not None:
                del request.output[:]
                request.output.extend(output.take())
            if not (request.output or saves or request.HasField("progress")):
                return
            try:
                answer = await self._call("UpdateProgress", request, REPORT_TIMEOUT_S)
            except CallError as error:
                if output is not None:
                    if isinstance(error, OutputFull) or error.reason == "OUTPUT_GAP":
                        mend_output(output, lease.job_id, error)
                        continue
                    output.again()
                if _passing(error) and (output is not None or saves):
                    await asyncio.sleep(backoff.next_s(error.retry_after_s))
                    continue
                if output is not None:
                    output.close()
                if saves:
                    self._host.saved(lease, error)
                self._report_failed(lease, error)
                return
            backoff.reset()
            if output is not None:
                output.recorded()
            if saves:
                self._host.saved(lease, None)
            if answer.HasField("cancel"):
                self._host.cancel(answer.cancel)
            if output is None or not output.is_due:
                return
            request.ClearField("progress")
            request.ClearField("checkpoint")

    def _report_failed(self, lease: pb.LeaseRef, error: CallError) -> None:
        if _lease_is_gone(error):
            self._host.lose([lease])
        elif not _passing(error):
            log.warning("a progress report of %s was refused: %s", lease.job_id, error)

    def complete(self, completions: Sequence[pb.Completion]) -> None:
        """Has the ends of attempts recorded, and takes the next job with each answer."""
        for completion in completions:
            task = asyncio.create_task(self._complete(completion))
            self._completing.add(task)
            task.add_done_callback(self._completing.discard)

    async def _complete(self, completion: pb.Completion) -> None:
        reporter = self._reporters.get(completion.job_id)
        if reporter is not None:
            await asyncio.wait({reporter})
        registration = self._registration
        request = pb.CompleteJobRequest(worker_id=self._host.spec.worker_id, completion=completion)
        # While a claim is under way the queue was empty a moment ago, and the claim will bring
        # what comes.
        if self._claims and self._claim is None:
            request.claim_next.max_jobs = 1
        try:
            answer = await self._persist("CompleteJob", request)
        except CallError as error:
            self._host.refused(completion, error)
            if _is_unknown_worker(error):
                # What goes wrong with this the next heartbeat finds too, and its loop tells.
                with suppress(CallError):
                    await self._register_again(registration)
            return
        self._host.recorded([completion])
        for notice in answer.cancellations:
            self._host.cancel(notice)
        self._host.assign(answer.assignments)

    async def close(self) -> None:
        """Deregisters the worker if a server can be reached, and closes the connection."""
        try:
            if self._registration:
                request = pb.DeregisterWorkerRequest(worker_id=self._host.spec.worker_id)
                await self._call("DeregisterWorker", request, LEAVE_TIMEOUT_S)
        except CallError as error:
            log.info("the worker could not be deregistered: %s", error)
        finally:
            left = [*self._completing, *self._reporters.values()]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, *self._left, return_exceptions=True)
            if self._leases_end is not None:
                self._leases_end.cancel()
            if self._own_channel:
                await self._channel.close()

    async def _persist(self, method: str, request: Any, *, first: bool = False) -> Any:
        """Calls until it is answered: by success, or by a refusal that would only be repeated.

        Args:
            method: Of the service.
            request: Its request.
            first: The worker was never registered before, so that what may be a proxy's word is
                not waited out for ever.
        """
        backoff = Backoff(max_s=2.0)
        defects = 0
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            try:
                return await self._call(method, request, CALL_TIMEOUT_S)
            except CallError as error:
                defects += error.code in _DEFECTS
                if error.code in DOUBTFUL:
                    if first and loop.time() - began >= self._patience_s:
                        raise
                    if not defects:
                        log.warning("%s refuses, trying on: %s", self._address, error)
                        defects = 1
                elif not _passing(error) and not 0 < defects < MAX_DEFECTS:
                    raise
                await asyncio.sleep(backoff.next_s(error.retry_after_s))

    async def _call(self, method: str, request: Any, timeout_s: float) -> Any:
        call = getattr(self._stub, method)
        try:
            await self._channel.ready()
            answer = await call(request, timeout=timeout_s, metadata=self._metadata)
        except Unavailable as unresolved:
            self._note_and_raise(unresolved)
        except grpc.RpcError as raised:
            error = from_rpc_error(raised)
            self._channel.suspect(error)
            self._note_and_raise(error)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # The call was under way on a connection that was left.
            raise Unavailable("the connection was left") from None
        if not self._reachable:
            self._reachable = True
            log.info("%s answers again", self._address)
        return answer

    def _note_and_raise(self, error: CallError) -> NoReturn:
        # Said once for each outage, not for each attempt.
        if isinstance(error, Unavailable) and self._reachable:
            self._reachable = False
            log.warning("%s does not answer, trying on: %s", self._address, error)
        raise error


def _passing(error: CallError) -> bool:
    return isinstance(error, DeadlineExceeded) or worth_retrying(error)


def _is_unknown_worker(error: CallError) -> bool:
    return isinstance(error, NotFound) and error.reason == "WORKER_NOT_FOUND"


def _lease_is_gone(error: CallError) -> bool:
    return isinstance(error, LeaseLost | NotFound)


def _stub(channels: AsyncChannels) -> worker_grpc.WorkerServiceAsyncStub:
    # To the stub, the channels of several addresses are one.
    stub: worker_grpc.WorkerServiceAsyncStub = worker_grpc.WorkerServiceStub(
        cast("aio.Channel", channels)
    )
    return stub
