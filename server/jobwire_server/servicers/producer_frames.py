"""The frames of a `Produce` stream: from the contract to plain values and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jobwire.v1 import job_service_pb2
from jobwire_server.broker.producer_frames import (
    Answer,
    Ended,
    FollowWish,
    Lost,
    ProducerFrame,
    ProducerNews,
    ToCancel,
    ToFollow,
)
from jobwire_server.broker.producer_session import MAX_FOLLOWS, MAX_UNANSWERED
from jobwire_server.broker.producers import HEARTBEAT_S
from jobwire_server.domain.errors import JobwireError
from jobwire_server.domain.features import FEATURES
from jobwire_server.domain.ids import JobId, split_job_id
from jobwire_server.domain.model import Job, JobState
from jobwire_server.servicers import convert, wire
from jobwire_server.servicers.checks import MAX_REASON_BYTES, Checker
from jobwire_server.servicers.streams import refuse
from jobwire_server.servicers.submission import JobChecks, check_batch
from jobwire_server.servicers.submit_answers import submit_results
from jobwire_server.servicers.views import wants_full
from jobwire_server.servicers.worker_checks import known_features

MAX_ITEMS = 1_000
"""Of one list of a frame."""
MAX_SEQUENCE = (1 << 63) - 1
_CONTENTS = {
    job_service_pb2.FOLLOW_CONTENT_UNSPECIFIED: False,
    job_service_pb2.FOLLOW_CONTENT_END: False,
    job_service_pb2.FOLLOW_CONTENT_CHANGES: True,
}
"""Whether every change is wanted."""
_END = FollowWish(False, False)


class ProducerFrameChecks:
    """Checks what producers say on their streams.

    Args:
        jobs: Checks what they submit.
        max_batch_jobs: The most submissions of a frame.
    """

    def __init__(self, jobs: JobChecks, max_batch_jobs: int) -> None:
        self._jobs = jobs
        self._max_jobs = min(MAX_ITEMS, max_batch_jobs)

    def check_opening(self, message: job_service_pb2.ProducerOpening) -> None:
        """Check a producer's first words.

        Raises:
            InvalidRequest: With every violation.
        """
        checker = Checker()
        checker.text("open.client", message.client, 128)
        known_features(checker, "open.features", message.features)
        checker.raise_if_any()

    async def frame(
        self, request: job_service_pb2.ProduceRequest, *, first: bool = False
    ) -> ProducerFrame:
        """Return a frame, checked.

        Args:
            request: The frame.
            first: True for that with the opening.

        Raises:
            InvalidRequest: The frame breaks the rules of the stream.
        """
        sequence, submissions, cancels = request.sequence, request.submissions, request.cancels
        if request.HasField("open") and not first:
            raise refuse("open", "may be in the first frame of a stream only")
        if sequence < 0 or (not sequence and (submissions or cancels)):
            raise refuse("sequence", "must be above 0 in a frame with submissions or cancels")
        frame = ProducerFrame(sequence)
        if submissions:
            await self._add_submissions(frame, submissions, request)
        if request.follows:
            self._add_follows(frame, request.follows)
        if request.unfollows:
            if len(request.unfollows) > MAX_ITEMS:
                raise refuse("unfollows", f"may hold at most {MAX_ITEMS}")
            # What is no job id names no job that is followed.
            frame.unfollows = [JobId(each) for each in request.unfollows if split_job_id(each)]
        if cancels:
            if len(cancels) > MAX_ITEMS:
                raise refuse("cancels", f"may hold at most {MAX_ITEMS}, not {len(cancels)}")
            frame.cancels = [_to_cancel(item) for item in cancels]
        return frame

    async def _add_submissions(
        self,
        frame: ProducerFrame,
        items: Sequence[job_service_pb2.Submission],
        request: job_service_pb2.ProduceRequest,
    ) -> None:
        if len(items) == 1:
            frame.submissions = (self._jobs.check(items[0].request),)
        elif len(items) <= self._max_jobs:
            requests = [item.request for item in items]
            frame.submissions = await check_batch(self._jobs, requests, request.ByteSize())
        else:
            text = f"may hold at most {self._max_jobs}, not {len(items)}"
            raise refuse("submissions", text)
        wishes = [_wish(item.follow) if item.HasField("follow") else None for item in items]
        if any(wishes):
            frame.wishes = wishes

    def _add_follows(self, frame: ProducerFrame, items: Sequence[job_service_pb2.Follow]) -> None:
        if len(items) > MAX_ITEMS:
            raise refuse("follows", f"may hold at most {MAX_ITEMS}, not {len(items)}")
        follows, refused = [], []
        for item in items:
            checker = Checker()
            checker.job_id("job_id", item.job_id)
            wish = _checked_wish(item, checker)
            error = checker.refusal()
            if error is None:
                follows.append(ToFollow(JobId(item.job_id), wish))
            else:
                refused.append(Lost(item.job_id[:MAX_ID], error))
        frame.follows, frame.refused = follows, refused


MAX_ID = 90
"""Characters of a job's id; of what a caller calls one no more is told."""


