"""Certificates that are renewed while clients connect."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from tests.support.servers import ServerProcess
from tests.support.stores import wait_until

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on PATH")

KEY = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"


class Authority:
    """Signs certificates.

    Args:
        folder: Of its own files.
        name: Its own.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder / name
        self.folder.mkdir()
        self._count = 0
        self._openssl(f"req -x509 {KEY} -days 2 -subj /CN={name} -keyout ca.key -out ca.pem")
        (self.folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")

    @property
    def certificate(self) -> Path:
        """Its own."""
        return self.folder / "ca.pem"

    def sign(self) -> tuple[Path, Path]:
        """A new certificate for localhost, and its key."""
        self._count += 1
        own = f"own{self._count}"
        self._openssl(f"req {KEY} -subj /CN=localhost -keyout {own}.key -out {own}.csr")
        self._openssl(
            f"x509 -req -in {own}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2"
            f" -out {own}.pem -extfile names"
        )
        return self.folder / f"{own}.pem", self.folder / f"{own}.key"

    def _openssl(self, args: str) -> None:
        subprocess.run(["openssl", *args.split()], cwd=self.folder, check=True, capture_output=True)


def _install(source: Path, target: Path) -> None:
    """In one step, as tools that renew certificates do."""
    shutil.copy(source, target.with_suffix(".new"))
    os.replace(target.with_suffix(".new"), target)


def _der(path: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(path.read_text())


def _served(address: str) -> bytes:
    """The certificate that a handshake gets now."""
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host, int(port)), timeout=10) as plain,
        context.wrap_socket(plain) as secured,
    ):
        found = secured.getpeercert(binary_form=True)
        assert found is not None
        return found


def _check(channel: grpc.Channel) -> int:
    asked = health_pb2.HealthCheckRequest()
    status: int = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=20).status
    return status


class Callers:
    """Threads that connect anew for each of their calls, without a pause or a repeat."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials) -> None:
        self.calls = 0
        self.errors: list[str] = []
        self._address = address
        self._credentials = credentials
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(2)]

    @contextmanager
    def calling(self) -> Iterator[None]:
        """For as long as the context lasts."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in self._threads:
                thread.join()

    def wait_for_more(self) -> None:
        """Calls that begin after now have been answered."""
        enough = self.calls + 10
        wait_until(lambda: bool(self.errors) or self.calls >= enough, "calls go on")

    def _call(self) -> None:
        options = (("grpc.use_local_subchannel_pool", 1),)
        while not self._over.wait(0.01):
            with grpc.secure_channel(self._address, self._credentials, options) as channel:
                try:
                    _check(channel)
                except grpc.RpcError as error:
                    self.errors.append(str(error))
                    return
            self.calls += 1


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Whom clients trust."""
    return Authority(tmp_path, "one")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A broker with the files cert.pem and key.pem; not started yet."""
    server = ServerProcess(
        *("--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem")),
        data_dir=tmp_path / "data",
    )
    yield server
    server.stop()


def test_a_renewed_certificate_is_served_without_a_failed_call(
    server: ServerProcess, authority: Authority, tmp_path: Path
) -> None:
    def install() -> bytes:
        certificate, key = authority.sign()
        _install(certificate, tmp_path / "cert.pem")
        _install(key, tmp_path / "key.pem")
        return _der(certificate)

    first = install()
    server.start()
    credentials = grpc.ssl_channel_credentials(authority.certificate.read_bytes())
    with grpc.secure_channel(server.address, credentials) as stays:
        assert _check(stays)
        assert _served(server.address) == first
        callers = Callers(server.address, credentials)
        with callers.calling():
            for renewal in range(2):
                # Seen by itself, and at once where it is asked for.
                renewed = install()
                if renewal:
                    server.signal(signal.SIGHUP)
                wait_until(lambda: _served(server.address) == renewed, "it is served")  # noqa: B023
                callers.wait_for_more()
            # The key does not belong to the certificate.
            _install(authority.sign()[0], tmp_path / "cert.pem")
            server.signal(signal.SIGHUP)
            wait_until(lambda: "new certificates can't be used" in server.log, "it says so")
            callers.wait_for_more()
            assert _served(server.address) == renewed
            (tmp_path / "key.pem").unlink()
            server.signal(signal.SIGHUP)
            wait_until(lambda: "tls_key: " in server.log, "it says so")
            last = install()
            wait_until(lambda: _served(server.address) == last, "it is served")
            callers.wait_for_more()
        assert callers.errors == []
        # A connection that is open is left alone.
        assert _check(stays)
    fingerprint = hashlib.sha256(last).digest().hex(":").upper()
    assert f"sha256={fingerprint}" in server.log
    assert server.log.count("certificates read again") == 3


def test_other_authorities_of_clients_are_asked_for_from_the_next_handshake_on(
    server: ServerProcess, authority: Authority, tmp_path: Path
) -> None:
    certificate, key = authority.sign()
    _install(certificate, tmp_path / "cert.pem")
    _install(key, tmp_path / "key.pem")
    other = Authority(tmp_path, "two")
    _install(authority.certificate, tmp_path / "clients.pem")
    server.flags += ("--tls-client-ca", str(tmp_path / "clients.pem"), "--processes", "2")
    server.start()

    def is_served(signer: tuple[Path, Path]) -> bool:
        certificate, key = (path.read_bytes() for path in signer)
        credentials = grpc.ssl_channel_credentials(
            authority.certificate.read_bytes(), key, certificate
        )
        options = (("grpc.use_local_subchannel_pool", 1),)
        with grpc.secure_channel(server.address, credentials, options) as channel:
            try:
                return bool(_check(channel))
            except grpc.RpcError:
                return False

    before, after = authority.sign(), other.sign()
    assert is_served(before)
    assert not is_served(after)
    _install(other.certificate, tmp_path / "clients.pem")
    server.signal(signal.SIGHUP)
    # Each process reads it by itself.
    wait_until(lambda: server.log.count("certificates read again") == 2, "both have read it")
    assert [is_served(after) for _ in range(4)] == [True] * 4
    assert [is_served(before) for _ in range(4)] == [False] * 4


@pytest.mark.parametrize(
    ("spoilt", "says"),
    [
        ("cert.pem", "tls_cert, tls_key: "),
        ("key.pem", "tls_cert, tls_key: "),
        ("clients.pem", "tls_client_ca: "),
        ("encrypted", "the key is encrypted"),
    ],
)
def test_a_start_names_the_file_that_can_not_be_used(
    spoilt: str, says: str, server: ServerProcess, authority: Authority, tmp_path: Path
) -> None:
    certificate, key = authority.sign()
    _install(certificate, tmp_path / "cert.pem")
    _install(key, tmp_path / "key.pem")
    _install(authority.certificate, tmp_path / "clients.pem")
    server.flags += ("--tls-client-ca", str(tmp_path / "clients.pem"))
    if spoilt == "encrypted":
        subprocess.run(
            [
                *("openssl", "pkcs8", "-topk8", "-in", str(key), "-out", str(tmp_path / "key.pem")),
                *("-passout", "pass:secret"),
            ],
            check=True,
        )
    else:
        (tmp_path / spoilt).write_text("-----BEGIN CERTIFICATE-----\nnonsense\n")
    server.spawn()
    assert server.wait() == 2
    assert says in server.log
    assert "Traceback" not in server.log
