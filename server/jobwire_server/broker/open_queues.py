"""The queues that can get jobs: those that this server created or learned of."""

from __future__ import annotations

from jobwire_server.broker.lanes import QueueLanes, SubmitLane, submit_lane
from jobwire_server.broker.queue_clock import QueueClocks
from jobwire_server.domain.options import BrokerOptions
from jobwire_server.store.group_commit import Backlog
from jobwire_server.store.jobs import JobStore
from jobwire_server.store.queues import QueueStore
from jobwire_server.store.settings_cache import QueueSettingsCache
from jobwire_server.workers.dispatchers import Dispatchers


class OpenQueues:
    """The queues that can get jobs, each with the lane of its submissions and a clock that runs.

    Args:
        jobs: Where jobs are.
        queues: The registry of queues.
        options: For lanes.
        backlog: What all lanes share.
        settings: Of the queues.
        lanes: Kept for the queues that exist.
        clocks: Run for them.
        dispatchers: Told of jobs that are on their way.
    """

    def __init__(
        self,
        jobs: JobStore,
        queues: QueueStore,
        options: BrokerOptions,
        backlog: Backlog,
        settings: QueueSettingsCache,
        lanes: QueueLanes,
        clocks: QueueClocks,
        dispatchers: Dispatchers,
    ) -> None:
        self._jobs = jobs
        self._queues = queues
        self._options = options
        self._backlog = backlog
        self._settings = settings
        self._lanes = lanes
        self._clocks = clocks
        self._dispatchers = dispatchers
        self._open: dict[str, SubmitLane] = {}

    def find(self, queue: str) -> SubmitLane | None:
        """Return the lane of a queue that is known to exist, None for any other."""
        return self._open.get(queue)

    async def open(self, queue: str) -> SubmitLane:
        """Return the lane of a queue that gets jobs now; creates the queue.

        Raises:
            TooManyQueues: There are as many as there may be.
        """
        lane = self._open.get(queue)
        if lane is None:
            # Registered before its first job, so that no server overlooks it.
            await self._queues.register(queue, self._options.limits.max_queues)
            lane = self.adopt(queue)
        return lane

    def adopt(self, queue: str, *, quiet: bool = False) -> SubmitLane:
        """Return the lane of a queue that exists, and run its clock.

        Args:
            queue: Its name.
            quiet: No server has announced for long that it writes there.
        """
        lane = self._open.get(queue)
        if lane is None:
            lane = self._open[queue] = submit_lane(
                queue, self._jobs, self._options, self._backlog, self._settings, self._dispatchers
            )
            self._lanes.keep(queue)
            self._clocks.begin(queue, quiet=quiet)
        return lane

    async def forget(self, queue: str) -> None:
        """Keep nothing of a queue, which was deleted; its next job creates it anew."""
        # First, so that whoever submits from now on registers it.
        self._open.pop(queue, None)
        self._lanes.drop(queue)
        await self._clocks.end(queue)

    @property
    def names(self) -> set[str]:
        """The names of those that are open."""
        return set(self._open)
