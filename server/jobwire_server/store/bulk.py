"""Acts of operators on many jobs of a queue: redrives and early forgetting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jobwire_server.domain.errors import JobNotFound, JobwireError, UniqueKeyTaken, WrongState
from jobwire_server.domain.ids import job_id_of
from jobwire_server.domain.model import JobState
from jobwire_server.store.codec import encode_redrive_request
from jobwire_server.store.codes import Code
from jobwire_server.store.runner import Argument, QueueScripts


class RedriveItem(NamedTuple):
    """A job to put back after its end."""

    ulid: str
    route_id: str
    priority: int
    number: int
    """How often it had been redriven when the caller looked at it."""
    reason: str
    due_ms: int = 0
    """Not before this moment, Unix ms; 0: at once."""
    delay_ms: int = 0
    """Not before this long from now."""
    request_id: str = ""
    """Kept with the job; '' for none."""


class Redriven(NamedTuple):
    """What became of a redrive."""

    state: JobState
    """The job's state after it."""
    now: bool
    """False: it was redriven before, and nothing changed."""


class BulkStore(QueueScripts):
    """Scripts that act on jobs by their ids. Methods raise StoreUnavailable."""

    async def redrive(
        self, queue: str, items: Sequence[RedriveItem]
    ) -> list[Redriven | JobwireError]:
        """Put FAILED, CANCELLED and EXPIRED jobs back; answer the others with their error."""
        args: list[Argument] = []
        for item in items:
            start = f"+{item.delay_ms}" if item.delay_ms else str(item.due_ms or "")
            args += (item.ulid, start, item.route_id, item.priority, item.number, item.reason)
            args.append(encode_redrive_request(item.request_id, item.delay_ms))
        answers = await self._run("redrive", queue, args)
        results: list[Redriven | JobwireError] = []
        for item, (code, *rest) in zip(items, answers, strict=True):
            job_id = job_id_of(queue, item.ulid)
            if code == Code.NOT_FOUND:
                results.append(JobNotFound(job_id))
            elif code == Code.WRONG_STATE:
                results.append(not_redrivable(job_id, JobState(rest[0])))
            elif code == Code.KEY_TAKEN:
                holder = JobState(rest[0]).name if rest[0] else "forgotten"
                results.append(UniqueKeyTaken("", job_id_of(queue, rest[1].decode()), holder))
            else:
                results.append(Redriven(JobState(rest[0]), code == Code.DONE))
        return results

    async def forget(self, queue: str, jobs: Sequence[tuple[str, int]]) -> list[bool]:
        """Forget jobs that have ended, given as (ULID, revision); at most 1000.

        Return for each whether it was forgotten; one that has changed since is left alone.
        """
        args: list[Argument] = []
        for job in jobs:
            args += job
        answers = await self._run("forget", queue, args)
        return [answer == 1 for answer in answers]


def not_redrivable(job_id: str, state: JobState) -> WrongState:
    """Return the refusal of a redrive that the job's state does not allow."""
    return WrongState(
        f"{job_id} is {state.name}; only a FAILED, CANCELLED or EXPIRED job can be redriven",
        metadata={"state": state.name},
    )
