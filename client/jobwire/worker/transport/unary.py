"""A worker's conversation in single calls: one loop that claims, one that sends heartbeats."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import secrets
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any

import grpc
from grpc import aio

from jobwire._connection import ConnectionOptions
from jobwire._convert import to_duration
from jobwire._repeat import Backoff, Doubt, doubt_of, is_passing
from jobwire.errors import CallError, DeadlineExceeded, NotFound
from jobwire.output import OutputLog
from jobwire.v1 import worker_service_pb2 as pb
from jobwire.v1.job_pb2 import Payload, Progress
from jobwire.worker.transport.base import (
    START_PATIENCE_S,
    STEADY_S,
    Host,
    Terms,
    lacks,
    left_s,
)
from jobwire.worker.transport.calls import CALL_TIMEOUT_S, WorkerCalls
from jobwire.worker.transport.fence import Fence
from jobwire.worker.transport.unary_reports import UnaryReports

log = logging.getLogger("jobwire.worker")

CLAIM_WAIT_S = 25.0
# A server that answers no heartbeat for so long may hang; another connection may lead to another.
HEARTBEAT_TIMEOUT_S = 1.5
LEAST_HEARTBEAT_TIMEOUT_S = 0.5
# Doubled for each one in a row without an answer: it may be slow rather than dead.
MOST_HEARTBEAT_TIMEOUT_S = 6.0
LEAVE_TIMEOUT_S = 2.0
# How long a claim under way may last once the broker knows that the worker drains: what was
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
        self._calls = WorkerCalls(options, channel)
        self._patience_s = patience_s
        self._instance_id = secrets.token_hex(8)
        self._registering = asyncio.Lock()
        self._registration = 0
        self._registered_at = 0.0
        self._again = Backoff(initial_s=0.05, max_s=2.0)
        self._terms = Terms(heartbeat_interval_s=5.0, lease_s=30.0, server_id="")
        self._contact_s = 30.0
        self._given_up: list[pb.LeaseRef] = []
        """Leases that were given up while no server could hear of it."""
        self._claims = True
        self._claim: asyncio.Task[pb.ClaimJobResponse] | None = None
        self._completing: set[asyncio.Task[None]] = set()
        self._metadata: pb.StatusMetadata | None = None
        """What the worker tells of itself."""
        self._telling: asyncio.Task[None] | None = None

    async def open(self, host: Host) -> Terms:
        """Register the worker, and keep trying while no server answers."""
        self._host = host
        self._fence = Fence(host, self._given_up.extend)
        self._reports = UnaryReports(self._calls, host)
        async with self._registering:
            await self._register()
        return self._terms

    async def _register(self) -> None:
        request = pb.RegisterWorkerRequest(worker=self._host.spec, instance_id=self._instance_id)
        # A broker that took the worker before is waited for, whatever a proxy says.
        patience_s = math.inf if self._registration else self._patience_s
        answer = await self._calls.persist("RegisterWorker", request, patience_s)
        self._registration += 1
        self._registered_at = asyncio.get_running_loop().time()
        self._contact_s = (
            answer.contact_timeout.ToTimedelta().total_seconds()
            or answer.lease_duration.ToTimedelta().total_seconds()
        )
        self._fence.set(asyncio.get_running_loop().time(), self._contact_s)
        self._terms = Terms(
            heartbeat_interval_s=answer.heartbeat_interval.ToTimedelta().total_seconds() or 5.0,
            lease_s=answer.lease_duration.ToTimedelta().total_seconds(),
            server_id=answer.server_id,
        )

    async def _register_again(self, registration: int) -> None:
        """Register again after a call made under `registration` got WORKER_NOT_FOUND."""
        async with self._registering:
            # Several calls may learn of it at once; the first one acts.
            if registration != self._registration:
                return
            log.warning("the broker no longer knows this worker; registering again")
            self._host.lose_all()
            loop = asyncio.get_running_loop()
            if loop.time() - self._registered_at >= STEADY_S:
                self._again.reset()
            else:
                await asyncio.sleep(self._again.next_s())
            await self._register()
            if self._metadata is not None:
                self.tell(self._metadata)

    async def run(self) -> None:
        """Bring jobs and keep leases until cancelled, over restarts of servers."""
        self._fence.set(asyncio.get_running_loop().time(), self._contact_s)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._claim_loop())
                group.create_task(self._heartbeat_loop())
        finally:
            self._fence.lift()

    def heard_beside(self, at: float) -> None:
        """Note a call beside the transport that the broker answered; called from any thread."""
        self._fence.heard_beside(at)

    def _release_given_up(self) -> None:
        """Give back the leases given up while no server could be told, so that nobody has to wait
        until they end.
        """
        leases = [*self._given_up]
        self._given_up.clear()
        for lease in leases:
            self._complete_later(self._release(lease))

    async def _release(self, lease: pb.LeaseRef) -> None:
        released = pb.Released(not_started=True, reason="no server answered its worker")
        completion = pb.Completion(
            job_id=lease.job_id, fencing_token=lease.fencing_token, released=released
        )
        worker_id = self._host.spec.worker_id
        request = pb.CompleteJobRequest(worker_id=worker_id, completion=completion)
        # Where it is somebody else's by now there is nothing to return.
        with suppress(CallError):
            await self._calls.persist("CompleteJob", request)

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
                self._calls.call("ClaimJob", request, CLAIM_WAIT_S + CALL_TIMEOUT_S)
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
            answer = await self._calls.call("Heartbeat", request, timeout_s)
        except CallError as error:
            if isinstance(error, DeadlineExceeded):
                log.warning(
                    "%s answers no heartbeat, trying another connection", self._calls.address
                )
                self._calls.leave_connection()
            await self._after_failure(error, registration, backoff)
            return False
        # Until a while after it was asked for the leases are this worker's.
        self._fence.set(asked_at, self._contact_s)
        self._release_given_up()
        self._host.lose(answer.lost_leases)
        for notice in answer.cancellations:
            self._host.cancel(notice)
        if answer.HasField("drain"):
            drain = answer.drain
            if drain.leave:
                self._host.drain(drain.reason or "the broker asked for it", left_s(drain))
            else:
                log.info("moving to another server: %s", drain.reason)
                self._calls.leave_connection()
        return True

    async def _after_failure(self, error: CallError, registration: int, backoff: Backoff) -> None:
        """Wait or register again before the loop tries once more.

        Raises:
            CallError: The broker refuses for good.
        """
        if _is_unknown_worker(error):
            await self._register_again(registration)
            return
        if error.code is grpc.StatusCode.INVALID_ARGUMENT:
            raise error
        if not is_passing(error) and doubt_of(error) is not Doubt.PROXY:
            log.error("the broker failed, still trying: %s", error)
        await asyncio.sleep(backoff.next_s(error.retry_after_s))

    async def stop_claiming(self) -> None:
        """Take no more jobs; return when none can arrive any more."""
        self._claims = False
        request = pb.UpdateWorkerStatusRequest(
            worker_id=self._host.spec.worker_id,
            status=pb.WORKER_STATUS_DRAINING,
            instance_id=self._instance_id,
        )
        try:
            await self._calls.call("UpdateWorkerStatus", request, LEAVE_TIMEOUT_S)
        except CallError as error:
            log.info("the broker could not be told of the drain: %s", error)
        claim = self._claim
        if claim is not None:
            await asyncio.wait({claim}, timeout=LAST_CLAIM_S)
            claim.cancel()

    def tell(self, metadata: pb.StatusMetadata) -> None:
        """Tell the broker of the worker; one call at a time, with the newest."""
        self._metadata = metadata
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell(), name="worker-tells")

    async def _tell(self) -> None:
        told = None
        while told is not self._metadata:
            told = self._metadata
            worker_id = self._host.spec.worker_id
            request = pb.UpdateWorkerStatusRequest(
                worker_id=worker_id, metadata=told, instance_id=self._instance_id
            )
            try:
                await self._calls.persist("UpdateWorkerStatus", request)
            except CallError as error:
                if error.code is grpc.StatusCode.INVALID_ARGUMENT:
                    # Without the metadata, which it does not know, the call asks for nothing.
                    log.warning(
                        lacks("status_metadata", "what the worker tells of itself is not shown")
                    )
                else:
                    log.info("the broker could not be told of the worker: %s", error)

    def capacity_changed(self) -> None:
        """Do nothing: the claims ask for what is free."""

    def report(
        self,
        lease: pb.LeaseRef,
        progress: Progress | None,
        output: OutputLog | None = None,
        checkpoint: Payload | None = None,
    ) -> None:
        """Report a job's progress, output and checkpoint, one call at a time for each job."""
        self._reports.report(lease, progress, output, checkpoint)

    def complete(self, completions: Sequence[pb.Completion]) -> None:
        """Report the ends of attempts, and take the next job with each answer."""
        for completion in completions:
            self._complete_later(self._complete(completion))

    def _complete_later(self, completing: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(completing)
        self._completing.add(task)
        task.add_done_callback(self._completing.discard)

    async def _complete(self, completion: pb.Completion) -> None:
        await self._reports.wait_for(completion.job_id)
        registration = self._registration
        request = pb.CompleteJobRequest(worker_id=self._host.spec.worker_id, completion=completion)
        # While a claim is under way the queue was empty a moment ago, and the claim will bring
        # what comes.
        if self._claims and self._claim is None:
            request.claim_next.max_jobs = 1
        try:
            answer = await self._calls.persist("CompleteJob", request)
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
        """Deregister the worker if a server can be reached, and close the connection."""
        try:
            if self._registration:
                request = pb.DeregisterWorkerRequest(
                    worker_id=self._host.spec.worker_id, instance_id=self._instance_id
                )
                await self._calls.call("DeregisterWorker", request, LEAVE_TIMEOUT_S)
        except CallError as error:
            log.info("the worker could not be deregistered: %s", error)
        finally:
            completing = [*self._completing]
            if self._telling is not None:
                completing.append(self._telling)
            for task in completing:
                task.cancel()
            await asyncio.gather(*completing, return_exceptions=True)
            await self._reports.close()
            self._fence.lift()
            await self._calls.close()


def _is_unknown_worker(error: CallError) -> bool:
    return isinstance(error, NotFound) and error.reason == "WORKER_NOT_FOUND"
