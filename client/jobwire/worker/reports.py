"""Progress, output and checkpoints of running jobs, on their way to the transport."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future

from jobwire.errors import CallError, LeaseLost
from jobwire.output import FLUSH_S
from jobwire.v1.job_pb2 import Payload, Progress
from jobwire.worker import forks
from jobwire.worker.held import Held, Saving, Stage
from jobwire.worker.transport.base import Transport

REPORT_INTERVAL_S = 0.1


class Reports:
    """Gathers progress, output and checkpoints, and passes them to the transport, not too often.

    What comes at the same time goes out together; newer progress replaces older.

    Args:
        transport: Carries it.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        forks.watch(self)

    def forget_in_child(self) -> None:
        """Drop what is said from now on, in a forked child: the loop is its parent's."""
        self._loop = _ClosedLoop()  # type: ignore[assignment]  # all that is asked of it

    # Progress.

    def take_progress(self, held: Held, progress: Progress) -> None:
        """Keep the newest report; called from any thread."""
        waiting, held.newest = held.newest is not None, progress
        if not waiting:
            try:
                self._loop.call_soon_threadsafe(self._send_progress, held)
            except RuntimeError:
                return  # the loop is closed: a thread outlived its worker

    def _send_progress(self, held: Held) -> None:
        if held.newest is None or held.void or held.stage is not Stage.RUNNING:
            return
        wait_s = held.reported_at + REPORT_INTERVAL_S - self._loop.time()
        if held.reported_at and wait_s > 0:
            held.timer = self._loop.call_later(wait_s, self._send_progress, held)
            return
        self._send(held)

    # Output.

    def take_output(self, held: Held, urgent: bool) -> None:
        """Send output, now or soon; called from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._send_output, held, urgent)
        except RuntimeError:
            return  # the loop is closed: a thread outlived its worker

    def _send_output(self, held: Held, urgent: bool) -> None:
        if held.output is None or held.void or held.stage is not Stage.RUNNING:
            return
        if held.output_timer is not None:
            held.output_timer.cancel()
            held.output_timer = None
        wait_s = held.output_at + FLUSH_S - self._loop.time()
        if held.output_at and wait_s > 0 and not urgent:
            held.output_timer = self._loop.call_later(wait_s, self._send_output, held, True)
            return
        held.output_at = self._loop.time()
        self._send(held)

    # Checkpoints.

    def take_checkpoint(self, held: Held, payload: Payload) -> Future[None]:
        """Save a checkpoint; the future is done once the broker has it."""
        if forks.is_child:
            raise RuntimeError(
                "this process was forked by a handler: the job's checkpoints are saved by the"
                " worker's own process only"
            )
        waiter: Future[None] = Future()
        # Whoever stops waiting for it does not stop the saving.
        waiter.set_running_or_notify_cancel()
        try:
            if _runs(self._loop):
                # At once: the handler may end with its next step.
                self._save(held, payload, waiter)
            else:
                self._loop.call_soon_threadsafe(self._save, held, payload, waiter)
        except RuntimeError:
            waiter.set_exception(_lost(held))  # the loop is closed
        return waiter

    def _save(self, held: Held, payload: Payload, waiter: Future[None]) -> None:
        if held.void or held.stage is not Stage.RUNNING:
            waiter.set_exception(_lost(held))
        elif held.saving is None:
            held.saving = Saving(payload, [waiter])
            self._send(held, payload)
        elif held.next_saving is None:
            held.next_saving = Saving(payload, [waiter])
        else:
            # One at a time is under way; of those behind it only the newest counts.
            held.next_saving.payload = payload
            held.next_saving.waiters.append(waiter)

    def saved(self, held: Held, error: CallError | None) -> None:
        """Note that the broker has the checkpoint that was under way, or refused it."""
        saving, held.saving, held.next_saving = held.saving, held.next_saving, None
        if saving is not None:
            _settle(saving, error)
        # When the handler ended, everything was sent.
        if held.saving is not None and held.stage is Stage.RUNNING:
            self._send(held, held.saving.payload)

    # Ends.

    def finish(self, held: Held) -> None:
        """Send what is left to report of a job whose handler has ended."""
        self._stop_timers(held)
        output = held.output
        if output is not None:
            output.finish()
            if not output.waiting_bytes:
                output = None
        checkpoint = held.next_saving.payload if held.next_saving is not None else None
        if held.newest is not None or output is not None or checkpoint is not None:
            self._transport.report(held.lease, held.newest, output, checkpoint)

    def drop(self, held: Held) -> None:
        """Drop what was to be reported: the lease is lost."""
        self._stop_timers(held)
        if held.output is not None:
            held.output.close()
        for saving in (held.saving, held.next_saving):
            if saving is not None:
                _settle(saving, _lost(held))
        held.saving = held.next_saving = None

    def _stop_timers(self, held: Held) -> None:
        for timer in (held.timer, held.output_timer):
            if timer is not None:
                timer.cancel()

    def _send(self, held: Held, checkpoint: Payload | None = None) -> None:
        progress, held.newest = held.newest, None
        if progress is not None:
            held.reported_at = self._loop.time()
        self._transport.report(held.lease, progress, held.output, checkpoint)


class _ClosedLoop:
    """The loop of a worker in a child of its process."""

    def call_soon_threadsafe(self, *_: object) -> None:
        """Refuse, as a closed loop does."""
        raise RuntimeError("this is a forked child of the worker")


def _settle(saving: Saving, error: CallError | None) -> None:
    for waiter in saving.waiters:
        if error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)


def _lost(held: Held) -> LeaseLost:
    return LeaseLost(f"the lease on {held.job_id} is lost", reason="LEASE_LOST")


def _runs(loop: asyncio.AbstractEventLoop) -> bool:
    """Tell whether this is the thread of a loop."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
