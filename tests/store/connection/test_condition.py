"""A store that changes under a running server: seen, told, and trusted again when it is mended."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
import redis
from click.testing import CliRunner
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from jobwire.cli.app import cli
from jobwire.v1 import admin_service_pb2_grpc, job_service_pb2_grpc, worker_service_pb2_grpc

from tests.support.contract import admin, job_pb2, jobs, workers
from tests.support.grpc_servers import refused
from tests.support.servers import ServerProcess
from tests.support.stores import StoreProcess, wait_until

SERVING, NOT_SERVING = 1, 2


class Clients:
    """What is asked of one server."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.channel = grpc.insecure_channel(server.address)
        self.jobs: Any = job_service_pb2_grpc.JobServiceStub(self.channel)
        self.workers: Any = worker_service_pb2_grpc.WorkerServiceStub(self.channel)
        self.admin: Any = admin_service_pb2_grpc.AdminServiceStub(self.channel)
        self._health: Any = health_pb2_grpc.HealthStub(self.channel)

    def submit(self, request_id: str) -> Any:
        request = jobs.SubmitJobRequest(spec=job_pb2.JobSpec(operation="op"), request_id=request_id)
        return self.jobs.SubmitJob(request, timeout=20)

    def refusal(self, request_id: str) -> Any:
        """How a submission is refused; None if it is accepted."""
        try:
            self.submit(request_id)
        except grpc.RpcError as error:
            return refused(error)  # type: ignore[arg-type]
        return None

    def problem(self) -> str:
        info = self.admin.GetServerInfo(admin.GetServerInfoRequest(), timeout=5)
        return str(info.store_problem)

    def ready(self) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{self.server.http}/readyz", timeout=5) as said:
                return said.status, said.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def health(self, service: str = "") -> int:
        request = health_pb2.HealthCheckRequest(service=service)
        return int(self._health.Check(request, timeout=5).status)


@pytest.fixture
def store(own_store: StoreProcess) -> StoreProcess:
    """A store of this test alone."""
    return own_store


@pytest.fixture
def clients(store: StoreProcess) -> Iterator[Clients]:
    """A server on the store, and what speaks to it."""
    server = ServerProcess("--redis-url", store.url)
    try:
        server.start()
        made = Clients(server)
        yield made
        made.channel.close()
    finally:
        if store.running:
            store.resume()
        server.stop()


def _config(name: str, value: str) -> Callable[[redis.Redis], object]:
    return lambda client: client.config_set(name, value)


def _volatile(client: redis.Redis) -> None:
    client.config_set("save", "")
    client.config_set("appendonly", "no")


