"""The worker's core: slots, handlers, leases. It knows no wire; a transport feeds it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobwire.context import Context, Report, StopReason, StopSignal
from jobwire.errors import CallError, InvalidRequest, LeaseLost
from jobwire.signals import Stopped
from jobwire.transport.base import Transport
from jobwire.v1.job_pb2 import Failure, Progress
from jobwire.v1.worker_service_pb2 import (
    Assignment,
    Cancelled,
    CancelNotice,
    Completion,
    LeaseRef,
    Released,
    Success,
    WorkerSpec,
)
from jobwire.worker.handlers import Operation, run_in_thread, run_on_loop
from jobwire.worker.outcomes import failure, refused_result, success
from jobwire.worker.processes import ProcessPool

log = logging.getLogger("jobwire.worker")

REPORT_INTERVAL_S = 0.1
# After the signal to stop, handlers get this long to unwind before their jobs are given back.
UNWIND_S = 5.0


@dataclass(eq=False, slots=True)
class _Held:
    """A job in a slot, from its assignment until its completion is recorded."""

    assignment: Assignment
    signal: StopSignal = field(default_factory=StopSignal)
    task: asyncio.Task[None] | None = None
    handler: asyncio.Task[Any] | None = None
    newest: Progress | None = None
    reporter: asyncio.Task[None] | None = None
    finished: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the handler is done, so that the last report is not held back."""
    given_back: bool = False
    """Its release was sent while its handler still ran; what the handler does is void."""

    @property
    def is_lost(self) -> bool:
        return self.signal.reason == "lease_lost"

    @property
    def lease(self) -> LeaseRef:
        return LeaseRef(job_id=self.assignment.job_id, fencing_token=self.assignment.fencing_token)


