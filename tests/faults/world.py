"""Everything that runs: stores, servers, links, workers, clients; and what a fault does to each."""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from tests.faults.history import Journal
from tests.faults.plan import Fault
from tests.faults.processes import ROOT, Managed, children
from tests.faults.proxy import Proxies
from tests.faults.shapes import CALM, CLIENTS, NO_STORE, SHAPES, SHORT, WORKERS
from tests.faults.stores import BundledStore, Replicas, Store
from tests.support.stores import StoreProcess, free_port


class World:
    """All participants of one run. Use it as a context manager.

    Args:
        config: One of `shapes.CONFIGS`.
        folder: Takes histories and logs.
        seed: Of what clients do.
        short: True: short leases, and so on; False: the defaults of the product.
        pause_s: The mean pause of each producer.
    """

    def __init__(
        self, config: str, folder: Path, seed: int, *, short: bool, pause_s: float
    ) -> None:
        self.config = config
        self.folder = folder
        self.short = short
        self.shape = SHAPES[config]
        self.journal = Journal(folder / "runner.jsonl", "runner")
        self.proxies = Proxies()
        self.replicas: Replicas | None = None
        self.stores: dict[str, Store] = {}
        self.servers: dict[str, Managed] = {}
        self.workers: dict[str, Managed] = {}
        self.clients: dict[str, Managed] = {}
        self.addresses: list[str] = []
        self._rng = random.Random(seed)
        self._pause_s = pause_s
        self._frozen_children: dict[int, int] = {}
        self._data = tempfile.TemporaryDirectory(prefix="jwt-")

    @property
    def target(self) -> str:
        """Of all servers, directly."""
        return ",".join(self.addresses)

    @property
    def managed(self) -> list[Managed]:
        """Every process but the stores."""
        return [*self.servers.values(), *self.workers.values(), *self.clients.values()]

    def __enter__(self) -> World:
        self.proxies.__enter__()
        self._make_stores()
        self._make_servers()
        return self

    def __exit__(self, *_: object) -> None:
        for one in reversed(self.managed):
            one.end()
        if self.replicas is not None:
            self.replicas.remove()
        for store in self.stores.values():
            if self.replicas is None:
                store.remove()
        self.proxies.__exit__()
        self.journal.close()
        self._data.cleanup()

    # What there is.

    def _make_stores(self) -> None:
        if self.config == "one":
            self.stores["store"] = BundledStore(self.journal, Path(self._data.name) / "data")
            return
        if self.config == "sentinel":
            self.replicas = Replicas(self.journal)
            self.replicas.start()
            self.stores = {store.name: store for store in self.replicas.stores}
            return
        always = ("--appendfsync", "always") if self.config == "always" else ()
        engine = "redis" if self.config == "processes" else "valkey"
        process = StoreProcess(engine, tcp=True, config=always)
        self.stores["store"] = Store(
            self.journal, process, disk=self.config in ("processes", "always")
        )
        self.stores["store"].start()

    def _store_flags(self) -> tuple[str, ...]:
        if self.replicas is not None:
            return ("--redis-url", self.replicas.url)
        store = self.stores["store"]
        if isinstance(store, BundledStore):
            return ("--data-dir", str(store.data_dir))
        return ("--redis-url", store.url)

    def _make_servers(self) -> None:
        for at in range(self.shape.servers):
            grpc, http = (f"127.0.0.1:{free_port()}" for _ in range(2))
            self.addresses.append(grpc)
            flags = (
                *("--listen", grpc, "--http-listen", http, "--log-format", "console"),
                *("--shutdown-grace", "3s", *self._store_flags(), *self.shape.flags),
                *(SHORT if self.short else ()),
            )
            env = {}
            if self.shape.clocks_s and self.shape.clocks_s[at]:
                wrong = str(ROOT / "tests" / "e2e" / "wrong_clock")
                path = os.pathsep.join(filter(None, (wrong, os.environ.get("PYTHONPATH", ""))))
                off_s = str(self.shape.clocks_s[at])
                env = {"PYTHONPATH": path, "JOBWIRE_TEST_CLOCK_OFF_S": off_s}
            command = (sys.executable, "-m", "jobwire_server", *flags)
            self._add(
                self.servers,
                f"server-{at}",
                command,
                env=env,
                may_end=(NO_STORE,),
                is_up=partial(_serves, http),
            )

    def start_servers(self) -> None:
        """Starts all servers, without waiting."""
        for server in self.servers.values():
            server.start()

    def start_load(self) -> None:
        """Starts workers and clients."""
        for name, (transport, keeps_id, linked) in WORKERS.items():
            command = [sys.executable, "-m", "tests.faults.worker", "--name", name]
            command += ["--transport", transport, "--target", self._way(name, linked)]
            command += ["--history", str(self.folder / f"{name}.jsonl")]
            command += ["--id", name] if keeps_id else []
            self._add(self.workers, name, command)
        for name, (kind, linked) in CLIENTS.items():
            command = [sys.executable, "-m", "tests.faults.client", kind, "--name", name]
            command += ["--target", self._way(name, linked), "--pause", str(self._pause_s)]
            command += ["--history", str(self.folder / f"{name}.jsonl")]
            command += ["--block-ms", "1500" if self.short else "6000"]
            self._add(self.clients, name, command, seeded=True)
        for one in (*self.workers.values(), *self.clients.values()):
            one.start()

    def _way(self, name: str, linked: bool) -> str:
        return self.proxies.open(name, self.addresses) if linked else self.target

    def _add(
        self,
        where: dict[str, Managed],
        name: str,
        command: Sequence[str],
        *,
        env: dict[str, str] | None = None,
        may_end: tuple[int, ...] = (),
        seeded: bool = False,
        is_up: Callable[[int], bool] | None = None,
    ) -> None:
        def started() -> Sequence[str]:
            return [*command, "--seed", str(self._rng.getrandbits(32))] if seeded else command

        give: Callable[[], Sequence[str]] = started
        where[name] = Managed(
            name,
            give,
            self.journal,
            self.folder / f"{name}.log",
            env=env,
            may_end=may_end,
            is_up=is_up or partial(_wrote_up, self.folder / f"{name}.jsonl"),
        )

    # Faults.

    def targets(self) -> dict[str, list[str]]:
        """What can happen -> to whom."""
        processes = [*self.servers, *self.workers]
        stores = [*self.stores]
        inner = ["child"] if self.config == "processes" else []
        clients = [name for name in self.clients if name != CALM]
        return {
            "kill": [*processes, *clients, *stores, *inner],
            "stop": [*processes, *clients, *stores, *inner],
            "term": [*processes, *clients],
            "cut": [*self.proxies.links],
            "deaf": [*self.proxies.links],
            "slow": [*self.proxies.links],
            "full": stores if self.replicas is None else [],
            "failover": ["primary"] if self.replicas is not None else [],
        }

    def begin(self, fault: Fault) -> bool:
        """Lets a fault begin; False: it can't now, as when its victim is down already."""
        what, name, number = fault.what, fault.target, fault.number
        if what == "failover":
            return self.replicas is not None and self.replicas.fail_over(number)
        if name in self.proxies.links and what in ("cut", "deaf", "slow"):
            way = ("up", "down")[number % 2] if what == "deaf" else what
            self.journal.write(what, target=f"link-{name}", way=way, fault=number)
            self.proxies.set(name, way)
            return True
        if name == "child":
            return self._hurt_child(what, number)
        if name in self.stores:
            if self.replicas is not None and not self.replicas.settled:
                return False
            return self.stores[name].act(what, number, fault.for_s)
        managed = next(one for one in self.managed if one.name == name)
        if not managed.at_work or managed.stopped:
            return False
        if what == "kill":
            return managed.kill(number, fault.for_s)
        if what == "term":
            return managed.terminate(number, fault.for_s)
        return managed.stop(number)

    def finish(self, fault: Fault) -> None:
        """Ends a fault that was begun."""
        what, name = fault.what, fault.target
        if name in self.proxies.links and what in ("cut", "deaf", "slow"):
            self.proxies.set(name, "")
            self.journal.write("heal", target=f"link-{name}")
        elif name == "child":
            if pid := self._frozen_children.pop(fault.number, 0):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
                self.journal.write("cont", target="child", victim=pid)
        elif name in self.stores:
            self.stores[name].undo(what)
        elif what == "stop":
            next(one for one in self.managed if one.name == name).resume()

    def _hurt_child(self, what: str, number: int) -> bool:
        found = children(next(iter(self.servers.values())).pid)
        if not found:
            return False
        pid = found[number % len(found)]
        self.journal.write(what, target="child", victim=pid, fault=number)
        if what == "stop":
            self._frozen_children[number] = pid
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP if what == "stop" else signal.SIGKILL)
        return True

    def look(self) -> None:
        """Starts again what is down for long enough, and notes what ended by itself."""
        for store in self.stores.values():
            store.look()
        for one in self.managed:
            one.look()

    def heal(self) -> None:
        """Ends all faults."""
        for name in self.proxies.links:
            self.proxies.set(name, "")
        for pid in self._frozen_children.values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._frozen_children.clear()
        for store in self.stores.values():
            store.heal()
        for one in self.managed:
            one.resume()


def _wrote_up(history: Path, pid: int) -> bool:
    """A process of ours has said in its history that it is up."""
    if not history.exists():
        return False
    return f'"pid": {pid}, "what": "up"' in history.read_text()


def _serves(address: str, pid: int) -> bool:
    """A server answers on its HTTP side; whether its store does, is another question."""
    with suppress(OSError), urllib.request.urlopen(f"http://{address}/healthz", timeout=0.2):
        return True
    return False
