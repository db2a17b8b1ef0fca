# ruff: noqa: N802 - methods have the names of the contract
"""What a newer server sends never crashes this release, and nothing is taken for something else."""

from __future__ import annotations

import pickle
from collections.abc import AsyncIterator
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any

import pytest

from jobwire import (
    AsyncBatchError,
    AsyncClient,
    AttemptOutcome,
    Context,
    FailureOrigin,
    Job,
    JobState,
    JobUnsuccessful,
    NewJob,
    OutputChunk,
    UnknownPayload,
    WorkerStatus,
)
from jobwire.cli.jobs import print_job
from jobwire.cli.output import to_json
from jobwire.v1 import job_pb2, worker_service_pb2
from jobwire.v1 import job_service_pb2 as jobs

from tests.client.broker import Broker
from tests.client.newer import ENDED, NEWER, newer
from tests.client.peer import Peer, peer, streaming

__all__ = ["peer"]

UNKNOWN = {"newer": b"what only a newer one reads"}
ID = "default-" + 26 * "0"


def newer_job(state: int = NEWER) -> job_pb2.Job:
    failure = {"type": "E", "details": UNKNOWN, "origin": NEWER}
    return newer(
        job_pb2.Job,
        job_id=ID,
        queue="default",
        spec={"operation": "work", "payload": UNKNOWN, "newer": b"x"},
        state=state,
        revision=3,
        finished_at=datetime.fromtimestamp(1, UTC) if state == ENDED else None,
        progress={"message": "half", "details": UNKNOWN},
        result=UNKNOWN if state == ENDED else None,
        checkpoint=UNKNOWN,
        failure=failure,
        attempts=[{"number": 1, "outcome": NEWER, "failure": failure, "newer": b"x"}],
        newer=b"x",
    )


async def test_a_state_that_is_not_known_is_shown_as_its_number(broker: Broker) -> None:
    broker.jobs[ID] = newer_job()
    async with AsyncClient(broker.target, timeout_s=20) as client:
        job = await client.get(ID)
        assert [one.state async for one in client.list_jobs()] == [job.state]
    assert (str(job.state), job.state.value, job.state.is_terminal) == ("77", "77", False)
    assert isinstance(job.state, JobState)
    assert not job.state.is_named
    assert job.state is JobState("77") is JobState.from_proto(NEWER)
    assert job.state.to_proto() == NEWER
    assert pickle.loads(pickle.dumps(job.state)) is deepcopy(job.state) is job.state
    (attempt,) = job.attempts
    assert (attempt.outcome, attempt.outcome.value) == (AttemptOutcome("77"), "77")
    assert attempt.failure is not None
    assert attempt.failure.origin is FailureOrigin("77")
    assert WorkerStatus("77").to_proto() == NEWER
    with pytest.raises(ValueError, match="NOT_A_STATE"):
        JobState("NOT_A_STATE")


class Newer(Broker):
    """Has a watched job end in a state that is not known, after events that are not known; answers
    an item of a batch in a way that is not known.
    """

    async def SubmitJobs(self, request: Any, context: Any) -> Any:
        accepted = {"accepted": {"job_id": ID, "state": NEWER}}
        return newer(jobs.SubmitJobsResponse, results=[{"newer": b"x"}, accepted])

    async def WatchJob(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self.enter("WatchJob", request, context)
        yield jobs.WatchJobResponse(job=newer_job(NEWER))
        yield newer(jobs.WatchJobResponse, newer=b"x", cursor="c")
        yield newer(jobs.WatchJobResponse, job={"job_id": ID, "state": 3, "revision": 4})
        yield jobs.WatchJobResponse(job=newer_job(ENDED))


@pytest.fixture
async def watched() -> AsyncIterator[Newer]:
    broker = Newer()  # type: ignore[abstract]
    broker.jobs[ID] = newer_job(ENDED)
    await broker.start()
    yield broker
    await broker.stop()


async def test_a_job_has_ended_if_it_says_when_whatever_its_state(watched: Newer) -> None:
    async with AsyncClient(watched.target, timeout_s=20) as client:
        seen = [
            job.state.value
            async for job in client.job(ID).watch(output=True)
            if not isinstance(job, OutputChunk)
        ]
        assert seen == ["77", "RUNNING", "78"]
        assert (await client.job(ID).wait(timeout=20)).state.is_terminal
        with pytest.raises(JobUnsuccessful, match="ended in 78"):
            await client.job(ID).result(timeout=20)


def test_a_payload_that_is_not_known_is_an_error_where_it_is_read_and_nowhere_else(
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = Job.from_proto(newer_job(ENDED))
    assert job.progress is not None
    assert job.failure is not None
    for name in ("payload", "result", "checkpoint"):
        with pytest.raises(UnknownPayload, match="use a newer one"):
            getattr(job, name)
    for told in (job.progress, job.failure):
        with pytest.raises(UnknownPayload):
            told.details  # noqa: B018 - reading it is what raises
    assert job.raw_payload.SerializeToString() == newer_job().spec.payload.SerializeToString()
    shown = to_json(job)
    assert (shown["state"], "newer one" in shown["payload"]["unreadable"]) == ("78", True)
    print_job(job)
    said = capsys.readouterr().out
    assert "78" in said
    assert said.count("does not know: use a newer one") == 3


async def test_an_outcome_of_an_item_that_is_not_known_is_no_acceptance(watched: Newer) -> None:
    async with AsyncClient(watched.target, timeout_s=20) as client:
        with pytest.raises(AsyncBatchError) as refused:
            await client.submit_many([NewJob(operation="a"), NewJob(operation="b")])
    assert "can't read" in str(refused.value.errors[0])
    assert [handle.state.value for handle in refused.value.handles] == ["77"]


def _newer_payload() -> job_pb2.Payload:
    return newer(job_pb2.Payload, **UNKNOWN)


async def test_a_worker_fails_what_it_can_not_read_by_name_and_runs_the_rest(peer: Peer) -> None:
    ran: list[str] = []

    def read(context: Context) -> Any:
        ran.append("begun")
        payload = context.payload
        ran.append("went on")
        return payload

    def resume(context: Context) -> Any:
        return context.checkpoint

    async with streaming(peer, read=read, resume=resume, plain=lambda context: "fine"):
        stream = await peer.stream()
        stream.outgoing.put_nowait(
            newer(worker_service_pb2.WorkResponse, newer=b"x", heartbeat={"newer": b"x"})
        )
        (unread,) = stream.assign("read", payload=_newer_payload())
        resumed = peer.new_job("resume")
        resumed.checkpoint.CopyFrom(_newer_payload())
        stream.send(assignments=[resumed])
        (plain,) = stream.assign("plain", payload=_newer_payload())
        for job_id in (unread, resumed.job_id):
            failure = (await stream.completion(job_id)).failure
            assert (failure.type, failure.non_retryable) == ("UnknownPayload", False)
            assert "use a newer one" in failure.message
        assert (await stream.completion(plain)).success.result.json == '"fine"'
    assert ran == ["begun"]
    assert len(peer.streams) == 1
