"""What a handler gets: its input, and its link to the broker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Generator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from jobwire._capture import OutputHandler, capture
from jobwire._convert import Timeout, seconds_or_none, to_timestamp
from jobwire._given import GivenJob
from jobwire._link import AssembledLink, Link, Report
from jobwire._stop import StopReason, StopSignal
from jobwire.output import OutputLog, check_channel, raise_full
from jobwire.payloads import from_payload, to_payload
from jobwire.signals import Stopped
from jobwire.v1 import job_pb2, worker_service_pb2

__all__ = ["Context", "Report", "StopReason", "TestContext"]

MAX_CHECKPOINT_BYTES = 64 << 10
_DRAIN_LOOK_S = 0.01


class Context(GivenJob):
    """One attempt at one job, given to its handler.

    Every method may be called from async and sync code and from any thread. Only `drain` and, in
    async code, `save_checkpoint` are awaited.

    Attributes:
        job_id: The job.
        fencing_token: Grows with every delivery of the job. Pass it to whatever the handler
            writes to, so that a writer which lost the job can be refused there too.
    """

    _log: OutputLog | None = None

    def __init__(self, assignment: worker_service_pb2.Assignment, link: Link) -> None:
        self.job_id = assignment.job_id
        self.fencing_token = assignment.fencing_token
        self._assignment = assignment
        self._link = link

    def __repr__(self) -> str:
        return f"<Context {self.job_id} attempt {self.attempt}>"

    @property
    def deadline(self) -> datetime | None:
        """When the handler is stopped at the latest, in UTC; None: never.

        The earlier of the end of the attempt's execution timeout and the job's deadline, by this
        machine's clock.
        """
        ends_at = self._link.ends_at
        return None if ends_at is None else datetime.fromtimestamp(ends_at, UTC)

    def save_checkpoint(self, value: Any) -> Awaitable[None]:
        """Save a value for the next attempt, in case this one does not finish.

        An async handler awaits it: `await context.save_checkpoint(...)`. A handler in a thread or
        process calls it, and it returns once it is done. By then the value is in the store, in
        place of the one before, until the job succeeds or is forgotten; it survives crashes,
        failures and redrives. It works even after the handler was told to stop.

        Args:
            value: A JSON value, bytes or a protobuf message, at most 64 KiB; None removes
                what was saved.

        Raises:
            TypeError: The value has no form on the wire.
            ValueError: It is larger than 64 KiB.
            LeaseLost: The job is no longer this worker's; nothing was saved.
            CallError: The broker refused it.
        """
        payload = to_payload(value)
        size = payload.ByteSize()
        if size > MAX_CHECKPOINT_BYTES:
            raise ValueError(f"the checkpoint is {size} bytes; at most {MAX_CHECKPOINT_BYTES}")
        saved = self._link.save(payload)
        if _on_event_loop():
            return asyncio.wrap_future(saved)
        saved.result()
        return _Done()

    def progress(
        self, fraction: float | None, message: str | None = None, details: Any = None
    ) -> None:
        """Report how far the job is; return at once.

        Reports go out in the background, the newest at most every 100 ms; each replaces
        the one before.

        Args:
            fraction: 0 to 1; other values are clamped. None: unknown.
            message: A line for people, cut at 1024 bytes.
            details: For programs: a JSON value, bytes or a protobuf message. At most 16 KiB.

        Raises:
            TypeError: The details have no form on the wire.
            ValueError: They are larger than 16 KiB.
        """
        if fraction is not None:
            # NaN compares false with everything and would pass min and max.
            fraction = min(1.0, max(0.0, fraction)) if fraction == fraction else None
        self._link.report(Report(fraction, message or "", details))

    def output(
        self, content: str | bytes, channel: str = "stdout", *, ignore_full: bool = False
    ) -> None:
        """Write out a piece of text or bytes, which watchers of the job see at once.

        Output goes out in the background: the first piece at once, then every 50 ms or 16 KiB,
        and all of it before the end of the job is recorded. While 1 MiB waits for the broker, a
        handler in a thread or process waits here; an async one is never blocked and should
        `await drain()` if it writes much.

        Args:
            content: As much as you like.
            channel: Which of the job's outputs: 1 to 32 letters, digits and `. _ -`.
            ignore_full: True: output above a limit is dropped without an error; see `output_full`.

        Raises:
            OutputFull: The limit of the job or its queue was reached before; this piece is dropped.
            BufferError: An async handler wrote 16 MiB without `drain`.
            ValueError: The channel's name is invalid.
        """
        check_channel(channel)
        log = self._output_log()
        if log.full and not ignore_full:
            raise_full()
        is_text = isinstance(content, str)
        data = content.encode("utf-8", "replace") if isinstance(content, str) else bytes(content)
        log.write(data, channel, is_text=is_text, wait=not _on_event_loop())

    @property
    def output_full(self) -> bool:
        """True once an output limit is reached and more is dropped."""
        return self._log is not None and self._log.full

    async def drain(self) -> None:
        """Wait until less than 1 MiB of output waits for the broker."""
        # The worker's loop sends the output, and need not be this one.
        while self._log is not None and not self._log.has_room:  # noqa: ASYNC110
            await asyncio.sleep(_DRAIN_LOOK_S)

    @cached_property
    def logger(self) -> logging.Logger:
        """A logger that sends INFO and above to the job's channel `log` and to the worker's log."""
        # Not one of the registered loggers, which live as long as the process.
        logger = logging.Logger(f"jobwire.job.{self.operation}", logging.INFO)
        logger.parent = logging.getLogger("jobwire.job")
        logger.addHandler(OutputHandler(self))
        return logger

    def capture_stdout(self) -> AbstractContextManager[None]:
        """Send what the handler prints to the job's channels `stdout` and `stderr`.

        It applies to this thread or task and to tasks started from it; other handlers print as
        before. Output above a limit is dropped.
        """
        return capture(self)

    def _output_log(self) -> OutputLog:
        if self._log is None:
            self._log = self._link.open_log()
        return self._log

    @property
    def cancelled(self) -> bool:
        """True once the handler should stop, for whatever reason; see `stop_reason`."""
        return self._link.signal.is_set

    @property
    def stop_reason(self) -> StopReason:
        """Why the handler should stop; empty if it need not.

        `cancelled`; `lease_lost`, the job is no longer this worker's; `shutdown`, the worker ends;
        `timeout`, the attempt ran past its execution timeout; `deadline`, the job past its
        deadline.
        """
        return self._link.signal.reason

    @property
    def stop_message(self) -> str:
        """In the words of whoever cancelled the job; may be empty."""
        return self._link.signal.message

    def raise_if_cancelled(self) -> None:
        """Leave the handler if it should stop.

        Raises:
            Stopped: It should.
        """
        if self.cancelled:
            raise Stopped(self._link.signal.message or self._link.signal.reason)

    def wait_cancelled(self, timeout_s: Timeout = None) -> bool:
        """Block a sync handler until it should stop: a sleep that a cancellation ends.

        An async handler does not need it: it is cancelled at its `await`.

        Args:
            timeout_s: How long to wait at most, as seconds or timedelta; None: no limit.

        Returns:
            True if the handler should stop.

        Raises:
            RuntimeError: It was called on an event loop.
        """
        if not _on_event_loop():
            return self._link.signal.wait(seconds_or_none("timeout_s", timeout_s))
        raise RuntimeError(
            "wait_cancelled blocks the event loop; an async handler is cancelled at its await"
        )

    @classmethod
    def for_test(
        cls,
        payload: Any = None,
        *,
        operation: str = "test",
        job_id: str = "default-00000000000000000000000000",
        attempt: int = 1,
        fencing_token: int = 1,
        labels: Mapping[str, str] | None = None,
        checkpoint: Any = None,
        deadline: datetime | None = None,
        headers: Mapping[str, str] | None = None,
        created_at: datetime | None = None,
    ) -> TestContext:
        """Make a context that needs no server, to call a handler in a test.

        Its `reports` collects the progress, its `outputs` the output, its `checkpoints` what is
        saved; its `cancel` gives the signal to stop.
        """
        return TestContext(
            worker_service_pb2.Assignment(
                job_id=job_id,
                fencing_token=fencing_token,
                attempt=attempt,
                spec=job_pb2.JobSpec(
                    operation=operation,
                    payload=to_payload(payload),
                    labels=labels,
                    headers=headers,
                ),
                created_at=None if created_at is None else to_timestamp(created_at),
                checkpoint=to_payload(checkpoint),
            ),
            None if deadline is None else deadline.timestamp(),
        )


class TestContext(Context):
    """A context without a server.

    Attributes:
        reports: Every progress report, in order.
        outputs: Every piece of output with its channel, in order.
        checkpoints: Every value that was saved, in order.
    """

    __test__ = False  # not a test class to pytest

    def __init__(
        self, assignment: worker_service_pb2.Assignment, ends_at: float | None = None
    ) -> None:
        self.reports: list[Report] = []
        self.checkpoints: list[Any] = []
        self.outputs: list[tuple[str, str | bytes]] = []
        super().__init__(
            assignment,
            AssembledLink(
                signal=StopSignal(),
                report=self.reports.append,
                open_log=lambda: OutputLog(lambda urgent: None, lambda: True),
                save=self._note,
                ends_at=ends_at,
            ),
        )

    def _note(self, payload: job_pb2.Payload) -> Future[None]:
        self.checkpoints.append(from_payload(payload))
        saved: Future[None] = Future()
        saved.set_result(None)
        return saved

    def output(
        self, content: str | bytes, channel: str = "stdout", *, ignore_full: bool = False
    ) -> None:
        """Note a piece; after `fill_output`, raise as at a broker's limit."""
        check_channel(channel)
        if not self.output_full:
            self.outputs.append((channel, content))
        elif not ignore_full:
            raise_full()

    def output_text(self, channel: str = "stdout") -> str:
        """Return all text of a channel."""
        return "".join(
            said for where, said in self.outputs if where == channel and isinstance(said, str)
        )

    def fill_output(self) -> None:
        """Reach the output limit."""
        self._output_log().fill()

    def cancel(self, message: str = "", *, reason: StopReason = "cancelled") -> None:
        """Give the signal to stop."""
        self._link.signal.set(reason, message)


class _Done:
    """An awaitable that is done."""

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


def _on_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
