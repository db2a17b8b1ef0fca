# Made from jobwire/_async by tools/unasync.py; edit that one.
"""A submitted job in its producer's hands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from jobwire.errors import (
    CallError,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobwireError,
)
from jobwire.models import Job, JobState

if TYPE_CHECKING:
    from jobwire._sync.client import Client


class JobHandle:
    """A job by its id.

    Attributes:
        id: `<queue>-<26 lower-case ULID characters>`.
        state: As the submission was answered; UNSPECIFIED for a handle made from an id.
        existed: True if the id had been submitted before, with the same content.
    """

    __slots__ = ("_client", "existed", "id", "state")

    def __init__(
        self,
        client: Client,
        job_id: str,
        state: JobState = JobState.UNSPECIFIED,
        *,
        existed: bool = False,
    ) -> None:
        self._client = client
        self.id = job_id
        self.state = state
        self.existed = existed

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"

    def get(self) -> Job:
        """Returns the job as it stands."""
        return self._client.get(self.id)

    def watch(self, *, timeout: float | None = None) -> Iterator[Job]:
        """Yields the job as it stands and again after every change, until it has ended.

        Args:
            timeout: For the whole watch, in seconds; None: as long as the job takes.
        """
        return self._client.watch(self.id, timeout=timeout)

    def wait(self, *, timeout: float | None = None) -> Job:
        """Waits for the end of the job, whatever it is, and returns the job.

        Args:
            timeout: In seconds; None: as long as it takes.

        Raises:
            DeadlineExceeded: The job did not end within `timeout`; it goes on.
        """
        for job in self.watch(timeout=timeout):
            last = job
        return last

    def result(self, *, timeout: float | None = None) -> Any:
        """Waits for the end of the job and returns its result as a Python value.

        Args:
            timeout: In seconds; None: as long as it takes.

        Raises:
            JobFailed, JobCancelled, JobExpired: The job ended without a result.
            DeadlineExceeded: The job did not end within `timeout`; it goes on.
        """
        job = self.wait(timeout=timeout)
        if job.state is JobState.FAILED:
            raise JobFailed(job)
        if job.state is JobState.CANCELLED:
            raise JobCancelled(job)
        if job.state is JobState.EXPIRED:
            raise JobExpired(job)
        return job.result

    def cancel(self, reason: str = "") -> Job:
        """Asks for the end of the job and returns it: CANCELLED, or CANCELLING if it runs."""
        return self._client.cancel(self.id, reason)


class BatchError(JobwireError):
    """Some jobs of a batch were refused.

    Attributes:
        outcomes: A handle or a `CallError` for each job, in their order.
        job_ids: The id of each job, in the same order: what was refused can be submitted again
            under the same id without danger of doubling it.
    """

    def __init__(self, outcomes: Sequence[JobHandle | CallError], job_ids: Sequence[str]) -> None:
        self.outcomes = tuple(outcomes)
        self.job_ids = tuple(job_ids)
        index, first = next(iter(self.errors.items()))
        super().__init__(
            f"{len(self.errors)} of {len(self.outcomes)} jobs were refused; the first of them,"
            f" number {index}: {first}"
        )

    @property
    def handles(self) -> Sequence[JobHandle]:
        """The accepted jobs, in their order."""
        return [outcome for outcome in self.outcomes if isinstance(outcome, JobHandle)]

    @property
    def errors(self) -> dict[int, CallError]:
        """The refusals by position in the batch."""
        return {
            index: outcome
            for index, outcome in enumerate(self.outcomes)
            if isinstance(outcome, CallError)
        }
