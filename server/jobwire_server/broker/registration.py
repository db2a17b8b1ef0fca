"""Registration: workers come, and go with what they hold."""

from __future__ import annotations

from jobwire_server.broker.held_jobs import HeldJobs
from jobwire_server.domain.errors import ServerDraining
from jobwire_server.domain.model import WorkerSpec
from jobwire_server.workers.known_workers import KnownWorkers
from jobwire_server.workers.reaper import Reaper


class Registration:
    """Makes workers known, and lets them go.

    Args:
        known: The workers of this server.
        held: Ends what a worker holds that leaves.
        reaper: Takes back what another process of a worker's id held.
    """

    def __init__(self, known: KnownWorkers, held: HeldJobs, reaper: Reaper) -> None:
        self._known = known
        self._held = held
        self._reaper = reaper
        self._draining = False

    def drain(self) -> None:
        """Take no new workers from now on."""
        self._draining = True

    async def register(self, spec: WorkerSpec, instance: str = "") -> None:
        """Make a worker known and READY; what another process of its id held goes back.

        Args:
            spec: What it is and serves.
            instance: Of its process; '' if that was not said.

        Raises:
            ServerDraining: Register at another server.
        """
        if self._draining:
            raise ServerDraining
        if await self._known.register(spec, instance):
            await self._reaper.sweep()

    async def deregister(
        self, worker_id: str, session: str = "", since_ms: int = 0, instance: str = ""
    ) -> int:
        """End a worker; return how many jobs of its went back to their queues.

        Args:
            worker_id: The worker.
            session: The stream that it leaves by; '' for one that makes calls.
            since_ms: Since when that stream counts.
            instance: Of the worker's process; '' for whichever has the id.

        Raises:
            Superseded: A newer stream of the worker counts by now; nothing was done.
        """
        spec = await self._known.remove(worker_id, session, since_ms, instance)
        released = 0
        for queue in spec.queues if spec else ():
            released += await self._held.end_for_leaving(
                queue, worker_id, "the worker deregistered"
            )
        return released
