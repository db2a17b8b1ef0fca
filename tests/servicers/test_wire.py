"""Answers that are put together from serialized parts."""

from __future__ import annotations

import pytest

from jobwire.v1 import job_pb2, job_service_pb2
from jobwire_server.domain.ids import JobId
from jobwire_server.domain.model import Assignment
from jobwire_server.servicers import convert, wire
from jobwire_server.servicers.records import JobSpecRecords


@pytest.mark.parametrize("length", range(28, 64 + 27))
def test_the_answer_to_an_accepted_job_reads_as_it_was_meant(length: int) -> None:
    # At one length the byte that tells it is the character of which a part was once made.
    job_id = "q" * (length - 27) + "-" + "0" * 26
    state = job_pb2.JOB_STATE_PENDING
    meant = job_service_pb2.SubmitJobResponse(job_id=job_id, state=state)
    alone = wire.accepted(job_id, state, in_batch=False)
    assert job_service_pb2.SubmitJobResponse.FromString(alone) == meant
    item = wire.accepted(job_id, state, in_batch=True)
    assert job_service_pb2.SubmitResult.FromString(item).accepted == meant


def test_a_record_reaches_a_worker_without_being_read() -> None:
    content = b"\xff no message at all"
    record = content + JobSpecRecords().stamp(1_000)
    answer = wire.WorkResponse()
    convert.add_assignments(answer.assignments, [Assignment(JobId("q-1"), 1, 1, record)])
    assert content in answer.SerializeToString()
