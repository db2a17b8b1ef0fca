"""Jobs in the store: one method for each script, batches in and out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jobwire_server.domain.decisions.endings import Ending
from jobwire_server.domain.decisions.routing import parse_descriptor
from jobwire_server.domain.errors import (
    CursorCompacted,
    JobNotFound,
    JobwireError,
    WrongState,
)
from jobwire_server.domain.ids import ULID_LENGTH
from jobwire_server.domain.model import (
    Accepted,
    Assignment,
    Completed,
    Job,
    JobState,
    NewJob,
    Renewal,
    Route,
    Written,
)
from jobwire_server.domain.options import Limits
from jobwire_server.store import codec, keys
from jobwire_server.store.answers import (
    SUCCEEDED,
    assignments,
    completed,
    not_written,
    renewal,
)
from jobwire_server.store.codes import Code
from jobwire_server.store.runner import Argument, ScriptRunner

_PLAIN = tuple(NewJob._field_defaults.values())
"""What follows the first five fields of a job that asks for nothing special."""
_STATES = {state.value: state for state in JobState}
DEFAULT_LIMITS = Limits()
NO_LIMITS = (0, 0)


class ClaimRequest(NamedTuple):
    """How many jobs a worker wants off which routes."""

    worker_id: str
    max_jobs: int
    lease_ms: int
    route_ids: tuple[str, ...]


class Claimed(NamedTuple):
    """What a claim brought."""

    assignments: list[Assignment]
    more: bool
    """True: the call stopped at its bound on stale entries; ask again."""


class Success(NamedTuple):
    """The end of an attempt with a result."""

    ulid: str
    worker_id: str
    fencing_token: int
    result: bytes


@dataclass(frozen=True, slots=True)
class AttemptEnd:
    """A decided end of an attempt, applied only if what it was decided on still holds."""

    job: Job
    condition: str
    """`worker` | `lease` | `timeout` | `deadline` | `grace` | `lost`, as in end_attempt.lua."""
    ending: Ending


class Report(NamedTuple):
    """A report; one with nothing to record only renews the lease."""

    ulid: str
    worker_id: str
    fencing_token: int
    lease_ms: int
    progress: bytes
    output: Written | None = None
    checkpoint: bytes | None = None
    """b'' takes away what was saved, None leaves it."""


@dataclass(frozen=True, slots=True)
class Followed:
    """A watched job as it stands, with output behind the place that was asked for."""

    job: Job
    more: bool
    """True: there is more output than was read."""
    output: list[Written]


@dataclass(frozen=True, slots=True)
class LogPage:
    """A page of a queue's event log."""

    last_id: str
    """Of the last entry, for the next page."""
    ulids: list[str]


@dataclass(frozen=True, slots=True)
class PageToken:
    """Where a listing goes on within a state; the empty one starts it."""

    source: str = ""
    last: str = ""
    place: str = ""


