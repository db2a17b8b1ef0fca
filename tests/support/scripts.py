"""The store's scripts on a real store, one call at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis

from jobwire_server.domain.decisions.endings import Budget, Ending
from jobwire_server.domain.model import Assignment, Job, JobState, NewJob, Outcome
from jobwire_server.store.attempts import EndToWrite, SuccessToWrite
from jobwire_server.store.claims import ClaimRequest
from jobwire_server.store.connection.connect import Connection
from jobwire_server.store.jobs import JobStore
from jobwire_server.store.queues import QueueStore
from jobwire_server.store.runner import Argument, ScriptRunner
from jobwire_server.store.upkeep import UpkeepStore
from jobwire_server.store.workers import WorkerStore

from tests.support.dump import QueueDump, changes, check_invariants, dump_queue, dump_workers
from tests.support.jobs import new_job, ulid_of

LEASE_MS = 30_000
RETAIN_MS = 86_400_000
GRACE_MS = 10_000


class Near:
    """Equal to any number, or text of one, that is at most two seconds off."""

    def __init__(self, ms: float) -> None:
        self.ms = ms

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, str | bytes | int | float):
            return NotImplemented
        return abs(float(other) - self.ms) <= 2_000

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Near({self.ms})"


class AnswerLost(Exception):
    """The store did what it was told, and nobody heard of it. Its argument is the answer."""


class FaultyRunner(ScriptRunner):
    """Runs scripts, and does by wish what a bad connection makes of a call."""

    def __init__(self, client: Any, **wait: int) -> None:
        super().__init__(client, **wait)
        self.repeats_next = False
        """The next call of a script is the one before once more, as after a lost answer."""
        self.loses_next = False
        """The next answer is lost."""
        self.asks_twice_next = False
        """The next answer is lost, and the call is sent again."""
        self._before: dict[str, Sequence[Argument]] = {}

    async def run(self, name: str, key: str, args: Sequence[Argument]) -> Any:
        """Run a script.

        Raises:
            AnswerLost: That was wished for.
        """
        if self.repeats_next:
            self.repeats_next, args = False, self._before[name]
        self._before[name] = args
        answer = await super().run(name, key, args)
        if self.asks_twice_next:
            self.asks_twice_next = False
            answer = await super().run(name, key, args)
        if self.loses_next:
            self.loses_next = False
            raise AnswerLost(answer)
        return answer


class Scripts:
    """Every script of one server, and a look at what it wrote.

    Args:
        connection: The store.
        client: A synchronous client of it.
        server_id: Whose claims are remembered.
        wait: What the runner is told of waiting for replicas.
    """

    def __init__(
        self, connection: Connection, client: redis.Redis, server_id: str = "s1", **wait: int
    ) -> None:
        self.client = client
        self._connection = connection
        self.runner = FaultyRunner(connection, **wait)
        self.jobs = JobStore(self.runner, server_id)
        self.upkeep = UpkeepStore(self.runner)
        self.queues = QueueStore(self.runner)
        self.workers = WorkerStore(self.runner, "s1")

    def of_server(self, server_id: str) -> JobStore:
        """Return another server's scripts of jobs."""
        runner = ScriptRunner(self._connection)
        runner.clock_shift_ms = self.runner.clock_shift_ms
        return JobStore(runner, server_id)

    def shift(self, ms: int) -> None:
        """Move the clock of every script."""
        self.runner.clock_shift_ms += ms

    @property
    def now_ms(self) -> int:
        """The store's time as scripts see it."""
        seconds, micros = self.client.time()
        return int(seconds * 1000 + micros // 1000 + self.runner.clock_shift_ms)

    def after(self, ms: int) -> Near:
        """Return what equals the moment so far from now."""
        return Near(self.now_ms + ms)

    def dump(self) -> dict[str, Any]:
        """Return every key of the queue `default`."""
        return {**dump_queue(self.client)}

    def workers_dump(self) -> dict[str, Any]:
        """Return every key of the worker registry."""
        return {**dump_workers(self.client)}

    def changed(self, before: dict[str, Any]) -> dict[str, Any]:
        """Return what differs from an earlier dump, without the memory of the last claim."""
        found = changes(before, self.dump())
        return {key: value for key, value in found.items() if not key.startswith("claimed:")}

    def check(self) -> QueueDump:
        """Check the invariants of the queue `default`."""
        return check_invariants(self.client)

    async def submit(self, *jobs: NewJob) -> list[str]:
        """Write jobs, one of them if none is named; return their ULIDs."""
        given = jobs or (new_job(),)
        await self.jobs.submit("default", given)
        return [ulid_of(job) for job in given]

    async def claim(
        self, worker: str = "w1", most: int = 1, *jobs: NewJob, lease_ms: int = LEASE_MS
    ) -> list[Assignment]:
        """Claim from the routes of the jobs named, or from the plain one."""
        routes = tuple(sorted({job.route.id for job in jobs or (new_job(),)}))
        request = ClaimRequest(worker, most, lease_ms, routes)
        (claimed,) = await self.jobs.claim("default", [request], RETAIN_MS)
        return claimed.assignments

    async def running(self, job: NewJob | None = None, worker: str = "w1") -> str:
        """Write a job and claim it; return its ULID."""
        job = job or new_job()
        (ulid,) = await self.submit(job)
        (assignment,) = await self.claim(worker, 1, job)
        assert assignment.job_id == job.job_id
        return ulid

    async def read(self, ulid: str) -> Job:
        """Return a job in full."""
        (job,) = await self.jobs.read("default", [ulid], full=True)
        assert job is not None
        return job

    async def succeed(
        self, ulid: str, token: int = 1, worker: str = "w1", result: bytes = b""
    ) -> Any:
        """Complete one job; return the answer."""
        item = SuccessToWrite(ulid, worker, token, result)
        (answer,) = await self.jobs.succeed("default", [item], RETAIN_MS)
        return answer

    async def cancel(self, ulid: str, reason: str = "why") -> Any:
        """Cancel one job; return the answer."""
        (answer,) = await self.jobs.cancel("default", [(ulid, reason)], GRACE_MS, RETAIN_MS)
        return answer

    async def end(
        self,
        job: Job,
        target: JobState,
        *,
        condition: str = "worker",
        outcome: Outcome = Outcome.FAILED,
        budget: Budget = Budget.FAILURES,
        backoff_ms: int = 0,
    ) -> Any:
        """Apply one decided ending; return the answer."""
        ending = Ending(outcome, target, budget, backoff_ms)
        end = EndToWrite(job, condition, ending)
        (answer,) = await self.jobs.end_attempts("default", [end], RETAIN_MS)
        return answer

    async def tick(self, most: int = 200) -> Any:
        """Let the clock act once."""
        return await self.upkeep.tick("default", most, RETAIN_MS, 5_000, 13)
