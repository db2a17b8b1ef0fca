"""kill -9 of whatever is there, in the middle of work: every job ends once, by a valid token."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from jobwire import AttemptOutcome, Client, JobHandle, JobState, RetryPolicy

from tests.support.dump import check_invariants
from tests.support.servers import ServerProcess
from tests.support.stores import StoreProcess, wait_until
from tests.support.workers import WorkerProcess

StartServer = Callable[..., ServerProcess]
StartWorker = Callable[..., WorkerProcess]
JOBS = 100


def _done(store: StoreProcess) -> int:
    with store.client() as client:
        return int(client.zcard("jw:{default}:done:5"))


def _keep_nothing_back(store: StoreProcess) -> None:
    """Have the store lose nothing to a kill; `everysec` may lose 2 s if a sync is slow."""
    store.config = (*store.config, "--appendfsync", "always")
    with store.client() as raw:
        raw.config_set("appendfsync", "always")


def _all_succeed_once(store: StoreProcess, client: Client, handles: list[JobHandle]) -> None:
    for handle in handles:
        job = handle.wait(timeout=60)
        assert job.state is JobState.SUCCEEDED
        # The result is that of the holder of the last lease, and of nobody else.
        assert job.result == {"token": job.fencing_token}
        ends = [attempt.outcome for attempt in job.attempts]
        assert ends[-1] is AttemptOutcome.SUCCEEDED
        assert ends.count(AttemptOutcome.SUCCEEDED) == 1
    totals = client.queue("default").totals
    assert (totals.submitted, totals.succeeded) == (len(handles), len(handles))
    with store.client() as raw:
        check_invariants(raw)


def test_a_job_that_kills_its_worker_at_once_comes_to_an_end(
    tmp_path: Path, start_server: StartServer, start_worker: StartWorker
) -> None:
    server = start_server(data_dir=tmp_path)
    with Client(server.address) as client:
        handle = client.submit("e2e.poison")
        worker = start_worker(server.address)
        deaths = 0
        while not handle.get().state.is_terminal:
            assert deaths < 10, "it goes on for ever"
            worker.wait()
            deaths += 1
            wait_until(lambda: handle.get().state is not JobState.RUNNING, "it is taken back")
            if not handle.get().state.is_terminal:
                worker.start()
        job = handle.get()
    assert job.state is JobState.FAILED
    # Three crashes, and as many more where the acknowledgements died with the worker.
    assert 3 <= deaths <= 6
    assert job.failure is not None
    assert job.failure.type == "CRASHED_TOO_OFTEN"


@pytest.mark.parametrize(
    ("victim", "store_engine"),
    [("server", "valkey"), ("worker", "valkey"), ("store", "valkey"), ("store", "redis")],
)
def test_a_kill_in_the_middle_of_work_loses_and_doubles_nothing(
    victim: str, own_store: StoreProcess, start_server: StartServer, start_worker: StartWorker
) -> None:
    # A job that comes back stands in front, so that the same one may meet every kill.
    flags = ("--redis-url", own_store.url, "--max-crashes", "100")
    _keep_nothing_back(own_store)
    servers = [start_server(*flags) for _ in range(2)]
    target = ",".join(server.address for server in servers)
    workers = [start_worker(target) for _ in range(2)]
    victims: dict[str, ServerProcess | WorkerProcess | StoreProcess] = {
        "server": servers[0],
        "worker": workers[0],
        "store": own_store,
    }
    retry = RetryPolicy(max_attempts=50)
    with Client(target) as client:
        handles = [client.submit("e2e.work", 80 + 2 * at, retry=retry) for at in range(JOBS)]
        for done in (10, 35, 60):
            wait_until(lambda: _done(own_store) >= done, "work is under way")  # noqa: B023
            victims[victim].kill()
            if victim != "store":
                # Meanwhile whatever is left goes on.
                handles += [client.submit("e2e.work", 80, retry=retry) for _ in range(5)]
            victims[victim].start()
            handles += [client.submit("e2e.work", 80, retry=retry) for _ in range(5)]
        _all_succeed_once(own_store, client, handles)
        if victim == "worker":
            # It did hold jobs when it was killed.
            totals = client.queue("default").totals
            assert totals.started > totals.succeeded


def _written_out(data_dir: Path) -> bool:
    """True if the store keeps nothing back; it may for 2 s with `everysec`, if a sync is slow."""
    path = (data_dir / "socket").read_text().strip()
    with redis.Redis(unix_socket_path=path) as store:
        found = store.info("persistence")
    return not found["aof_pending_bio_fsync"] and not found["aof_buffer_length"]


def test_accepted_jobs_outlive_stop_and_kill_of_server_and_bundled_store(
    tmp_path: Path, start_server: StartServer
) -> None:
    server = start_server(data_dir=tmp_path)
    accepted: list[str] = []
    for end in ("stop", "kill the server", "kill the store", "kill both"):
        with Client(server.address) as client:
            accepted += [client.submit("nobody", number).id for number in range(20)]
            wait_until(lambda: _written_out(tmp_path), "the store has written all of it")
            pid = int((tmp_path / "valkey.pid").read_text())
            if end == "kill the store":
                os.kill(pid, signal.SIGKILL)
                # The server starts it again by itself.
                accepted.append(client.submit("nobody", "after").id)
                continue
        if end == "stop":
            assert server.stop() == 0
        else:
            server.kill()
            if end == "kill both":
                os.kill(pid, signal.SIGKILL)
        server.start()
    with Client(server.address) as client:
        listed = [job.id for job in client.list_jobs(states=[JobState.PENDING])]
    assert sorted(listed) == sorted(accepted)


def test_a_server_that_is_told_to_end_lets_its_jobs_go_on_elsewhere(
    own_store: StoreProcess, start_server: StartServer, start_worker: StartWorker
) -> None:
    flags = ("--redis-url", own_store.url, "--shutdown-grace", "10s")
    servers = [start_server(*flags) for _ in range(2)]
    target = ",".join(server.address for server in servers)
    start_worker(target)
    with Client(target) as client:
        handles = [client.submit("e2e.work", 100) for _ in range(30)]
        wait_until(lambda: _done(own_store) >= 5, "work is under way")
        assert servers[0].stop() == 0
        _all_succeed_once(own_store, client, handles)
        # Nothing was lost on the way: no lease ran out, no attempt was repeated.
        assert client.queue("default").totals.crashed == 0


def test_a_worker_that_is_told_to_end_gives_back_what_it_can_not_finish(
    own_store: StoreProcess, start_server: StartServer, start_worker: StartWorker
) -> None:
    server = start_server("--redis-url", own_store.url)
    leaving = start_worker(server.address, "--grace", "0s")
    with Client(server.address) as client:
        handle = client.submit("e2e.long")
        # Not before its handler has begun: until then it costs nothing.
        wait_until(lambda: handle.get().progress is not None, "the job runs")
        leaving.stop()
        job = handle.get()
        assert job.state is JobState.PENDING
        assert (job.interruptions, job.crashes, job.failures) == (1, 0, 0)
        start_worker(server.address)
        wait_until(lambda: handle.get().state is JobState.RUNNING, "the job runs again")
        handle.cancel("enough")
        assert handle.wait(timeout=20).state is JobState.CANCELLED
