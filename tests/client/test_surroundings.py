"""Clients where people use them: in several event loops, threads, forked children, under gevent.

What needs a process of its own is a script, which talks to the broker in this one.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from jobwire import AsyncClient, Client, ClientClosed

from tests.client.broker import Broker
from tests.support.waiting import eventually

pytestmark = pytest.mark.processes

PREAMBLE = """
import asyncio, os, sys, threading, time
target = sys.argv[1]

def child(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return pid

def end_of(pid, patience_s=20):
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return "hung"
"""


def need(module: str) -> None:
    """Skips the test without a module, which is not imported: it would change this process."""
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed")


async def script(
    source: str, target: str, *, first: str = "", patience_s: float = 60, **environment: str
) -> tuple[int, str, str]:
    """Run Python in another process; return its exit code and what it wrote."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-X",
        "faulthandler",
        "-c",
        textwrap.dedent(first) + PREAMBLE + textwrap.dedent(source),
        target,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={k: v for k, v in os.environ.items() if not k.startswith("GRPC_")} | environment,
        start_new_session=True,
    )
    try:
        out, errors = await asyncio.wait_for(process.communicate(), patience_s)
    except BaseException:
        # With its children, which have its pipes.
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        raise
    assert process.returncode is not None
    return process.returncode, out.decode(), errors.decode()


# Event loops.


async def test_a_client_serves_one_loop_after_the_other(broker: Broker) -> None:
    code, out, errors = await script(
        """
        from jobwire import AsyncClient
        client = AsyncClient(target, timeout_s=10)

        async def submit():
            handle = await client.submit("work")
            async for job in client.watch(handle.id):
                return job.id == handle.id

        for _ in range(4):
            print(asyncio.run(submit()))
        # Private: nothing that a caller can see tells how many channels are kept.
        print(len(client._calls._channels._by_loop), "kept")
        """,
        broker.target,
    )
    assert (code, out, errors) == (0, "True\n" * 4 + "1 kept\n", "")


async def test_a_client_serves_loops_in_threads_at_once(broker: Broker) -> None:
    code, out, errors = await script(
        """
        from jobwire import AsyncClient
        client = AsyncClient(target, timeout_s=20)
        done = []

        async def submit():
            handles = await asyncio.gather(*(client.submit("work") for _ in range(50)))
            done.extend(handle.id for handle in handles)

        def thread():
            for _ in range(3):
                asyncio.run(submit())

        threads = [threading.Thread(target=thread) for _ in range(6)]
        for each in threads: each.start()
        for each in threads: each.join()
        print(len(done), len(set(done)))
        """,
        broker.target,
    )
    assert (code, out, errors) == (0, "900 900\n", "")
    assert len(broker.jobs) == 900


# Threads, the end of a client, the end of a process.


async def test_fifty_threads_share_a_client(broker: Broker) -> None:
    with Client(broker.target, timeout_s=20) as client:
        jobs = await asyncio.gather(*(asyncio.to_thread(client.submit, "work") for _ in range(50)))
    assert len({job.id for job in jobs}) == 50


async def test_to_close_a_client_ends_the_calls_of_other_threads_with_a_clear_error(
    broker: Broker,
) -> None:
    client = Client(broker.target, timeout_s=20)
    handle = await asyncio.to_thread(client.submit, "work")
    waits = [asyncio.create_task(asyncio.to_thread(handle.result)) for _ in range(5)]
    await broker.until(lambda: len(broker.calls["WatchJob"]) == 5)
    await asyncio.to_thread(client.close)
    for wait in waits:
        with pytest.raises(ClientClosed, match="the client was closed"):
            await wait
    assert len(broker.calls["WatchJob"]) == 5
    # The next call opens another connection.
    assert (await asyncio.to_thread(client.submit, "work")).id
    await asyncio.to_thread(client.close)


async def test_to_close_a_client_ends_the_calls_of_other_tasks_with_a_clear_error(
    broker: Broker,
) -> None:
    client = AsyncClient(broker.target, timeout_s=20)
    handle = await client.submit("work")
    waits = [asyncio.create_task(handle.result()) for _ in range(5)]
    await broker.until(lambda: len(broker.calls["WatchJob"]) == 5)
    await client.close()
    for wait in waits:
        with pytest.raises(ClientClosed, match="the client was closed"):
            await wait
    await client.submit("work")
    await client.close()


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_process_ends_at_once_with_clients_and_streams_open(
    broker: Broker, kind: str
) -> None:
    code, out, errors = await script(
        """
        from jobwire import Client
        client = Client(target, timeout_s=20)
        handle = client.submit("work")
        watch = handle.watch()
        next(watch)
        def wait():
            handle.result()
        for _ in range(3):
            threading.Thread(target=wait, daemon=True).start()
        print("done", flush=True)
        """
        if kind == "sync"
        else """
        from jobwire import AsyncClient
        client = AsyncClient(target, timeout_s=20)
        async def main():
            handle = await client.submit("work")
            watch = handle.watch()
            await anext(watch)
            task = asyncio.create_task(handle.result())
            await asyncio.sleep(0)
            print("done", flush=True)
        asyncio.run(main())
        """,
        broker.target,
        patience_s=20,
    )
    assert (code, out, errors) == (0, "done\n", "")


