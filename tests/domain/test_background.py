"""Work in the background: awaited by its owner, heard when it fails, and never shown whole."""

from __future__ import annotations

import asyncio
import gc
import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from jobwire_server.domain.background import OwnedTasks, heard, tell_unhandled
from jobwire_server.domain.errors import StoreUnavailable
from jobwire_server.telemetry.logs import configure_logs

SECRET = "payload-of-a-caller"


@pytest.fixture(params=["json", "console"])
def log(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    """What the server writes, in either form."""
    stream = io.StringIO()
    configure_logs(request.param, stream=stream)
    yield stream
    structlog.reset_defaults()


async def _refused() -> None:
    payload = SECRET
    await asyncio.sleep(0)
    raise StoreUnavailable(f"the store is away, {len(payload)}")


async def _broken() -> None:
    payload = SECRET
    await asyncio.sleep(0)
    raise RuntimeError(f"a defect, {len(payload)}")


async def _complaints(make: Any) -> list[str]:
    """What the loop complains of while the work runs and when it is collected."""
    complaints: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context["message"]))
    await make()
    for _ in range(3):
        await asyncio.sleep(0)
    gc.collect()
    await asyncio.sleep(0)
    return complaints


async def test_a_refusal_that_nobody_waits_for_is_no_complaint() -> None:
    async def make() -> None:
        tasks = OwnedTasks()
        tasks.begin(_refused())
        await tasks.finish()

    assert await _complaints(make) == []


async def test_a_refusal_whose_waiters_have_gone_is_no_complaint() -> None:
    async def make() -> None:
        task = heard(asyncio.create_task(_refused()))
        waiter = asyncio.create_task(_wait_for(task))
        await asyncio.sleep(0)
        waiter.cancel()
        await asyncio.wait({waiter, task})

    assert await _complaints(make) == []


async def _wait_for(task: asyncio.Task[None]) -> None:
    await asyncio.shield(task)


async def test_a_defect_that_nobody_waits_for_is_written_without_what_callers_sent(
    log: io.StringIO,
) -> None:
    tasks = OwnedTasks()
    tasks.begin(_broken(), "cleaning")
    await tasks.finish()
    await asyncio.sleep(0)
    text = log.getvalue()
    assert "cleaning" in text
    assert "a defect" in text
    assert SECRET not in text


async def test_what_the_loop_complains_of_is_written_without_what_callers_sent(
    log: io.StringIO,
) -> None:
    asyncio.get_running_loop().set_exception_handler(tell_unhandled)
    task = asyncio.create_task(_broken(), name="forgotten")
    await asyncio.wait({task})
    del task
    gc.collect()
    await asyncio.sleep(0)
    text = log.getvalue()
    assert "never retrieved" in text
    assert "forgotten" in text
    assert SECRET not in text


async def test_a_logged_traceback_has_no_variables(log: io.StringIO) -> None:
    try:
        await _broken()
    except RuntimeError:
        structlog.get_logger().exception("caught")
    text = log.getvalue()
    assert "_broken" in text
    assert SECRET not in text
    if text.startswith("{"):
        assert "locals" not in json.dumps(json.loads(text))
