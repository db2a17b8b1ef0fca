"""A primary, its replica and three sentinels as real processes, to kill and fail over."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from uuid import uuid4

import redis

from tests.support.stores import (
    START_DEADLINE_S,
    Engine,
    StoreProcess,
    free_port,
    server_binary,
    wait_until,
)

SERVICE = "jobs"
DOWN_AFTER_MS = 1_000
FAILOVER_TIMEOUT_MS = 5_000
QUICK = (
    *("INFO-PERIOD", "250", "PUBLISH-PERIOD", "250", "ASK-PERIOD", "250"),
    # A sentinel that was late for so long trusts no clock and does nothing for half a minute.
    *("TILT-TRIGGER", "60000"),
)
"""A sentinel looks at everything four times a second, in place of every ten."""
FAILOVER_DEADLINE_S = 30.0


class SentinelProcess:
    """One sentinel; its configuration stays the same over kill and restart, and so does its view.

    Args:
        engine: Which server to run as a sentinel.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.port = free_port()
        self.id = f"{uuid4().hex}{uuid4().hex[:8]}"
        self._directory = Path(tempfile.mkdtemp(prefix="jwt-"))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None

    def configure(self, primary: StoreProcess, others: list[SentinelProcess]) -> None:
        """Write the configuration; before the first start."""
        lines = [
            "bind 127.0.0.1",
            f"port {self.port}",
            f"dir {self._directory}",
            f"sentinel myid {self.id}",
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary.port} 2",
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}",
            f"sentinel failover-timeout {SERVICE} {FAILOVER_TIMEOUT_MS}",
            # They need not wait to hear of one another.
            *(
                f"sentinel known-sentinel {SERVICE} 127.0.0.1 {one.port} {one.id}"
                for one in others
                if one is not self
            ),
        ]
        (self._directory / "conf").write_text("\n".join(lines) + "\n")

    def start(self) -> None:
        """Start it and wait until it answers; a running one is left alone."""
        if self._process is not None:
            return
        binary = server_binary(self.engine)
        assert binary is not None, f"no {self.engine} server is installed"
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [binary, str(self._directory / "conf"), "--sentinel"], stdout=log, stderr=log
            )
        wait_until(self._ready, "the sentinel is ready")

    def ask(self, *words: str) -> Any:
        """The answer to a SENTINEL command."""
        with redis.Redis(
            port=self.port, socket_timeout=5, retry=None, decode_responses=True, protocol=2
        ) as client:
            return client.execute_command("SENTINEL", *words)

    def names(self) -> int:
        """The port of the primary that it names."""
        return int(self.ask("GET-MASTER-ADDR-BY-NAME", SERVICE)[1])

    def settled(self, primary: StoreProcess) -> bool:
        """It sees this primary with a replica that follows it, and a majority of sentinels."""
        try:
            found = _pairs(self.ask("MASTER", SERVICE))
            replicas = [_pairs(one) for one in self.ask("REPLICAS", SERVICE)]
            self.ask("CKQUORUM", SERVICE)
        except redis.ResponseError:  # no majority
            return False
        return (
            (int(found["port"]), found["flags"]) == (primary.port, "master")
            and len(replicas) == 1
            and replicas[0]["flags"] == "slave"
            and replicas[0]["master-link-status"] == "ok"
        )

    def slow(self) -> None:
        """Let it wait longer than any test before it makes a replica of an old primary."""
        self.ask("DEBUG", "PUBLISH-PERIOD", "60000")

    def quick(self) -> None:
        """Let it look at everything often again."""
        self.ask("DEBUG", *QUICK)

    def pause(self) -> None:
        """Freeze it: connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """kill -9, and wait for the end; harmless if it does not run."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(timeout=START_DEADLINE_S)

    def remove(self) -> None:
        """Kill it and delete its directory."""
        self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _signal(self, number: int) -> None:
        assert self._process is not None, "the sentinel is not running"
        self._process.send_signal(number)

    def _ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError((self._directory / "log").read_text()[-2000:])
        try:
            self.quick()
        except redis.ConnectionError:
            return False
        return True


class SentinelStore:
    """Two stores of which one is the primary, watched by three sentinels.

    Args:
        engine: Which server to run, as stores and as sentinels.
    """

    def __init__(self, engine: Engine) -> None:
        quick = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
        self.stores = [StoreProcess(engine, tcp=True, config=quick) for _ in range(2)]
        self.sentinels = [SentinelProcess(engine) for _ in range(3)]

    @property
    def url(self) -> str:
        """For a server: all three sentinels and the name of the service."""
        addresses = ",".join(f"127.0.0.1:{one.port}" for one in self.sentinels)
        return f"redis+sentinel://{addresses}/{SERVICE}"

    @property
    def primary(self) -> StoreProcess:
        """The primary, as most of the sentinels that run see it."""
        ports = sorted(one.names() for one in self.sentinels if one.running)
        port = ports[len(ports) // 2]
        return next(one for one in self.stores if one.port == port)

    @property
    def replica(self) -> StoreProcess:
        """The one that is not the primary."""
        primary = self.primary
        return next(one for one in self.stores if one is not primary)

    def start(self) -> None:
        """Start all five and wait until a failover is possible."""
        primary, replica = self.stores
        for store in self.stores:
            store.start()
        # At runtime, so that whichever comes back after a kill takes itself for a primary.
        with replica.client() as client:
            client.replicaof("127.0.0.1", primary.port)
        wait_until(lambda: follows(replica, primary), "the replica follows")
        for sentinel in self.sentinels:
            sentinel.configure(primary, self.sentinels)
            sentinel.start()
        self.settle(primary)

    def settle(self, primary: StoreProcess) -> None:
        """Wait until every sentinel that runs agrees on this primary and on its replica."""
        wait_until(
            lambda: all(one.settled(primary) for one in self.sentinels if one.running),
            f"the sentinels agree on the primary at {primary.port}",
            timeout_s=FAILOVER_DEADLINE_S,
        )

    def replicate(self) -> None:
        """Wait until the replica has all that the primary has now."""
        with self.primary.client() as client:
            wait_until(lambda: client.wait(1, 1_000) == 1, "everything is replicated")

    def when_promoted(self, store: StoreProcess) -> None:
        """Wait until a store is the primary by its own word and by that of all sentinels."""
        wait_until(
            lambda: (
                role(store) == "master"
                and all(one.names() == store.port for one in self.sentinels if one.running)
            ),
            "the replica is promoted",
            timeout_s=FAILOVER_DEADLINE_S,
        )

    def fail_over(self) -> None:
        """A planned failover: the two change places."""
        replica = self.replica
        self.sentinels[0].ask("FAILOVER", SERVICE)
        self.when_promoted(replica)

    def remove(self) -> None:
        """End all that runs and delete its files."""
        for sentinel in self.sentinels:
            sentinel.remove()
        for store in self.stores:
            store.kill()  # asked to end, a primary waits for its replica
            store.remove()


def role(store: StoreProcess) -> str:
    """`master` or `slave`, by the store's own word; empty if it does not answer."""
    try:
        with store.client() as client:
            return str(client.info("replication")["role"])
    except redis.RedisError:
        return ""


def follows(replica: StoreProcess, primary: StoreProcess) -> bool:
    """The replica is one of this primary, and is in contact with it."""
    try:
        with replica.client() as client:
            info = client.info("replication")
    except redis.RedisError:
        return False
    return bool(
        info["role"] == "slave"
        and info["master_port"] == primary.port
        and info["master_link_status"] == "up"
    )


def _pairs(flat: list[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
