"""The runner of scripts: a store that goes away and comes back."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest
from redis import exceptions as redis_errors

from jobwire_server.domain.errors import StoreUnavailable
from jobwire_server.store.connection.condition import StoreCondition
from jobwire_server.store.connection.connect import connect
from jobwire_server.store.runner import RETRY_WINDOW_S, ScriptRunner
from jobwire_server.store.scripts import load, names

from tests.support.fixtures import open_scripts
from tests.support.jobs import new_job
from tests.support.stores import StoreProcess


async def test_a_store_that_is_away_for_a_moment_is_a_delay(own_store: StoreProcess) -> None:
    async with open_scripts(own_store.url) as scripts:
        await scripts.submit()
        own_store.wait_written()
        own_store.kill()
        waiting = asyncio.create_task(scripts.submit())
        own_store.start()
        await waiting
        assert scripts.dump()["totals"] == {"submitted": "2"}
        scripts.check()


async def test_a_store_that_stays_away_is_told_within_the_window_and_then_at_once(
    own_store: StoreProcess,
) -> None:
    async with open_scripts(own_store.url) as scripts:
        await scripts.submit()
        own_store.kill()
        began = monotonic()
        with pytest.raises(StoreUnavailable):
            await scripts.submit()
        took = monotonic() - began
        assert took < RETRY_WINDOW_S + 1
        while True:
            began = monotonic()
            with pytest.raises(StoreUnavailable):
                await scripts.submit()
            if monotonic() - began < 0.5:
                break
            assert monotonic() - began < RETRY_WINDOW_S + 1
        own_store.start()
        await scripts.submit()
        scripts.check()


async def test_a_store_that_was_found_back_is_tried_by_every_call(own_store: StoreProcess) -> None:
    connection = connect(own_store.url)
    condition = StoreCondition(connection.address)
    runner = ScriptRunner(connection, condition=condition)
    try:
        own_store.pause()
        with pytest.raises(StoreUnavailable):
            await runner.command("STRLEN", "k")
        finding_out = asyncio.create_task(runner.command("STRLEN", "k"))
        await asyncio.sleep(0)
        with pytest.raises(StoreUnavailable, match="it is being tried"):
            await runner.command("STRLEN", "k")
        condition.missed("it hangs")
        condition.answered()
        tried = asyncio.create_task(runner.command("STRLEN", "k"))
        await asyncio.sleep(0)
        assert not tried.done()
        own_store.resume()
        assert await tried == 0
        await asyncio.wait([finding_out])
    finally:
        own_store.resume()
        await connection.close()


async def test_a_job_whose_answer_was_lost_is_there_once(own_store: StoreProcess) -> None:
    async with open_scripts(own_store.url) as scripts:
        job = new_job()
        before = await scripts.jobs.submit("default", [job])
        own_store.restart()
        after = await scripts.jobs.submit("default", [job])
        assert before[0].existing_record is None
        # everysec: the job may be lost with the last second, but is never there twice.
        assert after[0].existing_record in (None, job.record)
        assert len(await scripts.claim("w1", 5)) == 1
        scripts.check()


async def test_a_mistake_in_a_call_is_not_repeated(valkey_url: str) -> None:
    async with open_scripts(valkey_url) as scripts:
        began = monotonic()
        with pytest.raises(redis_errors.ResponseError):
            await scripts.runner.command("HGET", "only-one-argument")
        assert monotonic() - began < RETRY_WINDOW_S / 2


@pytest.mark.parametrize("name", names())
async def test_every_script_compiles(store_url: str, name: str) -> None:
    async with open_scripts(store_url) as scripts:
        script = load(name)
        assert scripts.client.script_load(script.source) == script.digest
