"""What handlers made of their jobs, as completions."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from jobwire.context import Context
from jobwire.signals import Stopped
from jobwire.v1.job_pb2 import Failure
from jobwire.v1.worker_service_pb2 import Cancelled, Completion, Released
from jobwire.worker.held import Held
from jobwire.worker.logs import Journal
from jobwire.worker.outcomes import failure, overran
from jobwire.worker.runner import Outcome

log = logging.getLogger("jobwire.worker")


class Completions:
    """Turns outcomes into completions, and tells the log and `on_error` of them.

    Args:
        on_error: Called with what handlers raise; None: nobody is.
    """

    def __init__(self, on_error: Callable[[Context, BaseException], None] | None) -> None:
        self._journal = Journal()
        self._on_error = on_error

    def note(self, ended: Sequence[tuple[Held, Outcome]]) -> None:
        """Tell the log that handlers have ended."""
        self._journal.ended(ended)

    def of(self, held: Held, outcome: Outcome) -> Completion:
        """Return the completion of a job whose handler has ended."""
        if isinstance(outcome, Completion):
            outcome.job_id, outcome.fencing_token = held.job_id, held.fencing_token
            return outcome
        if isinstance(outcome, Failure):
            return held.completion(failure=outcome)
        reason, error = held.signal.reason, outcome.error
        if reason == "shutdown":
            # Even another error than the expected one is most likely the interruption's work,
            # and a deploy must not fail a job.
            return held.completion(released=Released(reason="the worker shut down"))
        stopped = isinstance(error, Stopped | asyncio.CancelledError)
        if reason == "cancelled" and stopped:
            return held.completion(cancelled=Cancelled())
        if reason in ("timeout", "deadline") and stopped:
            return held.completion(failure=overran(reason, held.signal.message, error))
        described = failure(error)
        self._journal.failed(held, described, error)
        if self._on_error is not None:
            try:
                self._on_error(Context(held.assignment, held), error)
            except Exception:
                log.exception("the worker's on_error failed")
        return held.completion(failure=described)

    def close(self) -> None:
        """Tell the log what is left to tell."""
        self._journal.close()
