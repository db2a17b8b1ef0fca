"""The worker's log, whose lines say which job they are about."""

from __future__ import annotations

import asyncio
import json
import logging
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from jobwire._capture import current_context
from jobwire._shown import in_json, shown
from jobwire.signals import Fatal, Retry
from jobwire.v1.job_pb2 import Failure
from jobwire.v1.worker_service_pb2 import Completion
from jobwire.worker.held import Held
from jobwire.worker.outcomes import HandlerFailure

log = logging.getLogger("jobwire.worker")

LogFormat = Literal["text", "json"]

# How many finished jobs, and how many failures with tracebacks, get a line each per second; the
# others are counted in one line.
LINES_A_SECOND = 20


class JobFilter(logging.Filter):
    """Tells records which job they are about: `job_id`, `operation` and `attempt`.

    Add it to the handlers of your own logging configuration; their formats may then hold
    `%(job_id)s`. Outside of job handlers the three are empty.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the attributes; never drop a record."""
        context = current_context.get()
        if not hasattr(record, "job_id"):
            record.job_id = context.job_id if context is not None else ""
            record.operation = context.operation if context is not None else ""
            record.attempt = context.attempt if context is not None else 0
        return True


class TextFormatter(logging.Formatter):
    """A line for people; what job handlers log ends with the job."""

    def __init__(self, with_time: bool = True) -> None:
        super().__init__(
            "%(asctime)s %(levelname)s %(name)s %(message)s" if with_time else "%(message)s"
        )

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, its traceback and its stack, without control characters."""
        return shown(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - of the library
        """Return the line, with the job that it is about."""
        said = super().formatMessage(record)
        job_id = getattr(record, "job_id", "")
        if job_id and job_id not in said:
            said += f"  [{job_id} attempt {getattr(record, 'attempt', 0)}]"
        return said


class JsonFormatter(logging.Formatter):
    """A line of JSON for each record."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name in ("job_id", "operation", "attempt", "outcome"):
            if value := getattr(record, name, None):
                line[name] = value
        # 0 is a duration.
        if (duration_s := getattr(record, "duration_s", None)) is not None:
            line["duration_s"] = duration_s
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = "".join(traceback.format_exception(record.exc_info[1]))
        return in_json(json.dumps(line, ensure_ascii=True))


def set_up_logging(
    level: str = "info",
    log_format: LogFormat = "text",
    handler: logging.Handler | None = None,
) -> None:
    """Send the log of the whole process to standard error, unless logging is set up already.

    Args:
        level: The lowest level to write: `debug`, `info`, `warning` or `error`.
        log_format: `text`, lines for people; `json`, one object per line.
        handler: For text, in place of plain lines.
    """
    root = logging.getLogger()
    own = [h for h in logging.getLogger("jobwire").handlers if type(h) is not logging.NullHandler]
    if root.handlers or own:
        return
    if log_format == "json" or handler is None:
        handler = logging.StreamHandler()
        handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    handler.addFilter(JobFilter())
    root.addHandler(handler)
    root.setLevel(level.upper())


class Journal:
    """Logs the jobs that end, each one or, where they are many, a summary every second."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._second = 0.0
        self._lines = self._tracebacks = LINES_A_SECOND
        self._unsaid = self._unsaid_failures = 0
        self._timer: asyncio.TimerHandle | None = None

    def ended(self, ended: Sequence[tuple[Held, object]]) -> None:
        """Note the ends of handlers."""
        if not log.isEnabledFor(logging.INFO):
            return
        now = self._loop.time()
        self._turn(now)
        for at, (held, outcome) in enumerate(ended):
            if self._lines <= 0:
                self._leave_unsaid(len(ended) - at)
                break
            # Failures get a line of their own.
            if isinstance(outcome, Completion) and not held.void:
                self._lines -= 1
                took_s = now - held.started_at
                log.info(
                    "%s succeeded in %.3g s: %s%s",
                    held.assignment.spec.operation,
                    took_s,
                    held.job_id,
                    _attempt(held),
                    extra=_about(held, outcome="succeeded", duration_s=round(took_s, 6)),
                )

    def failed(self, held: Held, described: Failure, error: BaseException) -> None:
        """Note that a handler raised something."""
        now = self._loop.time()
        self._turn(now)
        self._tracebacks -= 1
        if self._tracebacks < 0:
            self._unsaid_failures += 1
            self._leave_unsaid(0)
            return
        # What a handler says on purpose needs no traceback.
        elsewhere = isinstance(error, HandlerFailure)
        if isinstance(error, HandlerFailure):
            deliberate = error.deliberate
        else:
            deliberate = isinstance(error, Retry | Fatal)
        silent = deliberate and not log.isEnabledFor(logging.DEBUG)
        # The traceback of what another process has raised is text.
        stack = f"\n{described.stack.rstrip()}" if elsewhere and not silent else ""
        took_s = now - held.started_at
        log.log(
            logging.ERROR if described.non_retryable else logging.WARNING,
            "%s failed after %.3g s: %s%s: %s: %s%s",
            held.assignment.spec.operation,
            took_s,
            held.job_id,
            _attempt(held),
            described.type,
            described.message,
            stack,
            exc_info=None if silent or elsewhere else error,
            extra=_about(held, outcome="failed", duration_s=round(took_s, 6)),
        )

    def close(self) -> None:
        """Log what was left out."""
        if self._timer is not None:
            self._timer.cancel()
        self._summarize()

    def _turn(self, now: float) -> None:
        if now - self._second >= 1.0:
            self._summarize()
            self._second = now
            self._lines = self._tracebacks = LINES_A_SECOND

    def _leave_unsaid(self, jobs: int) -> None:
        self._unsaid += jobs
        if self._timer is None and (self._unsaid or self._unsaid_failures):
            self._timer = self._loop.call_later(1.0, self._timer_ends)

    def _timer_ends(self) -> None:
        self._timer = None
        self._summarize()

    def _summarize(self) -> None:
        if self._unsaid:
            log.info("and %d more jobs ended", self._unsaid)
        if self._unsaid_failures:
            log.warning("and %d more handlers failed", self._unsaid_failures)
        self._unsaid = self._unsaid_failures = 0


def _about(held: Held, **more: Any) -> dict[str, Any]:
    return {
        "job_id": held.job_id,
        "operation": held.assignment.spec.operation,
        "attempt": held.assignment.attempt,
        **more,
    }


def _attempt(held: Held) -> str:
    attempt = held.assignment.attempt
    return f" (attempt {attempt})" if attempt > 1 else ""
