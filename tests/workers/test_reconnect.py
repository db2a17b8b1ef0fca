"""Streams that break, and workers that come back or do not."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any

import pytest

from jobwire.v1.job_pb2 import (
    ATTEMPT_OUTCOME_CRASHED,
    ATTEMPT_OUTCOME_UNDELIVERED,
    JOB_STATE_PENDING,
    JOB_STATE_RUNNING,
    JOB_STATE_SUCCEEDED,
    Job,
)
from jobwire.v1.worker_service_pb2 import HeartbeatRequest, RegisterWorkerRequest
from jobwire.v1.worker_service_pb2_grpc import WorkerServiceStub
from jobwire_server.domain.model import WorkerStatus

from tests.support.streams import (
    PATIENCE_S,
    QUICK,
    Producer,
    RawWorker,
    StreamServer,
    lease_of,
    stream_server,
)
from tests.support.waiting import eventually

PATIENT = replace(QUICK, reconnect_window_ms=30_000, lease_ms=60_000, claim_timeout_ms=30_000)
"""Nothing comes back by itself within a test."""


async def _breaks(server: StreamServer, worker_id: str) -> None:
    """Waits until the end of a worker's stream is noted."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found = await server.router.operators.find_worker(worker_id)
            if found is not None and not found.attached:
                return
            await asyncio.sleep(0.02)


def budgets(job: Job) -> tuple[int, int, int]:
    """Returns what was counted against a job."""
    return job.failures, job.crashes, job.interruptions


async def test_a_worker_that_comes_back_to_another_server_keeps_its_leases(
    valkey_url: str,
) -> None:
    async with (
        stream_server(valkey_url, PATIENT) as here,
        stream_server(valkey_url, PATIENT, "s2") as there,
        Producer(here.address) as producer,
    ):
        job_ids = await producer.submit(3)
        async with RawWorker(here.address) as first:
            await first.attach()
            jobs = await first.jobs(3)
            await first.break_off()
        async with RawWorker(there.address) as again:
            attached = await again.attach(jobs)
            assert (attached.server_id, len(attached.lost_leases)) == ("s2", 0)
            assert not (await again.complete(*jobs)).refused
            assert not again.got
        for job_id, assignment in zip(job_ids, jobs, strict=True):
            job = await producer.job(job_id)
            assert job.state == JOB_STATE_SUCCEEDED
            assert [a.fencing_token for a in job.attempts] == [assignment.fencing_token]


async def test_leases_that_the_worker_does_not_name_come_back_as_undelivered(
    valkey_url: str,
) -> None:
    async with (
        stream_server(valkey_url, PATIENT) as here,
        stream_server(valkey_url, PATIENT, "s2") as there,
        Producer(here.address) as producer,
    ):
        await producer.submit(3)
        async with RawWorker(here.address) as first:
            await first.attach()
            jobs = await first.jobs(3)
            await first.break_off()
        async with RawWorker(there.address, credits=3) as again:
            await again.attach(jobs[:1])
            got = await again.jobs(2)
            assert [(a.job_id, a.fencing_token, a.attempt) for a in got] == [
                (a.job_id, a.fencing_token + 1, 1) for a in jobs[1:]
            ]
            job = await producer.job(got[0].job_id)
            assert budgets(job) == (0, 0, 0)
            assert [a.outcome for a in job.attempts][:1] == [ATTEMPT_OUTCOME_UNDELIVERED]
            assert again.peak == 3


async def test_leases_that_are_gone_are_named_in_the_answer_to_attach(
    valkey_url: str,
) -> None:
    async with (
        stream_server(valkey_url, PATIENT) as server,
        Producer(server.address) as producer,
    ):
        await producer.submit(2)
        async with RawWorker(server.address) as first:
            await first.attach()
            kept, gone = await first.jobs(2)
            await first.release(gone)
            await first.break_off()
        async with RawWorker(server.address, credits=1) as again:
            attached = await again.attach([kept, gone])
            assert list(attached.lost_leases) == [lease_of(gone)]
            assert not again.got
            assert not (await again.complete(kept)).refused


async def test_a_lease_that_is_named_twice_takes_one_place(valkey_url: str) -> None:
    async with (
        stream_server(valkey_url, PATIENT) as server,
        Producer(server.address) as producer,
    ):
        await producer.submit(2)
        async with RawWorker(server.address, credits=1) as first:
            await first.attach()
            (job,) = await first.jobs(1)
            await first.break_off()
        async with RawWorker(server.address, credits=2) as again:
            await again.attach([job, job, job])
            await again.jobs(1)


