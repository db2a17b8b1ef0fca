# Made from jobwire/_async by tools/unasync.py; edit that one.
"""The producers' and operators' client."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Unpack

import grpc

from jobwire._connection import ConnectionOptions, Tls
from jobwire._convert import Timeout, seconds_or_none
from jobwire._producing.parcels import HandedBack, News, Outcome, request_in, submissions
from jobwire._repeat import Deadline
from jobwire._requests import (
    LIGHT_BYTES,
    SubmitOptions,
    is_light,
    submission_frame,
    submit_batches,
    submit_request,
)
from jobwire._submitter import Submitter
from jobwire._sync.bulk import BulkMethods
from jobwire._sync.calls import Calls
from jobwire._sync.handle import BatchError, JobHandle
from jobwire._sync.jobs import JobMethods
from jobwire._sync.operators import OperatorMethods
from jobwire._sync.schedules import ScheduleMethods
from jobwire._sync.watching import JobEvent, JobWatch, Wish
from jobwire.errors import CallError, from_result
from jobwire.models import JobState, NewJob
from jobwire.payloads import from_payload
from jobwire.v1 import job_service_pb2 as jobs_pb2
from jobwire.v1.job_pb2 import JOB_STATE_SUCCEEDED, JOB_VIEW_FULL
from jobwire.v1.job_service_pb2 import FOLLOW_CONTENT_END, WATCH_CONTENT_ALL, JobEnd


class Client(JobMethods, BulkMethods, ScheduleMethods, OperatorMethods):
    """Submits jobs, watches them, and looks after schedules, queues and workers.

    Every call has a deadline and is repeated while the servers are unavailable or ask for
    patience; since ids are made before the call, a repeat never doubles a job. One client
    is safe across threads. Close it at the end, or use it in a `with` statement.

    Args:
        target: `HOST:PORT`, several of them separated by commas, or a gRPC target such as
            `dns:///jobwire.internal:50051`. None: `JOBWIRE_TARGET`, else 127.0.0.1:50051.
        channel: An open gRPC channel to use in place of `target`; it stays the caller's.
        timeout_s: For each call with its repeats, as seconds or timedelta; None: no limit.
        reconnect_s: How long a watch keeps trying while no server answers, as seconds or
            timedelta; None: no limit.
        tls: True for TLS with the default authorities, a `Tls` for others.
        credentials: gRPC channel credentials, in place of `tls`.
        metadata: Sent with every call, such as an `authorization` header.

    Raises:
        ValueError: An address is malformed, or a timeout is negative.
        Every method raises `CallError`: `InvalidRequest`, `NotFound`, `Unavailable`,
        `DeadlineExceeded` and the others of `jobwire.errors`.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        channel: grpc.Channel | None = None,
        timeout_s: Timeout = 30.0,
        reconnect_s: Timeout = 60.0,
        tls: bool | Tls = False,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        options = ConnectionOptions(
            target=target, tls=tls, credentials=credentials, metadata=dict(metadata or {})
        )
        self._timeout_s = seconds_or_none("timeout_s", timeout_s)
        self._reconnect_s = seconds_or_none("reconnect_s", reconnect_s)
        self._calls = Calls(options, channel, self._timeout_s, self._reconnect_s)
        self._submitter = Submitter(self._submit_one, self._submit_batch)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        self._calls.close()

    def submit(
        self,
        operation: str,
        payload: Any = None,
        **options: Unpack[SubmitOptions],
    ) -> JobHandle:
        """Submit one job; when it returns, the job is in the store.

        The call is repeated after a lost answer, and the job is accepted once all the same: its id
        is made here. To repeat a submission from another process, give it a `request_id`.

        Args:
            operation: The job's type, which picks the worker's handler.
            payload: The handler's input: a JSON value, bytes or a protobuf message.
            options: `queue`, `priority`, `labels`, `retry`, `delay` and whatever else a job may
                say: the fields of `NewJob`, which describes each.

        Raises:
            TypeError, ValueError: The payload or a time can't be carried.
            AlreadyExists: `job_id` or `request_id` was used for a job with other content.
            UniqueKeyTaken: `unique_key` refuses the job.
            QueueFull: The queue is at its limit, and stayed so.
        """
        job = NewJob(operation=operation, payload=payload, **options)
        data = submission_frame(job).SerializeToString()
        outcome = self._calls.producer.send(data, job.queue)
        if isinstance(outcome, jobs_pb2.SubmitJobResponse):
            return self._accepted(outcome, light=len(data) <= LIGHT_BYTES)
        return self._submit_without_stream(data, outcome)

    def _submit_without_stream(self, data: bytes, outcome: Outcome) -> JobHandle:
        """Go on by a call with what was not accepted on the stream."""
        if isinstance(outcome, CallError):
            raise outcome
        answer = self._submitter.submit(request_in(data))
        self._calls.producer.answered()
        return self._accepted(answer, light=len(data) <= LIGHT_BYTES)

    def call(
        self,
        operation: str,
        payload: Any = None,
        *,
        timeout: Timeout = None,
        **options: Unpack[SubmitOptions],
    ) -> Any:
        """Submit a job, wait until it has ended, and return its result as a Python value.

            total = client.call("invoice.total", {"id": 7}, timeout=30)

        It is one message each way where `submit` and `JobHandle.result` are two. The job is
        accepted once, however often the connection breaks. If the caller stops waiting, the job
        goes on.

        Args:
            operation: The job's type, which picks the worker's handler.
            payload: The handler's input: a JSON value, bytes or a protobuf message.
            timeout: For all of it, as seconds or timedelta; None: as long as the job takes.
            options: As for `submit`.

        Raises:
            TypeError, ValueError: The payload or a time can't be carried.
            AlreadyExists, UniqueKeyTaken, QueueFull: As for `submit`.
            JobFailed, JobCancelled, JobExpired: The job ended without a result.
            DeadlineExceeded: The job did not end within `timeout`; it keeps running if it was
                accepted.
        """
        deadline = Deadline(seconds_or_none("timeout", timeout))
        job = NewJob(operation=operation, payload=payload, **options)
        frame = submission_frame(job)
        data = frame.SerializeToString()
        frame.submissions[0].follow.content = FOLLOW_CONTENT_END
        outcome, job_id = self._calls.producer.call(
            frame.SerializeToString(), job.queue, deadline.for_call_s()
        )
        if isinstance(outcome, JobEnd) and outcome.state == JOB_STATE_SUCCEEDED:
            return from_payload(outcome.result)
        if not job_id or not isinstance(outcome, News):
            handle = self._submit_without_stream(data, outcome)
            return handle._result(HandedBack(), deadline)
        handle = JobHandle(self, job_id, light=len(data) <= LIGHT_BYTES)
        return handle._result(outcome, deadline)

    def submit_many(
        self, jobs: Iterable[NewJob], *, request_id: str | None = None
    ) -> Sequence[JobHandle]:
        """Submit many jobs in few calls and return their handles in the same order.

        Args:
            jobs: Any number of them, of any queues.
            request_id: Makes it safe to submit the same batch again, as for `submit`: it stands
                for a `request_id` in each job that has neither that nor a `job_id`. At most 56
                characters.

        Raises:
            BatchError: Some were refused; it carries the handles of the others. Items whose
                call failed as a whole carry that call's error; to repeat them is safe with the
                ids in `job_ids`, or with the same `request_id`.
        """
        batches = submit_batches(jobs, request_id)
        outcomes: list[JobHandle | CallError] = []
        for batch in batches:
            try:
                results = self._submit_all(batch)
            except CallError as error:
                outcomes += [error] * len(batch.requests)
                continue
            for request, result in zip(batch.requests, results, strict=True):
                if result.WhichOneof("outcome") == "accepted":
                    outcomes.append(self._accepted(result.accepted, light=is_light(request)))
                else:
                    outcomes.append(from_result(result))
        handles = [outcome for outcome in outcomes if isinstance(outcome, JobHandle)]
        if len(handles) < len(outcomes):
            raise BatchError(
                outcomes, [request.job_id for batch in batches for request in batch.requests]
            )
        return handles

    def _submit_all(self, batch: jobs_pb2.SubmitJobsRequest) -> Sequence[jobs_pb2.SubmitResult]:
        count = len(batch.requests)
        outcome = self._calls.producer.send(
            submissions(batch.requests), "", count=count, batch=True
        )
        if isinstance(outcome, list) and len(outcome) == count:
            return outcome
        if isinstance(outcome, CallError):
            raise outcome
        answer = self._submit_batch(batch)
        self._calls.producer.answered()
        return answer.results

    def _submit_one(self, request: jobs_pb2.SubmitJobRequest) -> jobs_pb2.SubmitJobResponse:
        return self._calls.unary(self._calls.jobs.SubmitJob, request, self._timeout_s)

    def _submit_batch(self, request: jobs_pb2.SubmitJobsRequest) -> jobs_pb2.SubmitJobsResponse:
        return self._calls.unary(self._calls.jobs.SubmitJobs, request, self._timeout_s)

    def _accepted(self, answer: jobs_pb2.SubmitJobResponse, *, light: bool) -> JobHandle:
        state = JobState.from_proto(answer.state)
        return JobHandle(
            self,
            answer.job_id,
            state,
            existed=answer.existed,
            forgotten=answer.forgotten,
            light=light,
        )

    def run(
        self,
        operation: str,
        payload: Any = None,
        *,
        cancel_on_disconnect: bool = False,
        timeout: Timeout = None,
        **options: Unpack[SubmitOptions],
    ) -> JobWatch[JobEvent]:
        """Submit a job and watch it in one call; return once the job is in the store.

        The job is created once, however often the connection breaks. Where `unique_key` or
        `request_id` stand for a job that exists, that one is watched.

        Args:
            operation: The job's type, which picks the worker's handler.
            payload: The handler's input: a JSON value, bytes or a protobuf message.
            cancel_on_disconnect: True: the job is cancelled if the watch is left, or this process
                dies, before the job has ended. False: the job keeps running.
            timeout: For the whole, as seconds or timedelta; None: as long as the job takes.
            options: As for `submit`.

        Raises:
            TypeError, ValueError: The payload or a time can't be carried.
            AlreadyExists: `job_id` or `request_id` was used for a job with other content.
            UniqueKeyTaken: `unique_key` refuses the job.
        """
        request = submit_request(NewJob(operation=operation, payload=payload, **options))
        wish = Wish(
            job_id=request.job_id,
            view=JOB_VIEW_FULL,
            content=WATCH_CONTENT_ALL,
            timeout_s=seconds_or_none("timeout", timeout),
            reconnect_s=self._reconnect_s,
        )
        watch: JobWatch[JobEvent] = JobWatch(
            self._calls,
            wish,
            submit=request,
            first_s=self._timeout_s,
            cancel_on_disconnect=cancel_on_disconnect,
        )
        watch.begin()
        return watch
