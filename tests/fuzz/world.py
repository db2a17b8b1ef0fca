"""The server under fuzzing, and what it tells of itself."""

from __future__ import annotations

import os
import re
import urllib.request
from pathlib import Path
from types import TracebackType

from tests.faults.run import DEFECT
from tests.support.servers import ServerProcess
from tests.support.stores import StoreProcess

FLAGS = (
    *("--lease", "2s", "--heartbeat-interval", "500ms", "--worker-timeout", "3s"),
    *("--reconnect-window", "1s", "--claim-timeout", "1s", "--cancel-grace", "2s"),
    *("--retain-succeeded", "20s", "--retain-ended", "30s", "--retain-lost-workers", "5s"),
    *("--max-payload", "64KiB", "--max-result", "16KiB", "--max-output", "64KiB"),
    *("--max-queue-output", "1MiB", "--max-batch-jobs", "50", "--max-message", "4MiB"),
    *("--max-queued-bytes", "16MiB", "--tick", "200ms", "--bookmark", "1s"),
)
"""Small limits and short times, so that they are met."""
MOST_MEMORY_MIB = 400
"""Resident, of the server's process."""
LONGEST_LINE = 4_000
"""Of the server's log, in characters."""
_STALLS = "jobwire_event_loop_stalls_total"
_BEGINS = re.compile(rb"^(?=\d{4}-\d\d-\d\dT)", re.MULTILINE)
_COMPUTED = re.compile(r"the event loop stalled\b.*\bcomputed_ms=(\d+)")
_SHOWN = 6_000


class World:
    """A store and a server on it, over all starts of the server."""

    def __init__(self) -> None:
        self.store = StoreProcess("valkey")
        self.server = ServerProcess("--redis-url", self.store.url, *FLAGS)
        self._read = 0

    def __enter__(self) -> World:
        try:
            self.store.start()
            self.server.start()
        except BaseException:
            self.store.remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.server.stop()
        finally:
            self.store.remove()

    @property
    def ended(self) -> int | None:
        """The exit code of a server that ended by itself."""
        assert self.server.process is not None
        return self.server.process.poll()

    def restart(self) -> None:
        """Start the server again."""
        self.server.start()
        self._read = 0

    @property
    def memory_mib(self) -> float:
        """Resident, of the server's process."""
        assert self.server.process is not None
        text = Path(f"/proc/{self.server.process.pid}/status").read_text()
        line = next(line for line in text.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024

    @property
    def cpu_s(self) -> float:
        """Processor time of the server's process so far."""
        assert self.server.process is not None
        stat = Path(f"/proc/{self.server.process.pid}/stat").read_text()
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    @property
    def stalls(self) -> int:
        """How often the server's event loop computed for more than 100 ms in one go."""
        return int(self.server.metric(_STALLS))

    @property
    def calls_in_hand(self) -> int:
        """Calls that the server has not ended."""
        with urllib.request.urlopen(f"http://{self.server.http}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        found = re.findall(r"^jobwire_rpc_in_flight\S* (\S+)", text, re.MULTILINE)
        return int(sum(map(float, found)))

    def stalls_ms(self, since: int) -> list[int]:
        """Return how long it computed in each stall after so many, as the server's log has it."""
        told = _COMPUTED.findall(self.server.log)
        return [int(each) for each in told[since:]]

    def new_defects(self, *, quiet: bool = False) -> list[str]:
        """Return what the server's log tells of errors nobody expected, since the last look; and
        lines so long that a caller must have written them.

        Args:
            quiet: Nothing is being written.
        """
        with self.server.log_file.open("rb") as log:
            log.seek(self._read)
            *records, last = re.split(_BEGINS, text := log.read())
        if quiet:
            records, last = [*records, last], b""
        # Of what is still being written the rest is read next time.
        self._read += len(text) - len(last)
        told = [record.decode(errors="replace") for record in records]
        return [
            record[:_SHOWN]
            for record in told
            if DEFECT.search(record) or any(len(line) > LONGEST_LINE for line in record.split("\n"))
        ]
