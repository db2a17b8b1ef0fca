"""Sends log records of handlers in processes to the worker's own log."""

from __future__ import annotations

import logging
import logging.handlers
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jobwire.v1.worker_service_pb2 import Assignment

_ORDINARY = frozenset(vars(logging.makeLogRecord({})))


@dataclass(frozen=True, slots=True)
class LogLevels:
    """The levels that are set in the worker's process."""

    root: int
    disabled: int
    by_logger: dict[str, int]

    @classmethod
    def of_this_process(cls) -> LogLevels:
        """Return the levels of this process."""
        return cls(
            root=logging.root.level,
            disabled=logging.root.manager.disable,
            by_logger={
                name: logger.level
                for name, logger in list(logging.root.manager.loggerDict.items())
                if isinstance(logger, logging.Logger) and logger.level
            },
        )

    def apply(self) -> None:
        """Set the levels in this process."""
        logging.root.setLevel(self.root)
        logging.disable(self.disabled)
        for name, level in self.by_logger.items():
            logging.getLogger(name).setLevel(level)


class ToWorker(logging.handlers.QueueHandler):
    """Sends records to the worker.

    A handler's module that sets up the root logger on import, other than by `basicConfig`,
    replaces this handler, and its records go where it says.

    Args:
        send: Takes the attributes of a record, pickled.
    """

    def __init__(self, send: Callable[[bytes], None]) -> None:
        super().__init__(None)  # type: ignore[arg-type]  # `enqueue` needs none
        self._send = send

    def enqueue(self, record: logging.LogRecord) -> None:
        """Send a formatted record."""
        attributes = vars(record)
        try:
            data = pickle.dumps(attributes)
        except Exception:
            # What a program adds to its records may be anything.
            data = pickle.dumps(
                {
                    name: value if name in _ORDINARY else repr(value)
                    for name, value in attributes.items()
                }
            )
        self._send(data)


def log_here(data: bytes, job: Assignment) -> None:
    """Log a record from the process of a handler in this process.

    Args:
        data: The attributes of the record, pickled.
        job: The handler's; the record gets its `job_id`, `operation` and `attempt`.
    """
    attributes: dict[str, Any] = pickle.loads(data)
    record = logging.makeLogRecord(
        {
            **attributes,
            "job_id": job.job_id,
            "operation": job.spec.operation,
            "attempt": job.attempt,
        }
    )
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)
