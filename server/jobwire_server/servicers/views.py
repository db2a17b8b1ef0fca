"""How much of each job an answer carries."""

from __future__ import annotations

from jobwire.v1 import job_pb2
from jobwire_server.servicers.checks import Checker

_FULL = {job_pb2.JOB_VIEW_BASIC: False, job_pb2.JOB_VIEW_FULL: True}


def wants_full(checker: Checker, view: job_pb2.JobView.ValueType, *, unset: bool) -> bool:
    """Return whether a request wants everything of a job; note a view that is not known.

    Args:
        checker: Takes the violation.
        view: As the request has it.
        unset: What a request means that names none.
    """
    if view == job_pb2.JOB_VIEW_UNSPECIFIED:
        return unset
    if view not in _FULL:
        checker.add("view", f"must be BASIC or FULL, not {view}")
    return _FULL.get(view, unset)
