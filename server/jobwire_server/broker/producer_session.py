"""A producer's session: the state of one stream, free of the stream itself.

Whoever has something to tell the producer writes it, unless somebody writes already, who then takes
it along: a lone answer goes out in the turn in which it is known.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic

import structlog

from jobwire_server.broker.cancellations import Cancellations
from jobwire_server.broker.producer_frames import (
    Answer,
    Changed,
    Ended,
    FollowWish,
    Lost,
    ProducerDrain,
    ProducerFrame,
    ProducerNews,
    ToCancel,
)
from jobwire_server.broker.submissions import Submission, Submissions
from jobwire_server.domain.background import OwnedTasks, settle
from jobwire_server.domain.errors import JobNotFound, JobwireError, TooManyFollows
from jobwire_server.domain.ids import ULID, JobId
from jobwire_server.domain.model import Accepted, Job, JobState, NewJob, NotNow
from jobwire_server.watch.follows import Follow, FollowedQueue, Follows

log = structlog.get_logger(__name__)

MAX_UNANSWERED = 5_000
"""Submissions and cancellations of one stream that wait for their answers; the server reads on
below that.
"""
MAX_FOLLOWS = 100_000
"""Jobs that one stream may follow."""
MAX_UNREAD = 20_000
"""Answers and ends that wait to be read by a producer; then it is not listened to either."""

NOT_LISTENING = float("inf")
"""For when the producer was last heard."""

Write = Callable[[ProducerNews], Awaitable[None]]
_Begun = tuple[FollowedQueue, Follow]


class ProducerSession:
    """One producer's stream.

    Args:
        write: Writes a frame; called for one at a time.
        submissions: Accept jobs.
        cancellations: End them.
        follows: Tell of their ends.
        tasks: Go on with what was begun when the stream is over.
    """

    def __init__(
        self,
        write: Write,
        submissions: Submissions,
        cancellations: Cancellations,
        follows: Follows,
        tasks: OwnedTasks,
    ) -> None:
        self._write = write
        self._submissions = submissions
        self._cancellations = cancellations
        self._follows = follows
        self._tasks = tasks
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the stream is over; with an error where the producer should learn of one."""
        self.born_at = self.heard_at = self.told_at = monotonic()
        self.writing_since: float | None = None
        self.drain_until: float | None = None
        self.leaves_when_idle = False
        self._unanswered = 0
        """Submissions and cancellations."""
        self._under_way = 0
        """Frames that are being answered."""
        self._read_on = asyncio.Event()
        self._followed: set[JobId] = set()
        self._news = ProducerNews()
        self._sign_of_life = False
        """A frame is to be written, though there is no news."""
        self._wake = asyncio.Event()

    # -------------------------------------------------------- to the producer

    async def tell(self) -> None:
        """Write what there is to tell, unless somebody does already."""
        if self.writing_since is not None:
            return
        try:
            while (self._news or self._sign_of_life) and not self.ended.done():
                self._sign_of_life = False
                self.writing_since = monotonic()
                news, self._news = self._news.cut()
                await self._write(news)
                # There is room to be filled.
                self._read_on.set()
        finally:
            self.told_at = monotonic()
            self.writing_since = None
            self._read_on.set()

    async def tell_what_comes(self) -> None:
        """Write what comes by itself, until the stream is over."""
        while not self.ended.done():
            self._wake.clear()
            await self.tell()
            await self._wake.wait()

    async def greet(self) -> None:
        """Answer the opening."""
        self._news.opened = True
        await self.tell()

    def show_life(self) -> None:
        """Have something written, if only a frame without any field."""
        self._sign_of_life = True
        self._wake.set()

    def drain(self, deadline_s: float, now_ms: int, reason: str, *, when_idle: bool) -> None:
        """Ask the producer to leave this stream.

        Args:
            deadline_s: When the stream is ended at the latest.
            now_ms: The store's time.
            reason: For people.
            when_idle: True to end the stream as soon as nothing is unanswered.
        """
        self.leaves_when_idle = self.leaves_when_idle or when_idle
        if self.drain_until is None and not self.ended.done():
            self.drain_until = monotonic() + deadline_s
            self._news.drain = ProducerDrain(now_ms + round(deadline_s * 1000), reason)
            self._wake.set()

    @property
    def is_writing(self) -> bool:
        """True while a frame is on its way to the peer's buffers."""
        return self.writing_since is not None

    @property
    def is_held_up(self) -> bool:
        """True while nothing is read from the producer, whatever it may ask."""
        return self.heard_at == NOT_LISTENING

    @property
    def idle(self) -> bool:
        """True if nothing is unanswered or untold."""
        return not (self._under_way or self._news or self.writing_since is not None)

    def end(self, error: JobwireError | None = None) -> None:
        """End the stream; harmless if it has ended."""
        settle(self.ended, error)
        self._wake.set()
        self._read_on.set()

    def release(self) -> None:
        """The stream is over: nothing is followed any more."""
        self.end()
        self._follows.end(self, self._followed)
        self._followed.clear()

    async def finish(self) -> None:
        """The producer has ended its side: answer what it sent, then end the stream."""
        # Until the end of the answers nobody else is heard.
        self.heard_at = NOT_LISTENING
        await self.tell()
        while not self.idle and not self.ended.done():
            self._read_on.clear()
            await self._read_on.wait()
        self.end()

    # ------------------------------------------------------ from the producer

    async def receive(self, frame: ProducerFrame) -> None:
        """Act on a frame; wait where the producer is ahead of the store or of its own reading."""
        # While this side takes its time, the other one is not silent.
        self.heard_at = NOT_LISTENING
        if frame.follows or frame.refused or frame.unfollows:
            self._change_follows(frame)
        if frame.sequence:
            if frame.submissions:
                await self._submissions.open_queues(frame.submissions)
            self._unanswered += len(frame.submissions) + len(frame.cancels)
            self._under_way += 1
            self._tasks.begin(self._answer(frame), "producer-frame")
        while not self.ended.done() and (
            self._unanswered >= MAX_UNANSWERED or self._news.unread >= MAX_UNREAD
        ):
            self._read_on.clear()
            await self._read_on.wait()
        self.heard_at = monotonic()

    async def _answer(self, frame: ProducerFrame) -> None:
        results: Sequence[Accepted | JobwireError] = ()
        cancels: Sequence[JobState | JobwireError] = ()
        begun: dict[int, _Begun] = {}
        try:
            if frame.submissions:
                if frame.wishes:
                    begun = self._begin_follows(frame)
                results = await self._submit(frame.submissions)
            if frame.cancels:
                cancels = await asyncio.gather(*map(self._cancel, frame.cancels))
            self._news.answer(Answer(frame.sequence, results, cancels))
            # From here on: the answer comes before the end.
            for at, wish in enumerate(frame.wishes):
                if wish is not None:
                    self._follow_answered(results[at], wish, begun.get(at))
        finally:
            self._unanswered -= len(frame.submissions) + len(frame.cancels)
            self._under_way -= 1
            self._read_on.set()
        await self.tell()

    async def _submit(self, items: Sequence[Submission]) -> Sequence[Accepted | JobwireError]:
        try:
            if len(items) == 1:
                return (await self._submissions.submit_one(items[0]),)
            return await self._submissions.submit_batch(items, None)
        except JobwireError as error:
            return [error] * len(items)
        except Exception:
            # A stream that broke over it would be opened anew with the same submissions.
            log.exception("submissions failed by a defect", count=len(items))
            return [_defect()] * len(items)

    async def _cancel(self, item: ToCancel | JobwireError) -> JobState | JobwireError:
        if isinstance(item, JobwireError):
            return item
        try:
            return await self._cancellations.cancel(*item)
        except JobwireError as error:
            return error
        except Exception:
            log.exception("a cancellation failed by a defect")
            return _defect()

    # ---------------------------------------------------------------- follows

    def _change_follows(self, frame: ProducerFrame) -> None:
        for refused in frame.refused:
            self._lose(*refused)
        for job_id, wish in frame.follows:
            self._follow(job_id, wish)
        if frame.unfollows:
            self._follows.end(self, frame.unfollows)
            self._followed.difference_update(frame.unfollows)

    def _follow(self, job_id: JobId, wish: FollowWish) -> None:
        if self.ended.done():
            return
        if not self._has_room(job_id):
            self._lose(job_id, TooManyFollows("this stream or server follows as many as it may"))
            return
        self._followed.add(job_id)
        self._follows.begin(self, job_id, changes=wish.changes, full=wish.full)

    def _has_room(self, job_id: JobId) -> bool:
        room = len(self._followed) < MAX_FOLLOWS and self._follows.room.left > 0
        return room or job_id in self._followed

    def _begin_follows(self, frame: ProducerFrame) -> dict[int, _Begun]:
        """Follow jobs from before they are written, so that nothing needs to be read later.

        Others are followed once they are accepted, and read then: where the queue's events do not
        arrive yet, because later frames would overtake one that waits for them; and where the job
        is followed already, because this submission of it may be refused.
        """
        begun: dict[int, _Begun] = {}
        if self.ended.done():
            return begun
        for at, (item, wish) in enumerate(zip(frame.submissions, frame.wishes, strict=True)):
            job = item.job if isinstance(item, NotNow) else item
            if not isinstance(wish, FollowWish) or not isinstance(job, NewJob):
                continue
            queue = self._follows.queue(job.queue)
            if (
                not queue.subscribed
                or job.job_id in self._followed
                or not self._has_room(job.job_id)
            ):
                continue
            follow = Follow(self, job.job_id[ULID], changes=wish.changes, full=wish.full)
            follow.held = True
            queue.add(follow)
            self._followed.add(job.job_id)
            begun[at] = queue, follow
        return begun

    def _follow_answered(
        self,
        answer: Accepted | JobwireError,
        wish: FollowWish | JobwireError,
        begun: _Begun | None,
    ) -> None:
        if begun is not None:
            queue, follow = begun
            if isinstance(answer, Accepted) and not answer.existed and not self.ended.done():
                queue.answered(follow)
                return
            queue.drop(self, follow.ulid)
            self._followed.discard(queue.job_id(follow))
        if isinstance(answer, Accepted):
            if isinstance(wish, JobwireError):
                self._lose(answer.job_id, wish)
            elif answer.state is None:
                self._lose(answer.job_id, JobNotFound(answer.job_id))
            else:
                self._follow(answer.job_id, wish)

    def job_succeeded(self, job_id: JobId, result: bytes) -> None:
        """A followed job has ended well; its follow is over."""
        self._followed.discard(job_id)
        self._news.end(Ended(job_id, result))
        self._wake.set()

    def job_ended(self, job: Job) -> None:
        """A followed job has ended; its follow is over."""
        self._followed.discard(job.job_id)
        self._news.end(job)
        self._wake.set()

    def job_changed(self, job: Job, *, full: bool) -> None:
        """A job whose changes are followed stands like this now."""
        if job.state.terminal:
            self._followed.discard(job.job_id)
        self._news.change(Changed(job, full))
        self._wake.set()

    def job_lost(self, job_id: JobId, error: JobwireError) -> None:
        """A follow is over, and its job has not ended."""
        self._followed.discard(job_id)
        self._lose(job_id, error)

    def _lose(self, job_id: str, error: JobwireError) -> None:
        self._news.lose(Lost(job_id, error))
        self._wake.set()


def _defect() -> JobwireError:
    return JobwireError("the server made a mistake; its log has the details")
