"""The seam between a worker's core and its transports.

The core (`Host`) owns handlers, jobs and leases. A transport owns the conversation: it brings
assignments as there is capacity, keeps leases alive, passes on what the broker asks for, and
carries reports and completions until they are recorded. Except for the methods that wait, neither
side's calls block: the answer comes as a call in the other direction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from jobwire._convert import from_timestamp
from jobwire.errors import CallError
from jobwire.output import OutputLog
from jobwire.v1 import job_pb2, worker_service_pb2

# How long a worker that no server ever took keeps trying after a refusal that may be a proxy's
# word. One that was taken before keeps trying for as long as it lives.
START_PATIENCE_S = 10.0
# A stream or registration that lasted for less is followed by another one only after a wait, which
# grows from one to the next: whatever ended it may end them all.
STEADY_S = 1.0
# A worker names all its leases when it attaches; the contract allows this many.
MAX_LEASES = 10_000
# What this SDK can do beyond the first version of the contract, by the contract's names.
FEATURES = ("credit_bytes", "headers", "payload_metadata", "received", "status_metadata")


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
        """How many handlers keep running, and their slots, although they were told to stop."""

    def free_slots(self) -> int:
        """Return how many more jobs it can take now."""

    async def wait_for_free_slots(self) -> int:
        """Wait until it can take jobs, and return how many."""

    def leases(self) -> Sequence[worker_service_pb2.LeaseRef]:
        """Return the leases that it holds; those of running jobs first."""

    def assign(self, assignments: Iterable[worker_service_pb2.Assignment]) -> None:
        """Take jobs; give them back if it drains."""

    def cancel(self, notice: worker_service_pb2.CancelNotice) -> None:
        """Stop a handler whose job was cancelled."""

    def lose(self, leases: Iterable[worker_service_pb2.LeaseRef]) -> None:
        """Stop the handlers of leases that are known to be lost."""

    def lose_all(self) -> None:
        """Stop all handlers: the leases of this worker are gone."""

    def saved(self, lease: worker_service_pb2.LeaseRef, error: CallError | None) -> None:
        """Note that the broker has a checkpoint in its store or, with an error, refused it."""

    def recorded(self, completions: Iterable[worker_service_pb2.Completion]) -> None:
        """Note that the broker has these in its store."""

    def refused(self, completion: worker_service_pb2.Completion, error: CallError) -> None:
        """Note that the broker refused this one, and would again."""

    def drain(self, why: str, until_s: float | None = None) -> None:
        """Drain the worker within `until_s` seconds; None: no limit."""


class Transport(Protocol):
    """One way to talk to the broker. Used by one worker, on one event loop."""

    async def open(self, host: Host) -> Terms:
        """Register the worker, and keep trying while no server answers.

        Raises:
            CallError: The broker refused the worker.
        """

    async def run(self) -> None:
        """Bring jobs and keep leases until cancelled, over restarts of servers.

        Raises:
            CallError: The broker refused the worker for good.
        """

    async def stop_claiming(self) -> None:
        """Take no more jobs; the host gives back those already on their way."""

    def heard_beside(self, at: float) -> None:
        """Note a call beside the transport that the broker answered.

        Called from another thread, while the loop stands still.

        Args:
            at: When the call began, by the loop's clock.
        """

    def tell(self, metadata: worker_service_pb2.StatusMetadata) -> None:
        """Tell the broker of the worker, in place of what was told before; says in the log if the
        broker can't keep it.
        """

    def capacity_changed(self) -> None:
        """Note that `Host.capacity` has changed."""

    def report(
        self,
        lease: worker_service_pb2.LeaseRef,
        progress: job_pb2.Progress | None,
        output: OutputLog | None = None,
        checkpoint: job_pb2.Payload | None = None,
    ) -> None:
        """Report a job's progress, in place of an older report that still waits.

        Takes what it can from `output` as well, and continues while more of that is due. A
        checkpoint is recorded with it, and tried again while no server answers; the answer is
        `Host.saved`.
        """

    def complete(self, completions: Sequence[worker_service_pb2.Completion]) -> None:
        """Report the ends of attempts, and keep trying while no server answers.

        The answer for each is `Host.recorded` or `Host.refused`.
        """

    async def close(self) -> None:
        """End the worker at the broker if a server can be reached, and close the connection."""


def left_s(drain: worker_service_pb2.Drain) -> float | None:
    """Return the seconds until the deadline of a drain, None if it has none."""
    if not drain.HasField("deadline"):
        return None
    left = from_timestamp(drain.deadline) - datetime.now(UTC)
    return max(0.0, left.total_seconds())


def lacks(feature: str, what: str) -> str:
    """Return, for the log, that the broker does not have a feature."""
    return f"the broker does not have the feature {feature!r}, so {what}"
