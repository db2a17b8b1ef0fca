"""The seam between a worker's core and its transports.

The core (`Host`) owns slots, handlers and leases. A transport owns the conversation: it brings
assignments as slots come free, keeps leases alive, passes on what the broker asks for, and
carries reports and completions. Calls on the host never block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from jobwire.v1 import job_pb2, worker_service_pb2


@dataclass(frozen=True, slots=True)
class Terms:
    """What the broker answered to a registration."""

    heartbeat_interval_s: float
    lease_s: float
    server_id: str


class Host(Protocol):
    """What a transport sees of the worker."""

    @property
    def spec(self) -> worker_service_pb2.WorkerSpec:
        """What the worker is and serves."""

    def free_slots(self) -> int:
        """How many more jobs it can take now."""

    async def wait_for_free_slots(self) -> int:
        """Waits until it can take jobs, and returns how many."""

    def leases(self) -> Sequence[worker_service_pb2.LeaseRef]:
        """The leases that it holds, to be renewed."""

    def assign(self, assignments: Iterable[worker_service_pb2.Assignment]) -> None:
        """Starts jobs, at most `free_slots` of them; gives back what it does not take."""

    def cancel(self, notice: worker_service_pb2.CancelNotice) -> None:
        """Stops a handler whose job was cancelled."""

    def lose(self, leases: Iterable[worker_service_pb2.LeaseRef]) -> None:
        """Stops the handlers of leases that are known to be lost."""

    def lose_all(self) -> None:
        """Stops all handlers: the broker does not know this worker any more."""

    def drain(self, why: str) -> None:
        """Ends the worker in an orderly way."""


class Transport(Protocol):
    """One way to talk to the broker. Used by one worker, on one event loop."""

    async def open(self, host: Host) -> Terms:
        """Registers the worker, trying on while no server answers.

        Raises:
            CallError: The broker refused the worker.
        """

    async def run(self) -> None:
        """Brings jobs and keeps leases until cancelled; outlives servers.

        Raises:
            CallError: The broker refused the worker for good.
        """

    async def stop_claiming(self) -> None:
        """Takes no more jobs; returns when none can arrive any more."""

    async def report(self, lease: worker_service_pb2.LeaseRef, progress: job_pb2.Progress) -> None:
        """Records a job's progress; on a failure to, drops it.

        Raises:
            LeaseLost: The job is no longer this worker's.
        """

    async def complete(
        self, completion: worker_service_pb2.Completion
    ) -> Sequence[worker_service_pb2.Assignment]:
        """Ends an attempt; returns when that is recorded, trying on while no server answers.

        Returns:
            At most one job, to start in the slot of the completed one.

        Raises:
            LeaseLost: The job is no longer this worker's.
            CallError: The broker refused the completion.
        """

    async def close(self) -> None:
        """Deregisters the worker if a server can be reached, and closes the connection."""