async def test_the_jobs_of_a_worker_that_does_not_come_back_return_at_the_windows_end(
    server: StreamServer, producer: Producer
) -> None:
    (job_id,) = await producer.submit()
    async with RawWorker(server.address) as worker:
        await worker.attach()
        (assignment,) = await worker.jobs(1)
        await worker.break_off()
        # The lease has ten seconds to go, the worker's timeout as many.
        async with asyncio.timeout(6):
            job = await producer.until(job_id, JOB_STATE_PENDING)
    assert budgets(job) == (0, 1, 0)
    assert [a.outcome for a in job.attempts] == [ATTEMPT_OUTCOME_CRASHED]
    found = await server.router.operators.find_worker("w1")
    assert found is not None
    assert found.status is WorkerStatus.LOST
    assert not found.attached
    # It may still come back, and learns that the lease is gone.
    async with RawWorker(server.address, credits=0) as again:
        attached = await again.attach([assignment])
        assert list(attached.lost_leases) == [lease_of(assignment)]
        found = await server.router.operators.find_worker("w1")
        assert found is not None
        assert (found.status, found.lost_at_ms) == (WorkerStatus.READY, 0)


async def test_a_new_stream_of_the_same_process_supersedes_the_old_one(
    valkey_url: str,
) -> None:
    async with (
        stream_server(valkey_url, PATIENT) as here,
        stream_server(valkey_url, PATIENT, "s2") as there,
        Producer(here.address) as producer,
    ):
        (job_id,) = await producer.submit()
        async with RawWorker(here.address) as first, RawWorker(there.address) as second:
            await first.attach()
            jobs = await first.jobs(1)
            await second.attach(jobs)
            code, details = await first.end()
            assert code.name == "ABORTED"
            assert "another stream attached as w1" in details
            # And on the same server.
            async with RawWorker(there.address) as third:
                await third.attach(jobs)
                code, _ = await second.end()
                assert code.name == "ABORTED"
                assert not (await third.complete(*jobs)).refused
        assert budgets(await producer.job(job_id)) == (0, 0, 0)


@pytest.mark.parametrize("same_server", [True, False])
async def test_a_process_started_anew_under_its_old_id_counts_a_crash(
    valkey_url: str, same_server: bool
) -> None:
    async with (
        stream_server(valkey_url, PATIENT) as here,
        stream_server(valkey_url, PATIENT, "s2") as there,
        Producer(here.address) as producer,
    ):
        (job_id,) = await producer.submit()
        async with RawWorker(here.address, instance="i1") as first:
            await first.attach()
            await first.jobs(1)
        await _breaks(here, "w1")
        where = here if same_server else there
        async with RawWorker(where.address, instance="i2") as second:
            await second.attach()
            (assignment,) = await second.jobs(1)
            assert (assignment.fencing_token, assignment.attempt) == (2, 2)
            assert budgets(await producer.job(job_id)) == (0, 1, 0)
            assert not (await second.complete(assignment)).refused


@pytest.mark.parametrize("same_server", [True, False])
async def test_a_take_over_of_a_workers_id_counts_no_crash(
    valkey_url: str, same_server: bool
) -> None:
    async with (
        stream_server(valkey_url, PATIENT) as here,
        stream_server(valkey_url, PATIENT, "s2") as there,
        Producer(here.address) as producer,
    ):
        (job_id,) = await producer.submit()
        where = here if same_server else there
        async with (
            RawWorker(here.address, instance="i1") as first,
            RawWorker(where.address, instance="i2") as second,
        ):
            await first.attach()
            await first.jobs(1)
            await second.attach()
            code, details = await first.end()
            assert code.name == "ABORTED"
            assert "two workers share the id" in details
            (assignment,) = await second.jobs(1)
            assert (assignment.fencing_token, assignment.attempt) == (2, 2)
            assert budgets(await producer.job(job_id)) == (0, 0, 1)
            assert not (await second.complete(assignment)).refused


