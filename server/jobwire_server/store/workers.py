"""Workers in the store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobwire_server.model import Worker, WorkerSpec, WorkerStatus
from jobwire_server.store import codec, keys
from jobwire_server.store.scripts import ScriptRunner


@dataclass(frozen=True, slots=True)
class LostWorker:
    """A worker that fell silent and whose jobs are not back in their queues yet."""

    worker_id: str
    lost_at_ms: int
    queues: tuple[str, ...]


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

    async def touch(self, worker_ids: Sequence[str]) -> list[WorkerStatus | None]:
        """Records a sign of life of each; answers its status, None for one that is not known."""
        answers = await self._run("worker_touch", [self._shift, *worker_ids])
        return [WorkerStatus(status) if status else None for status in answers]

    async def set_status(self, worker_id: str, status: WorkerStatus) -> bool:
        """Changes whether a live worker takes jobs; False if there is none of this name."""
        return bool(await self._run("worker_status", [worker_id, int(status)]))

    async def remove(self, worker_id: str) -> bool:
        """Forgets the worker; False if it was not known."""
        return bool(await self._run("worker_remove", [worker_id]))

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
            )
        )
    return workers
