"""Claims in the store: claim.lua and claim_job.lua."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jobwire_server.domain.errors import JobNotFound, WrongState
from jobwire_server.domain.ids import job_id_of, job_ids_of
from jobwire_server.domain.model import Assignment, JobState
from jobwire_server.store.codes import Code
from jobwire_server.store.runner import Argument, QueueScripts, ScriptRunner

OnUnheard = Callable[[str, list[Assignment]], None]
"""Told of a worker's jobs whose assignment nobody heard of."""


class ClaimRequest(NamedTuple):
    """How many jobs a worker wants, from which routes."""

    worker_id: str
    max_jobs: int
    lease_ms: int
    route_ids: tuple[str, ...]
    max_bytes: int = 0
    """The most bytes, also of a first job; 0: the script's bound, which a first job may exceed."""


class Claimed(NamedTuple):
    """What a claim brought."""

    assignments: list[Assignment]
    more: bool
    """True: the routes have more, or may have: it brought all that was asked for, or stopped at its
    bound on stale entries, or on bytes; ask again.
    """


class ClaimStore(QueueScripts):
    """Leases jobs to workers.

    Args:
        runner: Runs the scripts.
        server_id: The store remembers this server's last claim, so that a lost answer loses no job.
    """

    def __init__(self, runner: ScriptRunner, server_id: str) -> None:
        super().__init__(runner)
        self._server_id = server_id
        self._claim_calls = 0
        self._heard: dict[str, int] = {}
        """Queue -> number of the last claim that brought jobs and whose answer arrived."""

    async def claim(
        self,
        queue: str,
        requests: Sequence[ClaimRequest],
        retention_ms: int,
        on_unheard: OnUnheard | None = None,
    ) -> list[Claimed]:
        """Lease jobs to each request in turn, at most what it asks for.

        At most one call for a queue may be under way.

        Args:
            queue: Its name.
            requests: Who wants how much.
            retention_ms: How long jobs are kept that turn out to be expired.
            on_unheard: Called for each job that an earlier call leased to a worker and whose answer
                never arrived; without its record. Unset: their leases run out.
        """
        number = self.next_claim()
        set_count, tail = encode_requests(requests)
        heard = self._heard.get(queue, 0)
        args = [self._server_id, number, heard, retention_ms, set_count, *tail]
        answer = await self._run("claim", queue, args)
        return self._claimed(queue, number, answer, on_unheard)

    def next_claim(self) -> int:
        """Return the number of a claim that is about to be made."""
        self._claim_calls += 1
        return self._claim_calls

    def _claimed(
        self, queue: str, number: int, answer: Sequence[Any], on_unheard: OnUnheard | None
    ) -> list[Claimed]:
        """Take note of a claim's answer; return what it brought."""
        _, _, unheard, *answers = answer
        if unheard or any(len(answer) > 1 for answer in answers):
            self._heard[queue] = number
        if unheard and on_unheard is not None:
            for at in range(0, len(unheard), 3):
                worker_id, ulid, token = unheard[at : at + 3]
                job_id = job_id_of(queue, ulid.decode())
                on_unheard(worker_id.decode(), [Assignment(job_id, int(token), 0, b"")])
        return [Claimed(assignments(queue, answer), bool(answer[0])) for answer in answers]

    async def claim_job(
        self, queue: str, ulid: str, worker_id: str, lease_ms: int, route_id: str, priority: int
    ) -> Assignment:
        """Lease one job by id.

        Raises:
            JobNotFound: There is none.
            WrongState: It is not PENDING, or its queue is paused.
        """
        args: list[Argument] = [ulid, worker_id, lease_ms, route_id, priority]
        code, *rest = await self._run("claim_job", queue, args)
        job_id = job_id_of(queue, ulid)
        if code == Code.DONE:
            return Assignment(job_id, *rest)
        if code == Code.NOT_FOUND:
            raise JobNotFound(job_id)
        if code == Code.WRONG_STATE:
            state = JobState(rest[0])
            raise WrongState(
                f"{job_id} is {state.name}; only a PENDING job can be claimed",
                metadata={"state": state.name},
            )
        raise WrongState(
            f"the queue {queue} is paused; resume it first", metadata={"state": "PAUSED"}
        )


def encode_requests(requests: Sequence[ClaimRequest]) -> tuple[int, list[Argument]]:
    """Return the number of distinct sets of routes; and the sets with the requests behind them, as
    claim.lua reads them.
    """
    sets: dict[tuple[str, ...], int] = {}
    asked: list[Argument] = []
    for request in requests:
        number = sets.setdefault(request.route_ids, len(sets) + 1)
        most: Argument = request.max_jobs
        if request.max_bytes:
            most = f"{request.max_jobs}/{request.max_bytes}"
        asked += (request.worker_id, most, request.lease_ms, number)
    args: list[Argument] = []
    for routes in sets:
        args += (len(routes), *routes)
    return len(sets), args + asked


def assignments(queue: str, answer: list[Any]) -> list[Assignment]:
    """Return what a claim brought, from the reply for one request."""
    ids = job_ids_of(queue, answer[1::4])
    return [
        Assignment(job_id, int(token), int(attempt), record)
        if type(attempt) is bytes
        else Assignment(job_id, int(token), int(attempt[0]), record, attempt[1])
        for job_id, token, attempt, record in zip(
            ids, answer[2::4], answer[3::4], answer[4::4], strict=True
        )
    ]