async def test_what_the_old_stream_was_given_after_the_new_one_attached_comes_back_at_once(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old stream's server learns late that it is superseded, and goes on claiming for it."""
    async with (
        stream_server(valkey_url, PATIENT) as here,
        stream_server(valkey_url, PATIENT, "s2") as there,
        Producer(there.address) as producer,
    ):
        workers = here.parts.workers
        deaf = asyncio.Event()
        touch = workers.touch

        async def late(*arguments: Any) -> Any:
            await deaf.wait()
            return await touch(*arguments)

        async with (
            RawWorker(here.address, acks=False) as old,
            RawWorker(there.address, credits=1) as new,
        ):
            (named,) = await producer.submit()
            await old.attach()
            jobs = await old.jobs(1)
            monkeypatch.setattr(workers, "touch", late)
            await new.attach(jobs)
            # The new stream has no free credit, so this one goes over the old one.
            (job_id,) = await producer.submit()
            await old.jobs(2)
            deaf.set()
            code, _ = await old.end()
            assert code.name == "ABORTED"
            job = await producer.until(job_id, JOB_STATE_PENDING)
            assert budgets(job) == (0, 0, 0)
            # That which the worker named has not been touched, acknowledged or not.
            job = await producer.job(named)
            assert (job.state, job.fencing_token) == (JOB_STATE_RUNNING, 1)
            assert not (await new.complete(*jobs)).refused
            await new.jobs(1)


async def test_the_goodbye_of_an_older_stream_leaves_the_newer_one_alone(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at a deploy: the next process is there before the server of the last one hears of it."""
    async with (
        stream_server(valkey_url, PATIENT) as here,
        stream_server(valkey_url, PATIENT, "s2") as there,
        Producer(there.address) as producer,
    ):
        deaf = asyncio.Event()
        workers = here.parts.workers
        touch = workers.touch

        async def late(*arguments: Any) -> Any:
            await deaf.wait()
            return await touch(*arguments)

        async with (
            RawWorker(here.address, instance="i1", credits=0, acks=False) as old,
            RawWorker(there.address, instance="i2", credits=1) as new,
        ):
            await old.attach()
            monkeypatch.setattr(workers, "touch", late)
            await new.attach()
            (kept,) = await producer.submit()
            (mine,) = await new.jobs(1)
            # The new stream has no free credit, so this one goes over the old one.
            await old.send(credits=1)
            (stray,) = await producer.submit()
            await old.jobs(1)
            await old.leave()
            # It is not left to its lease, and nobody had begun it.
            job = await producer.until(stray, JOB_STATE_PENDING)
            assert budgets(job) == (0, 0, 0)
            job = await producer.job(kept)
            assert (job.state, job.fencing_token) == (JOB_STATE_RUNNING, 1)
            deaf.set()
            assert not (await new.complete(mine)).refused
            await new.jobs(2)


async def test_an_attachment_that_is_broken_off_in_the_middle_leaves_nothing_behind(
    server: StreamServer, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams, held = server.parts.streams, server.parts.held
    asked, go_on = asyncio.Event(), asyncio.Event()
    end_unnamed = held.end_unnamed

    async def slow(_: object, *args: Any) -> int:
        asked.set()
        await go_on.wait()
        return await end_unnamed(*args)

    monkeypatch.setattr(type(held), "end_unnamed", slow)
    async with RawWorker(server.address) as worker:
        await worker.send(attach=worker.first)
        await asyncio.wait_for(asked.wait(), PATIENCE_S)
    await eventually(lambda: streams.count == 0, "the session is forgotten")
    go_on.set()
    async with RawWorker(server.address) as worker:
        await worker.attach()
        await producer.submit()
        await worker.jobs(1)


async def test_a_store_that_forgets_an_attachment_ends_no_worker_and_takes_no_job(
    valkey_url: str,
) -> None:
    """As after a failover: the new primary has the stream before, which the replica had."""
    async with (
        stream_server(valkey_url, PATIENT) as here,
        stream_server(valkey_url, PATIENT, "s2") as there,
        Producer(here.address) as producer,
    ):
        await producer.submit()
        async with RawWorker(here.address) as first:
            await first.attach()
            jobs = await first.jobs(1)
            store = here.parts.runner
            found = await store.command("HGETALL", "jw:{workers}:w:w1")
            before = [part for pair in found.items() for part in pair]
        await _breaks(here, "w1")
        async with RawWorker(there.address) as second:
            await second.attach(jobs)
            await store.command("DEL", "jw:{workers}:w:w1")
            await store.command("HSET", "jw:{workers}:w:w1", *before)
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    if await store.command("HGET", "jw:{workers}:w:w1", "server") == b"s2":
                        break
                    await asyncio.sleep(0.02)
            assert not second.call.done()
            assert not (await second.complete(*jobs)).refused
            await producer.submit()
            await second.jobs(1)


async def test_the_counters_of_a_worker_go_on_over_its_streams(
    server: StreamServer, producer: Producer
) -> None:
    for done in (2, 4):
        await producer.submit(2)
        async with RawWorker(server.address, credits=2) as worker:
            await worker.attach()
            await worker.complete(*await worker.jobs(2))
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    found = await server.router.operators.find_worker("w1")
                    if found is not None and found.succeeded == done:
                        break
                    await asyncio.sleep(0.02)
            assert found.attached
            assert (found.assigned, found.failed, found.credits) == (found.succeeded, 0, 2)


async def test_a_worker_that_made_calls_before_attaches_with_stuck_handlers(
    server: StreamServer,
) -> None:
    async with RawWorker(server.address) as worker:
        stub = WorkerServiceStub(worker.channel)
        await stub.RegisterWorker(
            RegisterWorkerRequest(worker=worker.first.worker, instance_id="i1")
        )
        await stub.Heartbeat(HeartbeatRequest(worker_id="w1", stuck=2))
        await worker.attach()


async def test_no_call_of_these_is_logged_as_a_defect(
    server: StreamServer, producer: Producer, capsys: pytest.CaptureFixture[str]
) -> None:
    await producer.submit(100)
    for at in range(20):
        async with RawWorker(server.address, f"w{at}", credits=5) as worker:
            await worker.attach()
            await worker.jobs(1)
            await worker.break_off()
    await eventually(lambda: server.parts.streams.count == 0, "the sessions are over")
    logging.shutdown()
    assert "defect" not in capsys.readouterr().out
