"""The sessions of this server, by worker."""

from __future__ import annotations

from jobwire_server.domain.options import BrokerOptions
from jobwire_server.store.workers import AttachedWorker, superseded
from jobwire_server.workers.broker_parts import Attempts, Reports
from jobwire_server.workers.frames import Attach
from jobwire_server.workers.known_workers import KnownWorkers
from jobwire_server.workers.session import WorkerSession
from jobwire_server.workers.session_times import SessionTimes


class Sessions:
    """Makes sessions, and knows which of them is its worker's present one.

    Args:
        attempts: As for `WorkerSession`, and so are the others.
        server_id: Of this server.
    """

    def __init__(
        self,
        attempts: Attempts,
        reports: Reports,
        known: KnownWorkers,
        options: BrokerOptions,
        server_id: str,
    ) -> None:
        self._attempts = attempts
        self._reports = reports
        self._known = known
        self._options = options
        self._server_id = server_id
        self._number = 0
        self.by_worker: dict[str, WorkerSession] = {}

    def next_name(self) -> str:
        """Return the name of a session, unique over all servers."""
        self._number += 1
        return f"{self._server_id}/{self._number}"

    def begin(self, attach: Attach, name: str, found: AttachedWorker) -> WorkerSession:
        """Return the session of an attachment; ends the one that the worker had here."""
        spec = attach.spec
        self._known.learn(spec, found.status)
        older = self.by_worker.get(spec.worker_id)
        if older is not None:
            same = older.attach.instance == attach.instance
            older.end(superseded(spec.worker_id, found.since_ms, same))
        lease_ms = self._options.lease_of(spec)
        session = self.by_worker[spec.worker_id] = WorkerSession(
            attach,
            name,
            found.since_ms,
            lease_ms,
            SessionTimes.of(self._options, lease_ms),
            self._attempts,
            self._reports,
            self._known,
        )
        session.count_on(found.stats)
        return session

    def end(self, session: WorkerSession) -> bool:
        """Forget a session that is over; return False if its worker has a newer one here."""
        if self.by_worker.get(session.worker_id) is not session:
            return False
        del self.by_worker[session.worker_id]
        self._known.forget(session.worker_id)
        return True

    def __len__(self) -> int:
        return len(self.by_worker)

    @property
    def stuck(self) -> int:
        """Handlers of their workers that do not stop; asked from any thread."""
        return sum(session.stuck for session in list(self.by_worker.values()))
