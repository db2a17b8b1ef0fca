"""The workers that make calls: the registry is told that they live.

Their signs of life are gathered, so that a thousand of them cost one call a second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic

from jobwire_server.domain.background import Alarm, Loop
from jobwire_server.domain.errors import WorkerNotFound
from jobwire_server.domain.model import WorkerStatus
from jobwire_server.store.group_commit import Backlog, GroupCommit
from jobwire_server.store.workers import SignOfLife, WorkerStore
from jobwire_server.workers.known_workers import KnownWorkers
from jobwire_server.workers.waiting_calls import WaitingCalls

FLUSH_S = 1.0
"""How often gathered signs of life go to the store; also how long a change of status made through
another server may go unseen here. Well below any worker timeout.
"""
AT_ONCE = 500
"""Workers of one call."""


class Callers:
    """Tells the registry which workers are alive that make calls. `start` and `stop` are
    idempotent.

    Args:
        store: The registry.
        backlog: What waits for the store.
        known: Hear what the registry says of them.
        waiting: Calls that end when their worker's description changes.
        changed: Goes off when one may have.
    """

    def __init__(
        self,
        store: WorkerStore,
        backlog: Backlog,
        known: KnownWorkers,
        waiting: WaitingCalls,
        changed: Alarm,
    ) -> None:
        self._store = store
        self._known = known
        self._waiting = waiting
        self._next_flush = monotonic() + FLUSH_S
        self._heard: set[str] = set()
        self._present: Counter[str] = Counter()
        self._moved: set[str] = set()
        """Those whose held jobs changed."""
        self._touches: GroupCommit[str, WorkerStatus | None] = GroupCommit(self._touch, backlog)
        self._loop = Loop("signs-of-life", self._flush, error_pause_s=FLUSH_S, alarm=changed)

    def start(self) -> None:
        """Begin to flush signs of life."""
        self._loop.start()

    async def stop(self) -> None:
        """End; tolerates never started."""
        await self._loop.stop()

    def hear(self, worker_id: str) -> None:
        """Note a sign of life of a worker that any call named; it reaches the store within a
        second.
        """
        self._heard.add(worker_id)

    def moved(self, worker_id: str) -> None:
        """Note that a worker that makes calls holds more jobs or fewer; told within a second."""
        self._moved.add(worker_id)

    @contextmanager
    def present(self, worker_id: str) -> Iterator[None]:
        """Count the worker as alive for as long as a call of its waits here."""
        self._present[worker_id] += 1
        try:
            yield
        finally:
            self._present[worker_id] -= 1
            if not self._present[worker_id]:
                del self._present[worker_id]

    async def beat(self, worker_id: str) -> WorkerStatus:
        """Record a heartbeat in the store at once; return the worker's status.

        Raises:
            WorkerNotFound: It never registered, was lost, or left.
        """
        status = await self._touches.one(worker_id)
        if status is None or status is WorkerStatus.LOST:
            raise WorkerNotFound(worker_id)
        self._heard.discard(worker_id)
        return status

    async def _touch(
        self, worker_ids: Sequence[str], moved: Sequence[str] = ()
    ) -> list[WorkerStatus | None]:
        changes = self._known.changes(worker_ids)
        signs = [SignOfLife(worker_id) for worker_id in worker_ids]
        told = await self._store.touch(signs, moved)
        # A newer stream supersedes streams only, so nobody is superseded who makes calls.
        statuses = [one if isinstance(one, WorkerStatus) else None for one in told]
        self._known.follow(worker_ids, changes, statuses)
        return statuses

    async def _flush(self) -> float:
        # Calls that wait by a description which is no longer their worker's end.
        changed = await self._known.read_again(self._present)
        if changed:
            self._waiting.interrupt(changed)
        early_s = self._next_flush - monotonic()
        if early_s > 0:
            return early_s
        self._next_flush = monotonic() + FLUSH_S
        due = [*self._heard.union(self._present, self._moved)]
        moved, self._moved = self._moved, set()
        self._heard.clear()
        try:
            for at in range(0, len(due), AT_ONCE):
                part = due[at : at + AT_ONCE]
                await self._touch(part, [one for one in part if one in moved])
        except Exception:
            self._heard.update(due)
            self._moved |= moved
            raise
        finally:
            self._known.drop_idle({*self._heard, *self._present})
        await self._known.rest()
        return FLUSH_S
