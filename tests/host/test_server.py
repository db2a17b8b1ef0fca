"""`jobwire serve` as its users meet it: a real process on a real store."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc  # type: ignore[import-untyped]
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc  # type: ignore[import-untyped]

from jobwire.v1 import (
    admin_service_pb2,
    admin_service_pb2_grpc,
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
)
from jobwire_server.host.command import serve
from jobwire_server.host.settings import Settings

from tests.support.servers import ServerProcess
from tests.support.stores import StoreProcess, wait_until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

OURS = ("jobwire.v1.JobService", "jobwire.v1.WorkerService", "jobwire.v1.AdminService")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A broker on its bundled Valkey; not started yet."""
    server = ServerProcess(data_dir=tmp_path / "data")
    yield server
    server.stop()


def _submit(address: str, operation: str = "test") -> str:
    with grpc.insecure_channel(address) as channel:
        request = job_service_pb2.SubmitJobRequest(spec=job_pb2.JobSpec(operation=operation))
        return job_service_pb2_grpc.JobServiceStub(channel).SubmitJob(request, timeout=10).job_id


def _operation(address: str, job_id: str) -> str:
    with grpc.insecure_channel(address) as channel:
        request = job_service_pb2.GetJobRequest(job_id=job_id)
        answer = job_service_pb2_grpc.JobServiceStub(channel).GetJob(request, timeout=10)
        return answer.job.spec.operation


def _health(address: str, service: str = "") -> int:
    with grpc.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        status: int = health_pb2_grpc.HealthStub(channel).Check(request, timeout=5).status
        return status


