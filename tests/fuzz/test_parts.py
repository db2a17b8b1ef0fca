"""The parts of the fuzzer, without a server."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from tests.fuzz.breaking import BREAKS
from tests.fuzz.calling import Outcome
from tests.fuzz.cases import Case
from tests.fuzz.inputs import Entry, Input, from_text, to_text
from tests.fuzz.judging import MOST_BYTES, judge
from tests.fuzz.learnt import Learnt
from tests.fuzz.pace import LAPS, MOST, Pace
from tests.fuzz.shrinking import shrink
from tests.fuzz.surface import methods
from tests.support.contract import errors, job_pb2, jobs, workers

KNOWN = methods()
SUBMIT = KNOWN["jobwire.v1.JobService/SubmitJob"]
BATCH = KNOWN["jobwire.v1.JobService/SubmitJobs"]
WORK = KNOWN["jobwire.v1.WorkerService/Work"]
SOME = jobs.SubmitJobRequest(spec=job_pb2.JobSpec(operation="op", labels={"a": "b"}))
ONE = Input(SUBMIT, (SOME.SerializeToString(),))


def _frames(case: Case) -> list[bytes]:
    frames = []
    while (frame := case.frame(len(frames))) is not None:
        frames.append(frame)
    return frames


def _drawn(seed: int, count: int = 300) -> list[tuple[str, str, list[bytes]]]:
    cases = [Case(seed, number, KNOWN, Learnt()) for number in range(count)]
    return [(case.input.method.name, case.input.ending, _frames(case)) for case in cases]


def test_a_seed_gives_one_sequence_of_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.0)
    assert _drawn(1) == _drawn(1)
    assert _drawn(1) != _drawn(2)


def test_every_method_is_called_and_most_streams_begin_as_they_should() -> None:
    drawn = _drawn(5, 2_000)
    assert {name for name, _, _ in drawn} == set(KNOWN)
    begins = [frames[0] for name, _, frames in drawn if name == WORK.name]
    attached = [frame for frame in begins if _is_attach(frame)]
    assert len(attached) > 0.7 * len(begins)
    assert len(attached) < len(begins)


def _is_attach(frame: bytes) -> bool:
    try:
        message = workers.WorkRequest.FromString(frame)
    except DecodeError:
        return False
    return bool(message.HasField("attach") and message.attach.worker.operations)


def test_what_answers_tell_is_taken_up() -> None:
    learnt = Learnt()
    job_id = "fuzz-a-01m83a0kes6dmbq1d05hcd8awx"
    assignment = workers.Assignment(job_id=job_id, fencing_token=77)
    learnt.hear(workers.ClaimJobResponse(assignments=[assignment]), "w3")
    assert learnt.lease("w3", random.Random(1)) == ("w3", job_id, 77)
    name = "jobwire.v1.WorkerService/CompleteJob"
    only = {name: KNOWN[name]}
    drawn = [Case(1, number, only, learnt).frame(0) or b"" for number in range(50)]
    assert sum(job_id.encode() in frame for frame in drawn) > 25


@pytest.mark.parametrize("broken", BREAKS, ids=lambda each: each.__name__.strip("_"))
def test_broken_bytes_are_not_the_message(broken: Any) -> None:
    data = SOME.SerializeToString()
    rng = random.Random(3)
    assert any(broken(rng, data) != data for _ in range(5))
    broken(rng, b"")


@pytest.mark.parametrize("seed", range(3))
def test_inputs_are_read_as_they_were_written(seed: int) -> None:
    for number in range(150):
        case = Case(seed, number, KNOWN, Learnt())
        what = replace(case.input, frames=tuple(_frames(case)))
        if what.size > 50_000:
            continue
        entry = Entry("why", (what, what))
        text = to_text(entry)
        assert from_text(text) == entry, text


def test_what_is_long_is_written_short() -> None:
    request = jobs.ListJobsRequest(
        page_token="[" * 100_000, filter=jobs.JobFilter(states=[2] * 10_000)
    )
    method = KNOWN["jobwire.v1.JobService/ListJobs"]
    entry = Entry("", (Input(method, (request.SerializeToString(),)),))
    assert len(to_text(entry)) < 300
    assert from_text(to_text(entry)) == entry


async def test_a_failing_input_is_made_small() -> None:
    request = jobs.SubmitJobsRequest(
        requests=[
            jobs.SubmitJobRequest(
                queue=f"q{number}",
                spec=job_pb2.JobSpec(
                    operation="op" * 20,
                    labels={"k": "v", "bad": "x"},
                    payload=job_pb2.Payload(json="{}"),
                ),
            )
            for number in range(30)
        ]
    )

    async def fails(what: Input) -> bool:
        try:
            read = jobs.SubmitJobsRequest.FromString(what.frames[0])
        except DecodeError:
            return False
        return any("bad" in one.spec.labels for one in read.requests)

    small = await shrink(Input(BATCH, (request.SerializeToString(),), timeout_s=10), fails, 500)
    (left,) = jobs.SubmitJobsRequest.FromString(small.frames[0]).requests
    assert left == jobs.SubmitJobRequest(spec=job_pb2.JobSpec(labels={"bad": "x"}))


async def test_of_a_stream_frames_go_and_of_bytes_those_that_do_not_matter() -> None:
    async def fails(what: Input) -> bool:
        return any(b"\xff\xff" in frame for frame in what.frames)

    frames = (*(SOME.SerializeToString() for _ in range(9)), b"abc\xff\xff" + b"d" * 30)
    small = await shrink(Input(WORK, frames), fails, 500)
    assert small.frames == (b"\xff\xff",)


def _refused(code: grpc.StatusCode, *details: Any, message: str = "why") -> Outcome:
    status = status_pb2.Status(code=code.value[0], message=message)
    for each in details:
        status.details.add().Pack(each)
    trailers = (("grpc-status-details-bin", status.SerializeToString()),)
    return Outcome(code=code, message="why", trailers=trailers)


INFO = error_details_pb2.ErrorInfo(reason="INVALID_FIELD", domain="jobwire")
INVALID = grpc.StatusCode.INVALID_ARGUMENT
ITEM = jobs.SubmitResult(error=errors.ItemError(code=13, message="oh"))
FAR = jobs.WatchJobResponse(bookmark=jobs.Bookmark())
FAR.bookmark.time.seconds = 10**12


@pytest.mark.parametrize(
    ("method", "outcome", "kind"),
    [
        (SUBMIT, Outcome(answers=[b""]), None),
        (SUBMIT, _refused(INVALID, INFO), None),
        (SUBMIT, Outcome(code=grpc.StatusCode.DEADLINE_EXCEEDED, gone=True), None),
        (SUBMIT, Outcome(code=grpc.StatusCode.UNAVAILABLE), None),
        (SUBMIT, Outcome(code=grpc.StatusCode.INTERNAL), "status"),
        (SUBMIT, Outcome(code=grpc.StatusCode.UNKNOWN), "status"),
        (SUBMIT, Outcome(code=grpc.StatusCode.DEADLINE_EXCEEDED), "hang"),
        (WORK, Outcome(hangs=True, gone=True), "hang"),
        (SUBMIT, Outcome(code=INVALID), "details"),
        (SUBMIT, _refused(INVALID), "details"),
        (SUBMIT, _refused(INVALID, error_details_pb2.ErrorInfo(reason="ODD")), "details"),
        (SUBMIT, _refused(INVALID, INFO, message="other"), "details"),
        (
            SUBMIT,
            Outcome(code=INVALID, trailers=(("grpc-status-details-bin", b"\xff"),)),
            "details",
        ),
        (SUBMIT, Outcome(answers=[b"\xff"]), "unreadable"),
        (
            KNOWN["jobwire.v1.JobService/WatchJob"],
            Outcome(answers=[FAR.SerializeToString()]),
            "unreadable",
        ),
        (SUBMIT, Outcome(answers=[bytes(MOST_BYTES + 1)]), "large"),
        (
            BATCH,
            Outcome(answers=[jobs.SubmitJobsResponse(results=[ITEM]).SerializeToString()]),
            "status",
        ),
    ],
)
def test_each_kind_of_failure_is_seen(method: Any, outcome: Outcome, kind: str | None) -> None:
    what = Input(method, ONE.frames)
    assert [failure.kind for failure in judge(what, outcome)] == ([kind] if kind else [])


def test_a_machine_is_compared_with_itself_at_its_best() -> None:
    laps = iter([0.004] * LAPS + [0.002] * LAPS + [0.003] * LAPS + [0.1] * LAPS)
    pace = Pace(lambda: next(laps))
    assert [pace.slowness() for _ in range(3)] == [1.0, 1.5, MOST]
