# Made from jobwire/_async by tools/unasync.py; edit that one.
"""Follows one job, its states and its output, over breaks of connections."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from jobwire._producing.parcels import HandedBack
from jobwire._repeat import Deadline
from jobwire._sync.calls import STREAM_LIMIT_S, Calls, NextCall
from jobwire.errors import CallError, DeadlineExceeded, OutputTrimmed
from jobwire.models import Job, OutputChunk, OutputPosition
from jobwire.v1.job_pb2 import JOB_VIEW_FULL, JobView
from jobwire.v1.job_service_pb2 import (
    WATCH_CONTENT_STATES,
    CancelJobRequest,
    JobEnd,
    RunJobRequest,
    SubmitJobRequest,
    WatchContent,
    WatchJobRequest,
)

JobEvent: TypeAlias = Job | OutputChunk
"""What a watch of a job brings: the job as it stands, or a piece of what it wrote out."""
E = TypeVar("E")

CANCEL_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What to follow of a job, and for how long.

    Args:
        job_id: The job.
        view: How much of it.
        content: States, output, or both.
        start: Where the output begins: a watch's cursor, a position, or None for all that is kept.
        from_end: True: only output that is written from now on.
        skip_trimmed: True: skip output that is no longer kept.
        timeout_s: For the whole; None: as long as the job takes.
        reconnect_s: How long to keep trying while no server answers, in seconds; None: forever.
    """

    job_id: str
    view: JobView.ValueType
    content: WatchContent.ValueType
    start: str | OutputPosition | None = None
    from_end: bool = False
    skip_trimmed: bool = False
    timeout_s: float | None = None
    reconnect_s: float | None = 60.0

    def request(self) -> WatchJobRequest:
        """Return the wire's form."""
        request = WatchJobRequest(job_id=self.job_id, view=self.view, content=self.content)
        if isinstance(self.start, OutputPosition):
            request.output_from.attempt = self.start.attempt
            request.output_from.offset = self.start.offset
        elif self.start:
            request.cursor = self.start
        elif self.from_end:
            request.output_from_end.SetInParent()
        return request