class Core:
    """Runs what is assigned, at most `concurrency` jobs at once.

    Args:
        spec: What the worker is and serves; `spec.concurrency` counts the slots.
        operations: The handlers by the operations that they take.
        transport: Carries reports and completions.
    """

    def __init__(
        self, spec: WorkerSpec, operations: Mapping[str, Operation], transport: Transport
    ) -> None:
        self._spec = spec
        self._operations = operations
        self._transport = transport
        self._processes = ProcessPool()
        self._held: dict[str, _Held] = {}
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._releases: set[asyncio.Task[None]] = set()
        self.draining = asyncio.Event()
        self.drain_reason = ""

    # What a transport sees.

    @property
    def spec(self) -> WorkerSpec:
        """What the worker is and serves."""
        return self._spec

    def free_slots(self) -> int:
        """How many more jobs it can take now; none while it drains."""
        if self.draining.is_set():
            return 0
        return max(0, self._spec.concurrency - len(self._held))

    async def wait_for_free_slots(self) -> int:
        """Waits until it can take jobs, and returns how many."""
        while not self.free_slots():
            self._changed.clear()
            await self._changed.wait()
        return self.free_slots()

    def leases(self) -> Sequence[LeaseRef]:
        """The leases that it holds, to be renewed."""
        return [held.lease for held in self._held.values() if not held.is_lost]

    def assign(self, assignments: Iterable[Assignment]) -> None:
        """Starts jobs; gives back those that it has no slot for or that come while draining."""
        for assignment in assignments:
            known = self._held.get(assignment.job_id)
            if known is not None and known.assignment.fencing_token < assignment.fencing_token:
                # The broker took the job back and hands it out anew: the old lease is lost.
                self._stop(known, "lease_lost")
                self._held.pop(assignment.job_id)
            elif known is not None:
                continue
            if not self.free_slots():
                self._give_back(assignment)
                continue
            held = _Held(assignment)
            self._held[assignment.job_id] = held
            held.task = self._loop.create_task(self._work(held), name=assignment.job_id)

    def cancel(self, notice: CancelNotice) -> None:
        """Stops a handler whose job was cancelled."""
        held = self._find(notice.job_id, notice.fencing_token)
        if held is not None and not held.signal.event.is_set():
            log.info("%s is cancelled%s", notice.job_id, _why(notice.reason))
            self._stop(held, "cancelled", notice.reason)

    def lose(self, leases: Iterable[LeaseRef]) -> None:
        """Stops the handlers of leases that are known to be lost."""
        for lease in leases:
            held = self._find(lease.job_id, lease.fencing_token)
            if held is not None and not held.is_lost:
                log.warning("the lease on %s is lost; its handler is stopped", lease.job_id)
                self._stop(held, "lease_lost")

    def lose_all(self) -> None:
        """Stops all handlers: the broker does not know this worker any more."""
        self.lose(self.leases())

    def drain(self, why: str) -> None:
        """Takes no more jobs; `draining` tells the owner to stop the worker."""
        if not self.draining.is_set():
            self.drain_reason = why
            self.draining.set()

    # One job.

    def _find(self, job_id: str, fencing_token: int) -> _Held | None:
        held = self._held.get(job_id)
        return held if held and held.assignment.fencing_token == fencing_token else None

    def _stop(self, held: _Held, reason: StopReason, message: str = "") -> None:
        held.signal.set(reason, message)
        operation = self._operations.get(held.assignment.spec.operation)
        if held.handler is not None and operation is not None and operation.mode == "async":
            held.handler.cancel()

    async def _work(self, held: _Held) -> None:
        next_jobs: Sequence[Assignment] = ()
        try:
            completion = await self._run(held)
            if completion is not None:
                next_jobs = await self._complete(held, completion)
        finally:
            # A newer delivery of the same job may have taken the entry.
            if self._held.get(held.assignment.job_id) is held:
                del self._held[held.assignment.job_id]
            self.assign(next_jobs)
            self._changed.set()

    async def _run(self, held: _Held) -> Completion | None:
        """Runs the handler; returns what to say about it, or None if nobody would listen."""
        operation = self._operations.get(held.assignment.spec.operation)
        held.handler = self._loop.create_task(self._call(held, operation))
        if held.signal.event.is_set():
            self._stop(held, held.signal.reason, held.signal.message)
        try:
            await asyncio.wait({held.handler})
        except asyncio.CancelledError:
            held.handler.cancel()
            raise
        held.finished.set()
        if held.newest is not None and not held.reporter:
            held.reporter = self._loop.create_task(self._send_reports(held))
        if held.reporter is not None:
            await held.reporter
        if held.given_back or held.is_lost:
            # Whatever it raised has no reader; look at it so that asyncio does not complain.
            if not held.handler.cancelled():
                held.handler.exception()
            return None
        return self._completion(held, held.handler)

    async def _call(self, held: _Held, operation: Operation | None) -> Any:
        assignment = held.assignment
        if operation is None:
            raise LookupError(f"this worker has no handler for {assignment.spec.operation!r}")

        def report(made: Report) -> None:
            self._take_report(held, made.to_proto())

        context = Context(assignment, report=report, signal=held.signal)
        if operation.mode == "async":
            return await run_on_loop(operation.function, context)
        if operation.mode == "thread":
            return await run_in_thread(operation.function, context)
        return await self._processes.run(
            operation.function,
            assignment,
            lambda progress: self._take_report(held, progress),
            held.signal,
        )

    def _completion(self, held: _Held, handler: asyncio.Task[Any]) -> Completion:
        lease = held.lease
        completion = Completion(job_id=lease.job_id, fencing_token=lease.fencing_token)
        reason = held.signal.reason
        error: BaseException | None
        error = asyncio.CancelledError() if handler.cancelled() else handler.exception()
        if error is None:
            outcome = success(handler.result())
            if isinstance(outcome, Success):
                completion.success.CopyFrom(outcome)
            else:
                completion.failure.CopyFrom(outcome)
        elif reason == "shutdown":
            # Even another error than the expected one is most likely the interruption's work,
            # and a deploy must not fail a job.
            completion.released.CopyFrom(Released(reason="the worker shut down"))
        elif reason == "cancelled" and isinstance(error, Stopped | asyncio.CancelledError):
            completion.cancelled.CopyFrom(Cancelled())
        else:
            completion.failure.CopyFrom(failure(error))
            _log_failure(lease.job_id, completion.failure, error)
        return completion

    async def _complete(self, held: _Held, completion: Completion) -> Sequence[Assignment]:
        job_id = completion.job_id
        try:
            try:
                return await self._transport.complete(completion)
            except InvalidRequest as error:
                if completion.WhichOneof("outcome") != "success":
                    raise
                log.error("%s: the broker refused the result: %s", job_id, error)
                completion.failure.CopyFrom(refused_result(str(error)))
                return await self._transport.complete(completion)
        except LeaseLost:
            log.warning("%s ended after its lease was lost; the outcome is dropped", job_id)
        except CallError as error:
            # Its lease is renewed no longer, so the broker takes the job back in time.
            log.error("the outcome of %s could not be recorded: %s", job_id, error)
        return ()

    # Progress.

    def _take_report(self, held: _Held, progress: Progress) -> None:
        """Keeps the newest report and wakes the sender; called from any thread."""
        waiting, held.newest = held.newest is not None, progress
        if not waiting:
            try:
                self._loop.call_soon_threadsafe(self._wake_reporter, held)
            except RuntimeError:
                return  # the loop is closed: a thread outlived its worker

    def _wake_reporter(self, held: _Held) -> None:
        if held.reporter is None and not held.finished.is_set():
            held.reporter = self._loop.create_task(self._send_reports(held))

    async def _send_reports(self, held: _Held) -> None:
        while held.newest is not None and not held.is_lost:
            progress, held.newest = held.newest, None
            try:
                await self._transport.report(held.lease, progress)
            except LeaseLost:
                self.lose([held.lease])
                break
            if not held.finished.is_set():
                try:
                    await asyncio.wait_for(held.finished.wait(), REPORT_INTERVAL_S)
                except TimeoutError:
                    continue
        held.reporter = None

    # The end.

    def _give_back(self, assignment: Assignment) -> None:
        async def release() -> None:
            completion = Completion(
                job_id=assignment.job_id,
                fencing_token=assignment.fencing_token,
                released=Released(not_started=True, reason="the worker takes no more jobs"),
            )
            try:
                await self._transport.complete(completion)
            except CallError as error:
                log.warning("%s could not be given back: %s", assignment.job_id, error)

        task = self._loop.create_task(release())
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)

    async def finish(self, grace_s: float, hurry: asyncio.Event) -> None:
        """Lets handlers finish, then stops those that have not and gives their jobs back.

        Args:
            grace_s: How long they may go on.
            hurry: Ends the grace when set.
        """
        self.drain("the worker stops")
        await self._wait_until_empty(grace_s, hurry)
        for held in list(self._held.values()):
            self._stop(held, "shutdown")
        await self._wait_until_empty(UNWIND_S, None)
        stuck = list(self._held.values())
        for held in stuck:
            held.given_back = True
        if stuck:
            log.warning("%d handlers did not stop; their jobs are given back", len(stuck))
            releases = [self._loop.create_task(self._release_running(held)) for held in stuck]
            _, late = await asyncio.wait(releases, timeout=UNWIND_S)
            await _cancel(late)
        if self._releases:
            await asyncio.wait(set(self._releases), timeout=UNWIND_S)
        await _cancel([held.task for held in self._held.values() if held.task is not None])
        await _cancel(self._releases)
        await self._processes.close()

    async def _release_running(self, held: _Held) -> None:
        lease = held.lease
        completion = Completion(
            job_id=lease.job_id,
            fencing_token=lease.fencing_token,
            released=Released(reason="the worker shut down before the handler stopped"),
        )
        await self._complete(held, completion)

    async def _wait_until_empty(self, timeout_s: float, hurry: asyncio.Event | None) -> None:
        tasks = {held.task for held in self._held.values() if held.task is not None}
        if not tasks:
            return
        everything = asyncio.ensure_future(asyncio.wait(tasks))
        hurried = self._loop.create_task(hurry.wait()) if hurry is not None else None
        waited: set[asyncio.Future[Any]] = {everything} | ({hurried} if hurried else set())
        await asyncio.wait(waited, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        await _cancel(waited)


def _log_failure(job_id: str, described: Failure, error: BaseException) -> None:
    log.warning(
        "%s failed: %s: %s",
        job_id,
        described.type,
        described.message,
        exc_info=error if log.isEnabledFor(logging.DEBUG) else None,
    )


def _why(reason: str) -> str:
    return f": {reason}" if reason else ""


async def _cancel(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancels tasks and waits for their end."""
    pending = [task for task in tasks if not task.done()]
    for task in pending:
        task.cancel()
    if pending:
        await asyncio.wait(pending)
