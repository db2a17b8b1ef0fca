"""The store's methods about jobs, in one class."""

from __future__ import annotations

from jobwire_server.store.attempts import AttemptStore
from jobwire_server.store.cancels import CancelStore
from jobwire_server.store.handovers import HandoverStore
from jobwire_server.store.reads import ReadStore


class JobStore(HandoverStore, AttemptStore, CancelStore, ReadStore):
    """The jobs of all queues, through their whole life: one method for each script.

    Every method takes and answers batches of one queue. Each raises StoreUnavailable if the store
    does not answer, and those that write new data StoreFull.
    """
