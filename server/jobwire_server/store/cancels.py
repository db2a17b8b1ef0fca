"""Cancellations that wait for their workers, in the store."""

from __future__ import annotations

from jobwire_server.domain.model import CancelNotice
from jobwire_server.store import keys
from jobwire_server.store.runner import ScriptRunner


class CancelStore:
    """What workers are to be told of. Methods raise StoreUnavailable."""

    def __init__(self, runner: ScriptRunner) -> None:
        self._runner = runner

    async def take(self, queue: str, worker_id: str) -> list[CancelNotice]:
        """Returns the jobs of a queue that the worker is to stop and was not told of; from now on
        it was.
        """
        (flat,) = await self._runner.run("cancels", keys.queue_prefix(queue), [worker_id])
        parts = iter(flat)
        return [
            CancelNotice(
                f"{queue}-{ulid.decode()}",
                int(token),
                reason.decode(errors="replace"),
                int(deadline),
            )
            for ulid, token, deadline, reason in zip(parts, parts, parts, parts, strict=True)
        ]