class JobStore:
    """The jobs of all queues.

    Every method raises StoreUnavailable if the store does not answer, and those that write new data
    StoreFull.
    """

    def __init__(self, runner: ScriptRunner, server_id: str) -> None:
        self._runner = runner
        self._server_id = server_id
        self._claim_calls = 0
        self._heard: dict[str, int] = {}
        """Queue -> number of the last claim that brought something and whose answer was heard."""

    async def submit(
        self,
        queue: str,
        jobs: Sequence[NewJob],
        retention_ms: int = 14 * 86_400_000,
        max_pending: int = 0,
        max_live_bytes: int = 0,
    ) -> list[Accepted | JobwireError]:
        """Writes the jobs that are new. At most 1000 at a time.

        Args:
            queue: The queue of all of them.
            jobs: In the order in which they are to be delivered.
            retention_ms: For jobs that are replaced.
            max_pending: The most jobs that may wait there, 0 for no limit.
            max_live_bytes: The most bytes of records of its live jobs, 0 for no limit.
        """
        routes = {job.route.id: job.route.descriptor for job in jobs}
        args: list[Argument] = [
            retention_ms,
            max_pending,
            max_live_bytes,
            len(routes),
        ]
        for described in routes.items():
            args += described
        for job in jobs:
            if job[5:] == _PLAIN:
                args += (job.job_id[-26:], job.route.id, job.priority, "", "", job.record)
                continue
            args += (
                job.job_id[-26:],
                job.route.id,
                job.priority,
                codec.encode_start(job),
                codec.encode_extra(job),
                job.record,
            )
        _, *answers = await self._runner.run("submit", keys.queue_prefix(queue), args)
        limits = (max_pending, max_live_bytes)
        return [
            Accepted(job.job_id, _STATES[answer])
            if type(answer) is int
            else not_written(job, answer, limits)
            for job, answer in zip(jobs, answers, strict=True)
        ]

    async def known(
        self, queue: str, jobs: Sequence[NewJob]
    ) -> list[Accepted | JobwireError | None]:
        """Answers each job that was accepted before as `submit` would, None for the others; writes
        nothing.
        """
        args: list[Argument] = []
        for job in jobs:
            args += (job.job_id[-26:], codec.encode_extra(job))
        answers = await self._runner.run("known", keys.queue_prefix(queue), args)
        return [
            not_written(job, answer, NO_LIMITS) if answer else None
            for job, answer in zip(jobs, answers, strict=True)
        ]

    async def claim(
        self,
        queue: str,
        requests: Sequence[ClaimRequest],
        retention_ms: int,
        on_unheard: Callable[[str, list[Assignment]], None] | None = None,
    ) -> list[Claimed]:
        """Leases jobs to each request in turn, at most what it asks for.

        Not to be called twice at once for a queue.

        Args:
            queue: Its name.
            requests: Who wants how much.
            retention_ms: For jobs that turn out to be expired.
            on_unheard: Told of each job that an earlier call leased to a worker and whose answer
                never came; without its record. Unset: their leases end.
        """
        sets: dict[tuple[str, ...], int] = {}
        tail: list[Argument] = []
        for request in requests:
            number = sets.setdefault(request.route_ids, len(sets) + 1)
            tail += (request.worker_id, request.max_jobs, request.lease_ms, number)
        self._claim_calls += 1
        number = self._claim_calls
        args: list[Argument] = [
            self._server_id,
            number,
            self._heard.get(queue, 0),
            retention_ms,
            len(sets),
        ]
        for routes in sets:
            args += (len(routes), *routes)
        args += tail
        _, _, unheard, *answers = await self._runner.run("claim", keys.queue_prefix(queue), args)
        if unheard or any(len(answer) > 1 for answer in answers):
            self._heard[queue] = number
        if unheard and on_unheard is not None:
            for at in range(0, len(unheard), 3):
                worker_id, ulid, token = unheard[at : at + 3]
                job_id = f"{queue}-{ulid.decode()}"
                on_unheard(worker_id.decode(), [Assignment(job_id, int(token), 0, b"")])
        return [Claimed(assignments(queue, answer), bool(answer[0])) for answer in answers]

    async def claim_job(
        self, queue: str, ulid: str, worker_id: str, lease_ms: int, route_id: str, priority: int
    ) -> Assignment:
        """Leases one job by id.

        Raises:
            JobNotFound: There is none.
            WrongState: It is not PENDING, or its queue is paused.
        """
        args: list[Argument] = [ulid, worker_id, lease_ms, route_id, priority]
        code, *rest = await self._runner.run("claim_job", keys.queue_prefix(queue), args)
        job_id = f"{queue}-{ulid}"
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

    async def succeed(
        self, queue: str, items: Sequence[Success], retention_ms: int
    ) -> list[Completed | JobwireError]:
        """Completes each job whose lease the caller holds; the others answer with their error."""
        args: list[Argument] = [retention_ms]
        for item in items:
            args += item
        answers = await self._runner.run("succeed", keys.queue_prefix(queue), args)
        return [
            SUCCEEDED
            if type(answer) is int
            else completed(queue, item.ulid, item.fencing_token, answer)
            for item, answer in zip(items, answers, strict=True)
        ]

    async def end_attempts(
        self, queue: str, ends: Sequence[AttemptEnd], retention_ms: int
    ) -> list[Completed | JobwireError | None]:
        """Applies decided endings; None where the job changed meanwhile and has to be decided
        again.
        """
        args: list[Argument] = [retention_ms]
        for end in ends:
            job, ending = end.job, end.ending
            args += (
                job.job_id[-26:],
                job.worker_id,
                job.fencing_token,
                int(job.state),
                end.condition,
                int(ending.target),
                str(ending.budget),
                ending.backoff_ms,
                int(ending.outcome),
                codec.encode_failure(ending.failure),
            )
        answers = await self._runner.run("end_attempt", keys.queue_prefix(queue), args)
        return [
            None
            if answer[0] == Code.STATE_CHANGED
            else completed(queue, end.job.job_id[-26:], end.job.fencing_token, answer)
            for end, answer in zip(ends, answers, strict=True)
        ]

    async def report(
        self, queue: str, reports: Sequence[Report], limits: Limits = DEFAULT_LIMITS
    ) -> list[Renewal]:
        """Records progress, output and checkpoints, and renews leases; one that is gone is answered
        as lost.
        """
        args: list[Argument] = [
            limits.max_output_bytes,
            limits.max_queue_output_bytes,
        ]
        for report in reports:
            args += report[:5]
            # Told from none by its first byte, because an empty one takes the old one away.
            args.append(b"" if report.checkpoint is None else b"=" + report.checkpoint)
            args += codec.encode_written(report.output)
        answers = await self._runner.run("progress", keys.queue_prefix(queue), args)
        return [
            renewal(queue, report.ulid, report.fencing_token, answer)
            for report, answer in zip(reports, answers, strict=True)
        ]

    async def cancel(
        self,
        queue: str,
        jobs: Sequence[tuple[str, str]],
        grace_ms: int,
        retention_ms: int,
        only: Sequence[JobState] = (),
    ) -> list[JobState | JobwireError]:
        """Cancels jobs given as (ULID, reason).

        Args:
            queue: Of all of them.
            jobs: Which, and why.
            grace_ms: Of those that run.
            retention_ms: Of those that do not.
            only: Leaves jobs alone that are in none of these states; empty: any will do.
        """
        states = "".join(str(int(state)) for state in only)
        args: list[Argument] = [grace_ms, retention_ms]
        for job in jobs:
            args += (*job, states)
        answers = await self._runner.run("cancel", keys.queue_prefix(queue), args)
        results: list[JobState | JobwireError] = []
        for (ulid, _), (code, *state) in zip(jobs, answers, strict=True):
            job_id = f"{queue}-{ulid}"
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

    async def read(self, queue: str, ulids: Sequence[str], *, full: bool) -> list[Job | None]:
        """Returns each job as it stands, None for one that is not there."""
        args: list[Argument] = [int(full), *ulids]
        now, *rows = await self._runner.run("read", keys.queue_prefix(queue), args)
        return [
            codec.decode_job(queue, ulid, row, now) if row else None
            for ulid, row in zip(ulids, rows, strict=True)
        ]

    async def follow(
        self, queue: str, jobs: Sequence[tuple[str, bytes, str]], most_bytes: int
    ) -> list[Followed | None]:
        """Returns watched jobs as they stand, None for one that is not there.

        Args:
            queue: Of all of them.
            jobs: (ULID, its record if it is known already, where its output is wanted from: '' for
                none, otherwise as follow.lua reads it).
            most_bytes: How much output of each job is read, give or take a piece.
        """
        args: list[Argument] = [most_bytes]
        for ulid, record, place in jobs:
            args += (ulid, 1 if record else 0, place)
        now, *rows = await self._runner.run("follow", keys.queue_prefix(queue), args)
        followed: list[Followed | None] = []
        for (ulid, record, _), row in zip(jobs, rows, strict=True):
            if not row:
                followed.append(None)
                continue
            job = codec.decode_job(queue, ulid, [record or row[0], *row[1:6]], now)
            followed.append(Followed(job, bool(row[6]), codec.decode_written(row[7:])))
        return followed

    async def log_page(self, queue: str, after: str, most: int) -> LogPage | None:
        """Returns what the event log holds behind an entry; None if the queue keeps no log.

        Args:
            queue: Its name.
            after: Id of the last entry that was seen; '' only tells the end of the log.
            most: Entries of the page.

        Raises:
            CursorCompacted: The log does not reach back so far.
        """
        code, last, *entries = await self._runner.run(
            "log", keys.queue_prefix(queue), [after, most]
        )
        if code == Code.LOG_COMPACTED:
            raise CursorCompacted(
                f"the event log of {queue} does not reach back to the cursor; watch again"
                " without one"
            )
        if code == Code.NO_LOG:
            return None
        ulids = [
            entry[at : at + ULID_LENGTH].decode()
            for entry in entries
            for at in range(0, len(entry), ULID_LENGTH)
        ]
        return LogPage(last.decode(), ulids)

    async def list_ids(
        self, queue: str, state: JobState, most: int, token: PageToken
    ) -> tuple[list[str], PageToken | None]:
        """Returns a page of ULIDs that may be in the state, and where to go on, None at the end."""
        source, last, place, *ids = await self._runner.run(
            "list",
            keys.queue_prefix(queue),
            [int(state), most, token.source, token.last, token.place],
        )
        following = PageToken(source.decode(), last.decode(), place.decode()) if source else None
        return [ulid.decode() for ulid in ids], following

    async def held(self, queue: str, worker_id: str) -> list[str]:
        """Returns the ULIDs of the queue's jobs that the worker holds."""
        return [
            ulid.decode()
            for ulid in await self._runner.command("SMEMBERS", keys.held_key(queue, worker_id))
        ]

    async def routes(self, queue: str) -> dict[str, Route]:
        """Returns the routes that the queue has ever had, by id."""
        reply = await self._runner.command("HGETALL", keys.routes_key(queue))
        flat = reply if isinstance(reply, dict) else codec.pairs(reply)
        return {name.decode(): parse_descriptor(text) for name, text in flat.items()}
