"""The broker's rules in plain Python, without a store: what any run of it must agree with."""

from __future__ import annotations

from dataclasses import dataclass, field

from jobwire_server.domain.model import JobState, UniqueScope

S = JobState
STEP_MS = 60_000
"""One unit of the model's clock, far longer than any real run takes."""
LEASE = 2
GRACE = 3
BACKOFF = 1
MAX_CRASHES = 2
MAX_INTERRUPTIONS = 3


@dataclass
class ModelJob:
    """One job; times are in units."""

    ulid: str
    priority: int
    max_attempts: int
    timeout: int | None
    expires: int | None
    due: int
    state: JobState
    deadline: int | None = None
    checkpoint: bytes = b""
    token: int = 0
    attempt: int = 0
    worker: str = ""
    lease: int = 0
    timeout_at: int | None = None
    grace_at: int = 0
    failures: int = 0
    crashes: int = 0
    interruptions: int = 0
    retention: int | None = None
    """How long it is kept after its end; None: longer than any run."""
    ended: int | None = None
    unique: tuple[str, UniqueScope] | None = None

    @property
    def leased(self) -> bool:
        return self.state in (S.RUNNING, S.CANCELLING)

    def end(self, state: JobState) -> None:
        # A cancelled job ends cancelled, whatever ended its attempt.
        cancelled = self.state is S.CANCELLING and state is not S.SUCCEEDED
        self.state = S.CANCELLED if cancelled else state
        self.worker = ""
        if self.state is S.SUCCEEDED:
            self.checkpoint = b""

    def fail(self, now: int, *, final: bool) -> None:
        self.failures += 1
        self.due = now + BACKOFF
        too_late = self.deadline is not None and self.due >= self.deadline
        last = final or too_late or self.failures >= self.max_attempts
        self.end(S.FAILED if last else S.SCHEDULED)

    def miss_deadline(self) -> None:
        self.failures += self.leased
        self.end(S.FAILED)

    def crash(self) -> None:
        self.crashes += 1
        self.end(S.FAILED if self.crashes >= MAX_CRASHES else S.PENDING)

    def release(self, *, started: bool) -> None:
        if started:
            self.interruptions += 1
        else:
            self.attempt -= 1
        spent = started and self.interruptions >= MAX_INTERRUPTIONS
        self.end(S.FAILED if spent else S.PENDING)


@dataclass
class Model:
    """A queue with its workers."""

    now: int = 0
    jobs: dict[str, ModelJob] = field(default_factory=dict)
    keys: dict[str, tuple[str, UniqueScope]] = field(default_factory=dict)
    """Unique key -> who took it last, and for how long."""
    requests: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Request id -> the ULID it was answered with, and its content."""

    def holder(self, key: str) -> ModelJob | None:
        """The job that holds a unique key."""
        ulid, scope = self.keys.get(key, ("", UniqueScope.UNFINISHED))
        job = self.jobs.get(ulid)
        if job is None or job.state.terminal:
            return None
        waits = job.state in (S.SCHEDULED, S.PENDING) and job.attempt == 0
        return job if waits or scope is UniqueScope.UNFINISHED else None

    def note_ends(self) -> None:
        for job in self.jobs.values():
            if not job.state.terminal:
                job.ended = None
            elif job.ended is None:
                job.ended = self.now

    def purge(self) -> None:
        """Forgets whose retention is over."""
        for job in [*self.jobs.values()]:
            if job.ended is None or job.retention is None:
                continue
            if job.ended + job.retention <= self.now:
                del self.jobs[job.ulid]

    def ready(self) -> list[ModelJob]:
        """The jobs that a claim may deliver."""
        return [job for job in self.jobs.values() if job.state is S.PENDING]

    def held_by(self, worker: str) -> list[ModelJob]:
        return [job for job in self.jobs.values() if job.leased and job.worker == worker]

    def claim(self, job: ModelJob, worker: str) -> None:
        job.state, job.worker = S.RUNNING, worker
        job.token += 1
        job.attempt += 1
        job.lease = self.now + LEASE
        job.timeout_at = None if job.timeout is None else self.now + job.timeout

    def cancel(self, job: ModelJob) -> None:
        if job.state is S.RUNNING:
            job.state, job.grace_at = S.CANCELLING, self.now + GRACE
        elif not job.state.terminal and job.state is not S.CANCELLING:
            job.state = S.CANCELLED

    def key_to_take_again(self, job: ModelJob) -> str | None:
        """The unique key that a redrive needs."""
        if job.unique is None or (job.unique[1] is UniqueScope.PENDING and job.attempt > 0):
            return None
        return job.unique[0]

    def redrive(self, job: ModelJob) -> None:
        key = self.key_to_take_again(job)
        if key is not None and job.unique is not None:
            self.keys[key] = (job.ulid, job.unique[1])
        job.state, job.expires, job.deadline = S.PENDING, None, None
        job.failures = job.crashes = job.interruptions = 0

    def tick(self) -> None:
        """What the clock does, in the order in which the broker looks."""
        for job in self.jobs.values():
            waiting = job.state in (S.SCHEDULED, S.PENDING)
            expired = job.expires is not None and job.expires <= self.now
            late = job.deadline is not None and job.deadline <= self.now
            first = not late or (job.expires or 0) < (job.deadline or 0)
            if waiting and expired and job.attempt == 0 and first:
                job.state = S.EXPIRED
            elif late and not job.state.terminal:
                job.miss_deadline()
        for job in self.jobs.values():
            if job.state is S.SCHEDULED and job.due <= self.now:
                job.state = S.PENDING
            elif job.state is S.CANCELLING and job.grace_at <= self.now:
                job.end(S.CANCELLED)
            elif job.leased and job.timeout_at is not None and job.timeout_at <= self.now:
                job.fail(self.now, final=False)
            elif job.leased and job.lease <= self.now:
                job.crash()
