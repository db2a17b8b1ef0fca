"""The jobs that a producer follows, and those who wait for them."""

from __future__ import annotations

from collections.abc import Iterable

from jobwire._producing.parcels import Follower, HandedBack, News
from jobwire.models import JobState
from jobwire.v1.job_pb2 import JOB_VIEW_BASIC, JOB_VIEW_FULL, Job
from jobwire.v1.job_service_pb2 import (
    FOLLOW_CONTENT_CHANGES,
    FOLLOW_CONTENT_END,
    JobEnd,
    ProduceRequest,
)

MAX_NAMED = 1000
"""The most follows, and the most unfollows, in a frame."""


class Follows:
    """Jobs and their followers, over streams: many followers of a job share one follow."""

    def __init__(self) -> None:
        self._by_job: dict[str, list[Follower]] = {}
        self._to_name: dict[str, None] = {}
        self._to_drop: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._by_job)

    @property
    def named(self) -> int:
        """How many the server has been told of."""
        return len(self._by_job) - len(self._to_name)

    @property
    def pending(self) -> bool:
        """True if there is something to tell the server."""
        return bool(self._to_name or self._to_drop)

    def add(self, job_id: str, follower: Follower, *, named: bool = False) -> None:
        """Take a follower.

        Args:
            job_id: The job.
            follower: Who wants to hear of it.
            named: True: the server follows it for this stream already.
        """
        followers = self._by_job.get(job_id)
        if followers is None:
            self._by_job[job_id] = [follower]
            if not named:
                self._to_name[job_id] = None
            self._to_drop.pop(job_id, None)
            return
        # Whoever wants changes begins with the job as it stands, which naming it again brings; and
        # a submission that follows has turned the follow into one of the end.
        changes = any(other.changes for other in followers)
        followers.append(follower)
        if follower.changes or (named and changes):
            self._to_name[job_id] = None

    def remove(self, job_id: str, follower: Follower) -> None:
        """Forget a follower; unknown ones are fine."""
        followers = self._by_job.get(job_id)
        if followers is None or follower not in followers:
            return
        followers.remove(follower)
        if not followers:
            del self._by_job[job_id]
            if job_id in self._to_name:
                # Perhaps it was named before, as less.
                del self._to_name[job_id]
            self._to_drop[job_id] = None
        elif follower.changes:
            self._to_name[job_id] = None

    def renew(self) -> None:
        """Name all of them again: to another stream."""
        self._to_drop.clear()
        self._to_name = dict.fromkeys(self._by_job)

    def name_again(self, job_id: str) -> None:
        """Name one again, if it is still followed."""
        if job_id in self._by_job:
            self._to_name[job_id] = None

    def take(self, max_follows: int, is_known: bool) -> bytes:
        """Return what the next frame says of follows; empty: nothing.

        Args:
            max_follows: How many there may be.
            is_known: True: the server said so, and what is beyond is handed back. False: it waits.
        """
        frame = ProduceRequest()
        for job_id in self._first(self._to_drop):
            del self._to_drop[job_id]
            frame.unfollows.append(job_id)
        room = max_follows - self.named
        for job_id in self._first(self._to_name):
            if room <= 0:
                if not is_known:
                    break
                self._tell_all(job_id, HandedBack())
                continue
            room -= 1
            del self._to_name[job_id]
            followers = self._by_job[job_id]
            follow = frame.follows.add(job_id=job_id)
            if any(follower.changes for follower in followers):
                follow.content = FOLLOW_CONTENT_CHANGES
                # An end is told with its result, so those who wait for one need all of the job.
                full = any(follower.full or not follower.changes for follower in followers)
                follow.view = JOB_VIEW_FULL if full else JOB_VIEW_BASIC
            else:
                follow.content = FOLLOW_CONTENT_END
        return frame.SerializeToString()

    @staticmethod
    def _first(jobs: dict[str, None]) -> list[str]:
        found: list[str] = []
        for job_id in jobs:
            if len(found) == MAX_NAMED:
                break
            found.append(job_id)
        return found

    def ended(self, end: JobEnd) -> None:
        """Pass on an end."""
        followers = self._by_job.get(end.job_id)
        if followers is None:
            return
        self._drop(end.job_id)
        for follower in followers:
            # Whoever wants changes wants the whole job at its end as well, and reads it otherwise.
            follower.hear(HandedBack() if follower.changes else end)

    def changed(self, job: Job) -> None:
        """Pass on a job as it stands."""
        followers = self._by_job.get(job.job_id)
        if followers is None:
            return
        state = JobState.from_proto(job.state, ended=job.HasField("finished_at"))
        if not state.is_terminal:
            for follower in [*followers]:
                if follower.changes:
                    follower.hear(job)
            return
        self._drop(job.job_id)
        for follower in followers:
            follower.hear(job if follower.changes else _end_of(job))

    def lost(self, job_id: str, news: News) -> None:
        """Tell the followers of a job that they hear no more of it."""
        self._tell_all(job_id, news)

    def tell_everyone(self, news: News) -> None:
        """Tell all followers of all jobs that they hear no more."""
        for job_id in self.jobs():
            self._tell_all(job_id, news)

    def jobs(self) -> Iterable[str]:
        """Return the jobs that are followed now."""
        return [*self._by_job]

    def _tell_all(self, job_id: str, news: News) -> None:
        followers = self._by_job.get(job_id)
        if followers is not None:
            self._drop(job_id)
            for follower in followers:
                follower.hear(news)

    def _drop(self, job_id: str) -> None:
        del self._by_job[job_id]
        self._to_name.pop(job_id, None)


def _end_of(job: Job) -> JobEnd:
    return JobEnd(
        job_id=job.job_id,
        state=job.state,
        result=job.result if job.HasField("result") else None,
        failure=job.failure if job.HasField("failure") else None,
    )