class JobWatch(Generic[E]):
    """The events of a job, as they come; ends with the job. Iterate over it once.

    It survives servers and connections: it continues from where it was, and no output is missed or
    comes twice.

    Attributes:
        job_id: The job.
        job: The job as it was last seen; None before the first event.
        cursor: Behind the last answer that was taken whole: another watch begins there. In the
            middle of an answer, `OutputChunk.after` is more exact.
    """

    def __init__(
        self,
        calls: Calls,
        wish: Wish,
        *,
        submit: SubmitJobRequest | None = None,
        first_s: float | None = None,
        cancel_on_disconnect: bool = False,
    ) -> None:
        self.job_id = wish.job_id
        self.job: Job | None = None
        self.cursor = wish.start if isinstance(wish.start, str) else ""
        self._calls = calls
        self._wish = wish
        self._request = wish.request()
        self._run: RunJobRequest | None = None
        if submit is not None:
            self._run = RunJobRequest(
                submit=submit,
                view=wish.view,
                content=wish.content,
                cancel_on_disconnect=cancel_on_disconnect,
            )
        self._first_s = wish.reconnect_s if submit is None else first_s
        self._fell_back = False
        self._first: JobEvent | None = None
        self._events = self._follow()

    def begin(self) -> None:
        """Wait for the first event; the iteration still yields it."""
        if self._first is None:
            self._first = next(self._events)

    def __iter__(self) -> JobWatch[E]:
        return self

    def __next__(self) -> E:
        event, self._first = self._first, None
        # The content that was wished for decides what comes.
        return event or next(self._events)  # type: ignore[return-value]

    def close(self) -> None:
        """Leave the job alone; after `run` with `cancel_on_disconnect` that cancels it."""
        self._events.close()

    def _next_call(self) -> NextCall:
        if self._run is not None and not self.cursor:
            # The end of a stream would be taken for the end of the caller's interest.
            limit_s = math.inf if self._run.cancel_on_disconnect else STREAM_LIMIT_S
            return self._calls.jobs.RunJob, self._run, limit_s
        self._fell_back = True
        return self._calls.jobs.WatchJob, self._request, STREAM_LIMIT_S

    def _follow(self) -> Generator[JobEvent]:
        wish = self._wish
        deadline = Deadline(wish.timeout_s)
        late = f"job {wish.job_id} did not end within {round(wish.timeout_s or 0, 2):g} s"
        if self._run is None and wish.content == WATCH_CONTENT_STATES and not self.cursor:
            with closing(self._changes(deadline, late)) as changes:
                for job in changes:
                    self.job = job
                    yield job
            if self.job is not None and self.job.state.is_terminal:
                return
        try:
            while True:
                answers = self._calls.stream(
                    self._next_call,
                    deadline=deadline,
                    late=late,
                    first_s=self._first_s,
                    reconnect_s=wish.reconnect_s,
                )
                try:
                    with closing(answers), closing(self._take(answers)) as events:
                        for event in events:
                            if isinstance(event, Job):
                                self.job = event
                            yield event
                    return
                except OutputTrimmed as trimmed:
                    if not wish.skip_trimmed or not trimmed.first_available:
                        raise
                    self._go_on_from(trimmed.first_available)
        finally:
            self._cancel_if_left()

    def _changes(self, deadline: Deadline, late: str) -> Generator[Job]:
        """Yield the job as the producers' stream tells of it, for as long as that can be had."""
        producer, job_id = self._calls.producer, self.job_id
        changes = producer.changes(job_id, self._wish.view == JOB_VIEW_FULL)
        if changes is None:
            return
        try:
            while not isinstance(news := changes.next(deadline.for_call_s()), HandedBack):
                if news is None:
                    raise DeadlineExceeded(late)
                if isinstance(news, CallError):
                    raise news
                if isinstance(news, JobEnd):
                    return
                job, before = Job.from_proto(news), self.job
                if before is None or (job.revision, job.state) != (before.revision, before.state):
                    yield job
                if job.state.is_terminal:
                    return
        finally:
            producer.leave(job_id, changes)

    def _take(self, answers: Generator[Any]) -> Generator[JobEvent]:
        for answer in answers:
            kind = answer.WhichOneof("event")
            if kind == "output":
                chunks = answer.output.chunks
                for chunk in chunks[:-1]:
                    yield OutputChunk.from_proto(answer.output.attempt, chunk)
                # Before the last piece is handed on: whoever has it has them all.
                self._go_on_from(answer.cursor)
                if chunks:
                    yield OutputChunk.from_proto(answer.output.attempt, chunks[-1])
                continue
            self._go_on_from(answer.cursor)
            if kind != "job":
                continue
            job = Job.from_proto(answer.job)
            if job.id != self.job_id:
                # The server made the id, or another job holds the unique key.
                self.job_id = self._request.job_id = job.id
            # After a reconnect the first answer may be a state that was seen before. One of a lower
            # revision is not: a failover of the store has lost what made the higher one.
            before = self.job
            if before is None or (job.revision, job.state) != (before.revision, before.state):
                yield job
            if job.state.is_terminal:
                return

    def _go_on_from(self, cursor: str) -> None:
        if cursor:
            self._request.cursor = self.cursor = cursor

    def _cancel_if_left(self) -> None:
        """Do what the server does at the end of RunJob, once WatchJob has taken its place."""
        if not self._fell_back or self._run is None or not self._run.cancel_on_disconnect:
            return
        if self.job is not None and self.job.state.is_terminal:
            return
        request = CancelJobRequest(job_id=self.job_id, reason="its caller broke off")
        with suppress(CallError):
            self._calls.unary(self._calls.jobs.CancelJob, request, CANCEL_TIMEOUT_S)
