"""The seam between a worker's core and its transports.

The core (`Host`) owns handlers, jobs and leases. A transport owns the conversation: it brings
assignments as there is room, keeps leases alive, passes on what the broker asks for, and carries
reports and completions until they are recorded. Apart from the waits that say so, neither side's
calls block: each leaves word, and the answer comes as a call in the other direction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from jobwire.errors import CallError
from jobwire.output import OutputLog
from jobwire.v1 import job_pb2, worker_service_pb2

# How long a worker that no server ever took keeps trying after a refusal that may be a proxy's
# word. One that was taken before keeps trying for as long as it lives.
START_PATIENCE_S = 10.0


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

    @property
    def capacity(self) -> int:
        """How many jobs it may hold at once now, those that have not ended included."""

    @property
    def stuck(self) -> int:
        """How many handlers go on although they were told to stop, and take places."""

    def free_slots(self) -> int:
        """How many more jobs it can take now."""

    async def wait_for_free_slots(self) -> int:
        """Waits until it can take jobs, and returns how many."""

    def leases(self) -> Sequence[worker_service_pb2.LeaseRef]:
        """The leases that it holds; those of running jobs first."""

    def assign(self, assignments: Iterable[worker_service_pb2.Assignment]) -> None:
        """Takes jobs; gives them back if it drains."""

    def cancel(self, notice: worker_service_pb2.CancelNotice) -> None:
        """Stops a handler whose job was cancelled."""

    def lose(self, leases: Iterable[worker_service_pb2.LeaseRef]) -> None:
        """Stops the handlers of leases that are known to be lost."""

    def lose_all(self) -> None:
        """Stops all handlers: the leases of this worker are gone."""

    def saved(self, lease: worker_service_pb2.LeaseRef, error: CallError | None) -> None:
        """The broker has a checkpoint in its store; or, with the error, does not take it."""

    def recorded(self, completions: Iterable[worker_service_pb2.Completion]) -> None:
        """The broker has these in its store."""

    def refused(self, completion: worker_service_pb2.Completion, error: CallError) -> None:
        """The broker does not take this one, and a repetition would change nothing."""

    def drain(self, why: str, until_s: float | None = None) -> None:
        """Ends the worker in an orderly way, within so many seconds; None: no limit."""


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
        """Takes no more jobs; the host gives back what is on its way still."""

    def heard_beside(self, at: float) -> None:
        """Note a call beside the transport that the broker answered.

        Called from another thread, while the loop stands still.

        Args:
            at: When the call began, by the loop's clock.
        """

    def capacity_changed(self) -> None:
        """Tells of a new `Host.capacity`."""

    def report(
        self,
        lease: worker_service_pb2.LeaseRef,
        progress: job_pb2.Progress | None,
        output: OutputLog | None = None,
        checkpoint: job_pb2.Payload | None = None,
    ) -> None:
        """Has a job's progress recorded, in place of an older report that still waits.

        Takes what it can from `output` as well, and goes on while more of that is due. A
        checkpoint is recorded with it, trying on while no server answers; the answer is
        `Host.saved`.
        """

    def complete(self, completions: Sequence[worker_service_pb2.Completion]) -> None:
        """Has the ends of attempts recorded, trying on while no server answers.

        The answer for each is `Host.recorded` or `Host.refused`.
        """

    async def close(self) -> None:
        """Ends the worker at the broker if a server can be reached, and closes the connection."""
