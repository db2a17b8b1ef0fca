"""Handlers in processes of their own."""

from __future__ import annotations

import json
import os
import signal

import pytest

from jobwire import to_payload

from tests.client import handlers
from tests.client.broker import Broker
from tests.client.support import cancel, completion, process_worker
from tests.support.waiting import eventually

pytestmark = pytest.mark.processes

HANDLERS = (handlers.double, handlers.refuse, handlers.wait_for_the_signal, handlers.die)


async def test_handlers_run_in_processes_with_progress_results_and_failures(
    broker: Broker,
) -> None:
    async with process_worker(broker, *HANDLERS):
        job = await broker.add("double", to_payload(21))
        result = (await completion(broker, job)).success.result.json
        assert '"twice":42' in result
        assert '"token":1' in result
        assert f'"pid":{os.getpid()}' not in result
        assert (job.progress.fraction, job.progress.message) == (0.75, "late")
        failure = (await completion(broker, await broker.add("refuse", to_payload(1)))).failure
        assert (failure.type, failure.non_retryable) == ("Unwanted", True)
        assert "raise Fatal" in failure.stack
        again = (await completion(broker, await broker.add("double", to_payload(1)))).success
        assert result.split('"pid":')[1] == again.result.json.split('"pid":')[1]


async def test_a_cancellation_reaches_a_handler_in_a_process(broker: Broker) -> None:
    async with process_worker(broker, *HANDLERS):
        job = await broker.add("wait_for_the_signal")
        await broker.until(lambda: job.HasField("progress"))
        await cancel(broker, job)
        assert (await completion(broker, job)).HasField("cancelled")


async def test_the_death_of_a_process_fails_its_job_and_the_next_gets_another(
    broker: Broker,
) -> None:
    async with process_worker(broker, *HANDLERS):
        failure = (await completion(broker, await broker.add("die"))).failure
        assert (failure.type, failure.non_retryable) == ("ProcessDied", False)
        assert "SIGKILL (exit code -9)" in failure.message
        said = await completion(broker, await broker.add("double", to_payload(1)))
        assert said.HasField("success")


async def test_a_process_that_died_while_it_waited_fails_no_job(broker: Broker) -> None:
    async with process_worker(broker, *HANDLERS):
        said = await completion(broker, await broker.add("double", to_payload(1)))
        pid = json.loads(said.success.result.json)["pid"]
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: not is_there(pid), "the process is gone")
        said = await completion(broker, await broker.add("double", to_payload(2)))
        assert said.HasField("success")


def is_there(pid: int) -> bool:
    """Tell whether a process lives, or was not waited for yet."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
