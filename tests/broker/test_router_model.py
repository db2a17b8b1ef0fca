"""Random runs of two routers on one store agree with the model after every step."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from jobwire_server.domain.errors import AlreadyExists, LeaseLost, UniqueKeyTaken, WrongState
from jobwire_server.domain.model import (
    Failure,
    JobState,
    NewJob,
    RequestId,
    RetryPolicy,
    UniqueConflict,
    UniqueKey,
    UniqueScope,
)
from jobwire_server.domain.options import BrokerOptions

from tests.broker.model import (
    BACKOFF,
    GRACE,
    LEASE,
    MAX_CRASHES,
    MAX_INTERRUPTIONS,
    STEP_MS,
    Model,
    ModelJob,
)
from tests.support.brokers import QUIET, Broker, running_broker
from tests.support.jobs import DAY_MS, new_job, ulid_of, worker_spec
from tests.support.stores import StoreProcess

S = JobState
T = TypeVar("T")
WORKERS = st.sampled_from(["w1", "w2", "w3"])
OPTIONS = BrokerOptions(
    tick_ms=QUIET.tick_ms,
    worker_timeout_ms=10 * DAY_MS,
    cancel_grace_ms=GRACE * STEP_MS,
    max_crashes=MAX_CRASHES,
    max_interruptions=MAX_INTERRUPTIONS,
)


async def _nothing(*_: object) -> tuple[int, int]:
    return 0, 0


class Machine(RuleBasedStateMachine):
    """Acts on the broker through either server and on the model, and compares."""

    store: ClassVar[StoreProcess]

    def __init__(self) -> None:
        super().__init__()
        self.store.flush()
        self.model = Model()
        self.recorded: set[tuple[str, int, str]] = set()
        """ULID, token and worker of each attempt whose end its worker has said."""
        self.runner = asyncio.Runner()
        self.purges: list[Callable[[str, int], Awaitable[object]]] = []
        self.stack = AsyncExitStack()
        self.brokers = [self.run(self._open(f"s{number}")) for number in (1, 2)]
        for worker in ("w1", "w2", "w3"):
            self._register(worker)

    async def _open(self, server_id: str) -> Broker:
        opened = running_broker(self.store.url, OPTIONS, server_id)
        broker = await self.stack.enter_async_context(opened)
        # Keepers would forget jobs at moments that the model knows nothing of.
        self.purges.append(broker.parts.upkeep.purge)
        broker.parts.upkeep.purge = _nothing  # type: ignore[method-assign]
        return broker

    def teardown(self) -> None:
        self.run(self.stack.aclose())
        self.runner.close()

    def run(self, action: Awaitable[T]) -> T:
        async def wait() -> T:
            async with asyncio.timeout(30):
                return await action

        return self.runner.run(wait())

    def _register(self, worker: str) -> None:
        spec = worker_spec(worker, lease_ms=LEASE * STEP_MS)
        self.run(self.brokers[0].router.register_worker(spec))

    def _pick(self, data: st.DataObject, jobs: list[ModelJob]) -> ModelJob:
        return jobs[data.draw(st.integers(0, len(jobs) - 1), label="job")]

    def _broker(self, data: st.DataObject) -> Broker:
        return self.brokers[data.draw(st.integers(0, 1), label="server")]

    @property
    def jobs(self) -> list[ModelJob]:
        return [*self.model.jobs.values()]

    @property
    def leased(self) -> list[ModelJob]:
        return [job for job in self.jobs if job.leased]

    # What producers do ------------------------------------------------------

    # Few jobs at a time, so that much happens to each.
    @precondition(lambda self: len([job for job in self.jobs if not job.state.terminal]) < 4)
    @rule(
        data=st.data(),
        priority=st.sampled_from([0, 0, 5, 9]),
        delay=st.sampled_from([0, 0, 0, 1, 2]),
        expires=st.sampled_from([None, None, 1, 3]),
        timeout=st.sampled_from([None, None, 1, 4]),
        deadline=st.sampled_from([None, None, None, 2, 3, 6]),
        attempts=st.integers(1, 3),
        count=st.integers(1, 3),
    )
    def submit(
        self,
        data: st.DataObject,
        priority: int,
        delay: int,
        expires: int | None,
        timeout: int | None,
        deadline: int | None,
        attempts: int,
        count: int,
    ) -> None:
        broker, now = self._broker(data), self.model.now
        policy = RetryPolicy(attempts, BACKOFF * STEP_MS, BACKOFF * STEP_MS, 1.0, 0.0)
        now_ms = broker.now_ms()
        expires_at = now_ms + expires * STEP_MS if expires else 0
        deadline_at = now_ms + deadline * STEP_MS if deadline else 0
        jobs = [
            new_job(
                priority=priority,
                delay_ms=delay * STEP_MS,
                expires_at_ms=expires_at,
                execution_timeout_ms=(timeout or 0) * STEP_MS,
                retry=policy,
                deadline_ms=deadline_at,
            )
            for _ in range(count)
        ]
        accepted = self.run(broker.submitted(*jobs))
        for job, answer in zip(jobs, accepted, strict=True):
            state = S.SCHEDULED if delay else S.PENDING
            assert answer == (job.job_id, state, None)
            self.model.jobs[ulid_of(job)] = ModelJob(
                ulid=ulid_of(job),
                priority=priority,
                max_attempts=attempts,
                timeout=timeout,
                expires=now + expires if expires else None,
                due=now + delay,
                state=state,
                deadline=now + deadline if deadline else None,
            )

    @precondition(lambda self: len([job for job in self.jobs if not job.state.terminal]) < 6)
    @rule(
        data=st.data(),
        key=st.sampled_from(["a", "b"]),
        scope=st.sampled_from([UniqueScope.PENDING, UniqueScope.UNFINISHED]),
        conflict=st.sampled_from([*UniqueConflict]),
        delay=st.sampled_from([0, 0, 2]),
        retention=st.sampled_from([None, 0, 2]),
    )
    def submit_with_a_unique_key(
        self,
        data: st.DataObject,
        key: str,
        scope: UniqueScope,
        conflict: UniqueConflict,
        delay: int,
        retention: int | None,
    ) -> None:
        job = new_job(
            unique=UniqueKey(key, scope, 0, conflict),
            delay_ms=delay * STEP_MS,
            retention_ms=None if retention is None else retention * STEP_MS,
            retry=RetryPolicy(2, BACKOFF * STEP_MS, BACKOFF * STEP_MS, 1.0, 0.0),
        )
        holder = self.model.holder(key)
        (answer,) = self.run(self._broker(data).router.submissions.submit("default", [job]))
        if holder is not None and conflict is UniqueConflict.RETURN_EXISTING:
            assert answer == (f"default-{holder.ulid}", holder.state, b"")
            return
        if holder is not None:
            replaceable = holder.attempt == 0 and holder.state in (S.SCHEDULED, S.PENDING)
            if conflict is UniqueConflict.REJECT or not replaceable:
                assert isinstance(answer, UniqueKeyTaken)
                assert answer.metadata["job_id"] == f"default-{holder.ulid}"
                return
            self.model.cancel(holder)
        state = S.SCHEDULED if delay else S.PENDING
        assert answer == (job.job_id, state, None)
        self.model.keys[key] = (ulid_of(job), scope)
        self._accept(job, 2, state, self.model.now + delay, retention)
        self.model.jobs[ulid_of(job)].unique = (key, scope)

    @precondition(lambda self: len([job for job in self.jobs if not job.state.terminal]) < 6)
    @rule(
        data=st.data(),
        request_id=st.sampled_from(["r1", "r2", "r3"]),
        content=st.sampled_from(["a", "a", "b"]),
    )
    def submit_with_a_request_id(self, data: st.DataObject, request_id: str, content: str) -> None:
        retention = 1
        job = new_job(
            request=RequestId(request_id, content * 32),
            retention_ms=retention * STEP_MS,
            retry=RetryPolicy(2, BACKOFF * STEP_MS, BACKOFF * STEP_MS, 1.0, 0.0),
        )
        (answer,) = self.run(self._broker(data).router.submissions.submit("default", [job]))
        if request_id in self.model.requests:
            ulid, before = self.model.requests[request_id]
            if content != before:
                assert isinstance(answer, AlreadyExists)
                return
            known = self.model.jobs.get(ulid)
            assert answer == (f"default-{ulid}", known.state if known else None, b"")
            return
        assert answer == (job.job_id, S.PENDING, None)
        self.model.requests[request_id] = (ulid_of(job), content)
        self._accept(job, 2, S.PENDING, self.model.now, retention)

    def _accept(
        self, job: NewJob, attempts: int, state: JobState, due: int, retention: int | None
    ) -> None:
        self.model.jobs[ulid_of(job)] = ModelJob(
            ulid=ulid_of(job),
            priority=0,
            max_attempts=attempts,
            timeout=None,
            expires=None,
            due=due,
            state=state,
            retention=retention,
        )

    @precondition(lambda self: self.model.jobs)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        self.run(self.purges[data.draw(st.integers(0, 1), label="server")]("default", 1000))
        self.model.purge()

    @precondition(lambda self: self.model.jobs)
    @rule(data=st.data())
    def submit_again(self, data: st.DataObject) -> None:
        job = self._pick(data, self.jobs)
        (answer,) = self.run(self._broker(data).submitted(new_job(ulid=job.ulid, priority=3)))
        assert answer.state is job.state
        assert answer.existing_record is not None

    @precondition(lambda self: self.model.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job = self._pick(data, self.jobs)
        ended = job.state.terminal and job.state is not S.CANCELLED
        try:
            self.run(self._broker(data).router.cancel_job("default", job.ulid, "why"))
        except WrongState:
            assert ended
        else:
            assert not ended
            self.model.cancel(job)

    @precondition(lambda self: any(job.state > S.SUCCEEDED for job in self.jobs))
    @rule(data=st.data())
    def redrive(self, data: st.DataObject) -> None:
        job = self._pick(data, [job for job in self.jobs if job.state > S.SUCCEEDED])
        router = self._broker(data).router
        key = self.model.key_to_take_again(job)
        taken = key is not None and self.model.holder(key) is not None
        try:
            for _ in range(2):  # the second as if the answer had been lost
                again = self.run(router.retry_job("default", job.ulid, "why", 0))
                assert again.state is S.PENDING
        except UniqueKeyTaken:
            assert taken
            return
        assert not taken
        self.model.redrive(job)

    # What workers do --------------------------------------------------------

    @precondition(lambda self: self.model.ready())
    @rule(data=st.data(), worker=WORKERS, most=st.integers(1, 9))
    def claim_what_is_there(self, data: st.DataObject, worker: str, most: int) -> None:
        self.claim(data, worker, most)

    @rule(data=st.data(), worker=WORKERS, most=st.integers(1, 4))
    def claim(self, data: st.DataObject, worker: str, most: int) -> None:
        ready = self.model.ready()
        taken = self.run(self._broker(data).claim(worker, most))
        assert len(taken) == min(most, len(ready))
        # Nothing that was left behind stood before anything that was taken.
        priorities = sorted((job.priority for job in ready), reverse=True)
        assert [self.model.jobs[one.job_id[-26:]].priority for one in taken] == priorities[
            : len(taken)
        ]
        for one in taken:
            job = self.model.jobs[one.job_id[-26:]]
            assert job in ready
            self.model.claim(job, worker)
            assert (one.fencing_token, one.attempt) == (job.token, job.attempt)
            assert one.checkpoint == job.checkpoint

    @precondition(lambda self: self.model.jobs)
    @rule(data=st.data(), worker=WORKERS)
    def claim_by_id(self, data: st.DataObject, worker: str) -> None:
        job = self._pick(data, self.jobs)
        mine = job.state is S.RUNNING and job.worker == worker
        broker = self._broker(data)
        try:
            one = self.run(broker.claim_job(worker, "default", job.ulid))
        except WrongState:
            assert job not in self.model.ready()
            assert not mine
        else:
            if not mine:
                assert job in self.model.ready()
                self.model.claim(job, worker)
            assert (one.fencing_token, one.checkpoint) == (job.token, job.checkpoint)

    @precondition(lambda self: self.leased)
    @rule(data=st.data(), checkpoint=st.sampled_from([None, b"", b"one", b"two"]))
    def report(self, data: st.DataObject, checkpoint: bytes | None) -> None:
        job = self._pick(data, self.leased)
        broker = self._broker(data)
        renewal = self.run(
            broker.report("default", job.ulid, job.worker, job.token, b"x", None, checkpoint)
        )
        job.checkpoint = job.checkpoint if checkpoint is None else checkpoint
        assert (renewal.cancel is not None) == (job.state is S.CANCELLING)
        job.lease = self.model.now + LEASE

    @precondition(lambda self: self.leased)
    @rule(data=st.data())
    def succeed(self, data: st.DataObject) -> None:
        job = self._pick(data, self.leased)
        broker = self._broker(data)
        for _ in range(2):  # the second as if the answer had been lost
            done = self.run(broker.succeed("default", job.ulid, job.worker, job.token, b"r"))
            assert done.state is S.SUCCEEDED
        self.recorded.add((job.ulid, job.token, job.worker))
        job.end(S.SUCCEEDED)

    @precondition(lambda self: self.leased)
    @rule(data=st.data(), final=st.booleans())
    def fail(self, data: st.DataObject, final: bool) -> None:
        job = self._pick(data, self.leased)
        worker, broker = job.worker, self._broker(data)
        self.recorded.add((job.ulid, job.token, worker))
        job.fail(self.model.now, final=final)
        failure = Failure("x", non_retryable=final)
        for _ in range(2):
            done = self.run(broker.fail("default", job.ulid, worker, job.token, failure))
            assert done.state is job.state

    @precondition(lambda self: self.leased)
    @rule(data=st.data(), started=st.booleans())
    def release(self, data: st.DataObject, started: bool) -> None:
        job = self._pick(data, self.leased)
        worker, broker = job.worker, self._broker(data)
        self.recorded.add((job.ulid, job.token, worker))
        job.release(started=started)
        done = self.run(broker.release("default", job.ulid, worker, job.token, started, ""))
        assert done.state is job.state
        # It may have come back past its expiry.
        self._settle()

    @precondition(lambda self: self.leased)
    @rule(data=st.data())
    def confirm(self, data: st.DataObject) -> None:
        job = self._pick(data, self.leased)
        broker = self._broker(data)
        try:
            self.run(broker.confirm_cancel("default", job.ulid, job.worker, job.token))
        except WrongState:
            assert job.state is S.RUNNING
        else:
            assert job.state is S.CANCELLING
            self.recorded.add((job.ulid, job.token, job.worker))
            job.end(S.CANCELLED)

    @precondition(lambda self: self.model.jobs)
    @rule(data=st.data(), worker=WORKERS, off=st.sampled_from([-1, 1]))
    def write_without_the_lease(self, data: st.DataObject, worker: str, off: int) -> None:
        job = self._pick(data, self.jobs)
        broker, token = self._broker(data), job.token + off
        held = "default", job.ulid, worker, token
        for end in (
            lambda: broker.succeed(*held, b"r"),
            lambda: broker.fail(*held, Failure("x")),
            lambda: broker.release(*held, True, ""),
        ):
            try:
                done = self.run(end())
            except LeaseLost:
                continue
            # A recorded end is answered as recorded, and nothing is written.
            assert done.repeated, "an end without the lease was taken"
            assert (job.ulid, token, worker) in self.recorded
        with pytest.raises(LeaseLost):
            self.run(broker.report(*held, b"x", None, b"stolen"))

    # What happens to workers, queues and clocks -----------------------------

    @precondition(lambda self: self.leased)
    @rule(data=st.data())
    def lose_worker(self, data: st.DataObject) -> None:
        broker = self._broker(data)
        worker = self._pick(data, self.leased).worker
        # Both servers live, however far the clock was moved since they last said so.
        for each in self.brokers:
            self.run(each.sweep())
        broker.client.zadd("jw:{workers}:seen", {worker: 0})
        self.run(broker.sweep())
        for job in self.model.held_by(worker):
            job.crash()
        self._register(worker)

    @precondition(lambda self: self.leased)
    @rule(data=st.data())
    def deregister(self, data: st.DataObject) -> None:
        worker = self._pick(data, self.leased).worker
        held = self.model.held_by(worker)
        released = self.run(self._broker(data).router.deregister_worker(worker))
        assert released == len(held)
        for job in held:
            job.release(started=True)
        self._register(worker)

    @precondition(lambda self: self.model.ready())
    @rule(data=st.data(), worker=WORKERS)
    def pause_and_resume(self, data: st.DataObject, worker: str) -> None:
        router = self._broker(data).router
        self.run(router.operators.set_paused("default", True))
        assert self.run(self._broker(data).claim(worker, 9)) == []
        self.run(router.operators.set_paused("default", False))

    @rule(units=st.integers(1, 3), off_ms=st.sampled_from([0, 0, -600_000, 600_000]))
    def let_time_pass(self, units: int, off_ms: int) -> None:
        for broker in self.brokers:
            broker.shift(units * STEP_MS)
        # What a server believes the time to be decides nothing.
        self.brokers[0].router.clock.told(self.brokers[0].now_ms() + off_ms)
        self.model.now += units
        self._settle()

    def _settle(self) -> None:
        async def both() -> None:
            # Two servers act on the same clock at the same time.
            await asyncio.gather(*(broker.settle() for broker in self.brokers))

        self.run(both())
        self.model.tick()

    # What must be true after each step --------------------------------------

    @invariant()
    def the_store_is_consistent_and_agrees_with_the_model(self) -> None:
        self.model.note_ends()
        dump = self.brokers[0].check()
        assert {ulid: dump.state(ulid) for ulid in dump.jobs} == {
            job.ulid: job.state for job in self.jobs
        }
        for job in self.jobs:
            fields = dump.jobs[job.ulid]
            assert int(fields.get("t", 0)) == job.token
            assert int(fields.get("n", 0)) == job.attempt
            if job.state is not S.CANCELLED:
                budgets = tuple(int(fields.get(name, 0)) for name in "fci")
                assert budgets == (job.failures, job.crashes, job.interruptions)
            assert dump.keys.get(f"c:{job.ulid}", b"") == job.checkpoint
            if job.leased:
                assert fields["w"] == job.worker


@pytest.mark.timeout(120)
def test_any_run_of_two_servers_agrees_with_the_model(valkey: StoreProcess) -> None:
    Machine.store = valkey
    test_case = Machine.TestCase
    test_case.settings = settings(
        max_examples=40,
        stateful_step_count=50,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    test_case().runTest()
