"""`jobwire serve --processes N`: several processes on one port, seen from outside as one server."""

from __future__ import annotations

import os
import re
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from prometheus_client.parser import text_string_to_metric_families

from jobwire import Client, JobState
from jobwire.v1 import (
    admin_service_pb2,
    admin_service_pb2_grpc,
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
)

from tests.support.dump import check_invariants
from tests.support.servers import ServerProcess
from tests.support.stores import StoreProcess, free_port, wait_until
from tests.support.streams import Producer, RawWorker
from tests.support.workers import WorkerProcess

StartServer = Callable[..., ServerProcess]
NewServer = Callable[..., ServerProcess]
StartWorker = Callable[..., WorkerProcess]

SUBMIT = "/jobwire.v1.JobService/SubmitJob"
MOST_CHANNELS = 100
"""The system picks a process for each connection by its port: all are met long before."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Two processes that nobody harms, for several tests."""
    server = ServerProcess("--processes", "2", data_dir=tmp_path_factory.mktemp("pair"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@contextmanager
def _channel(address: str) -> Iterator[grpc.Channel]:
    """A connection of its own."""
    options = (("grpc.use_local_subchannel_pool", 1),)
    with grpc.insecure_channel(address, options=options) as channel:
        yield channel


def _info(channel: grpc.Channel) -> admin_service_pb2.GetServerInfoResponse:
    stub = admin_service_pb2_grpc.AdminServiceStub(channel)
    return stub.GetServerInfo(
        admin_service_pb2.GetServerInfoRequest(), timeout=60, wait_for_ready=True
    )


def _one_channel_to_each(address: str, processes: int, stack: ExitStack) -> dict[int, grpc.Channel]:
    found: dict[int, grpc.Channel] = {}
    for _ in range(MOST_CHANNELS):
        channel = stack.enter_context(_channel(address))
        found.setdefault(_info(channel).process_index, channel)
        if len(found) == processes:
            return found
    raise AssertionError(f"{MOST_CHANNELS} channels met only processes {sorted(found)}")


def _submit(channel: grpc.Channel, operation: str = "nobody") -> str:
    request = job_service_pb2.SubmitJobRequest(spec=job_pb2.JobSpec(operation=operation))
    stub = job_service_pb2_grpc.JobServiceStub(channel)
    return stub.SubmitJob(request, timeout=60, wait_for_ready=True).job_id


def _get(server: ServerProcess, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{server.http}{path}", timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def _answers(server: ServerProcess) -> bool:
    try:
        status, text = _get(server, "/readyz")
        return status == 503 and text.startswith("0 of 2 processes serve")
    except OSError:
        return False


def _answers_well(server: ServerProcess) -> bool:
    try:
        return _get(server, "/readyz") == (200, "2 of 2 processes serve\n")
    except OSError:
        return False


def _metric(server: ServerProcess, name: str, **labels: str) -> float:
    """The sum of the samples with these labels."""
    _, text = _get(server, "/metrics")
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def _pids(server: ServerProcess) -> dict[int, int]:
    """The newest process of each index, as the log has it."""
    found = re.findall(r"serving +pid=(\d+) process=(\d+)", server.log)
    return {int(index): int(pid) for pid, index in found}


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def _gone(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    # Whose parent died is reaped by somebody who may take its time.
    return stat.rpartition(")")[2].split()[0] == "Z"


def _port_is_free(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as asked:
        asked.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            asked.bind((host, int(port)))
            asked.listen()
        except OSError:
            return False
    return True


def test_channels_reach_every_process_and_each_says_which_it_is(pair: ServerProcess) -> None:
    assert not pair.address.endswith(":0")
    with ExitStack() as stack:
        channels = _one_channel_to_each(pair.address, 2, stack)
        infos = [_info(channel) for channel in channels.values()]
        assert len({info.server_id for info in infos}) == 2
        assert {info.processes for info in infos} == {2}
        assert all(info.store_embedded for info in infos)
        for channel in channels.values():
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=60
            )
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert _get(pair, "/readyz") == (200, "2 of 2 processes serve\n")
    assert _get(pair, "/healthz") == (200, "ok\n")


def test_metrics_count_the_calls_of_all_processes(pair: ServerProcess) -> None:
    duration = "jobwire_rpc_duration_seconds"

    def counts() -> list[float]:
        return [
            _metric(pair, "jobwire_rpc_total", method=SUBMIT, code="OK"),
            _metric(pair, f"{duration}_count", method=SUBMIT),
            _metric(pair, f"{duration}_bucket", method=SUBMIT, le="+Inf"),
        ]

    before = counts()
    with ExitStack() as stack:
        channels = _one_channel_to_each(pair.address, 2, stack)
        for number in range(60):
            _submit(channels[number % 2])
    assert counts() == [count + 60 for count in before]
    assert _metric(pair, f"{duration}_sum", method=SUBMIT) > 0
    assert _metric(pair, "jobwire_rpc_in_flight", method=SUBMIT) == 0
    assert _metric(pair, "jobwire_processes") == 2
    assert _metric(pair, "jobwire_processes_serving") == 2
    assert _metric(pair, "jobwire_store_up") == 1
    for process in ("parent", "0", "1"):
        assert _metric(pair, "process_resident_memory_bytes", process=process) > 0


def test_a_killed_process_is_replaced_while_100_jobs_run_and_its_counts_stay(
    own_store: StoreProcess, start_server: StartServer, start_worker: StartWorker
) -> None:
    server = start_server("--redis-url", own_store.url, "--processes", "2", "--max-crashes", "100")
    for _ in range(2):
        start_worker(server.address)
    with Client(server.address) as client:
        handles = [client.submit("e2e.work", 60 + 2 * at) for at in range(100)]
        with ExitStack() as stack:
            for channel in _one_channel_to_each(server.address, 2, stack).values():
                _submit(channel)
        assert _metric(server, "jobwire_rpc_total", method=SUBMIT, code="OK") == 2
        before = _pids(server)
        with own_store.client() as raw:
            done = "jw:{default}:done:5"
            wait_until(lambda: int(raw.zcard(done)) >= 10, "work is under way")
        os.kill(before[0], signal.SIGKILL)
        for handle in handles:
            job = handle.wait(timeout=60)
            assert job.state is JobState.SUCCEEDED
            assert job.result == {"token": job.fencing_token}
        wait_until(lambda: "the process is back" in server.log, "another takes its place")
    wait_until(lambda: _metric(server, "jobwire_processes_serving") == 2, "both serve")
    after = _pids(server)
    assert after[0] != before[0]
    assert after[1] == before[1]
    assert _metric(server, "jobwire_process_restarts") == 1
    assert _metric(server, "jobwire_rpc_total", method=SUBMIT, code="OK") == 2
    with ExitStack() as stack:
        for channel in _one_channel_to_each(server.address, 2, stack).values():
            _submit(channel)
    assert _metric(server, "jobwire_rpc_total", method=SUBMIT, code="OK") == 4
    with own_store.client() as raw:
        check_invariants(raw)


async def test_worker_streams_at_different_processes_share_a_queue(
    tmp_path: Path, start_server: StartServer
) -> None:
    server = start_server("--processes", "2", data_dir=tmp_path)
    async with AsyncExitStack() as stack:
        workers: dict[str, RawWorker] = {}
        for number in range(MOST_CHANNELS):
            worker = RawWorker(server.address, f"w{number}", credits=1)
            attached = await worker.attach()
            if attached.server_id in workers:
                await worker.leave()
                await worker.break_off()
                continue
            workers[attached.server_id] = await stack.enter_async_context(worker)
            if len(workers) == 2:
                break
        producer = await stack.enter_async_context(Producer(server.address))
        jobs = await producer.submit(2)
        # Neither can hold both, and they came in through one of the processes.
        taken = {(await worker.jobs(1))[0].job_id for worker in workers.values()}
        assert taken == set(jobs)
        for worker in workers.values():
            await worker.complete(*worker.held.values())


def test_a_signal_drains_all_processes_and_ends_with_0(
    tmp_path: Path, start_server: StartServer
) -> None:
    server = start_server("--processes", "2", data_dir=tmp_path)
    pids = [*_pids(server).values(), int((tmp_path / "valkey.pid").read_text())]
    with ExitStack() as stack:
        watches = []
        for channel in _one_channel_to_each(server.address, 2, stack).values():
            watch = health_pb2_grpc.HealthStub(channel).Watch(
                health_pb2.HealthCheckRequest(), timeout=60
            )
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            watches.append(watch)
        server.signal(signal.SIGTERM)
        for watch in watches:
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert server.wait() == 0
    assert server.log.count("stopped") == 3
    assert all(_gone(pid) for pid in pids)
    assert _port_is_free(server.address)


def test_a_second_signal_does_not_wait_for_calls_in_hand(
    tmp_path: Path, start_server: StartServer
) -> None:
    server = start_server("--processes", "2", "--shutdown-grace", "10m", data_dir=tmp_path)
    with _channel(server.address) as channel:
        job_id = _submit(channel)
        watch = job_service_pb2_grpc.JobServiceStub(channel).WatchJob(
            job_service_pb2.WatchJobRequest(job_id=job_id)
        )
        next(watch)
        server.signal(signal.SIGTERM)
        wait_until(lambda: "draining" in server.log, "it drains")
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


@pytest.mark.parametrize("stopped", [False, True], ids=["", "one-stands-still"])
def test_kill_9_of_the_parent_leaves_no_process_and_a_free_port(
    tmp_path: Path, start_server: StartServer, stopped: bool
) -> None:
    server = start_server("--processes", "2", data_dir=tmp_path)
    children = _pids(server)
    pids = [*children.values(), int((tmp_path / "valkey.pid").read_text())]
    with _channel(server.address) as channel:
        job_id = _submit(channel)
    if stopped:
        os.kill(children[1], signal.SIGSTOP)
    server.kill()
    wait_until(lambda: all(_gone(pid) for pid in pids), "all of its processes are gone")
    assert _port_is_free(server.address)
    server.start()
    with Client(server.address) as client:
        assert client.get(job_id).state is JobState.PENDING


def test_a_process_that_is_told_to_end_drains_and_is_replaced(
    tmp_path: Path, start_server: StartServer
) -> None:
    server = start_server("--processes", "2", data_dir=tmp_path)
    old = _pids(server)[1]
    os.kill(old, signal.SIGTERM)
    wait_until(lambda: _pids(server)[1] != old, "another takes its place")
    wait_until(lambda: _get(server, "/readyz")[1] == "2 of 2 processes serve\n", "both serve")


def test_a_process_whose_start_fails_is_tried_again_until_it_serves(
    own_store: StoreProcess, start_server: StartServer
) -> None:
    server = start_server("--redis-url", own_store.url, "--processes", "2", "--store-wait", "0")
    old = _pids(server)[0]
    own_store.kill()
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: server.log.count("a process does not start") >= 2, "it is tried again")

    def ready() -> tuple[int, str]:
        status, text = _get(server, "/readyz")
        return status, text.partition(";")[0].strip()

    wait_until(lambda: ready() == (503, "0 of 2 processes serve"), "both are known to be away")
    wait_until(lambda: _metric(server, "jobwire_store_up") == 0, "so is the store")
    own_store.start()
    wait_until(lambda: _get(server, "/readyz")[1] == "2 of 2 processes serve\n", "both serve")
    wait_until(lambda: _pids(server)[0] != old, "another has taken its place")


def test_a_signal_during_the_start_ends_it_cleanly(tmp_path: Path, new_server: NewServer) -> None:
    # The store is not there, so that the processes wait for it in their start.
    flags = ("--processes", "2", "--redis-url", "redis://127.0.0.1:1", "--store-wait", "10m")
    server = new_server(*flags)
    server.http = f"127.0.0.1:{free_port()}"
    server.spawn()
    wait_until(lambda: _answers(server), "the parent is there")
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    assert "Traceback" not in server.log


def test_a_process_that_is_killed_in_the_start_is_started_again(
    own_store: StoreProcess, new_server: NewServer
) -> None:
    own_store.kill()
    flags = ("--processes", "2", "--redis-url", own_store.url, "--store-wait", "10m")
    server = new_server(*flags, cold=True)
    server.http = f"127.0.0.1:{free_port()}"
    server.spawn()
    # Both wait for the store in their start.
    wait_until(lambda: server.log.count("waiting for the store") >= 2, "both have begun")
    assert server.process is not None
    os.kill(_children(server.process.pid)[0], signal.SIGKILL)
    wait_until(lambda: "was killed during startup" in server.log, "the parent has seen it")
    own_store.start()
    wait_until(lambda: _answers_well(server), "both serve")


@pytest.mark.parametrize("owner", ["somebody", "one process", "two processes"])
def test_a_port_that_somebody_has_is_refused(
    owner: str,
    pair: ServerProcess,
    tmp_path: Path,
    start_server: StartServer,
    new_server: NewServer,
) -> None:
    with ExitStack() as stack:
        if owner == "somebody":
            taken = stack.enter_context(socket.socket())
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            address = f"127.0.0.1:{taken.getsockname()[1]}"
        elif owner == "one process":
            address = start_server(data_dir=tmp_path / "first").address
        else:
            address = pair.address
        second = new_server("--processes", "2", data_dir=tmp_path / "second")
        second.address = address
        second.spawn()
        assert second.wait() == 4
    assert f"jobwire serve: listen: {address} can't be bound" in second.log
    assert "Traceback" not in second.log


def test_a_single_server_does_not_join_the_port_of_several(
    pair: ServerProcess, tmp_path: Path, new_server: NewServer
) -> None:
    second = new_server(data_dir=tmp_path / "second")
    second.address = pair.address
    second.spawn()
    assert second.wait() == 4


def test_the_http_port_in_use_is_refused_before_any_process_starts(
    tmp_path: Path, new_server: NewServer
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        flags = ("--processes", "2", "--http-listen", f"127.0.0.1:{taken.getsockname()[1]}")
        server = new_server(*flags, data_dir=tmp_path)
        server.spawn()
        assert server.wait() == 4
    assert "http_listen: " in server.log
    assert "serving" not in server.log


@pytest.mark.parametrize(
    ("flags", "status", "says"),
    [
        (("--processes", "0"), 2, "processes, from flag --processes: "),
        (("--tls-cert", "absent", "--tls-key", "absent"), 2, "tls_cert: absent can't be read"),
        (("--redis-url", "redis://127.0.0.1:1", "--store-wait", "0"), 3, "can't be reached"),
    ],
)
def test_a_start_that_can_not_succeed_says_why_once_and_gives_up(
    flags: tuple[str, ...], status: int, says: str, tmp_path: Path, new_server: NewServer
) -> None:
    server = new_server("--processes", "2", *flags, data_dir=tmp_path)
    server.spawn()
    assert server.wait() == status
    assert server.log.count("jobwire serve: ") == 1
    assert says in server.log
    assert "Traceback" not in server.log


def test_a_port_is_served_again_at_once_by_another_number_of_processes(
    tmp_path: Path, new_server: NewServer
) -> None:
    address = f"127.0.0.1:{free_port()}"
    for processes in ("1", "2", "1"):
        server = new_server("--processes", processes, data_dir=tmp_path)
        server.address = address
        server.start()
        with _channel(address) as channel:
            _submit(channel)
            # With the connection open, it is the server's side that lingers in the system.
            assert server.stop() == 0
