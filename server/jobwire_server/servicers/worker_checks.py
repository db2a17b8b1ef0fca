"""What workers say of themselves, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jobwire.v1 import worker_service_pb2
from jobwire_server.domain.features import FEATURES
from jobwire_server.domain.ids import DEFAULT_QUEUE
from jobwire_server.domain.model import WorkerSpec, WorkerStatus
from jobwire_server.servicers.checks import Checker

MAX_WORKER_LABELS = 64
MAX_OPERATIONS = 512
MAX_CONCURRENCY = 1_000_000
MAX_STATUS_VALUE_BYTES = 256
MAX_FEATURES = 64
MAX_FEATURE_BYTES = 64

CHOOSABLE_STATUSES = frozenset(
    status.value for status in (WorkerStatus.READY, WorkerStatus.PAUSED, WorkerStatus.DRAINING)
)
"""What a worker may say of itself."""


def worker_status(checker: Checker, field: str, status: int) -> WorkerStatus | None:
    """Return the status that a worker chooses, None for no change."""
    if status == 0:
        return None
    if status not in CHOOSABLE_STATUSES:
        names = "WORKER_STATUS_READY, WORKER_STATUS_PAUSED or WORKER_STATUS_DRAINING"
        checker.add(field, f"must be {names}, or unset for no change, not {status}")
        return None
    return WorkerStatus(status)


def status_metadata(checker: Checker, field: str, entries: Mapping[str, str]) -> Mapping[str, str]:
    """Return what a worker tells of itself."""
    checker.labels(field, entries, most_bytes=MAX_STATUS_VALUE_BYTES)
    return dict(entries)


def known_features(checker: Checker, field: str, names: Sequence[str]) -> frozenset[str]:
    """Return those of the features that the other side supports which this server knows."""
    if len(names) > MAX_FEATURES:
        checker.add(field, f"may name at most {MAX_FEATURES}, not {len(names)}")
        return frozenset()
    for at, name in enumerate(names):
        checker.text(f"{field}[{at}]", name, MAX_FEATURE_BYTES)
    return frozenset(FEATURES).intersection(names)


def worker_spec(message: worker_service_pb2.WorkerSpec, field: str, checker: Checker) -> WorkerSpec:
    """Return a worker's description."""
    checker.worker_id(f"{field}.worker_id", message.worker_id)
    queues = checker.queues(f"{field}.queues", message.queues)
    operations = message.operations
    if not 0 < len(operations) <= MAX_OPERATIONS:
        text = f"must name 1 to {MAX_OPERATIONS} operations, not {len(operations)}"
        checker.add(f"{field}.operations", text)
        operations = []  # type: ignore[assignment]
    for at, name in enumerate(operations):
        checker.operation(f"{field}.operations[{at}]", name)
    checker.labels(f"{field}.labels", message.labels, MAX_WORKER_LABELS)
    checker.number(f"{field}.concurrency", message.concurrency, 0, MAX_CONCURRENCY)
    checker.text(f"{field}.client", message.client, 128)
    checker.text(f"{field}.build_id", message.build_id, 128)
    lease_ms = 0
    if message.HasField("lease_duration"):
        lease_ms = checker.duration_ms(
            f"{field}.lease_duration", message.lease_duration, 1000, 3_600_000
        )
    return WorkerSpec(
        worker_id=message.worker_id,
        queues=queues or (DEFAULT_QUEUE,),
        operations=frozenset(operations),
        labels=dict(message.labels),
        concurrency=message.concurrency,
        lease_ms=lease_ms,
        client=message.client,
        build_id=message.build_id,
    )
