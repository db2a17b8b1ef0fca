"""What workers say of their attempts: completions and reports, in a call or in a frame."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from jobwire.v1 import job_pb2, worker_service_pb2
from jobwire.v1.worker_service_pb2 import Report, UpdateProgressRequest
from jobwire_server.domain.ids import split_job_id
from jobwire_server.domain.model import (
    Completion,
    Failure,
    FailureOrigin,
    Piece,
    Released,
    WorkerReport,
    Written,
)
from jobwire_server.servicers.checks import DAY_MS, MAX_REASON_BYTES, Checker, is_sound
from jobwire_server.workers.frames import Refused

MAX_DETAILS_BYTES = 16 << 10
MAX_CHECKPOINT_BYTES = 64 << 10
MAX_CHUNK_BYTES = 64 << 10
MAX_CHUNKS = 256
MAX_OFFSET = 1 << 50
MAX_OUTPUT_BYTES = 1 << 20
"""Of one report."""
_CHANNEL = re.compile(r"[A-Za-z0-9._-]{1,32}")
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
    ) -> Completion:
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
            outcome = _failure(checker, f"{prefix}failure", completion.failure)
        elif kind == "released":
            released = completion.released
            reason = checker.text(f"{prefix}released.reason", released.reason, MAX_REASON_BYTES)
            if released.HasField("delay"):
                checker.lacks(f"{prefix}released.delay", "snooze")
            outcome = Released(not released.not_started, reason)
        elif kind == "suspended":
            checker.lacks(f"{prefix}suspended", "suspend")
        elif kind is None:
            checker.add(f"{prefix}outcome", _NO_OUTCOME)
        return Completion(queue, ulid, completion.fencing_token, outcome)

    def ended_or_refused(self, item: worker_service_pb2.Completion) -> Completion | Refused:
        """Return the end of an attempt that a frame tells, or why it is refused."""
        # Nearly all are results that need no change; whatever is wrong is found on the long way.
        if item.WhichOneof("outcome") == "success":
            result = item.success.result
            parts = split_job_id(item.job_id)
            if (
                parts
                and len(written := result.SerializeToString()) <= self._max_result_bytes
                and is_sound(result)
            ):
                return Completion(*parts, item.fencing_token, written)
        checker = Checker()
        ended = self.ended(checker, item)
        if checker.violations:
            return Refused(item.job_id, item.fencing_token, checker.error())
        return ended

    def reported(self, checker: Checker, message: Report | UpdateProgressRequest) -> WorkerReport:
        """Return a report, which is of no use if the checker noted anything."""
        queue, ulid = checker.job_id("job_id", message.job_id)
        return WorkerReport(
            queue,
            ulid,
            message.fencing_token,
            _progress(checker, "progress", message.progress),
            _output(checker, "output", message.output),
            _checkpoint(checker, "checkpoint", message),
        )

    def reported_or_refused(self, item: Report) -> WorkerReport | Refused:
        """Return a report of a frame, or why it is refused."""
        checker = Checker()
        reported = self.reported(checker, item)
        if checker.violations:
            return Refused(item.job_id, item.fencing_token, checker.error())
        return reported


def _progress(checker: Checker, field: str, progress: job_pb2.Progress) -> bytes:
    """Return a progress report as it is stored."""
    if progress.HasField("fraction") and not (0 <= progress.fraction <= 1):
        checker.add(f"{field}.fraction", f"must be 0 to 1, not {progress.fraction}")
    checker.text(f"{field}.message", progress.message, 1024)
    if progress.HasField("details"):
        checker.payload(f"{field}.details", progress.details, MAX_DETAILS_BYTES)
    progress.ClearField("updated_at")
    return progress.SerializeToString()


def _checkpoint(
    checker: Checker, field: str, message: UpdateProgressRequest | Report
) -> bytes | None:
    """Return the checkpoint of a report as it is stored, None if it has none."""
    if not message.HasField("checkpoint"):
        return None
    checker.payload(field, message.checkpoint, MAX_CHECKPOINT_BYTES)
    return message.checkpoint.SerializeToString()


def _failure(checker: Checker, field: str, failure: job_pb2.Failure) -> Failure:
    """Return a failure; texts that are too long for the record are cut, as the contract says."""
    checker.text(f"{field}.type", failure.type, 128)
    if failure.HasField("details"):
        checker.payload(f"{field}.details", failure.details, MAX_DETAILS_BYTES)
    if failure.HasField("pause_group_for"):
        checker.lacks(f"{field}.pause_group_for", "groups")
    after = None
    if failure.HasField("retry_after"):
        after = checker.duration_ms(f"{field}.retry_after", failure.retry_after, 0, 30 * DAY_MS)
    return Failure(
        type=failure.type,
        message=_cut(failure.message, 4096),
        stack=_cut(failure.stack, 16 << 10),
        details=failure.details.SerializeToString(),
        non_retryable=failure.non_retryable,
        retry_after_ms=after,
        origin=FailureOrigin.WORKER,
    )


def _cut(text: str, most: int) -> str:
    """Shorten a text to so many bytes without breaking a character."""
    return text if len(text) * 4 <= most else text[:most].encode()[:most].decode(errors="ignore")


def _output(checker: Checker, field: str, chunks: Sequence[job_pb2.OutputChunk]) -> Written | None:
    """Return output as it is stored; neighbours on one channel become one piece."""
    if not chunks:
        return None
    if len(chunks) > MAX_CHUNKS:
        checker.add(field, f"may hold at most {MAX_CHUNKS} chunks, not {len(chunks)}")
        return None
    first = at = checker.number(f"{field}[0].offset", chunks[0].offset, 0, MAX_OFFSET)
    pieces: list[Piece] = []
    for number, chunk in enumerate(chunks):
        name = f"{field}[{number}]"
        channel = chunk.channel or "stdout"
        if not _CHANNEL.fullmatch(channel):
            checker.add(
                f"{name}.channel", "must be 1 to 32 characters out of letters, digits and . _ -"
            )
        text = chunk.WhichOneof("content") == "text"
        content = chunk.text.encode() if text else chunk.data
        if not 0 < len(content) <= MAX_CHUNK_BYTES:
            checker.add(name, f"must hold 1 to {MAX_CHUNK_BYTES} bytes, not {len(content)}")
        if chunk.offset != at:
            checker.add(
                f"{name}.offset", f"must continue the chunk before: {at}, not {chunk.offset}"
            )
        at += len(content)
        last = pieces[-1] if pieces else None
        if (
            last is not None
            and (last.channel, last.text) == (channel, text)
            and len(last.content) + len(content) <= MAX_CHUNK_BYTES
        ):
            pieces[-1] = Piece(channel, text, last.content + content)
        else:
            pieces.append(Piece(channel, text, content))
    if at - first > MAX_OUTPUT_BYTES:
        checker.add(field, f"may hold at most {MAX_OUTPUT_BYTES} bytes, not {at - first}")
    return Written(0, first, tuple(pieces))
