"""Writes that wait for replicas: what they wait for, and what becomes of lost answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from jobwire_server.domain.errors import StoreUnavailable
from jobwire_server.domain.model import Accepted, Assignment
from jobwire_server.store.claims import ClaimRequest
from jobwire_server.store.connection.replicas import UNWAITED
from jobwire_server.store.scripts import load, names

from tests.support.fixtures import open_scripts
from tests.support.jobs import new_job
from tests.support.replicas import Replicated
from tests.support.scripts import LEASE_MS, RETAIN_MS, Scripts
from tests.support.stores import Engine, server_binary
from tests.support.waiting import eventually

pytestmark = pytest.mark.processes

SHORT: Any = {"wait_replicas": 1, "wait_timeout_ms": 100}
PATIENT: Any = {"wait_replicas": 1, "wait_timeout_ms": 4_000}


@pytest.fixture(scope="module", params=["valkey", "redis"])
def pair_of_module(request: pytest.FixtureRequest) -> Iterator[Replicated]:
    engine: Engine = request.param
    if server_binary(engine) is None:
        pytest.skip(f"no {engine}-server on PATH")
    pair = Replicated(engine)
    try:
        pair.start()
        yield pair
    finally:
        pair.remove()


@pytest.fixture
def pair(pair_of_module: Replicated) -> Iterator[Replicated]:
    """A primary and its replica, empty, once for each engine."""
    pair_of_module.primary.flush()
    pair_of_module.settle()
    yield pair_of_module
    pair_of_module.replica.resume()


@pytest.fixture
async def waiting(pair: Replicated) -> AsyncIterator[Scripts]:
    """Scripts that wait for one replica, and not for long."""
    async with open_scripts(pair.primary.url, **SHORT) as scripts:
        yield scripts


@pytest.fixture
async def patient(pair: Replicated) -> AsyncIterator[Scripts]:
    """Scripts that wait for one replica, however busy the machine is."""
    async with open_scripts(pair.primary.url, **PATIENT) as scripts:
        yield scripts


async def test_what_is_answered_is_on_the_replica(pair: Replicated, patient: Scripts) -> None:
    with pair.replica.client() as replica:
        for count in range(1, 30):
            await patient.submit()
            assert replica.hget("jw:{default}:totals", "submitted") == str(count).encode()
    patient.check()


async def test_a_write_that_no_replica_has_is_refused_and_stands(
    pair: Replicated, waiting: Scripts, patient: Scripts
) -> None:
    job = new_job()
    pair.replica.pause()
    with pytest.raises(StoreUnavailable) as refused:
        await waiting.submit(job)
    assert refused.value.message == (
        "wait_replicas is 1, and the write reached 0 within 100 ms; it stands on the primary:"
        " retry with the same ids"
    )
    assert waiting.dump()["totals"] == {"submitted": "1"}
    pair.replica.resume()
    await patient.submit(job)
    assert waiting.dump()["totals"] == {"submitted": "1"}
    waiting.check()


async def test_a_hand_over_that_no_replica_has_is_told_neither_to_producer_nor_to_worker(
    pair: Replicated, waiting: Scripts, patient: Scripts
) -> None:
    job = new_job()
    requests = [ClaimRequest("w1", 1, LEASE_MS, (job.route.id,))]
    asked: Any = ("default", [job], RETAIN_MS, (0, 0), requests, waiting.jobs.next_claim())
    pair.replica.pause()
    with pytest.raises(StoreUnavailable, match="the write reached 0 within"):
        await waiting.jobs.submit_claim(*asked)
    pair.replica.resume()
    # The same call again brings what the first one did.
    ((answer,), (claimed,)) = await patient.jobs.submit_claim(*asked)
    assert isinstance(answer, Accepted)
    assert answer.existing_record == job.record
    assert claimed.assignments == [Assignment(job.job_id, 1, 1, job.record)]
    waiting.check()


async def test_a_repeat_that_writes_nothing_waits_for_what_another_connection_wrote(
    pair: Replicated,
) -> None:
    job = new_job()
    pair.replica.pause()
    async with open_scripts(pair.primary.url) as elsewhere:
        await elsewhere.submit(job)
    async with open_scripts(pair.primary.url, **SHORT) as scripts:
        with pytest.raises(StoreUnavailable, match="the write reached 0 within"):
            await scripts.submit(job)
        # Nor once the connection has waited for something of its own.
        with pytest.raises(StoreUnavailable, match="the write reached 0 within"):
            await scripts.submit(job)


@pytest.mark.parametrize("forgotten", [{"submit", "fence"}, {"submit"}, {"fence"}])
async def test_a_script_that_the_store_forgot_is_sent_again_and_waited_for(
    pair: Replicated, waiting: Scripts, patient: Scripts, forgotten: set[str]
) -> None:
    await patient.submit()
    waiting.client.script_flush()
    for name in {"submit", "fence"} - forgotten:
        waiting.client.script_load(load(name).source)
    await patient.submit()
    assert waiting.dump()["totals"] == {"submitted": "2"}
    waiting.client.script_flush()
    pair.replica.pause()
    with pytest.raises(StoreUnavailable, match="wait_replicas"):
        await waiting.submit()
    waiting.check()


async def test_a_connection_that_is_lost_in_the_wait_is_a_repeat(pair: Replicated) -> None:
    async with open_scripts(pair.primary.url, **PATIENT) as scripts:
        await scripts.submit()
        pair.replica.pause()
        submitting = asyncio.create_task(scripts.submit())
        await eventually(lambda: len(pair.waiting()) == 1, "it waits")
        (lost,) = pair.waiting()
        scripts.client.client_kill_filter(_id=str(lost))
        await eventually(lambda: bool(pair.waiting() - {lost}), "it waits again")
        assert not submitting.done()
        pair.replica.resume()
        await submitting
        assert scripts.dump()["totals"]["submitted"] == "2"
        scripts.check()


async def test_what_only_reads_waits_for_nothing(pair: Replicated, patient: Scripts) -> None:
    (ulid,) = await patient.submit()
    pair.replica.pause()
    before = pair.waits()
    await patient.read(ulid)
    await patient.queues.exists("default")
    await patient.tick()
    assert pair.waits() == before


async def test_without_replicas_to_wait_for_nothing_is_asked_of_them(pair: Replicated) -> None:
    pair.replica.pause()
    before = pair.waits()
    async with open_scripts(pair.primary.url) as scripts:
        await scripts.queues.register("default")
        ulid = await scripts.running()
        await scripts.succeed(ulid)
        stats = scripts.client.info("commandstats")
    assert pair.waits() == before
    assert stats["cmdstat_zadd"]["calls"] >= 1


async def test_in_a_full_store_the_jobs_that_it_has_go_on_and_are_waited_for(
    pair: Replicated, patient: Scripts
) -> None:
    # The first use of a script sends it whole, and waits twice.
    await patient.succeed(await patient.running())
    ulid = await patient.running()
    before = pair.waits()
    patient.client.config_set("maxmemory", 1)
    try:
        await patient.succeed(ulid)
    finally:
        patient.client.config_set("maxmemory", 0)
    assert pair.waits() == before + 1
    patient.check()


async def test_a_queue_is_registered_where_the_replica_has_it(
    pair: Replicated, waiting: Scripts
) -> None:
    pair.replica.pause()
    with pytest.raises(StoreUnavailable, match="wait_replicas"):
        await waiting.queues.register("default")


def test_every_script_that_answers_a_caller_with_a_write_waits() -> None:
    assert {name for name in names() if load(name).waits} == {
        *(
            "submit",
            "submit_claim",
            "claim",
            "claim_job",
            "succeed",
            "end_attempt",
            "report",
            "cancel",
            "redrive",
        ),
        *("forget", "configure", "pause", "worker_status", "register", "unregister", "erase"),
        *("schedule_write", "schedule_delete", "trigger", "fence"),
    }
    assert set(names()) >= UNWAITED