CHANGES = {
    "eviction": (
        _config("maxmemory-policy", "allkeys-lru"),
        "CONFIG SET maxmemory-policy noeviction",
        _config("maxmemory-policy", "noeviction"),
    ),
    "volatile": (_volatile, "CONFIG SET appendonly yes", _config("appendonly", "yes")),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_store_that_became_unfit_gets_no_new_jobs_until_it_is_mended(
    clients: Clients, store: StoreProcess, kind: str
) -> None:
    change, remedy, mend = CHANGES[kind]
    first = clients.submit("before")
    spec = workers.WorkerSpec(worker_id="w1", operations=["op"])
    clients.workers.RegisterWorker(workers.RegisterWorkerRequest(worker=spec))
    (lease,) = clients.workers.ClaimJob(workers.ClaimJobRequest(worker_id="w1")).assignments
    with redis.Redis.from_url(store.url) as client:
        change(client)
        wait_until(lambda: clients.problem() != "", "it is found out")
        said = clients.refusal("new")
        assert (said.code.name, said.reason) == ("UNAVAILABLE", "STORE_UNFIT")
        assert remedy in said.message
        assert said.retry_after_ms
        batch = jobs.SubmitJobsRequest(
            requests=[jobs.SubmitJobRequest(spec=job_pb2.JobSpec(operation="op"))]
        )
        with pytest.raises(grpc.RpcError) as whole:
            clients.jobs.SubmitJobs(batch, timeout=10)
        assert refused(whole.value).reason == "STORE_UNFIT"  # type: ignore[arg-type]
        # What was accepted is answered, and what is held is finished.
        assert clients.submit("before").job_id == first.job_id
        done = workers.CompleteJobRequest(
            worker_id="w1",
            completion=workers.Completion(
                job_id=lease.job_id, fencing_token=lease.fencing_token, success=workers.Success()
            ),
        )
        assert clients.workers.CompleteJob(done, timeout=10).state == job_pb2.JOB_STATE_SUCCEEDED
        status, text = clients.ready()
        assert status == 503
        assert remedy in text
        assert remedy in clients.problem()
        assert clients.health() == NOT_SERVING
        assert clients.health("jobwire.v1.JobService") == NOT_SERVING
        assert clients.health("jobwire.v1.WorkerService") == SERVING
        mend(client)
        wait_until(lambda: clients.ready()[0] == 200, "it recovers by itself")
        assert clients.refusal("new") is None
        assert clients.problem() == ""


def test_a_store_that_hangs_is_called_one_in_bounded_time(
    clients: Clients, store: StoreProcess
) -> None:
    clients.submit("before")
    store.pause()
    said = clients.refusal("during")
    assert (said.code.name, said.reason) == ("UNAVAILABLE", "STORE_UNAVAILABLE")
    assert "has not answered for" in said.message
    assert "repeat it with the same ids" in said.message
    batch = jobs.SubmitJobsRequest(
        requests=[jobs.SubmitJobRequest(spec=job_pb2.JobSpec(operation="op"))] * 3, request_id="b"
    )
    with pytest.raises(grpc.RpcError) as whole:
        clients.jobs.SubmitJobs(batch, timeout=20)
    refusal = refused(whole.value)  # type: ignore[arg-type]
    assert (refusal.reason, "may have been done" in refusal.message) == ("STORE_UNAVAILABLE", True)
    wait_until(lambda: clients.problem() != "", "GetServerInfo tells of it")
    assert "hangs" in clients.problem()
    assert clients.health() == NOT_SERVING
    status, text = clients.ready()
    assert (status, "has not answered for" in text) == (503, True)
    shown = CliRunner().invoke(cli, ["--target", clients.server.address, "info"])
    assert "has not answered for" in shown.output
    asked = CliRunner().invoke(cli, ["--target", clients.server.address, "--json", "info"])
    assert "hangs" in json.loads(asked.output)["store_problem"]
    store.resume()
    wait_until(lambda: clients.ready()[0] == 200, "it recovers by itself")
    again = clients.submit("during")
    assert clients.submit("during").job_id == again.job_id
    answers = clients.jobs.SubmitJobs(batch, timeout=20).results
    assert len({answer.accepted.job_id for answer in answers}) == 3
    found = clients.admin.GetQueue(admin.GetQueueRequest(queue="default")).queue
    assert {one.state: one.count for one in found.counts if one.count} == {
        job_pb2.JOB_STATE_PENDING: 5
    }


def test_a_right_that_is_taken_away_is_told_and_nothing_is_half_written(
    store: StoreProcess,
) -> None:
    with redis.Redis.from_url(store.url) as client:
        rules = ("on", ">p", "~jw:*", "&jw:*", "+@all")
        client.execute_command("ACL", "SETUSER", "jw", "reset", *rules)
        server = ServerProcess("--redis-url", store.url.replace("unix://", "unix://jw:p@"))
        try:
            server.start()
            clients = Clients(server)
            clients.submit("before")
            # Publishing comes last in each script: what it would tell is harmless to miss.
            client.execute_command("ACL", "SETUSER", "jw", "resetchannels")
            accepted = clients.refusal("during")
            wait_until(lambda: clients.problem() != "", "it is found out")
            if accepted is None:
                assert clients.submit("during").existed
            said = clients.refusal("new")
            assert (said.code.name, said.reason) == ("UNAVAILABLE", "STORE_UNFIT")
            assert "ACL SETUSER jw &jw:*" in said.message
            # One that is missed at the first command of a script.
            client.execute_command("ACL", "SETUSER", "jw", "&jw:*", "-evalsha", "-eval")
            wait_until(lambda: "+eval" in clients.problem(), "that is found out as well")
            assert clients.refusal("new").code.name == "UNAVAILABLE"
            client.execute_command("ACL", "SETUSER", "jw", "+eval", "+evalsha")
            wait_until(lambda: clients.ready()[0] == 200, "it recovers by itself")
            assert clients.refusal("new") is None
            clients.channel.close()
        finally:
            server.stop()


def test_a_store_that_lacks_rights_is_refused_at_the_start_in_one_line(
    store: StoreProcess,
) -> None:
    with redis.Redis.from_url(store.url) as client:
        client.execute_command(
            *("ACL", "SETUSER", "jw", "reset", "on", ">p", "~jw:*", "resetchannels", "+@all")
        )
    server = ServerProcess("--redis-url", store.url.replace("unix://", "unix://jw:p@"))
    server.spawn()
    assert server.wait() == 3
    assert "Traceback" not in server.log
    assert "ACL SETUSER jw &jw:*" in server.log
    assert len([line for line in server.log.splitlines() if line.startswith("jobwire serve:")]) == 1
