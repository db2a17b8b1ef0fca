"""How the processes of handlers begin, end and are renewed, and what they say meanwhile."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from itertools import pairwise
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest

from jobwire import ProcessOptions
from jobwire.worker.processes.pool import ProcessPool
from jobwire.worker.processes.process import BEGIN
from jobwire.worker.processes.setup import search_path

from tests.client import process_handlers as handlers
from tests.client.broker import Broker
from tests.client.support import cancel, completion, failure, process_worker, result
from tests.support.processes import lives
from tests.support.waiting import eventually

pytestmark = pytest.mark.processes


async def test_a_process_that_ends_under_its_handler_fails_the_job_in_words(
    broker: Broker,
) -> None:
    async with process_worker(broker, handlers.end_badly, handlers.own_pid):
        for payload, words in (
            ("exit", "ended by itself with exit code 3"),
            ("segfault", "ended by SIGSEGV (exit code -11)"),
            ("thread", "ended by SIGABRT (exit code -6)"),
            ("close", "closed its pipe to the worker"),
        ):
            failed = await failure(broker, "end_badly", payload)
            assert (failed.type, failed.non_retryable) == ("ProcessDied", False)
            assert words in failed.message
        assert await result(broker, "own_pid")


async def test_whatever_a_handler_raises_its_process_goes_on(broker: Broker) -> None:
    async with process_worker(broker, handlers.raise_oddly, handlers.own_pid):
        pid = await result(broker, "own_pid")
        for payload, type_name in (
            ("unpicklable", "Unpicklable"),
            ("unspeakable", "Unspeakable"),
            ("interrupt", "KeyboardInterrupt"),
            ("exit", "HandlerExited"),
            ("recursion", "RecursionError"),
        ):
            assert (await failure(broker, "raise_oddly", payload)).type == type_name
        assert await result(broker, "own_pid") == pid


async def test_a_child_that_a_handler_forks_says_nothing_in_its_place(broker: Broker) -> None:
    async with process_worker(broker, handlers.fork_and_return, handlers.own_pid):
        assert await result(broker, "fork_and_return") == "parent"
        assert await result(broker, "own_pid")
    assert len(broker.calls["CompleteJob"]) == 2


async def test_much_output_and_large_results_pass(broker: Broker) -> None:
    async with process_worker(broker, handlers.print_much, handlers.answer_largely):
        assert await result(broker, "print_much") == 4 << 20
        assert len(await result(broker, "answer_largely", 3 << 20)) == 3 << 20


async def test_a_process_is_renewed_after_so_many_jobs(broker: Broker) -> None:
    options = ProcessOptions(max_jobs=2)
    async with process_worker(broker, handlers.own_pid, options=options):
        pids = [await result(broker, "own_pid") for _ in range(5)]
        assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4]
        await eventually(
            lambda: not any(lives(pid) for pid in pids[:4]), "they have ended", timeout_s=30
        )


async def test_a_process_is_renewed_once_it_holds_so_much(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    options = ProcessOptions(max_memory_bytes=200 << 20)
    async with process_worker(broker, handlers.hoard, options=options):
        with caplog.at_level(logging.INFO, "jobwire.worker"):
            pids = [await result(broker, "hoard") for _ in range(8)]
        renewed = sum(first != second for first, second in pairwise(pids))
        # Some 60 MiB at first, and 64 MiB with each job.
        assert 2 <= renewed <= 4
    assert "it is replaced" in caplog.text


@pytest.mark.parametrize(
    "wrong", [{"max_jobs": 0}, {"max_memory_bytes": -1}, {"start_timeout_s": 0}]
)
def test_options_out_of_range_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ProcessOptions(**wrong)


async def test_a_job_that_is_cancelled_while_its_process_starts_never_runs(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first process is taken; the second takes long, as its module waits there.
    (tmp_path / "slow_to_import.py").write_text(
        "import os, time\n"
        "while os.environ.get('JOBWIRE_TEST_GATE'): time.sleep(0.01)\n"
        "def wait(context): context.wait_cancelled(600); context.raise_if_cancelled()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import slow_to_import  # type: ignore[import-not-found]

    async with process_worker(broker, slow_to_import.wait):
        monkeypatch.setenv("JOBWIRE_TEST_GATE", "closed")
        first = await broker.add("wait")
        second = await broker.add("wait")
        await broker.until(lambda: second.worker_id)
        await cancel(broker, second)
        assert (await completion(broker, second)).HasField("cancelled")
        await cancel(broker, first)
        assert (await completion(broker, first)).HasField("cancelled")


async def test_a_worker_that_ends_while_its_first_process_starts_leaves_no_error_unheard(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "never_imported.py").write_text(
        "import os, time\n"
        "while os.environ.get('JOBWIRE_TEST_NEVER'): time.sleep(0.01)\n"
        "def handler(context): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import never_imported  # type: ignore[import-not-found]

    monkeypatch.setenv("JOBWIRE_TEST_NEVER", "1")
    unheard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
    pool = ProcessPool()
    starting = asyncio.create_task(pool.prepare([never_imported.handler]))
    await eventually(lambda: bool(pool.processes), "its process is there")
    (child,) = pool.processes
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await pool.close()
    await eventually(child.ready.done, "it is told that the process is gone")
    await asyncio.sleep(0)
    del starting, child
    gc.collect()
    assert unheard == []


@pytest.mark.parametrize("heard", [0, 1])
async def test_a_process_whose_worker_is_killed_while_it_starts_ends_without_a_word(
    heard: int,
) -> None:
    ours, theirs = Pipe()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", BEGIN, str(theirs.fileno())),
        pass_fds=(theirs.fileno(),),
        stderr=asyncio.subprocess.PIPE,
    )
    theirs.close()
    for _ in range(heard):
        ours.send(search_path())
    ours.close()
    _, said = await process.communicate()
    assert (process.returncode, said) == (0, b"")


async def test_a_process_that_can_not_import_its_handlers_any_more_fails_the_job(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fails_later.py").write_text(
        "import os\n"
        "if os.environ.get('JOBWIRE_TEST_FAIL'): raise LookupError('a file is gone')\n"
        "def handler(context): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import fails_later  # type: ignore[import-not-found]

    options = ProcessOptions(max_jobs=1)
    async with process_worker(broker, fails_later.handler, options=options):
        monkeypatch.setenv("JOBWIRE_TEST_FAIL", "1")
        assert (await completion(broker, await broker.add("handler"))).HasField("success")
        failed = await failure(broker, "handler")
        assert (failed.type, failed.non_retryable) == ("ProcessStartFailed", False)
        assert "LookupError: a file is gone" in failed.message
        monkeypatch.delenv("JOBWIRE_TEST_FAIL")
        said = await completion(broker, await broker.add("handler"))
        assert said.HasField("success")


async def test_what_handlers_log_is_in_the_workers_log(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        async with process_worker(broker, handlers.log_lines):
            job = await broker.add("log_lines")
            assert (await completion(broker, job)).HasField("success")
    of_the_job = [
        record for record in caplog.records if getattr(record, "job_id", "") == job.job_id
    ]
    ours = [record for record in of_the_job if record.name != "jobwire.worker"]
    assert [(record.name, record.levelname) for record in ours] == [
        ("tests.handlers", "INFO"),
        ("tests.handlers", "ERROR"),
        ("jobwire.job.log_lines", "INFO"),
    ]
    about = [vars(record) for record in ours]
    assert {(one["operation"], one["attempt"]) for one in about} == {("log_lines", 1)}
    assert ours[0].getMessage() == "seen by the worker"
    assert "ValueError: the cause" in ours[1].getMessage()


async def test_the_worker_logs_where_a_handler_in_a_process_failed(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    async with process_worker(broker, handlers.raise_oddly):
        with caplog.at_level(logging.WARNING, "jobwire.worker"):
            await failure(broker, "raise_oddly", "unpicklable")
            await failure(broker, "raise_oddly", "deliberate")
    lines = [record for record in caplog.records if "raise_oddly failed" in record.getMessage()]
    unforeseen, deliberate = (record.getMessage() for record in lines)
    assert "raise Unpicklable(1, 2)" in unforeseen
    assert "pool.py" not in unforeseen
    assert deliberate.endswith("Fatal: no use")
