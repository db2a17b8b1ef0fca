"""What workers say of their attempts: completions and reports, in a call or in a frame."""

from __future__ import annotations

from typing import Any

from jobwire.v1 import worker_service_pb2
from jobwire.v1.worker_service_pb2 import Report, UpdateProgressRequest
from jobwire_server.domain.ids import split_job_id
from jobwire_server.domain.model import Ended, Released, Reported
from jobwire_server.servicers.checks import (
    Checker,
    check_checkpoint,
    check_failure,
    check_output,
    check_progress,
    is_sound,
)
from jobwire_server.workers.frames import Refused

MAX_REASON_BYTES = 512
_NO_OUTCOME = "must be set to one of success, failure, cancelled, released"


class AttemptChecks:
    """Checks completions and reports.

    Args:
        max_result_bytes: The largest serialized result.
    """

    def __init__(self, max_result_bytes: int) -> None:
        self._max_result_bytes = max_result_bytes

    def ended(
        self, checker: Checker, completion: worker_service_pb2.Completion, prefix: str = ""
    ) -> Ended:
        """Return the end of an attempt, which is of no use if the checker noted anything.

        Args:
            checker: Takes the violations.
            completion: What the worker said.
            prefix: The path of the completion's fields in the request.
        """
        queue, ulid = checker.job_id(f"{prefix}job_id", completion.job_id)
        kind = completion.WhichOneof("outcome")
        outcome: Any = None
        if kind == "success":
            result = completion.success.result
            checker.payload(f"{prefix}success.result", result, self._max_result_bytes)
            outcome = result.SerializeToString()
        elif kind == "failure":
            outcome = check_failure(checker, f"{prefix}failure", completion.failure)
        elif kind == "released":
            released = completion.released
            reason = checker.text(f"{prefix}released.reason", released.reason, MAX_REASON_BYTES)
            outcome = Released(not released.not_started, reason)
        elif kind is None:
            checker.add(f"{prefix}outcome", _NO_OUTCOME)
        return Ended(queue, ulid, completion.fencing_token, outcome)

    def ended_or_refused(self, item: worker_service_pb2.Completion) -> Ended | Refused:
        """Return the end of an attempt that a frame tells, or why it is refused."""
        # Nearly all are results that need no change; whatever is wrong is found on the long way.
        if item.WhichOneof("outcome") == "success":
            result = item.success.result
            parts = split_job_id(item.job_id)
            if (
                parts
                and is_sound(result)
                and len(written := result.SerializeToString()) <= self._max_result_bytes
            ):
                return Ended(*parts, item.fencing_token, written)
        checker = Checker()
        ended = self.ended(checker, item)
        if checker.violations:
            return Refused(item.job_id, item.fencing_token, checker.error())
        return ended

    def reported(self, checker: Checker, message: Report | UpdateProgressRequest) -> Reported:
        """Return a report, which is of no use if the checker noted anything."""
        queue, ulid = checker.job_id("job_id", message.job_id)
        return Reported(
            queue,
            ulid,
            message.fencing_token,
            check_progress(checker, "progress", message.progress),
            check_output(checker, "output", message.output),
            check_checkpoint(checker, "checkpoint", message),
        )

    def reported_or_refused(self, item: Report) -> Reported | Refused:
        """Return a report of a frame, or why it is refused."""
        checker = Checker()
        reported = self.reported(checker, item)
        if checker.violations:
            return Refused(item.job_id, item.fencing_token, checker.error())
        return reported
