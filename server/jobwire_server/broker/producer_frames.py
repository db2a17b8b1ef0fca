"""What goes over a producer's stream, as plain values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jobwire_server.broker.submissions import Submission
from jobwire_server.domain.errors import JobwireError
from jobwire_server.domain.ids import JobId
from jobwire_server.domain.model import Accepted, Job, JobState


class FollowWish(NamedTuple):
    """What of a job a producer wants to hear."""

    changes: bool
    """True: every change; False: the end alone."""
    full: bool
    """How changes are told."""


class ToFollow(NamedTuple):
    """A job to hear of."""

    job_id: JobId
    wish: FollowWish


class ToCancel(NamedTuple):
    """A job to cancel."""

    queue: str
    ulid: str
    reason: str


class Lost(NamedTuple):
    """A follow that is over, and why."""

    job_id: str
    error: JobwireError


@dataclass(slots=True)
class ProducerFrame:
    """A frame from the producer, checked."""

    sequence: int = 0
    submissions: Sequence[Submission] = ()
    wishes: Sequence[FollowWish | JobwireError | None] = ()
    """One for each submission, or what is wrong with it; empty if none is to be followed."""
    follows: Sequence[ToFollow] = ()
    refused: Sequence[Lost] = ()
    """Follows with a wrong field."""
    unfollows: Sequence[JobId] = ()
    cancels: Sequence[ToCancel | JobwireError] = ()


class Answer(NamedTuple):
    """What became of one frame."""

    sequence: int
    results: Sequence[Accepted | JobwireError]
    cancels: Sequence[JobState | JobwireError]


class Ended(NamedTuple):
    """A followed job that ended well."""

    job_id: JobId
    result: bytes


class Changed(NamedTuple):
    """A job whose changes are followed."""

    job: Job
    full: bool


class ProducerDrain(NamedTuple):
    """The stream is to be left."""

    deadline_ms: int
    reason: str


NEWS_BYTES = 1 << 20
"""Of one frame, about, but for a single item that is larger: well below the 4 MiB that clients of
gRPC take unless told otherwise.
"""
ACCEPTED_BYTES, ERROR_BYTES = 100, 2_500
"""Of one result at most, about."""


class ProducerNews:
    """What the producer is to be told; gathered until the next frame is written."""

    __slots__ = ("answers", "changes", "drain", "ends", "lost", "opened", "unread")

    def __init__(self) -> None:
        self.opened = False
        self.answers: list[Answer] = []
        self.ends: list[Ended | Job] = []
        self.changes: dict[JobId, Changed] = {}
        """The newest of each job."""
        self.lost: list[Lost] = []
        self.drain: ProducerDrain | None = None
        self.unread = 0
        """Results, ends and other items in all."""

    def __bool__(self) -> bool:
        return self.unread > 0 or self.opened or self.drain is not None

    def answer(self, answer: Answer) -> None:
        """Tell what became of a frame."""
        self.answers.append(answer)
        self.unread += 1 + len(answer.results) + len(answer.cancels)

    def end(self, end: Ended | Job) -> None:
        """Tell of the end of a job."""
        self.ends.append(end)
        self.unread += 1

    def change(self, change: Changed) -> None:
        """Tell how a job stands, in place of how it stood before."""
        if change.job.job_id not in self.changes:
            self.unread += 1
        self.changes[change.job.job_id] = change

    def lose(self, lost: Lost) -> None:
        """Tell that a job is not followed any more."""
        self.lost.append(lost)
        self.unread += 1

    def cut(self) -> tuple[ProducerNews, ProducerNews]:
        """Return what goes into one frame, and the rest. Answers come before ends."""
        if self.unread <= 1:
            return self, ProducerNews()
        rest = ProducerNews()
        room = NEWS_BYTES
        for name, size_of in _SIZES:
            items = getattr(self, name)
            for at, item in enumerate(items):
                room -= size_of(item)
                if room < 0 and (at or room + size_of(item) < NEWS_BYTES):
                    setattr(rest, name, items[at:])
                    del items[at:]
                    break
        for job_id, change in [*self.changes.items()]:
            room -= change.job.size
            if room < 0 and room + change.job.size < NEWS_BYTES:
                rest.changes[job_id] = self.changes.pop(job_id)
        rest.unread = len(rest.ends) + len(rest.changes) + len(rest.lost)
        rest.unread += sum(1 + len(each.results) + len(each.cancels) for each in rest.answers)
        return self, rest


def _answer_size(answer: Answer) -> int:
    size = 20
    for results in answer.results, answer.cancels:
        size += ACCEPTED_BYTES * len(results)
        size += ERROR_BYTES * sum([isinstance(each, JobwireError) for each in results])
    return size


def _end_size(end: Ended | Job) -> int:
    return ACCEPTED_BYTES + (len(end.result) if isinstance(end, Ended) else end.size)


def _lost_size(lost: Lost) -> int:
    return ERROR_BYTES


_SIZES: tuple[tuple[str, Callable[[Any], int]], ...] = (
    ("answers", _answer_size),
    ("lost", _lost_size),
    ("ends", _end_size),
)
