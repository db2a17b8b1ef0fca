"""Scripts that are imported again by the processes for their functions."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.client.broker import Broker
from tests.client.support import completion
from tests.support.waiting import eventually

pytestmark = pytest.mark.processes

GUARD = 'if __name__ == "__main__":'
HEAD = """
import asyncio, os, sys, time
from jobwire import Client, Worker, ProcessOptions

worker = Worker(sys.argv[1], queues=["default"], worker_id=f"w-{os.getpid()}")

@worker.operation("work", run="process")
def work(context):
    return os.getpid()
"""


def script(tmp_path: Path, body: str, head: str = HEAD) -> Path:
    path = tmp_path / "app.py"
    path.write_text(head + textwrap.dedent(body))
    return path


async def run(broker: Broker, *command: str | Path) -> tuple[int, str]:
    """Run a program to its end; return its exit code and what it wrote."""
    with subprocess.Popen(
        [sys.executable, *command, broker.target],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as program:
        try:
            await eventually(lambda: program.poll() is not None, "it has ended", timeout_s=60)
        finally:
            program.kill()
        assert program.stdout is not None
        return program.returncode, program.stdout.read()


@pytest.mark.parametrize(
    "body",
    [
        "worker.run()",
        "asyncio.run(worker.serve())",
        """
        async def main():
            async with worker:
                await asyncio.sleep(600)
        asyncio.run(main())
        """,
        # Whatever the program makes of the error.
        """
        for _ in range(10_000):
            try:
                worker.run()
                break
            except RuntimeError as error:
                if __name__ != "__mp_main__":
                    raise
                time.sleep(0.1)
        """,
    ],
    ids=["run", "serve", "with", "again and again"],
)
async def test_a_script_without_a_main_guard_is_told_to_have_one(
    broker: Broker, tmp_path: Path, body: str
) -> None:
    code, said = await run(broker, script(tmp_path, body))
    assert code == 1
    assert GUARD in said
    assert "top level of app.py" in said
    assert broker.workers == {}


async def test_a_call_at_the_top_level_of_a_script_is_not_made_again(
    broker: Broker, tmp_path: Path
) -> None:
    body = """
        Client(sys.argv[1]).submit("other")
        if __name__ == "__main__":
            worker.run()
        """
    code, said = await run(broker, script(tmp_path, body))
    assert code == 1
    assert GUARD in said
    assert "a client makes a call" in said
    assert len(broker.calls["SubmitJob"]) + len(broker.calls["SubmitJobs"]) == 1


async def test_a_client_may_be_made_at_the_top_level(broker: Broker, tmp_path: Path) -> None:
    body = """
        client = Client(sys.argv[1])

        @worker.operation("submit", run="process")
        def submit(context):
            return client.submit("work", queue="default").id

        if __name__ == "__main__":
            worker.run()
        """
    with worker_program(broker, script(tmp_path, body)):
        job = await broker.add("submit")
        assert (await completion(broker, job)).HasField("success")


async def test_pools_of_other_modes_start_no_second_worker(broker: Broker, tmp_path: Path) -> None:
    """A handler in a thread starts a child of multiprocessing, which imports the script again."""
    head = """
import multiprocessing, os, sys
from jobwire import Worker

worker = Worker(sys.argv[1], worker_id=f"w-{os.getpid()}")

def child():
    pass

@worker.operation("spawn")
def spawn(context):
    process = multiprocessing.get_context("spawn").Process(target=child)
    process.start()
    process.join()
    return process.exitcode
"""
    path = script(tmp_path, "worker.run()", head)
    with worker_program(broker, path) as program:
        job = await broker.add("spawn")
        assert (await completion(broker, job)).success.result.json == "1"
        assert list(broker.workers) == [f"w-{program.pid}"]
        program.terminate()
        assert program.stdout is not None
        assert GUARD in program.stdout.read()


@pytest.mark.parametrize("as_module", [False, True], ids=["script", "module"])
async def test_a_guarded_script_has_its_handlers_and_their_pools(
    broker: Broker, tmp_path: Path, as_module: bool
) -> None:
    body = """
        import multiprocessing

        SEEN = []

        def square(number):
            return number * number

        @worker.operation("pool", run="process")
        def pool(context):
            import __main__
            SEEN.append(1)
            with multiprocessing.Pool(2) as pool:
                return pool.map(square, range(3)) + [len(__main__.SEEN), len(sys.argv)]

        if __name__ == "__main__":
            multiprocessing.set_start_method("spawn")
            worker.run()
        """
    path = script(tmp_path, body)
    command: tuple[str | Path, ...] = ("-m", "app") if as_module else (path,)
    with worker_program(broker, *command, directory=tmp_path):
        job = await broker.add("pool")
        said = await completion(broker, job)
        assert said.success.result.json == "[0,1,4,1,2]", said


async def test_handlers_that_were_typed_in_are_refused(broker: Broker) -> None:
    program = HEAD + "worker.run()"
    code, said = await run(broker, "-c", program)
    assert code == 1
    assert "put them into a module" in said


async def test_a_module_that_takes_too_long_to_import_is_told_of(
    broker: Broker, tmp_path: Path
) -> None:
    body = """
        worker.processes = ProcessOptions(start_timeout_s=1)
        if __name__ == "__main__":
            worker.run()
        time.sleep(600)
        """
    code, said = await run(broker, script(tmp_path, body))
    assert code == 1
    assert "was not ready after 1 s" in said
    assert "start_timeout_s" in said
    assert broker.workers == {}


async def test_a_module_that_fails_to_import_is_told_of(broker: Broker, tmp_path: Path) -> None:
    body = """
        if __name__ == "__main__":
            worker.run()
        raise ZeroDivisionError("only here")
        """
    code, said = await run(broker, script(tmp_path, body))
    assert code == 1
    assert "ZeroDivisionError: only here" in said
    assert "app.py" in said


class worker_program:  # noqa: N801 - reads as a function
    """Runs a worker as a program, and ends it."""

    def __init__(self, broker: Broker, *command: str | Path, directory: Path | None = None) -> None:
        self._program = subprocess.Popen(
            [sys.executable, *command, broker.target],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=directory,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )

    def __enter__(self) -> subprocess.Popen[str]:
        return self._program

    def __exit__(self, *error: object) -> None:
        self._program.kill()
        self._program.communicate()
