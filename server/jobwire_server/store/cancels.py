"""Cancellations in the store: cancel.lua and take_cancels.lua."""

from __future__ import annotations

from collections.abc import Sequence

from jobwire_server.domain.errors import JobNotFound, JobwireError, WrongState
from jobwire_server.domain.ids import job_id_of
from jobwire_server.domain.model import CancelNotice, JobState
from jobwire_server.store.codes import Code
from jobwire_server.store.runner import Argument, QueueScripts


class CancelStore(QueueScripts):
    """Cancels jobs, and tells workers which of theirs to stop."""

    async def cancel(
        self,
        queue: str,
        jobs: Sequence[tuple[str, str]],
        grace_ms: int,
        retention_ms: int,
        only: Sequence[JobState] = (),
    ) -> list[JobState | JobwireError]:
        """Cancel jobs given as (ULID, reason).

        Args:
            queue: The queue of all of them.
            jobs: Which, and why.
            grace_ms: How long running ones may take to stop.
            retention_ms: How long the others are kept.
            only: Skip jobs that are in none of these states; empty: any state will do.
        """
        states = "".join(str(int(state)) for state in only)
        args: list[Argument] = [grace_ms, retention_ms]
        for job in jobs:
            args += (*job, states)
        answers = await self._run("cancel", queue, args)
        results: list[JobState | JobwireError] = []
        for (ulid, _), (code, *state) in zip(jobs, answers, strict=True):
            job_id = job_id_of(queue, ulid)
            if code == Code.NOT_FOUND:
                results.append(JobNotFound(job_id))
            elif code == Code.WRONG_STATE:
                name = JobState(state[0]).name
                results.append(
                    WrongState(f"{job_id} has finished: it is {name}", metadata={"state": name})
                )
            elif code == Code.STATE_CHANGED:
                name = JobState(state[0]).name
                results.append(
                    WrongState(f"{job_id} has moved on: it is {name}", metadata={"state": name})
                )
            else:
                results.append(JobState(state[0]))
        return results

    async def take(self, queue: str, worker_id: str) -> list[CancelNotice]:
        """Return the jobs of a queue that the worker must stop, each once."""
        (flat,) = await self._run("take_cancels", queue, [worker_id])
        parts = iter(flat)
        return [
            CancelNotice(
                job_id_of(queue, ulid.decode()),
                int(token),
                reason.decode(errors="replace"),
                int(deadline),
            )
            for ulid, token, deadline, reason in zip(parts, parts, parts, parts, strict=True)
        ]
