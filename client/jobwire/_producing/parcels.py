"""What waits for answers on a producer's stream: submissions, and those who follow jobs.

Submissions are kept as the bytes that a frame carries: the fields of a message can be put one after
the other, so a frame of many is made by joining them, and sending again costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TypeAlias

from jobwire._repeat import Backoff
from jobwire.errors import CallError
from jobwire.v1.job_pb2 import Job
from jobwire.v1.job_service_pb2 import (
    FOLLOW_CONTENT_END,
    JobEnd,
    ProduceRequest,
    SubmitJobRequest,
    SubmitJobResponse,
    SubmitResult,
)

METHOD = "/jobwire.v1.JobService/Produce"
TICK_S = 0.25
"""How often it is looked for what is due."""
IDLE_S = 30.0
"""A stream that nobody has used for so long is left."""
STEADY_S = 5.0
"""A stream that was open for so long was of use."""
EXACT_BELOW_S = 5.0
"""Up to this, the end of a timeout is hit exactly; above, up to a tick later."""
MAX_KEPT = 16
"""How many changes of a job are kept for a watcher who takes them slowly."""


class HandedBack:
    """Tells whoever waits to go on without a stream.

    Attributes:
        error: What the stream ended with; None if it was told of nothing.
    """

    __slots__ = ("error",)

    def __init__(self, error: CallError | None = None) -> None:
        self.error = error


News: TypeAlias = JobEnd | Job | CallError | HandedBack
"""What a follower hears."""
Outcome: TypeAlias = SubmitJobResponse | list[SubmitResult] | News
"""What becomes of a parcel."""


class Follower:
    """Somebody who waits for news of a job."""

    __slots__ = ()
    changes = False
    """True: wants every change as a `Job`. False: its end as a `JobEnd`."""
    full = False
    """With `changes`: in the FULL view."""

    def hear(self, news: News) -> None:
        """Take news; the last is the end, a `Job` that has ended, an error or `HandedBack`."""
        raise NotImplementedError


class Parcel(Follower):
    """Submissions that travel together, and whoever waits for their answer.

    Args:
        data: A `ProduceRequest` with them alone, serialized.
        queue: Theirs; empty if there are several.
        count: How many there are.
        ends_at: When to give up, by the conversation's clock.
        batch: True: the outcome is a list of results, and refused ones are not sent again.
        follows: True: it is one submission with a `follow`, and the outcome is the job's end.

    Attributes:
        job_id: With `follows`, once the submission is answered: the job.
        told: The last refusal for now.
        breaks: How many streams broke while they carried it.
    """

    __slots__ = (
        "backoff",
        "batch",
        "breaks",
        "count",
        "data",
        "ends_at",
        "follows",
        "job_id",
        "queue",
        "told",
    )

    def __init__(
        self,
        data: bytes,
        queue: str,
        *,
        count: int = 1,
        ends_at: float = math.inf,
        batch: bool = False,
        follows: bool = False,
    ) -> None:
        self.data = data
        self.queue = queue
        self.count = count
        self.ends_at = ends_at
        self.batch = batch
        self.follows = follows
        self.job_id = ""
        self.told: CallError | None = None
        self.backoff: Backoff | None = None
        self.breaks = 0

    @property
    def left(self) -> bool:
        """True if nobody waits for it any more."""
        raise NotImplementedError

    def settle(self, outcome: Outcome) -> None:
        """Tell whoever waits."""
        raise NotImplementedError

    def hear(self, news: News) -> None:
        self.settle(news)


def submission(frame: ProduceRequest, *, follow: bool = False) -> bytes:
    """Serialize a frame with one submission.

    Args:
        frame: With nothing but that.
        follow: True: its end is to be told.
    """
    if follow:
        frame.submissions[0].follow.content = FOLLOW_CONTENT_END
    return frame.SerializeToString()


def submissions(requests: Iterable[SubmitJobRequest]) -> bytes:
    """Serialize a frame with several submissions."""
    frame = ProduceRequest()
    for request in requests:
        frame.submissions.add().request.CopyFrom(request)
    return frame.SerializeToString()


def request_in(data: bytes) -> SubmitJobRequest:
    """Return the one submission of a frame."""
    return ProduceRequest.FromString(data).submissions[0].request
