"""The workers that talk to this server: what they serve, and whether they take jobs.

Both are cached, so that a claim costs no look at the registry.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping, Sequence
from time import monotonic

from jobwire_server.domain.background import Alarm
from jobwire_server.domain.errors import StoreUnavailable, WorkerNotFound
from jobwire_server.domain.model import Worker, WorkerSpec, WorkerStatus
from jobwire_server.store import keys
from jobwire_server.store.notices import Listener, Notices
from jobwire_server.store.workers import SignOfLife, WorkerStore
from jobwire_server.workers.arrival import arrive
from jobwire_server.workers.frames import LEAVE_MS
from jobwire_server.workers.known_worker import KnownWorker
from jobwire_server.workers.waiting_calls import WaitingCalls

IDLE_S = 60.0
"""A worker not heard of for so long is dropped from the cache."""


class KnownWorkers:
    """Knows the workers of this server.

    Args:
        store: The registry.
        waiting: Calls that end when their worker changes.
        notices: Tell of workers that change through other servers.
        changed: Set off when one did, and may wait by a description that is no longer its own.
    """

    def __init__(
        self, store: WorkerStore, waiting: WaitingCalls, notices: Notices, changed: Alarm
    ) -> None:
        self._store = store
        self._waiting = waiting
        self._notices = notices
        self._has_changed = changed
        self._listener = Listener(self._changed, self._any_changed)
        self._listens = False
        self._entries: dict[str, KnownWorker] = {}
        self._attached: set[str] = set()

    def __len__(self) -> int:
        return len(self._entries)

    async def register(self, spec: WorkerSpec, instance: str = "") -> bool:
        """Make the worker known; return True if a process of its id has left jobs behind."""
        await self._listen()
        registered = await arrive(
            lambda not_after_ms: self._store.register(spec, instance, not_after_ms)
        )
        self._entries[spec.worker_id] = KnownWorker(spec, registered.status)
        return registered.left

    async def get(self, worker_id: str) -> tuple[WorkerSpec, WorkerStatus]:
        """Return a live worker.

        Raises:
            WorkerNotFound: It never registered, was lost, or left.
        """
        entry = self._entries.get(worker_id)
        if entry is None or entry.stale:
            await self._listen()
            entry = self._remember(worker_id, await self._store.read(worker_id))
        return entry.spec, entry.status

    async def _listen(self) -> None:
        """Hear of workers that change from now on; without that the cache is a second behind."""
        if self._listens:
            return
        self._listens = True
        try:
            await self._notices.listen(keys.WORKER_EVENTS, self._listener)
        except StoreUnavailable:
            self._listens = False

    def _changed(self, data: bytes) -> None:
        """Read a worker again before its next claim: another process may have its id by now."""
        worker_id = data.decode().partition(" ")[0]
        entry = self._entries.get(worker_id)
        if entry is not None and worker_id not in self._attached:
            entry.stale = True
            self._has_changed.due_in(0)

    def _any_changed(self) -> None:
        for worker_id in [*self._entries]:
            self._changed(worker_id.encode())

    def learn(self, spec: WorkerSpec, status: WorkerStatus) -> None:
        """Take over what an attachment told about a worker, and keep it until `forget`."""
        self._entries[spec.worker_id] = KnownWorker(spec, status)
        self._attached.add(spec.worker_id)

    def forget(self, worker_id: str) -> None:
        """Drop what is cached of a worker whose stream is over."""
        self._attached.discard(worker_id)
        self._entries.pop(worker_id, None)

    def in_turn(self, worker_id: str, spec: WorkerSpec, queues: Sequence[str]) -> tuple[str, ...]:
        """Return the queues of a claim, in the order in which they have their turn.

        Args:
            worker_id: The worker.
            spec: What it serves.
            queues: Narrow its queues; empty: all of them.
        """
        chosen = spec.queues
        if queues:
            chosen = tuple(queue for queue in chosen if queue in queues)
        entry = self._entries.get(worker_id)
        return chosen if entry is None else entry.in_turn(chosen)

    def leave_by_ms(self, worker_id: str, now_ms: int) -> int:
        """Return until when a worker that is to leave has time, Unix ms."""
        entry = self._entries.get(worker_id)
        return now_ms + LEAVE_MS if entry is None else entry.leave_by(now_ms)

    async def lease_ms(self, worker_id: str, default: int) -> int:
        """Return the lease that the worker asked for, or the default where it asked for none."""
        entry = self._entries.get(worker_id)
        if entry is None:
            worker = await self._store.read(worker_id)
            if worker is None or worker.status is WorkerStatus.LOST:
                # Whatever it writes will be refused for its lease, not for its name.
                return default
            entry = self._remember(worker_id, worker)
        return entry.spec.lease_ms or default

    @property
    def stuck(self) -> int:
        """Handlers that do not stop, of workers that make calls; asked from any thread."""
        return sum(entry.stuck for entry in list(self._entries.values()))

    async def note_stuck(self, worker_id: str, stuck: int) -> None:
        """Note how many handlers of a worker that makes calls do not stop."""
        entry = self._entries.get(worker_id)
        # A stream's own session tells of it.
        if worker_id in self._attached or entry is None or entry.stuck == stuck:
            return
        entry.stuck = stuck
        await self._store.touch([SignOfLife(worker_id, stats=json.dumps({"stuck": stuck}))])

    async def set_status(
        self,
        worker_id: str,
        wanted: WorkerStatus | None,
        told: Mapping[str, str] | None = None,
        instance: str = "",
    ) -> WorkerStatus:
        """Change whether the worker takes jobs, and what it tells of itself; return its status.

        Args:
            worker_id: The worker.
            wanted: Its status; None: no change.
            told: What it tells of itself; None: no change.
            instance: Of its process; '' for whichever has the id.

        Raises:
            WorkerNotFound: There is no live worker of this name, or it is another process.
        """
        status = await self._store.set_status(worker_id, wanted, told, instance)
        if status is None:
            self._entries.pop(worker_id, None)
            raise WorkerNotFound(worker_id)
        entry = self._entries.get(worker_id)
        if entry is not None:
            entry.changes += 1
        self._note(worker_id, status)
        return status

    def _note(self, worker_id: str, status: WorkerStatus) -> None:
        entry = self._entries.get(worker_id)
        if entry is not None and entry.status is not status:
            entry.change(status)
            # It takes no more jobs, or takes jobs again.
            self._waiting.interrupt({worker_id})

    async def remove(
        self, worker_id: str, session: str = "", since_ms: int = 0, instance: str = ""
    ) -> WorkerSpec | None:
        """Forget the worker; return what it was, None if it was not known, or is another process.

        Args:
            worker_id: The worker.
            session: The stream that it leaves by; '' for one that makes calls.
            since_ms: Since when that stream counts.
            instance: Of its process; '' for whichever has the id.

        Raises:
            Superseded: A newer stream of the worker counts by now; nothing was done.
        """
        worker = await self._store.read(worker_id)
        removed = await self._store.remove(worker_id, session, since_ms, instance)
        self._entries.pop(worker_id, None)
        return worker.spec if worker and removed else None

    def _remember(self, worker_id: str, worker: Worker | None) -> KnownWorker:
        if worker is None or worker.status is WorkerStatus.LOST:
            raise WorkerNotFound(worker_id)
        entry = self._entries.get(worker_id)
        if entry is None:
            entry = self._entries[worker_id] = KnownWorker(worker.spec, worker.status)
        entry.spec, entry.stale = worker.spec, False
        self._note(worker_id, worker.status)
        return entry

    def changes(self, worker_ids: Iterable[str]) -> list[int]:
        """Return how often the status of each worker was changed here, for `follow`."""
        entries = [self._entries.get(worker_id) for worker_id in worker_ids]
        return [entry.changes if entry is not None else 0 for entry in entries]

    def follow(
        self,
        worker_ids: Iterable[str],
        changes: Iterable[int],
        statuses: Iterable[WorkerStatus | None],
    ) -> None:
        """Take over what the registry says of workers that live, in the order of their ids.

        Args:
            worker_ids: The workers.
            changes: As before the registry was asked: what it said must not hide a change since.
            statuses: What it said; None: there is no such worker.
        """
        now = monotonic()
        for worker_id, before, status in zip(worker_ids, changes, statuses, strict=True):
            entry = self._entries.get(worker_id)
            if entry is None:
                continue
            if status is None or status is WorkerStatus.LOST:
                del self._entries[worker_id]
                continue
            entry.heard_at = now
            if entry.changes == before:
                self._note(worker_id, status)

    async def read_again(self, worker_ids: Iterable[str]) -> set[str]:
        """Read those of the workers that may have registered anew; return which of them did, or
        are gone.
        """
        changed = set()
        for worker_id in [*worker_ids]:
            entry = self._entries.get(worker_id)
            if entry is None or not entry.stale:
                continue
            former = entry.spec
            worker = await self._store.read(worker_id)
            if worker is None or worker.status is WorkerStatus.LOST:
                self._entries.pop(worker_id, None)
            elif self._remember(worker_id, worker).spec == former:
                continue
            changed.add(worker_id)
        return changed

    def drop_idle(self, but: Container[str]) -> None:
        """Drop workers not heard of for long.

        Args:
            but: Those that are kept all the same.
        """
        oldest = monotonic() - IDLE_S
        for worker_id in [
            name
            for name, entry in self._entries.items()
            if entry.heard_at < oldest and name not in but and name not in self._attached
        ]:
            del self._entries[worker_id]

    async def rest(self) -> None:
        """Hear of no changes while every worker here has a stream, which hears of its own."""
        if self._listens and self._entries.keys() <= self._attached:
            self._listens = False
            await self._notices.silence(keys.WORKER_EVENTS, self._listener)