def blocked(pid: int) -> Callable[[], bool]:
    """True once the main thread of a process has slept through ten looks, and used no time.

    Ctrl-C in the moment in which gRPC starts a call leaves it unable to close: docs/clients.md.
    """
    seen: list[str] = []

    def sleeps() -> bool:
        stat = Path(f"/proc/{pid}/task/{pid}/stat").read_text().rpartition(")")[2].split()
        if stat[0] != "S" or (seen and seen[-1] != stat[11]):
            seen.clear()
        seen.append(stat[11])
        return len(seen) > 10

    return sleeps


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("call", ["handle.result()", "list(handle.watch())", "watch_all()"])
async def test_ctrl_c_ends_a_blocking_call_at_once_and_shows_nothing_of_grpc(
    broker: Broker, call: str
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PREAMBLE
        + textwrap.dedent(
            f"""
            from jobwire import Client
            client = Client(target, timeout_s=20)
            handle = client.submit("work")
            def watch_all():
                for line in handle.output():
                    pass
            try:
                {call}
            except KeyboardInterrupt:
                print("interrupted")
            """
        ),
        broker.target,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        await broker.until(lambda: broker.calls["WatchJob"])
        await eventually(blocked(process.pid), "the main thread waits", timeout_s=30)
        process.send_signal(signal.SIGINT)
        out, errors = await asyncio.wait_for(process.communicate(), 20)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode, out, errors) == (0, b"interrupted\n", b"")


# Forks.


def quiet(errors: str) -> list[str]:
    """What was written, without gRPC's own remark about forks."""
    return [line for line in errors.splitlines() if "fork_posix.cc" not in line]


@pytest.mark.parametrize("use", ["nothing", "calls", "a stream"])
async def test_children_of_a_fork_use_the_client_of_their_parent(broker: Broker, use: str) -> None:
    code, out, errors = await script(
        f"""
        from jobwire import Client
        use = {use!r}
        client = Client(target, timeout_s=15)
        if use != "nothing":
            handle = client.submit("work")
        if use == "a stream":
            watch = client.watch(handle.id)
            next(watch)
        ends = []
        for _ in range(5):
            ends += [end_of(pid) for pid in [child(lambda: client.submit("work")) for _ in "123"]]
        client.submit("work")
        print(ends)
        if use == "a stream":
            watch.close()
        """,
        broker.target,
        # As the warning says that is logged without it.
        **({"GRPC_ENABLE_FORK_SUPPORT": "1"} if use == "a stream" else {}),
    )
    assert (code, out, quiet(errors)) == (0, f"{[0] * 15}\n", [])
    assert len(broker.jobs) == 15 + 1 + (use != "nothing")


async def test_a_fork_beside_an_open_stream_is_warned_of_with_the_remedy(broker: Broker) -> None:
    _, out, errors = await script(
        """
        import logging
        from jobwire import Client
        logging.basicConfig()
        client = Client(target, timeout_s=15)
        watch = client.watch(client.submit("work").id)
        next(watch)
        for _ in range(2):
            end_of(child(lambda: None))
        watch.close()
        print("well")
        """,
        broker.target,
    )
    assert out == "well\n"
    (said,) = quiet(errors)
    assert "start Python with GRPC_ENABLE_FORK_SUPPORT=1" in said


async def test_a_forking_server_serves_with_a_client_made_before(broker: Broker) -> None:
    """As gunicorn does with `preload`: master, forked workers, threads in each."""
    code, out, errors = await script(
        """
        from concurrent.futures import ThreadPoolExecutor
        from jobwire import Client
        client = Client(target, timeout_s=20)
        client.submit("work")

        def serve():
            with ThreadPoolExecutor(8) as pool:
                handles = list(pool.map(lambda _: client.submit("work"), range(40)))
            assert len({handle.id for handle in handles}) == 40
            client.close()

        print([end_of(pid) for pid in [child(serve) for _ in range(4)]])
        """,
        broker.target,
    )
    assert (code, out, quiet(errors)) == (0, "[0, 0, 0, 0]\n", [])
    assert len(broker.jobs) == 161


async def test_asyncio_after_a_fork_is_refused_with_the_remedy(broker: Broker) -> None:
    code, out, errors = await script(
        """
        from jobwire import AsyncClient, Client
        client = AsyncClient(target, timeout_s=15)

        async def submit():
            await client.submit("work")

        def once():
            asyncio.run(submit())

        once()
        print(end_of(child(once)), flush=True)
        print(end_of(child(lambda: Client(target, timeout_s=15).submit("work"))))
        once()
        """,
        broker.target,
    )
    assert (code, out) == (0, "1\n0\n")
    (said,) = quiet(errors)
    assert said.startswith("RuntimeError: this process was forked off from one that had used Async")
    assert "jobwire.Client, which works after a fork" in said
    assert len(broker.jobs) == 3