def _get(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_fresh_server_takes_jobs_and_says_what_it_is(server: ServerProcess) -> None:
    server.start()
    job_id = _submit(server.address)
    assert _operation(server.address, job_id) == "test"
    with grpc.insecure_channel(server.address) as channel:
        info = admin_service_pb2_grpc.AdminServiceStub(channel).GetServerInfo(
            admin_service_pb2.GetServerInfoRequest(), timeout=5
        )
    assert (info.store_engine, info.store_embedded) == ("valkey", True)
    assert info.store_durability == "aof everysec"
    assert server.address in server.log
    assert "grpcurl -plaintext" in server.log
    assert str(server.data_dir) in server.log


def test_health_reflection_and_channelz_answer(server: ServerProcess) -> None:
    server.start()
    for service in (
        "",
        "jobwire.v1.JobService",
        "jobwire.v1.WorkerService",
        "jobwire.v1.AdminService",
    ):
        assert _health(server.address, service) == SERVING
    with grpc.insecure_channel(server.address) as channel:
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        (answer,) = stub.ServerReflectionInfo(asked, timeout=5)
        names = {service.name for service in answer.list_services_response.service}
        assert {
            "jobwire.v1.JobService",
            "grpc.health.v1.Health",
            "grpc.channelz.v1.Channelz",
        } <= names
        servers = channelz_pb2_grpc.ChannelzStub(channel).GetServers(
            channelz_pb2.GetServersRequest(), timeout=5
        )
        assert servers.server[0].data.calls_started > 0


def test_metrics_and_checks_are_served_over_http(server: ServerProcess) -> None:
    server.start()
    _submit(server.address)
    assert _get(server.http, "/healthz") == (200, "ok\n")
    assert _get(server.http, "/readyz") == (200, "ok\n")
    assert _get(server.http, "/nothing")[0] == 404
    status, text = _get(server.http, "/metrics")
    assert status == 200
    assert 'jobwire_rpc_total{code="OK",method="/jobwire.v1.JobService/SubmitJob"} 1.0' in text
    assert "jobwire_store_up 1.0" in text


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_accepted_jobs_are_there_after_the_server_was_ended(
    server: ServerProcess, how: str
) -> None:
    server.start()
    jobs = [_submit(server.address, f"op{n}") for n in range(20)]
    if how == "stop":
        assert server.stop() == 0
    else:
        server.kill()
    server.start()
    assert [_operation(server.address, job_id) for job_id in jobs] == [f"op{n}" for n in range(20)]


def test_the_server_recovers_when_its_store_was_killed(server: ServerProcess) -> None:
    server.start()
    job_id = _submit(server.address)
    assert server.data_dir is not None
    pid = int((server.data_dir / "valkey.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: "the store process is back" in server.log, "the store is started again")
    wait_until(lambda: _health(server.address) == SERVING, "the server serves again")
    assert _operation(server.address, job_id) == "test"


def test_health_follows_the_store_and_calls_are_unavailable_meanwhile(
    own_store: StoreProcess,
) -> None:
    server = ServerProcess("--redis-url", own_store.url)
    server.start()
    try:
        job_id = _submit(server.address)
        own_store.wait_written()
        own_store.kill()
        wait_until(lambda: _health(server.address) == NOT_SERVING, "the loss is noticed")
        assert _health(server.address, "jobwire.v1.JobService") == NOT_SERVING
        status, text = _get(server.http, "/readyz")
        assert (status, "has not answered for" in text) == (503, True)
        assert _get(server.http, "/healthz") == (200, "ok\n")
        with pytest.raises(grpc.RpcError) as failed:
            _submit(server.address)
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        own_store.start()
        wait_until(lambda: _health(server.address) == SERVING, "the server serves again")
        assert _operation(server.address, job_id) == "test"
    finally:
        server.stop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_cleanly_and_soon_even_with_a_health_watcher(
    server: ServerProcess, number: signal.Signals
) -> None:
    server.start()
    with grpc.insecure_channel(server.address) as channel:
        watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watching).status == SERVING
        server.signal(number)
        assert next(watching).status == NOT_SERVING
        assert server.wait(10) == 0
    assert server.log.rstrip().endswith("stopped")


@pytest.mark.parametrize(
    ("flags", "status", "says"),
    [
        (["--lease", "30"], 2, "lease, from flag --lease: '30' is not a duration"),
        (["--redis-url", "http://h"], 2, "redis_url: http://h is none of"),
        (["--redis-url", "redis://127.0.0.1:1", "--store-wait", "0"], 3, "can't be reached"),
        (["--config", "absent.toml"], 2, "no file absent.toml"),
        (["--no-such-flag"], 2, "No such option"),
    ],
)
def test_a_start_that_fails_says_why_in_one_line_and_by_its_exit_code(
    tmp_path: Path, flags: list[str], status: int, says: str
) -> None:
    server = ServerProcess(*flags, data_dir=tmp_path / "data")
    server.spawn()
    assert server.wait() == status
    assert says in server.log
    assert "Traceback" not in server.log


@pytest.mark.parametrize("flag", ["--listen", "--http-listen"])
def test_an_address_in_use_is_exit_code_4(tmp_path: Path, flag: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = ServerProcess(
            flag, f"127.0.0.1:{taken.getsockname()[1]}", data_dir=tmp_path / "data"
        )
        server.spawn()
        assert server.wait() == 4
    assert "can't be bound" in server.log
    assert "Traceback" not in server.log


def test_two_servers_do_not_share_one_data_directory(server: ServerProcess) -> None:
    server.start()
    second = ServerProcess(data_dir=server.data_dir)
    second.spawn()
    assert second.wait() == 3
    assert "in use by another server" in second.log
    _submit(server.address)


def test_logs_are_json_where_no_person_reads_them(server: ServerProcess) -> None:
    server.flags = ("--log-format", "json", "--log-requests", "all")
    server.spawn()
    wait_until(lambda: '"serving"' in server.log, "the server serves")
    assert server.stop() == 0
    lines = [json.loads(line) for line in server.log.splitlines()]
    assert [line["event"] for line in lines] == ["serving", "draining", "stopped"]


def _certificates(folder: Path) -> None:
    """An authority, and a certificate of it that serves and calls as localhost."""
    for args in (
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ca -keyout ca.key -out ca.pem",
        "req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout own.key -out own.csr",
        "x509 -req -in own.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out own.pem"
        " -extfile names",
    ):
        (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        subprocess.run(["openssl", *args.split()], cwd=folder, check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")
def test_with_tls_only_clients_with_a_certificate_are_served(
    server: ServerProcess, tmp_path: Path
) -> None:
    _certificates(tmp_path)
    ca, own, key = (tmp_path / name for name in ("ca.pem", "own.pem", "own.key"))
    server.flags = ("--tls-cert", str(own), "--tls-key", str(key), "--tls-client-ca", str(ca))
    server.start()
    request = health_pb2.HealthCheckRequest()
    known = grpc.ssl_channel_credentials(ca.read_bytes(), key.read_bytes(), own.read_bytes())
    with grpc.secure_channel(server.address, known) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=5)
        assert answer.status == SERVING
    unknown = grpc.ssl_channel_credentials(ca.read_bytes())
    with grpc.secure_channel(server.address, unknown) as channel, pytest.raises(grpc.RpcError):
        health_pb2_grpc.HealthStub(channel).Check(request, timeout=5)


def test_settings_come_from_the_environment_too(tmp_path: Path) -> None:
    server = ServerProcess(env={"JOBWIRE_DATA_DIR": str(tmp_path / "here")})
    server.start()
    assert server.stop() == 0
    assert (tmp_path / "here" / "appendonlydir").is_dir()


def test_the_help_names_every_setting_with_its_variable_and_default() -> None:
    # As one line: where the text is broken says nothing.
    text = " ".join(CliRunner().invoke(serve, ["--help"]).output.split())
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in text
        assert f"[JOBWIRE_{name.upper()}; default: " in text
    assert "default: 30s" in text
    assert "default: 1MiB" in text
