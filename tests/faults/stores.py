"""The stores of a run: bundled, one of its own, or two with sentinels; each fails in its ways."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import redis

from tests.faults.history import Journal
from tests.support.sentinels import SERVICE, SentinelProcess, SentinelStore
from tests.support.stores import StoreProcess

DISK_MIB = 192


class Store:
    """One store server that this run starts.

    Args:
        journal: Takes what is done to it.
        process: Started and removed by this.
        name: In the history.
        disk: True: its files are on a disk of its own, where the system lets us make one.
    """

    def __init__(
        self, journal: Journal, process: StoreProcess, name: str = "store", *, disk: bool = False
    ) -> None:
        self.journal = journal
        self.process = process
        self.name = name
        self.stopped = False
        self.down_until = 0.0
        self.full = self.emptying = False
        self._disk = process.directory if disk and _mounted(process.directory) else None

    @property
    def url(self) -> str:
        """For servers."""
        return self.process.url

    @property
    def down(self) -> bool:
        """It was killed and not started again yet."""
        return self.down_until > 0.0

    def start(self) -> None:
        """Starts it and waits until it answers."""
        self.process.start()

    def act(self, what: str, fault: int, for_s: float) -> bool:
        """Begins a fault; False: it can't be done now."""
        if self.down or self.stopped or not self.process.running:
            return False
        pid = self.process.pid
        self.journal.write(what, target=self.name, victim=pid, fault=fault)
        if what == "kill":
            self.process.kill()
            self.down_until = time.monotonic() + for_s
        elif what == "stop":
            self.process.pause()
            self.stopped = True
        else:
            self._fill()
        return True

    def undo(self, what: str) -> None:
        """Ends a fault."""
        if what == "stop" and self.stopped:
            self.process.resume()
            self.stopped = False
            self.journal.write("cont", target=self.name)
        elif what == "full":
            self._empty()
            self.journal.write("heal", target=self.name)

    def look(self) -> None:
        """Starts it again when it is time to, also where it ended by itself, of a full disk."""
        if self.emptying:
            self._empty()
        if not self.down and not self.process.running and not self.full:
            self.journal.write("exit", target=self.name, asked=True)
            self.down_until = time.monotonic()
        if self.down and time.monotonic() >= self.down_until:
            self.process.start()
            self.down_until = 0.0
            self.journal.write("start", target=self.name, victim=self.process.pid)

    def heal(self) -> None:
        """Ends whatever is wrong with it."""
        self.undo("stop")
        self.down_until = min(self.down_until, time.monotonic())
        self.look()
        self._empty()

    def client(self) -> redis.Redis:
        """A client to look into it."""
        return self.process.client()

    def remove(self) -> None:
        """Ends it and deletes its files."""
        self.heal()
        self.process.kill()
        if self._disk is not None:
            subprocess.run(["umount", "--lazy", str(self._disk)], check=False)
        self.process.remove()

    def _fill(self) -> None:
        self.full = True
        if self._disk is None:
            with suppress(OSError, redis.RedisError), self.client() as client:
                client.config_set("maxmemory", "1")
            return
        left = shutil.disk_usage(self._disk).free
        with suppress(OSError), (self._disk / "filler").open("wb") as filler:
            os.posix_fallocate(filler.fileno(), 0, max(1, left - 4096))

    def _empty(self) -> None:
        """Makes room again; where the store does not answer, another look does."""
        if not self.full:
            return
        self.emptying = True
        if self._disk is None:
            try:
                with self.client() as client:
                    client.config_set("maxmemory", "0")
            except (OSError, redis.RedisError):
                return
        else:
            (self._disk / "filler").unlink(missing_ok=True)
        self.full = self.emptying = False


class BundledStore(Store):
    """The store that a server starts by itself in a data directory."""

    def __init__(self, journal: Journal, data_dir: Path) -> None:
        self.journal = journal
        self.name = "store"
        self.data_dir = data_dir
        self.stopped = self.full = self.emptying = False
        self.down_until = 0.0
        self._disk = None

    def start(self) -> None:
        """Its server does."""

    def act(self, what: str, fault: int, for_s: float) -> bool:
        """Begins a fault; False: it can't be done now."""
        pid = self._pid()
        if not pid or self.stopped:
            return False
        with suppress(ProcessLookupError):
            if what in ("kill", "stop"):
                os.kill(pid, signal.SIGKILL if what == "kill" else signal.SIGSTOP)
                self.stopped = what == "stop"
            else:
                self._fill()
            self.journal.write(what, target=self.name, victim=pid, fault=fault)
            return True
        return False

    def undo(self, what: str) -> None:
        """Ends a fault."""
        if what == "stop" and self.stopped:
            with suppress(ProcessLookupError):
                os.kill(self._pid(), signal.SIGCONT)
            self.stopped = False
            self.journal.write("cont", target=self.name)
        elif what == "full":
            super().undo(what)

    def look(self) -> None:
        """Makes the room that could not be made yet; its server starts it again."""
        if self.emptying:
            self._empty()

    def heal(self) -> None:
        """Ends whatever is wrong with it."""
        self.undo("stop")
        self._empty()

    def client(self) -> redis.Redis:
        """A client to look into it."""
        socket = (self.data_dir / "socket").read_text().strip()
        return redis.Redis.from_url(f"unix://{socket}", socket_timeout=5, retry=None)

    def remove(self) -> None:
        """Ends what a server left behind."""
        self.undo("stop")
        if pid := self._pid():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def _pid(self) -> int:
        with suppress(OSError, ValueError):
            pid = int((self.data_dir / "valkey.pid").read_text())
            os.kill(pid, 0)
            return pid
        return 0


class Replicas:
    """A primary, its replica and three sentinels.

    Args:
        journal: Takes what is done to them.
    """

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.all = SentinelStore("redis")
        self.stores = [
            Store(journal, process, f"store-{at}") for at, process in enumerate(self.all.stores)
        ]

    @property
    def url(self) -> str:
        """For servers."""
        return self.all.url

    def start(self) -> None:
        """Starts all and waits until a failover is possible."""
        self.all.start()

    @property
    def settled(self) -> bool:
        """Every sentinel sees a primary and a replica that follows it: one of them may fail."""
        if any(store.down or store.stopped for store in self.stores):
            return False
        try:
            primary = self.all.primary
            return all(one.settled(primary) for one in self.all.sentinels if one.running)
        except (redis.RedisError, StopIteration, KeyError):
            return False

    def fail_over(self, fault: int) -> bool:
        """Asks for a planned failover; False: not possible now."""
        if not self.settled:
            return False
        self.journal.write("failover", target="primary", fault=fault)
        sentinel: SentinelProcess = self.all.sentinels[0]
        with suppress(redis.RedisError):
            sentinel.ask("FAILOVER", SERVICE)
            return True
        return False

    def remove(self) -> None:
        """Ends all and deletes their files."""
        for store in self.stores:
            store.undo("stop")
        self.all.remove()


def _mounted(folder: Path) -> bool:
    """Gives a folder a small disk in memory; False: this user may not."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "jobwire-faults", str(folder)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0
