"""What the broker adds to records, read back by protobuf."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jobwire.v1 import job_pb2
from jobwire_server.servicers.records import JobSpecRecords, content_of, created_at_ms, due_text


@given(
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True),
    st.integers(0, 4_000_000_000_000),
    st.integers(1, 4_000_000_000_000),
    st.binary(max_size=300),
)
def test_the_stamp_of_a_schedules_job_adds_labels_and_changes_nothing_else(
    schedule_id: str, due_ms: int, now_ms: int, data: bytes
) -> None:
    spec = job_pb2.JobSpec(operation="work", labels={"own": "1"}, priority=3)
    spec.payload.data = data
    stamp = JobSpecRecords().scheduled_stamp(schedule_id, due_ms, now_ms)
    record = spec.SerializeToString() + stamp
    expected = job_pb2.JobSpec()
    expected.CopyFrom(spec)
    expected.labels["jobwire.schedule"] = schedule_id
    expected.labels["jobwire.due"] = due_text(due_ms)
    assert job_pb2.JobSpec.FromString(content_of(record)) == expected
    assert created_at_ms(record) == now_ms


def test_a_moment_is_written_in_rfc_3339() -> None:
    assert due_text(1_800_000_000_000) == "2027-01-15T08:00:00Z"
    assert due_text(1_800_000_000_250) == "2027-01-15T08:00:00.250Z"
