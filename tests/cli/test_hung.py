"""What the command says where something hangs: which of server and store it is."""

from __future__ import annotations

import re
import signal

from jobwire.cli.health import Health, health_of

from tests.cli.support import jobwire
from tests.support.servers import ServerProcess
from tests.support.stores import StoreProcess, wait_until


def test_a_store_that_hangs_is_called_one(own_store: StoreProcess) -> None:
    server = ServerProcess("--redis-url", own_store.url)
    try:
        server.start()
        ready = jobwire("info", target=server.address).stdout
        assert re.search(r"^ready +yes$", ready, re.MULTILINE)
        own_store.pause()
        wait_until(
            lambda: health_of(server.address, tls=False) is Health.NOT_READY, "the server to notice"
        )
        for command in (["submit", "nobody"], ["list"], ["queues"]):
            done = jobwire(*command, "--timeout", "1s", target=server.address)
            assert done.returncode == 4
            assert "store" in done.stderr, done.stderr
            assert "Stream removed" not in done.stderr
        assert "no: its store does not answer" in jobwire("info", target=server.address).stdout
    finally:
        own_store.resume()
        server.stop()


def test_a_server_that_hangs_is_not_called_one_that_is_not_there(valkey_url: str) -> None:
    server = ServerProcess("--redis-url", valkey_url)
    try:
        server.start()
        server.signal(signal.SIGSTOP)
        done = jobwire("list", "--timeout", "3s", target=server.address)
        assert done.returncode == 4
        assert "the server hangs" in done.stderr, done.stderr
        assert "start one" not in done.stderr
    finally:
        server.signal(signal.SIGCONT)
        server.stop()