async def test_asyncio_in_a_child_works_if_the_parent_had_not_used_it(broker: Broker) -> None:
    code, out, errors = await script(
        """
        from jobwire import AsyncClient
        client = AsyncClient(target, timeout_s=15)

        async def submit():
            await client.submit("work")

        print([end_of(child(lambda: asyncio.run(submit()))) for _ in range(3)])
        """,
        broker.target,
    )
    assert (code, out, quiet(errors)) == (0, "[0, 0, 0]\n", [])


def test_a_child_makes_no_id_that_its_parent_makes() -> None:
    from jobwire.ids import UlidFactory

    rounds, each = 10, 20
    # Parent and child are in the same millisecond all along.
    factory = UlidFactory(clock_ms=lambda: 1)
    made: Counter[str] = Counter()
    for _ in range(rounds):
        reader, writer = os.pipe()
        factory.make()
        pid = os.fork()
        ids = [factory.make() for _ in range(each)]
        if pid == 0:
            os.write(writer, " ".join(ids).encode())
            os._exit(0)
        os.close(writer)
        with open(reader, "rb") as pipe:
            theirs = pipe.read().decode().split()
        os.waitpid(pid, 0)
        assert len(theirs) == each
        made.update([*ids, *theirs])
    assert made.most_common(1)[0][1] == 1


def test_a_fork_while_a_thread_makes_ids_leaves_the_child_able_to() -> None:
    from jobwire.ids import UlidFactory

    entered, go_on = threading.Event(), threading.Event()

    def clock() -> int:
        if threading.current_thread() is not threading.main_thread():
            entered.set()
            go_on.wait(20)
        return 1

    factory = UlidFactory(clock_ms=clock)
    thread = threading.Thread(target=factory.make)
    thread.start()
    assert entered.wait(20)
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)
        factory.make()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    go_on.set()
    thread.join()
    assert os.waitstatus_to_exitcode(status) == 0


# Green threads.


async def test_under_gevent_calls_and_streams_leave_the_other_greenlets_running(
    broker: Broker,
) -> None:
    need("gevent")
    code, out, errors = await script(
        """
        import gevent
        from jobwire import Client
        client = Client(target, timeout_s=20)
        handle = client.submit("work")
        ticks = 0

        def tick():
            global ticks
            while True:
                gevent.sleep(0.01)
                ticks += 1

        gevent.spawn(tick)
        # More than gevent has threads.
        waits = [gevent.spawn(handle.result) for _ in range(30)]
        while ticks < 20:
            gevent.sleep(0.01)
        client.submit("finish")
        gevent.joinall(waits, raise_error=True)
        print([wait.value for wait in waits] == ["done"] * 30)
        client.close()
        """,
        (await finishing(broker)).target,
        first="from gevent import monkey; monkey.patch_all()",
    )
    assert (code, out, errors) == (0, "True\n", "")


async def finishing(broker: Broker) -> Broker:
    """Have the broker end its first job when one arrives that says so."""
    from jobwire.v1 import job_pb2

    async def finish() -> None:
        await broker.until(lambda: len(broker.jobs) == 2)
        job = next(iter(broker.jobs.values()))
        job.state = job_pb2.JOB_STATE_SUCCEEDED
        job.result.json = '"done"'
        await broker.touch(job)

    broker.finishing = asyncio.create_task(finish())  # type: ignore[attr-defined]
    return broker


@pytest.mark.parametrize("user", ["AsyncClient(target).server_info()", "Worker(target).start()"])
async def test_asyncio_under_gevent_is_refused_with_the_remedy(broker: Broker, user: str) -> None:
    need("gevent")
    code, _, errors = await script(
        f"""
        from jobwire import AsyncClient, Worker as Plain

        def Worker(target):
            worker = Plain(target)
            worker.operation("work")(print)
            return worker

        async def main():
            await {user}
        asyncio.run(main())
        """,
        broker.target,
        first="from gevent import monkey; monkey.patch_all()",
    )
    assert code == 1
    assert "RuntimeError: gevent has patched threads" in errors.splitlines()[-1]
    assert "jobwire.Client, which works under gevent" in errors


@pytest.mark.parametrize("user", ["Client(target).server_info()", "asyncio.run(main())"])
async def test_eventlet_is_refused_with_the_remedy(broker: Broker, user: str) -> None:
    need("eventlet")
    code, _, errors = await script(
        f"""
        from jobwire import AsyncClient, Client
        async def main():
            await AsyncClient(target).server_info()
        {user}
        """,
        broker.target,
        first="import eventlet; eventlet.monkey_patch()",
    )
    assert code == 1
    assert "RuntimeError: eventlet has patched threads" in errors
    assert "monkey_patch(thread=False)" in errors
