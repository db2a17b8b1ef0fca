"""Workers in the store."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jobwire_server.domain.errors import Superseded
from jobwire_server.domain.model import Former, Worker, WorkerSpec, WorkerStatus
from jobwire_server.store import codec, keys
from jobwire_server.store.runner import ScriptRunner
from jobwire_server.store.upkeep import WHENEVER_MS

SERVER_SILENT_MS = 3_000
"""A server reports twice a second; after so long without a report it counts as silent."""


@dataclass(frozen=True, slots=True)
class LostWorker:
    """A worker that fell silent, and whose jobs are not back in their queues yet."""

    worker_id: str
    lost_at_ms: int
    queues: tuple[str, ...]
    heard_at_ms: int = 0
    """Its last sign of life, by the store's clock."""
    lease_ms: int = 0
    """The lease that it asked for; 0 for the server's default."""
    unheard: bool = False
    """Its server fell silent too, or its process lives and says nothing: its jobs may be running.
    """


class SignOfLife(NamedTuple):
    """A sign of life of a worker."""

    worker_id: str
    session: str = ""
    """Of its stream; '' for one that makes calls."""
    since_ms: int = 0
    """When that stream attached, by the store's clock."""
    instance: str = ""
    """Of its process."""
    stats: str = ""
    """Its counters as JSON; '' if they did not change."""
    told: str = ""
    """What it tells of itself as JSON; '' if that did not change."""


class Registered(NamedTuple):
    """What a registration came to."""

    status: WorkerStatus
    """READY, or what it was where the process is the same."""
    left: bool
    """True if a process of that id has left jobs behind, for the next `sweep`."""


class AnotherLives(Exception):
    """The id is that of another process, which may live; nothing was done.

    Args:
        now_ms: The store's time.
    """

    def __init__(self, now_ms: int) -> None:
        super().__init__(now_ms)
        self.now_ms = now_ms


class AttachedWorker(NamedTuple):
    """What an attachment found."""

    since_ms: int
    """Since when the stream counts: later than every earlier stream of the worker."""
    status: WorkerStatus
    former: Former
    """Who was known by the worker's id."""
    stats: str
    """The counters of the same process so far, as JSON; '' for none."""


def superseded(worker_id: str, since_ms: int, same_process: bool) -> Superseded:
    """Return the error that ends the older of two streams of a worker.

    Args:
        worker_id: The worker of both.
        since_ms: When the newer one attached, Unix ms by the store's clock.
        same_process: Both belong to one process.
    """
    whose = "a newer one of its own" if same_process else "one of another process"
    remedy = "" if same_process else ": two workers share the id, give each its own"
    return Superseded(
        f"another stream attached as {worker_id}, {whose}{remedy}",
        metadata={
            "worker_id": worker_id,
            "since_ms": str(since_ms),
            "same_process": str(same_process).lower(),
        },
    )


