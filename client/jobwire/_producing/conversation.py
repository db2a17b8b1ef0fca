"""What a producer and a server say to each other, over streams that come and go. No I/O.

A shell around it opens streams, writes the frames that it makes, and hands it what arrives.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterable

import grpc

from jobwire._connection import __version__
from jobwire._producing.follows import Follows
from jobwire._producing.line import LATE_S, OPENING_S, Line
from jobwire._producing.outbox import Outbox
from jobwire._producing.parcels import Follower, HandedBack, Parcel
from jobwire._repeat import Backoff, worth_repeating
from jobwire.errors import CallError, DeadlineExceeded, from_item_error, from_result
from jobwire.v1.job_service_pb2 import (
    FollowEnd,
    ProduceAnswer,
    ProduceRequest,
    ProduceResponse,
    ProducerOpening,
    SubmitResult,
)

MAX_BREAKS = 3
"""A parcel that so many streams broke under is handed back: perhaps it breaks them."""

OPENING = ProduceRequest(
    open=ProducerOpening(client=f"jobwire-python/{__version__}")
).SerializeToString()


class Conversation:
    """Submissions without an answer, follows, and the line that carries them.

    Args:
        now: The clock, in seconds.
        timeout_s: How long a submission may take; None: no limit.
        reconnect_s: How long followers wait while no stream can be had; None: no limit.

    Attributes:
        line: The stream to submit on; None while there is none.
        error: What the last stream ended with, while there is none.
    """

    def __init__(
        self, now: Callable[[], float], timeout_s: float | None, reconnect_s: float | None
    ) -> None:
        self.line: Line | None = None
        self.error: CallError | None = None
        self.follows = Follows()
        self._now = now
        # What does without a stream in the end needs time as well.
        self._opening_s = OPENING_S if timeout_s is None else min(OPENING_S, timeout_s / 4)
        self._reconnect_s = math.inf if reconnect_s is None else reconnect_s
        self._waiting = Outbox()
        self._later: list[tuple[float, int, Parcel | str]] = []
        """What is to be said again, by the time at which it may be."""
        self._numbers = itertools.count(1)
        self._away_since: float | None = None

    # From callers.

    def submit(self, parcel: Parcel) -> None:
        """Take submissions, for the next frame that has room."""
        self._waiting.put(parcel)

    def follow(self, job_id: str, follower: Follower) -> None:
        """Take a follower."""
        if not len(self.follows) and not (self.line is not None and self.line.is_open):
            self._away_since = self._now()
        self.follows.add(job_id, follower)

    def unfollow(self, job_id: str, follower: Follower) -> None:
        """Forget a follower."""
        self.follows.remove(job_id, follower)

    @property
    def is_idle(self) -> bool:
        """True if nobody waits for anything."""
        line = self.line
        return not (
            self._waiting or len(self.follows) or self._later or (line is not None and line.sent)
        )

    @property
    def has_news(self) -> bool:
        """True if there may be something to write that was not there before."""
        return bool(self._waiting or self._later or self.follows.pending)

    # Streams.

    def begin(self) -> Line:
        """Go on with another stream, and name the follows there."""
        self.line = Line(self._now(), self._opening_s)
        self.follows.renew()
        return self.line

    def broken(self, line: Line, error: CallError | None) -> None:
        """Take back what a stream carried that has ended, or that is given up.

        Args:
            line: The stream.
            error: What it ended with; None: well.
        """
        now = self._now()
        if error is not None and error.code is grpc.StatusCode.INVALID_ARGUMENT:
            self._waiting.shorten()
        again = []
        for parcel in line.parcels():
            parcel.breaks += 1
            if parcel.breaks >= MAX_BREAKS:
                parcel.settle(HandedBack(error))
            elif not parcel.left:
                again.append(parcel)
        line.sent.clear()
        line.unanswered = 0
        self._waiting.put_back(again)
        if self.line is line:
            self.line = None
            self.error = error or self.error
            if self._away_since is None:
                self._away_since = now

    def feed(self, line: Line, response: ProduceResponse) -> None:
        """Take what a server said."""
        line.hear(response, self._now())
        if line.is_open and line is self.line and self._away_since is not None:
            self._away_since = self.error = None
        for answer in response.answers:
            line.worked = True
            self._answered(line, answer)
        for end in response.ends:
            line.worked = True
            self.follows.ended(end)
        for job in response.jobs:
            self.follows.changed(job)
        for lost in response.lost_follows:
            self._lost(lost)

    def _answered(self, line: Line, answer: ProduceAnswer) -> None:
        results = answer.results
        at = 0
        for parcel in line.note_answered(answer.sequence):
            parcel.breaks = 0
            if parcel.batch:
                parcel.settle([*results[at : at + parcel.count]])
            elif at < len(results):
                self._decided(parcel, results[at])
            else:
                parcel.settle(from_result(SubmitResult()))
            at += parcel.count

    def _decided(self, parcel: Parcel, result: SubmitResult) -> None:
        if result.WhichOneof("outcome") == "accepted":
            accepted = result.accepted
            if not parcel.follows:
                parcel.settle(accepted)
            elif parcel.left:
                self.follows.add(accepted.job_id, parcel, named=True)
                self.unfollow(accepted.job_id, parcel)
            else:
                parcel.job_id = accepted.job_id
                self.follows.add(accepted.job_id, parcel, named=True)
            return
        error = from_result(result)
        parcel.told = error
        now = self._now()
        if worth_repeating(error) and not parcel.left:
            parcel.backoff = parcel.backoff or Backoff()
            due = now + parcel.backoff.next_s(error.retry_after_s)
            if due < parcel.ends_at:
                self._say_later(due, parcel)
                return
        parcel.settle(error)

    def _lost(self, lost: FollowEnd) -> None:
        error = from_item_error(lost.error)
        if error.code is grpc.StatusCode.UNAVAILABLE:
            self._say_later(self._now() + Backoff().next_s(error.retry_after_s), lost.job_id)
        elif error.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            self.follows.lost(lost.job_id, HandedBack(error))
        else:
            self.follows.lost(lost.job_id, error)

    def _say_later(self, due: float, what: Parcel | str) -> None:
        heapq.heappush(self._later, (due, next(self._numbers), what))

    # Frames.

    def next_frame(self, line: Line) -> bytes | None:
        """Return what to write on a stream now; None: nothing."""
        now = self._now()
        parts: list[bytes] = []
        if not line.began:
            line.began = True
            parts.append(OPENING)
        numbered = False
        if line is self.line:
            if self._later and self._later[0][0] <= now:
                self._say_again(now)
            if self._waiting and (parcels := self._waiting.take(line, now)):
                parts += [parcel.data for parcel in parcels]
                parts.append(self._number(line, parcels, now))
                numbered = True
            if self.follows.pending and (said := self.follows.take(line.max_follows, line.is_open)):
                parts.append(said)
        if line.takes_question(now) and not numbered:
            parts.append(self._number(line, [], now))
        if not parts and not line.owes_heartbeat(now):
            return None
        line.wrote_at = now
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _number(self, line: Line, parcels: list[Parcel], now: float) -> bytes:
        sequence = next(self._numbers)
        line.note_sent(sequence, parcels, now)
        return ProduceRequest(sequence=sequence).SerializeToString()

    def _say_again(self, now: float) -> None:
        while self._later and self._later[0][0] <= now:
            what = heapq.heappop(self._later)[2]
            if isinstance(what, Parcel):
                self._waiting.put(what)
            else:
                self.follows.name_again(what)

    # Time.

    @property
    def waits_s(self) -> float | None:
        """The seconds until something that can't be said now may be; None: nothing is held back."""
        if not (self._later or self._waiting):
            return None
        now = self._now()
        due = self._later[0][0] if self._later else math.inf
        if self._waiting and self.line is not None and self.line.sent:
            due = min(due, now + LATE_S)
        return None if math.isinf(due) else max(0.0, due - now)

    def tick(self) -> None:
        """Give up what has waited for too long."""
        now = self._now()
        for parcel in self._waiting.overdue(now):
            self.give_up(parcel)
        if self.line is not None:
            self.expire(self.line)
        if self._away_since is not None and now - self._away_since > self._reconnect_s:
            self.follows.tell_everyone(self.error or DeadlineExceeded("no server answered in time"))

    def expire(self, line: Line) -> None:
        """Give up what has waited for too long for the answers of a stream."""
        now = self._now()
        for parcel in line.parcels():
            if parcel.ends_at <= now and not parcel.left:
                self.give_up(parcel)

    def give_up(self, parcel: Parcel) -> None:
        """Tell whoever waits for it that its time is over."""
        parcel.settle(
            parcel.told or self.error or DeadlineExceeded("the server did not answer in time")
        )

    def hand_back(self, error: CallError | None, *, follows: bool) -> None:
        """Give what waits to those who wait, to go on without a stream.

        Args:
            error: Why.
            follows: True: the follows as well.
        """
        self._settle_waiting(HandedBack(error))
        if follows:
            self.follows.tell_everyone(HandedBack(error))

    def fail(self, error: CallError | HandedBack, lines: Iterable[Line]) -> None:
        """Tell everyone who waits for anything that it is over."""
        for line in lines:
            for parcel in [*line.parcels()]:
                parcel.settle(error)
            line.sent.clear()
        self.line = None
        self._settle_waiting(error)
        self.follows.tell_everyone(error)

    def _settle_waiting(self, outcome: CallError | HandedBack) -> None:
        later, self._later = self._later, []
        for what in [*self._waiting.empty(), *(entry[2] for entry in later)]:
            if isinstance(what, Parcel):
                what.settle(outcome)
