"""Answers to submissions, in bytes."""

from __future__ import annotations

from collections.abc import Iterable

from jobwire.v1 import job_service_pb2
from jobwire_server.domain.errors import JobwireError
from jobwire_server.domain.model import Accepted
from jobwire_server.servicers import convert, wire


def submit_response(answer: Accepted) -> job_service_pb2.SubmitJobResponse | bytes:
    """Return the answer to one submission."""
    if answer.existing_record is None and answer.state:
        return wire.accepted(answer.job_id, answer.state, in_batch=False)
    return _response(answer)


def submit_results(answers: Iterable[Accepted | JobwireError]) -> list[bytes]:
    """Return the answers to the submissions of a batch, each a serialized SubmitResult."""
    return [
        # Nearly all of them, so without another call.
        wire.accepted(answer.job_id, answer.state, in_batch=True)
        if type(answer) is Accepted and answer.existing_record is None and answer.state
        else _result(answer)
        for answer in answers
    ]


def _result(answer: Accepted | JobwireError) -> bytes:
    if isinstance(answer, JobwireError):
        result = job_service_pb2.SubmitResult(error=convert.item_error(answer))
    else:
        result = job_service_pb2.SubmitResult(accepted=_response(answer))
    return result.SerializeToString()


def _response(answer: Accepted) -> job_service_pb2.SubmitJobResponse:
    return job_service_pb2.SubmitJobResponse(
        job_id=answer.job_id,
        state=answer.state.value if answer.state else 0,  # type: ignore[arg-type]
        existed=answer.existed,
        forgotten=answer.state is None,
    )
