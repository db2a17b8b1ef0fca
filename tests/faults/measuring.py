"""How soon work goes on after a kill, one kill at a time with the product's default settings."""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable

from jobwire import CallError, Client, JobwireError
from jobwire.ids import new_job_id

from tests.faults.history import Follower, Journal
from tests.faults.processes import Managed
from tests.faults.world import World

QUEUE = "faults-a"
LABELS = {"faults": "held"}
HELD = 14
"""Long jobs that the workers share among them before one is killed; fewer than their places."""
LONGEST_S = 60.0
LOOK_S = 0.02
PROBE_S = 0.02
KILLED = -1
"""The number of a fault that no plan has: a timed kill."""


class Probe:
    """Submits one short job after another and notes when each was accepted.

    Args:
        target: All servers.
        journal: Takes what it does.
    """

    def __init__(self, target: str, journal: Journal) -> None:
        self.accepted: list[tuple[float, float, str]] = []
        """When each call began and ended, and the job."""
        self._target = target
        self._journal = journal
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Probe:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        payload = {"kind": "noop", "rows": 0, "row_ms": 0, "fails": 0}
        with Client(self._target, timeout_s=30.0) as client:
            while not self._stopping.wait(PROBE_S):
                job_id = new_job_id(QUEUE)
                began = time.monotonic()
                self._journal.write("submit", key=job_id, wish={"queue": QUEUE})
                try:
                    client.submit("faults.async", payload, queue=QUEUE, job_id=job_id, priority=200)
                except CallError:
                    continue
                self.accepted.append((began, time.monotonic(), job_id))
                self._journal.write("accepted", key=job_id, job=job_id, existed=False)

    def first_after(self, moment: float) -> tuple[float, str] | None:
        """How long after it a call that began later was accepted, and its job."""
        for began, ended, job_id in [*self.accepted]:
            if began >= moment:
                return ended - moment, job_id
        return None


class Measures:
    """Times of what was killed.

    Args:
        world: With nothing else under way.
        client: Of any server.
        seed: Of which server is killed.
    """

    def __init__(self, world: World, client: Client, seed: int) -> None:
        self.world = world
        self.client = client
        self.rng = random.Random(seed)
        self.times: dict[str, list[float]] = defaultdict(list)
        self.journal = Journal(world.folder / "probe.jsonl", "probe")
        self.begins = Follower(world.folder, "begin")

    def _until(self, condition: Callable[[], bool], within_s: float = LONGEST_S) -> bool:
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            self.world.look()
            if condition():
                return True
            time.sleep(LOOK_S)
        return False

    def _hold(self, victim: Managed) -> dict[str, int]:
        """Has the victim run some long jobs; returns them with their tokens."""
        payload = {"kind": "slow", "rows": 1, "row_ms": 60_000, "fails": 0}
        since = time.monotonic()
        ids = [new_job_id(QUEUE) for _ in range(HELD)]
        for job_id in ids:
            self.journal.write("submit", key=job_id, wish={"queue": QUEUE})
            self.client.submit(
                "faults.async", payload, queue=QUEUE, job_id=job_id, priority=250, labels=LABELS
            )
            self.journal.write("accepted", key=job_id, job=job_id, existed=False)

        def all_run() -> bool:
            return {event["job"] for event in self.begins.since(since)} >= {*ids}

        self._until(all_run)
        for job_id in ids:
            self.journal.write("cancel", job=job_id)
        return {
            event["job"]: event["token"]
            for event in self.begins.since(since)
            if event["job"] in ids and event["pid"] == victim.pid
        }

    def _free(self) -> None:
        """Ends the long jobs that are left."""
        try:
            self.client.cancel_jobs(QUEUE, labels=LABELS).wait()
        except JobwireError:
            return

    def worker(self, name: str, label: str, down_s: float, also: Managed | None = None) -> None:
        """Kills a worker with its jobs, and a server too if asked; times their next starts."""
        victim = self.world.workers[name]
        since = time.monotonic()
        # It takes jobs again, and so may take some of those that follow.
        self._until(lambda: any(event["pid"] == victim.pid for event in self.begins.since(since)))
        held = self._hold(victim)
        killed = time.monotonic()
        if also is not None:
            also.kill(KILLED, 0.0)
        victim.kill(KILLED, down_s)

        def again() -> dict[str, float]:
            found: dict[str, float] = {}
            for event in self.begins.since(killed):
                if event["token"] > held.get(event["job"], 1 << 60):
                    found.setdefault(event["job"], event["t"] - killed)
            return found

        self._until(lambda: len(again()) == len(held))
        found = again()
        self.times[label] += [found.get(job_id, LONGEST_S) for job_id in held]
        self._free()

    def server(self, label: str) -> None:
        """Kills a server; times the next accepted submission, and the next start of a handler."""
        victim = self.world.servers[self.rng.choice(sorted(self.world.servers))]
        self._probe(label, lambda: victim.kill(KILLED, 1.0))

    def store(self, label: str) -> None:
        """Kills the store; times the next accepted submission."""
        store = next(iter(self.world.stores.values()))
        self._probe(label, lambda: store.act("kill", KILLED, 0.0))

    def _probe(self, label: str, kill: Callable[[], object]) -> None:
        with Probe(self.world.target, self.journal) as probe:
            self._until(lambda: len(probe.accepted) >= 5)
            killed = time.monotonic()
            kill()
            self._until(lambda: probe.first_after(killed) is not None)
            first = probe.first_after(killed)
            self.times[f"{label}: next submission"].append(first[0] if first else LONGEST_S)

            def started() -> list[float]:
                later = {job for began, _, job in [*probe.accepted] if began >= killed}
                return [
                    event["t"] - killed
                    for event in self.begins.since(killed)
                    if event["job"] in later
                ]

            self._until(lambda: bool(started()))
            self.times[f"{label}: next start"].append(min(started(), default=LONGEST_S))


def measure(world: World, client: Client, seconds: float, seed: int) -> dict[str, list[float]]:
    """Kills one after the other for so long; returns seconds by what was timed."""
    measures = Measures(world, client, seed)
    end = time.monotonic() + seconds
    round_number = 0
    while time.monotonic() < end:
        round_number += 1
        measures.worker("stream-b", "stream worker, another id", 3.0)
        measures.worker("stream-a", "stream worker, the same id", 0.0)
        measures.worker("unary-b", "unary worker, another id", 3.0)
        measures.worker("unary-a", "unary worker, the same id", 0.0)
        server = measures.rng.choice(sorted(world.servers))
        measures.worker("stream-b", "worker and server", 3.0, also=world.servers[server])
        measures.server("one of three servers" if len(world.servers) == 3 else "a server")
        if world.replicas is None:
            measures.store("bundled store" if world.config == "one" else "store")
    return dict(measures.times)