def _wish(item: job_service_pb2.Follow) -> FollowWish | JobwireError:
    if not item.content and not item.view:
        return _END
    checker = Checker()
    wish = _checked_wish(item, checker)
    return checker.refusal() or wish


def _checked_wish(item: job_service_pb2.Follow, checker: Checker) -> FollowWish:
    changes = _CONTENTS.get(item.content)
    if changes is None:
        checker.add("content", f"must be END or CHANGES, not {item.content}")
    return FollowWish(bool(changes), wants_full(checker, item.view, unset=False))


def _to_cancel(item: job_service_pb2.CancelJobRequest) -> ToCancel | JobwireError:
    checker = Checker()
    queue, ulid = checker.job_id("job_id", item.job_id)
    reason = checker.text("reason", item.reason, MAX_REASON_BYTES)
    return checker.refusal() or ToCancel(queue, ulid, reason)


class ProducerFrameWriter:
    """Writes what producers are told.

    Args:
        server_id: Of this server.
    """

    def __init__(self, server_id: str) -> None:
        self._server_id = server_id

    def to_wire(self, news: ProducerNews) -> Any:
        """Return a frame, as a `wire.ProduceResponse`."""
        message = wire.ProduceResponse()
        if news.opened:
            opened = message.opened
            opened.server_id = self._server_id
            opened.max_unanswered, opened.max_follows = MAX_UNANSWERED, MAX_FOLLOWS
            opened.features.extend(FEATURES)
            convert.write_ms(opened.heartbeat_interval, round(HEARTBEAT_S * 1000))
        for answer in news.answers:
            _add_answer(message.answers, answer)
        for end in news.ends:
            _add_end(message.ends, end)
        for change in news.changes.values():
            message.jobs.append(convert.job_to_wire(change.job, full=change.full))
        for lost in news.lost:
            error = convert.item_error(lost.error).SerializeToString()
            message.lost_follows.add(job_id=lost.job_id).error.MergeFromString(error)
        if news.drain is not None:
            message.drain.reason = news.drain.reason
            convert.write_ms(message.drain.deadline, news.drain.deadline_ms)
        return message


def _add_answer(answers: Any, answer: Answer) -> None:
    added = answers.add(sequence=answer.sequence, results=submit_results(answer.results))
    for outcome in answer.cancels:
        if isinstance(outcome, JobState):
            added.cancels.add(state=int(outcome))
        else:
            error = convert.item_error(outcome).SerializeToString()
            added.cancels.add().error.MergeFromString(error)


def _add_end(ends: Any, end: Ended | Job) -> None:
    if isinstance(end, Ended):
        ends.add(job_id=end.job_id, state=_SUCCEEDED, result=end.result)
        return
    added = ends.add(job_id=end.job_id, state=int(end.state))
    if end.state is JobState.SUCCEEDED:
        added.result = end.result
    elif end.failure is not None:
        added.failure.CopyFrom(convert.failure_to_wire(end.failure))


_SUCCEEDED = int(JobState.SUCCEEDED)
