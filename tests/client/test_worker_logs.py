"""What a worker says of itself and of its jobs."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from jobwire import Client, Context, JobFilter, Retry, RetryPolicy, Worker

from tests.client.peer import Peer, peer, streaming

pytestmark = pytest.mark.processes

__all__ = ["peer"]

SCRIPT = """
import logging, sys
from jobwire import Worker

worker = Worker(sys.argv[1], concurrency=3)

@worker.operation("text.count")
def count(context):
    logging.getLogger("app").info("counting")
    return len(context.payload)

@worker.operation("text.break")
async def broken(context):
    logging.getLogger("app").warning("about to break \\x1b[2J \\u202e")
    raise ValueError("no \\x1b[31m text \\u202e")

if __name__ == "__main__":
    worker.run({arguments})
"""


@contextmanager
def script(address: str, arguments: str) -> Iterator[list[str]]:
    """Run the worker above; its lines are there when it has ended."""
    lines: list[str] = []
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.replace("{arguments}", arguments), address],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield lines
    finally:
        process.terminate()
        lines += process.communicate(timeout=30)[1].splitlines()


def test_a_bare_worker_says_what_it_serves_and_finishes_and_which_job_a_line_is_about(
    broker_address: str,
) -> None:
    with script(broker_address, "") as lines, Client(broker_address, timeout_s=30) as client:
        good = client.submit("text.count", "abc")
        assert good.result(timeout=30) == 3
        bad = client.submit("text.break", retry=RetryPolicy(max_attempts=1))
        bad.wait(timeout=30)
    said = "\n".join(lines)
    assert (
        f"serving the operations text.count, text.break of the queue default at {broker_address}"
        in said
    )
    assert "concurrency 3, worker " in said
    assert any("text.count succeeded in" in line and good.id in line for line in lines)
    assert any("app counting" in line and f"[{good.id} attempt 1]" in line for line in lines)
    assert any("app about to break \\x1b[2J \\u202e" in line and bad.id in line for line in lines)
    assert any(f"{bad.id}: ValueError: no \\x1b[31m text \\u202e" in line for line in lines)
    assert "Traceback" in said
    assert not re.search("[\x1b\u202e]", said)
    assert "told to stop" in said


def test_a_log_of_json_has_an_object_in_each_line(broker_address: str) -> None:
    with (
        script(broker_address, "log_format='json'") as lines,
        Client(broker_address, timeout_s=30) as client,
    ):
        good = client.submit("text.count", "abc")
        assert good.result(timeout=30) == 3
    entries = [json.loads(line) for line in lines]
    counting = next(entry for entry in entries if entry["message"] == "counting")
    assert (counting["job_id"], counting["operation"], counting["attempt"]) == (
        good.id,
        "text.count",
        1,
    )
    assert (counting["level"], counting["logger"]) == ("info", "app")
    ended = next(entry for entry in entries if entry.get("outcome") == "succeeded")
    assert ended["job_id"] == good.id
    assert ended["duration_s"] >= 0


def test_run_leaves_the_application_s_own_logging_alone(broker_address: str) -> None:
    own = SCRIPT.replace(
        "worker = Worker", "logging.basicConfig(format='OWN %(message)s')\nworker = Worker"
    ).replace("{arguments}", "")
    process = subprocess.Popen(
        [sys.executable, "-c", own, broker_address], stderr=subprocess.PIPE, text=True
    )
    try:
        with Client(broker_address, timeout_s=30) as client:
            client.submit("text.count", "abc").result(timeout=30)
    finally:
        process.terminate()
        said = process.communicate(timeout=30)[1]
    assert said == ""  # its level is WARNING, and there were none


async def test_a_worker_without_run_is_quiet_where_nobody_listens(peer: Peer) -> None:
    assert any(
        isinstance(handler, logging.NullHandler)
        for handler in logging.getLogger("jobwire").handlers
    )


async def test_many_jobs_have_a_line_in_common(
    peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    async def quick(context: Context) -> None: ...

    with caplog.at_level(logging.INFO, "jobwire.worker"):
        worker = streaming(peer, quick=quick)
        worker.concurrency = 100
        async with worker:
            stream = await peer.stream()
            for _ in range(20):
                stream.assign(*["quick"] * 100)
            await peer.until(lambda: len(stream.completions) == 2000)
    own = [record for record in caplog.messages if "succeeded in" in record]
    more = [int(line.split()[1]) for line in caplog.messages if "more jobs ended" in line]
    assert len(own) < 500  # twenty in each second that it took
    assert len(own) + sum(more) == 2000


async def test_many_failures_have_few_tracebacks(
    peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    async def bad(context: Context) -> None:
        raise ValueError("bad")

    with caplog.at_level(logging.INFO, "jobwire.worker"):
        worker = streaming(peer, bad=bad)
        worker.concurrency = 100
        async with worker:
            stream = await peer.stream()
            for _ in range(10):
                stream.assign(*["bad"] * 100)
            await peer.until(lambda: len(stream.completions) == 1000)
    own = [record for record in caplog.records if "failed after" in record.getMessage()]
    more = [int(line.split()[1]) for line in caplog.messages if "more handlers failed" in line]
    assert len(own) < 500
    assert all(record.exc_info for record in own)
    assert len(own) + sum(more) == 1000


async def test_an_error_tracker_hears_of_what_handlers_raise(
    peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[tuple[str, BaseException]] = []

    def track(context: Context, error: BaseException) -> None:
        heard.append((context.operation, error))
        raise RuntimeError("the tracker is broken")

    async def bad(context: Context) -> None:
        raise Retry("later")

    worker = Worker(peer.target, on_error=track)
    worker.operation("bad")(bad)
    async with worker:
        stream = await peer.stream()
        (job,) = stream.assign("bad")
        assert (await stream.completion(job)).failure.type == "Retry"
    assert [(name, type(error)) for name, error in heard] == [("bad", Retry)]
    assert "on_error failed" in caplog.text


async def test_the_filter_tells_lines_of_handlers_beside_each_other_apart(peer: Peer) -> None:
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    keep = Keep()
    keep.addFilter(JobFilter())
    logger = logging.getLogger("tests.beside")
    logger.addHandler(keep)
    logger.setLevel(logging.INFO)

    async def task(context: Context) -> None:
        await asyncio.sleep(0.001)
        logger.info(context.job_id)

    def thread(context: Context) -> None:
        logger.info(context.job_id)

    try:
        async with streaming(peer, task=task, thread=thread):
            stream = await peer.stream()
            jobs = stream.assign("task", "thread", "task", "thread")
            for job in jobs:
                await stream.completion(job)
        logger.info("outside")
    finally:
        logger.removeHandler(keep)
    assert len(records) == 5
    for record in records[:-1]:
        assert record.__dict__["job_id"] == record.getMessage()
    assert records[-1].__dict__["job_id"] == ""
