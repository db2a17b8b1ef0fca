"""Workers in the store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jobwire_server.errors import Superseded
from jobwire_server.model import Worker, WorkerSpec, WorkerStatus
from jobwire_server.store import codec, keys
from jobwire_server.store.scripts import ScriptRunner


@dataclass(frozen=True, slots=True)
class LostWorker:
    """A worker that fell silent and whose jobs are not back in their queues yet."""

    worker_id: str
    lost_at_ms: int
    queues: tuple[str, ...]


class SignOfLife(NamedTuple):
    """A worker that was heard of."""

    worker_id: str
    session: str = ""
    """Of its stream; '' for one that makes calls."""
    stats: str = ""
    """Its counters as JSON; '' if they did not change."""


class AttachedWorker(NamedTuple):
    """What an attachment found."""

    now_ms: int
    status: WorkerStatus
    same_process: bool
    """The worker was known, and it is the same process that attached again."""
    other_process: bool
    """The worker was known, but as another process, which must be taken for dead."""
    stats: str
    """The counters of the same process so far, as JSON; '' for none."""


def superseded(worker_id: str, since_ms: int) -> Superseded:
    """Returns what the older of two streams of a worker is ended with.

    Args:
        worker_id: Of both.
        since_ms: When the newer one attached, Unix ms by the store's clock.
    """
    return Superseded(
        f"another stream attached as {worker_id}; if it is not your own, two workers share the id",
        metadata={"worker_id": worker_id, "since_ms": str(since_ms)},
    )


class WorkerStore:
    """The registry of workers. Methods raise StoreUnavailable."""

    def __init__(self, runner: ScriptRunner) -> None:
        self._runner = runner

    async def register(self, spec: WorkerSpec) -> int:
        """Makes the worker known and READY; returns the store's time."""
        now: int = await self._run(
            "worker_register", [self._shift, spec.worker_id, codec.encode_worker(spec)]
        )
        return now

    async def attach(
        self, spec: WorkerSpec, session: str, instance: str, server_id: str
    ) -> AttachedWorker:
        """Makes the worker known, and the stream called `session` the one that counts."""
        now, status, former, stats = await self._run(
            "worker_attach",
            [
                self._shift,
                spec.worker_id,
                codec.encode_worker(spec),
                session,
                instance,
                server_id,
            ],
        )
        return AttachedWorker(now, WorkerStatus(status), former == 1, former == 2, stats.decode())

    async def broken(self, worker_id: str, session: str) -> bool:
        """Notes that the stream broke; False if another one counts by now."""
        return bool(await self._run("worker_break", [self._shift, worker_id, session, "broken", 0]))

    async def gone(self, worker_id: str, session: str, retain_ms: int) -> bool:
        """Marks the worker LOST because it did not come back; False if another stream counts."""
        return bool(
            await self._run("worker_break", [self._shift, worker_id, session, "gone", retain_ms])
        )

    async def touch(self, signs: Sequence[SignOfLife]) -> list[WorkerStatus | Superseded | None]:
        """Records signs of life.

        Returns:
            For each the worker's status, None for one that is not known, and an error where
            another stream of the worker counts by now.
        """
        args: list[Any] = [self._shift]
        for sign in signs:
            args += sign
        answers = await self._run("worker_touch", args)
        return [
            superseded(sign.worker_id, -status)
            if status < 0
            else (WorkerStatus(status) if status else None)
            for sign, status in zip(signs, answers, strict=True)
        ]

    async def set_status(self, worker_id: str, status: WorkerStatus) -> bool:
        """Changes whether a live worker takes jobs; False if there is none of this name."""
        return bool(await self._run("worker_status", [worker_id, int(status)]))

    async def remove(self, worker_id: str, session: str = "") -> bool:
        """Forgets the worker; False if it was not known.

        Raises:
            Superseded: Another stream than the one called `session` counts by now.
        """
        answer = int(await self._run("worker_remove", [worker_id, session]))
        if answer < 0:
            raise superseded(worker_id, -answer)
        return bool(answer)

    async def sweep(self, timeout_ms: int, retain_ms: int, most: int) -> list[LostWorker]:
        """Marks silent workers LOST; returns those whose jobs are to be taken back."""
        reply = await self._run("worker_sweep", [self._shift, timeout_ms, retain_ms, most])
        return [
            LostWorker(
                name.decode(),
                int(float(lost_at)),
                codec.decode_worker(name.decode(), spec).queues if spec else (),
            )
            for name, lost_at, spec in zip(reply[::3], reply[1::3], reply[2::3], strict=True)
        ]

    async def jobs_are_back(self, worker_id: str) -> None:
        """Notes that nothing of a lost worker's is left to take back."""
        await self._runner.command("ZREM", keys.LOST_WORKERS, worker_id)

    async def read(self, worker_id: str) -> Worker | None:
        """Returns the worker as it stands, without its leases."""
        found = _workers(await self._run("worker_read", ["ids", worker_id]))
        return found[0] if found else None

    async def page(self, after: str, most: int) -> list[Worker]:
        """Returns up to `most` workers whose ids sort after `after`."""
        return _workers(await self._run("worker_read", ["page", after, most]))

    async def _run(self, script: str, args: list[Any]) -> Any:
        return await self._runner.run(script, keys.WORKERS, args)

    @property
    def _shift(self) -> int:
        return self._runner.clock_shift_ms


_COUNTERS = frozenset({"credits", "assigned", "succeeded", "failed", "stuck"})


def _counters(stats: bytes) -> dict[str, Any]:
    """Reads what a server wrote, perhaps a newer one."""
    return {name: count for name, count in json.loads(stats).items() if name in _COUNTERS}


def _workers(reply: list[Any]) -> list[Worker]:
    workers = []
    for name, seen, flat in zip(reply[::3], reply[1::3], reply[2::3], strict=True):
        fields = codec.pairs(flat)
        status = WorkerStatus(int(fields[b"status"]))
        lost_at = int(fields.get(b"lost", 0))
        workers.append(
            Worker(
                spec=codec.decode_worker(name.decode(), fields[b"spec"]),
                status=status,
                registered_at_ms=int(fields[b"at"]),
                last_seen_at_ms=int(float(seen)) or lost_at,
                lost_at_ms=lost_at,
                attached=fields.get(b"up") == b"1",
                server_id=fields.get(b"server", b"").decode(),
                **_counters(fields.get(b"stats", b"{}")),
            )
        )
    return workers
