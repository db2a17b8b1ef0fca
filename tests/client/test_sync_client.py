"""The blocking client, driven through grpcio-testing: the test plays the server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grpc
import grpc_testing  # type: ignore[import-untyped]
import pytest

from jobwire import Client, JobHandle, JobState, NewJob, NotFound
from jobwire.v1 import admin_service_pb2, job_pb2, job_service_pb2

from tests.client.broker import reason, retry_info, rich_status

JOBS = job_service_pb2.DESCRIPTOR.services_by_name["JobService"]
ADMIN = admin_service_pb2.DESCRIPTOR.services_by_name["AdminService"]
OK = grpc.StatusCode.OK


class Played:
    """A client whose calls a test answers one by one."""

    def __init__(self) -> None:
        self.channel = grpc_testing.channel([JOBS, ADMIN], grpc_testing.strict_real_time())
        self.client = Client(channel=self.channel, timeout_s=10)
        self.threads = ThreadPoolExecutor()
        threading.Thread(target=self._refuse_the_stream, daemon=True).start()

    def _refuse_the_stream(self) -> None:
        """What is played is an older server."""
        _, rpc = self.channel.take_stream_stream(JOBS.methods_by_name["Produce"])
        rpc.terminate((), grpc.StatusCode.UNIMPLEMENTED, "Method not found!")

    def call(self, function: Any, *arguments: Any, **options: Any) -> Future[Any]:
        return self.threads.submit(function, *arguments, **options)

    def take_unary(self, method: str) -> tuple[Any, Any]:
        _, request, rpc = self.channel.take_unary_unary(JOBS.methods_by_name[method])
        rpc.send_initial_metadata(())
        return request, rpc

    def take_stream(self, method: str) -> tuple[Any, Any]:
        _, request, rpc = self.channel.take_unary_stream(JOBS.methods_by_name[method])
        rpc.send_initial_metadata(())
        return request, rpc


@pytest.fixture
def played() -> Iterator[Played]:
    made = Played()
    yield made
    made.threads.shutdown()


def refuse(rpc: Any, status: tuple[Any, ...]) -> None:
    code, message, metadata = status
    rpc.terminate(None, metadata, code, message)


def test_submit_returns_a_handle_of_the_accepted_job(played: Played) -> None:
    submitted = played.call(played.client.submit, "work", [1, 2], queue="images")
    request, rpc = played.take_unary("SubmitJob")
    rpc.terminate(
        job_service_pb2.SubmitJobResponse(
            job_id=request.job_id, state=job_pb2.JOB_STATE_PENDING, existed=True
        ),
        (),
        OK,
        "",
    )
    handle = submitted.result(timeout=10)
    assert isinstance(handle, JobHandle)
    assert request.spec.payload.json == "[1,2]"
    assert handle.id.startswith("images-")
    assert (handle.state, handle.existed) == (JobState.PENDING, True)


def test_submit_is_repeated_after_the_delay_the_server_names(played: Played) -> None:
    submitted = played.call(played.client.submit, "work")
    first, rpc = played.take_unary("SubmitJob")
    refuse(
        rpc,
        rich_status(
            grpc.StatusCode.UNAVAILABLE, "away", reason("STORE_UNAVAILABLE"), retry_info(0.05)
        ),
    )
    second, rpc = played.take_unary("SubmitJob")
    rpc.terminate(job_service_pb2.SubmitJobResponse(job_id=second.job_id), (), OK, "")
    assert submitted.result(timeout=10).id == first.job_id == second.job_id


def test_a_missing_job_raises_not_found_at_once(played: Played) -> None:
    got = played.call(played.client.get, "default-x")
    _, rpc = played.take_unary("GetJob")
    refuse(rpc, rich_status(grpc.StatusCode.NOT_FOUND, "no job", reason("JOB_NOT_FOUND")))
    error = got.exception(timeout=10)
    assert isinstance(error, NotFound)
    assert error.reason == "JOB_NOT_FOUND"


def test_submit_many_sends_one_call_for_a_small_batch(played: Played) -> None:
    submitted = played.call(
        played.client.submit_many, [NewJob(operation="a"), NewJob(operation="b")]
    )
    request, rpc = played.take_unary("SubmitJobs")
    answer = job_service_pb2.SubmitJobsResponse()
    for one in request.requests:
        answer.results.add().accepted.job_id = one.job_id
    rpc.terminate(answer, (), OK, "")
    ids = [handle.id for handle in submitted.result(timeout=10)]
    assert ids == [one.job_id for one in request.requests]


def test_result_reconnects_and_returns_the_value(played: Played) -> None:
    result = played.call(played.client.job("default-x").result, timeout=10)
    request, rpc = played.take_stream("WatchJob")
    running = job_pb2.Job(job_id="default-x", state=job_pb2.JOB_STATE_RUNNING, revision=4)
    rpc.send_response(job_service_pb2.WatchJobResponse(job=running))
    code, message, metadata = rich_status(grpc.StatusCode.UNAVAILABLE, "draining")
    rpc.terminate(metadata, code, message)
    again, rpc = played.take_stream("WatchJob")
    done = job_pb2.Job(
        job_id="default-x",
        state=job_pb2.JOB_STATE_SUCCEEDED,
        revision=5,
        result=job_pb2.Payload(data=b"\x00\x01"),
    )
    rpc.send_response(job_service_pb2.WatchJobResponse(job=running))
    rpc.send_response(job_service_pb2.WatchJobResponse(job=done))
    rpc.terminate((), OK, "")
    assert result.result(timeout=10) == b"\x00\x01"
    assert request == again