class WorkerStore:
    """The registry of workers. Methods raise StoreUnavailable."""

    def __init__(self, runner: ScriptRunner, server_id: str = "") -> None:
        self._runner = runner
        self._server_id = server_id

    async def register(
        self, spec: WorkerSpec, instance: str = "", not_after_ms: int = WHENEVER_MS
    ) -> Registered:
        """Register the worker, or replace its description.

        Args:
            spec: Its description.
            instance: Names its process; '' if it did not.
            not_after_ms: The store's time after which it is too late to take the id from another
                process that may live; 0: it is not to be taken.

        Raises:
            AnotherLives: It was too late.
        """
        now, left, status = await self._run(
            "worker_register",
            [
                spec.worker_id,
                codec.encode_worker(spec),
                self._server_id,
                instance,
                not_after_ms,
            ],
        )
        if not status:
            raise AnotherLives(now)
        return Registered(WorkerStatus(status), bool(left))

    async def attach(
        self,
        spec: WorkerSpec,
        session: str,
        instance: str,
        attempt: int = 0,
        not_after_ms: int = WHENEVER_MS,
    ) -> AttachedWorker:
        """Register the worker, and make the stream called `session` the one that counts.

        Args:
            spec: Its description.
            session: Unique over all servers.
            instance: Names its process.
            attempt: The process's own number of this attachment; 0: unknown.
            not_after_ms: As for `register`.

        Raises:
            AnotherLives: It was too late.
            Superseded: A later attempt of the process counts.
        """
        since, status, former, stats = await self._run(
            "worker_attach",
            [
                spec.worker_id,
                codec.encode_worker(spec),
                session,
                instance,
                self._server_id,
                attempt,
                SERVER_SILENT_MS,
                not_after_ms,
            ],
        )
        if former == Former.LIVES:
            raise AnotherLives(since)
        if former == Former.LATER:
            raise superseded(spec.worker_id, since, same_process=True)
        return AttachedWorker(since, WorkerStatus(status), Former(former), stats.decode())

    async def broken(self, worker_id: str, session: str, since_ms: int) -> int:
        """Note that the stream broke; return the store's time, 0 if a newer stream counts."""
        now: int = await self._run(
            "worker_break", [worker_id, session, since_ms, "broken", 0, 0, ""]
        )
        return now

    async def gone(
        self,
        worker_id: str,
        session: str,
        since_ms: int,
        *,
        retain_ms: int,
        not_after_ms: int,
        lives: bool,
    ) -> bool | None:
        """Mark the worker LOST, because it did not come back.

        Args:
            worker_id: The worker.
            session: Its stream.
            since_ms: Since when that counted.
            retain_ms: How long lost workers are listed.
            not_after_ms: The store's time after which it is too late to judge.
            lives: Its connection held until the end, though it said nothing.

        Returns:
            False if a newer stream counts; None, and nothing is done, if it is after
            `not_after_ms`.
        """
        now: int = await self._run(
            "worker_break",
            [
                worker_id,
                session,
                since_ms,
                "gone",
                retain_ms,
                not_after_ms,
                "u" if lives else "c",
            ],
        )
        return None if now < 0 else now > 0

    async def touch(
        self, signs: Sequence[SignOfLife], moved: Sequence[str] = ()
    ) -> list[WorkerStatus | Superseded | None]:
        """Record signs of life.

        Args:
            signs: Of the workers.
            moved: The ids of those whose held jobs or credits changed, or what they tell of
                themselves: for whoever watches workers.

        Returns:
            For each the worker's status, None for an unknown worker, and an error where a newer
            stream of the worker counts by now.
        """
        args: list[Any] = [self._server_id, " ".join(moved)]
        for sign in signs:
            args += sign
        answers = await self._run("worker_touch", args)
        return [
            superseded(sign.worker_id, status[0], status[1].decode() == sign.instance)
            if isinstance(status, list)
            else (WorkerStatus(status) if status else None)
            for sign, status in zip(signs, answers, strict=True)
        ]

    async def set_status(
        self,
        worker_id: str,
        status: WorkerStatus | None,
        told: Mapping[str, str] | None = None,
        instance: str = "",
    ) -> WorkerStatus | None:
        """Change whether a live worker takes jobs, and what it tells of itself.

        Args:
            worker_id: The worker.
            status: None: no change.
            told: Replaces what it told before; None: no change.
            instance: Of its process; '' for whichever has the id.

        Returns:
            Its status then; None if there is no such worker.
        """
        told_text = "" if told is None else json.dumps(dict(told))
        found = await self._run(
            "worker_status", [worker_id, int(status or 0) or "", told_text, instance]
        )
        return WorkerStatus(found) if found else None

    async def remove(
        self, worker_id: str, session: str = "", since_ms: int = 0, instance: str = ""
    ) -> bool:
        """Forget the worker; False if it was not known, or another process than `instance` has its
        id.

        Raises:
            Superseded: A newer stream than the one called `session` counts by now.
        """
        answer = int(await self._run("worker_remove", [worker_id, session, since_ms, instance]))
        if answer < 0:
            raise superseded(worker_id, -answer, same_process=False)
        return bool(answer)

    async def sweep(
        self, timeout_ms: int, retain_ms: int, most: int, not_after_ms: int
    ) -> tuple[int, list[LostWorker]]:
        """Mark silent workers LOST, and report that this server lives.

        Args:
            timeout_ms: The silence that makes a worker lost.
            retain_ms: How long lost workers are listed.
            most: The most workers of each kind.
            not_after_ms: The store's time after which it is too late to judge who is silent; 0 to
                leave everybody alone.

        Returns:
            The store's time, and the workers whose jobs must be taken back.
        """
        now, *lost = await self._run(
            "worker_sweep",
            [timeout_ms, retain_ms, most, self._server_id, not_after_ms],
        )
        found = zip(lost[::3], lost[1::3], lost[2::3], strict=True)
        return now, [_lost(name.decode(), int(float(at)), left) for name, at, left in found]

    async def jobs_are_back(self, worker_id: str) -> None:
        """Note that all jobs of a lost worker are back."""
        await self._runner.command("ZREM", keys.LOST_WORKERS, worker_id)
        await self._runner.command("HDEL", keys.LEFT_WORKERS, worker_id)

    async def read(self, worker_id: str) -> Worker | None:
        """Return the worker as it stands, without its leases."""
        found = await self.read_many([worker_id])
        return found[0] if found else None

    async def read_many(self, worker_ids: Sequence[str]) -> list[Worker]:
        """Return the known ones among these workers, as they stand, without their leases."""
        return _workers(await self._run("worker_read", ["ids", *worker_ids]))

    async def page(self, after: str, most: int) -> list[Worker]:
        """Return up to `most` workers whose ids sort after `after`."""
        return _workers(await self._run("worker_read", ["page", after, most]))

    async def _run(self, script: str, args: list[Any]) -> Any:
        return await self._runner.run(script, keys.WORKERS, args)


_COUNTERS = frozenset({"credits", "assigned", "succeeded", "failed", "stuck", "held_jobs"})


def _counters(stats: bytes) -> dict[str, Any]:
    """Read what a server wrote, perhaps one of a newer release."""
    return {name: count for name, count in json.loads(stats).items() if name in _COUNTERS}


def _lost(worker_id: str, lost_at_ms: int, left: bytes) -> LostWorker:
    if not left:
        return LostWorker(worker_id, lost_at_ms, ())
    kind, heard, text = left.split(b" ", 2)
    spec = codec.decode_worker(worker_id, text) if text else None
    return LostWorker(
        worker_id,
        lost_at_ms,
        spec.queues if spec else (),
        int(float(heard)),
        spec.lease_ms if spec else 0,
        kind == b"u",
    )


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
                told=json.loads(fields.get(b"meta", b"{}")),
                **_counters(fields.get(b"stats", b"{}")),
            )
        )
    return workers
