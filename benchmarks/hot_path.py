"""hot-path: each unusual construction of the hot path against the plain way, in CPU time.

Size: `jobs` repetitions of each in a round. Nothing is started; docs/hot-path.md has the reasons.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import process_time_ns
from typing import Any

import grpc
import uvloop
from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client import CollectorRegistry, Counter, Histogram
from redis.asyncio.connection import Connection

from jobwire._stop import StopSignal
from jobwire.ids import UlidFactory as SdkUlids
from jobwire.models import NewJob as SdkJob
from jobwire.payloads import to_payload
from jobwire.v1 import job_pb2, job_service_pb2, worker_service_pb2
from jobwire.worker.held import Held
from jobwire.worker.outcomes import success
from jobwire.worker.tasks import TaskPool
from jobwire.worker.threads import ThreadPool
from jobwire_server.broker.new_jobs import NewJobs
from jobwire_server.domain import ids
from jobwire_server.domain.decisions.routing import route_of
from jobwire_server.domain.model import Assignment, Job, JobState, NewJob
from jobwire_server.domain.options import Limits
from jobwire_server.domain.store_clock import StoreClock
from jobwire_server.servicers import convert, wire
from jobwire_server.servicers.attempts import AttemptChecks
from jobwire_server.servicers.checks import Checker
from jobwire_server.servicers.interceptor import CallInterceptor
from jobwire_server.servicers.json_text import check_json
from jobwire_server.servicers.records import JobSpecRecords, content_of, moment_of, priority_of
from jobwire_server.servicers.submission import JobChecks, _route_of_names
from jobwire_server.servicers.watching import _encode_job
from jobwire_server.store.attempts import SUCCEEDED, SuccessToWrite, completed
from jobwire_server.store.connection.sending import TcpConnection
from jobwire_server.store.group_commit import Backlog, GroupCommit
from jobwire_server.telemetry.current_call import Call
from jobwire_server.telemetry.metrics import BOUNDS_S, MethodStats, RpcMetrics
from jobwire_server.watch.watched_job import JobEvent

from benchmarks.figures import Figure, Goal, compared
from benchmarks.frame import Benchmark, Plan, Size, check

BATCH = 100
PAYLOAD = b"p" * 256
ULID = "01jd0000000000000000000000"
JOB_ID = f"default-{ULID}"
PAYS = Goal("at most", 0.97)
"""What is not cheaper by so much is not worth being unusual."""
NOW_MS = 1_764_000_000_000


@dataclass(frozen=True, slots=True)
class Pair:
    """Two ways to the same end; each takes how often, and returns what it made last."""

    name: str
    plain: Callable[[int], Awaitable[Any]]
    ours: Callable[[int], Awaitable[Any]]
    per: int = 1
    """What one repetition does it for."""
    same: bool = True
    """Both make the same."""


def _repeated(step: Callable[[], Any]) -> Callable[[int], Awaitable[Any]]:
    async def run(count: int) -> Any:
        made: Any = None
        for _ in range(count):
            made = step()
        return made

    return run


def _pair(
    name: str,
    plain: Callable[[], Any],
    ours: Callable[[], Any],
    per: int = 1,
    *,
    same: bool = True,
) -> Pair:
    return Pair(name, _repeated(plain), _repeated(ours), per, same)


def _submissions() -> list[Pair]:
    clock = StoreClock()
    clock.told(NOW_MS)
    records = JobSpecRecords()
    fixed = StoreClock()
    make = ids.UlidFactory(fixed.now_ms)
    new_jobs = NewJobs(records, clock, make.job_id)
    checks = JobChecks(Limits(), new_jobs, clock.now_ms)
    spec = job_pb2.JobSpec(operation="noop", payload=job_pb2.Payload(data=PAYLOAD))
    request = job_service_pb2.SubmitJobRequest(job_id=JOB_ID, queue="default", spec=spec)  # type: ignore[arg-type]
    whole = re.compile(rf"({ids.QUEUE_PATTERN})-([0-7][{ids.ALPHABET}]{{25}})").fullmatch
    names = _route_of_names.__wrapped__
    route = route_of.__globals__["_route"].__wrapped__
    job = checks.check(request)
    assert isinstance(job, NewJob)
    defaults = tuple(NewJob._field_defaults.values())
    json_text = '{"id":123456,"name":"' + "n" * 200 + '","ok":true,"tags":["a","b"]}'

    def messages() -> bytes:
        answer = job_service_pb2.SubmitJobsResponse()
        for _ in range(BATCH):
            answer.results.add(accepted=job_service_pb2.SubmitJobResponse(job_id=JOB_ID, state=2))
        return answer.SerializeToString()

    def around() -> bytes:
        answers = [wire.accepted(JOB_ID, 2, in_batch=True) for _ in range(BATCH)]
        written: bytes = wire.SubmitJobsResponse(results=answers).SerializeToString()
        return written

    def fields() -> bool:
        return not (
            job.delay_ms
            or job.run_at_ms
            or job.retry is not None
            or job.execution_timeout_ms
            or job.expires_at_ms
            or job.deadline_ms
            or job.request is not None
            or job.unique is not None
            or job.retention_ms is not None
            or job.max_output_bytes
            or job.trim_output
            or job.queue_priority
            or job.keeps_zero
        )

    def split() -> tuple[str, str] | None:
        found = whole(JOB_ID)
        return (found[1], found[2]) if found else None

    def new_route() -> str:
        names("default", "noop")
        return str(route("noop", ()).id)

    return [
        _pair("answer around its id", messages, around, BATCH),
        _pair(
            "short way of a plain job",
            lambda: checks._unusual(request, Checker(""), clock.now_ms(), ""),
            lambda: checks.check(request),
            same=False,
        ),
        _pair("route by its names", new_route, lambda: _route_of_names("default", "noop").id),  # type: ignore[union-attr]
        _pair(
            "one stamp a millisecond",
            lambda: PAYLOAD + records.stamp(NOW_MS),
            lambda: PAYLOAD + new_jobs._stamp,
            same=False,
        ),
        _pair(
            "id counted up",
            lambda: f"default-{ids.ulid_from(NOW_MS, os.urandom(10))}",
            lambda: make.job_id("default"),
            same=False,
        ),
        _pair("job id cut by position", split, lambda: ids.split_job_id(JOB_ID)),
        _pair("tail of a tuple compared", fields, lambda: job[5:] == defaults),
        _pair(
            "JSON looked at, not read",
            lambda: json.loads(json_text),
            lambda: check_json(json_text),
            same=False,
        ),
    ]


def _record() -> bytes:
    spec = job_pb2.JobSpec(operation="noop", payload=job_pb2.Payload(data=PAYLOAD))
    return spec.SerializeToString() + JobSpecRecords().stamp(NOW_MS)


def _work() -> list[Pair]:
    stamp, record = JobSpecRecords().stamp(NOW_MS), _record()
    assignments = [Assignment(ids.JobId(JOB_ID), 7, 1, record)] * BATCH
    ended = worker_service_pb2.Completion(job_id=JOB_ID, fencing_token=7)
    ended.success.result.data = PAYLOAD
    checks = AttemptChecks(1 << 20)
    write = SuccessToWrite(ULID, "worker", 7, PAYLOAD)
    ulids = [ULID.encode()] * BATCH
    payload = job_pb2.Payload(data=b"p" * (64 << 10))
    large = job_pb2.JobSpec(operation="noop", payload=payload).SerializeToString() + stamp
    answers: list[Any] = [1] * BATCH

    def parsed() -> bytes:
        answer = worker_service_pb2.WorkResponse()
        for one in assignments:
            answer.assignments.append(
                worker_service_pb2.Assignment(
                    job_id=one.job_id,
                    fencing_token=one.fencing_token,
                    attempt=one.attempt,
                    spec=job_pb2.JobSpec.FromString(content_of(one.record)),
                    created_at=Timestamp.FromString(moment_of(one.record[-9:])),
                )
            )
        return answer.SerializeToString()

    def as_bytes() -> bytes:
        answer = wire.WorkResponse()
        convert.add_assignments(answer.assignments, assignments)
        written: bytes = answer.SerializeToString()
        return written

    def appended() -> bytes:
        answer = wire.WorkResponse()
        for one in assignments:
            made = wire.Assignment(
                job_id=one.job_id,
                fencing_token=one.fencing_token,
                attempt=one.attempt,
                spec=content_of(one.record),
                created_at=moment_of(one.record[-9:]),
            )
            answer.assignments.append(made)
        written: bytes = answer.SerializeToString()
        return written

    def all_acks() -> bytes:
        frame = worker_service_pb2.WorkRequest()
        for _ in range(BATCH):
            frame.acks.add(job_id=JOB_ID, fencing_token=7)
        return frame.SerializeToString()

    def extended() -> list[Any]:
        args: list[Any] = []
        for _ in range(BATCH):
            args += (write.ulid, write.worker_id, write.fencing_token, write.result)
        return args

    def flat() -> list[Any]:
        args: list[Any] = []
        for _ in range(BATCH):
            args += write
        return args

    return [
        _pair("records as bytes", parsed, as_bytes, BATCH),
        _pair("assignments in place", appended, as_bytes, BATCH),
        _pair("moment of a stamp", lambda: moment_of.__wrapped__(stamp), lambda: moment_of(stamp)),
        _pair(
            "short way of a result",
            lambda: checks.ended(Checker(), ended),
            lambda: checks.ended_or_refused(ended),
        ),
        _pair(
            "frames acknowledged by number",
            all_acks,
            lambda: worker_service_pb2.WorkRequest(received=1).SerializeToString(),
            BATCH,
            same=False,
        ),
        _pair("arguments in their order", extended, flat, BATCH),
        _pair(
            "ids of a queue by prefix",
            lambda: [ids.job_id_of("default", ulid.decode()) for ulid in ulids],
            lambda: ids.job_ids_of("default", ulids),
            BATCH,
        ),
        _pair(
            "priority without the record",
            lambda: job_pb2.JobSpec.FromString(content_of(large)).priority,
            lambda: priority_of(large),
        ),
        _pair(
            "one answer for all successes",
            lambda: [completed("default", ULID, 7, answer) for answer in answers],
            lambda: [
                SUCCEEDED if type(answer) is int else completed("default", ULID, 7, answer)
                for answer in answers
            ],
            BATCH,
        ),
    ]


def _calls() -> list[Pair]:
    words: list[Any] = ["EVALSHA", "d" * 40, 1, "jw:{default}:"]
    for _ in range(BATCH):
        words += (ULID, "0011223344556677", 0, "", "", PAYLOAD)
    connection = TcpConnection()
    stats = MethodStats("/a/B")
    registry = CollectorRegistry()
    counter = Counter("calls", "Calls.", ("method", "code"), registry=registry)
    times = Histogram("took", "Took.", ("method",), buckets=BOUNDS_S, registry=registry)

    class Metadata:
        def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
            return (("user-agent", "grpc-python/1.80"), ("x-request-id", "some-request"))

    metadata = Metadata()
    interceptor = CallInterceptor(RpcMetrics())
    handler = grpc.unary_unary_rpc_method_handler(_nothing)
    wrapped = {"/a/B": interceptor._wrap("/a/B", handler)}
    event = JobEvent(Job(ids.JobId(JOB_ID), "default", _record(), JobState.RUNNING, 3))

    def labelled() -> None:
        counter.labels("/a/B", "OK").inc()
        times.labels("/a/B").observe(0.002)

    def plain_numbers() -> None:
        stats.count("OK")
        stats.observe(0.002)

    class Writer:
        """All is with the kernel at once."""

        transport = property(lambda self: self)

        def write(self, data: bytes) -> None: ...

        def close(self) -> None: ...

        def writelines(self, data: Any) -> None: ...

        async def drain(self) -> None: ...

        def is_closing(self) -> bool:
            return False

        def get_write_buffer_size(self) -> int:
            return 0

    plain_socket, own_socket = Connection(socket_timeout=5), TcpConnection(socket_timeout=5)
    plain_socket._writer = own_socket._writer = Writer()  # type: ignore[assignment]
    plain_socket._reader = own_socket._reader = Writer()  # type: ignore[assignment]
    packed = [b"c" * 100]

    async def bounded(count: int) -> None:
        for _ in range(count):
            await plain_socket.send_packed_command(packed, check_health=False)

    async def unbounded(count: int) -> None:
        for _ in range(count):
            await own_socket.send_packed_command(packed, check_health=False)

    return [
        Pair("sends that need no timeout", bounded, unbounded),
        _pair(
            "script calls packed in C",
            lambda: b"".join(Connection.pack_command(connection, *words)),
            lambda: b"".join(connection.pack_command(*words)),
            BATCH,
        ),
        _pair("counts as plain numbers", labelled, plain_numbers),
        _pair(
            "methods wrapped once",
            lambda: interceptor._wrap("/a/B", handler),
            lambda: wrapped.get("/a/B"),
            same=False,
        ),
        _pair(
            "events encoded once",
            lambda: [_encode_job(event, True) for _ in range(BATCH)],
            lambda: [event.encoded.get(True) or _encode_job(event, True) for _ in range(BATCH)],
            BATCH,
        ),
        _pair(
            "request id when asked for",
            lambda: Call(metadata).request_id,
            lambda: Call(metadata),
            same=False,
        ),
    ]


class _Spelled:
    """As `Held`, with everything set for each job."""

    def __init__(self, assignment: Any, operation: Any, came_at: float, listener: Any) -> None:
        self.assignment = assignment
        self.job_id = assignment.job_id
        self.fencing_token = assignment.fencing_token
        self.operation = operation
        self.came_at = came_at
        self.signal = StopSignal()
        self._listener = listener
        for_all: Any = None
        self.stage = 0
        self.started_at = self.reported_at = self.output_at = 0.0
        self.void = self.has_spoken = False
        self.task = self.newest = self.timer = self.output = self.output_timer = for_all
        self.saving = self.next_saving = self.ends_at = self.end_timer = self.stop_timer = for_all


def _sdk() -> list[Pair]:
    from jobwire._requests import _fill_request, submit_request

    assignment = worker_service_pb2.Assignment(job_id=JOB_ID, fencing_token=7)
    listener: Any = None
    job = SdkJob(operation="noop", payload=PAYLOAD, job_id=JOB_ID)
    result = {"width": 120, "height": 80}
    count_up, each = SdkUlids(lambda: NOW_MS), SdkUlids()

    def appended() -> bytes:
        batch = job_service_pb2.SubmitJobsRequest()
        for _ in range(BATCH):
            batch.requests.append(submit_request(job))
        return batch.SerializeToString()

    def in_place() -> bytes:
        batch = job_service_pb2.SubmitJobsRequest()
        for _ in range(BATCH):
            _fill_request(batch.requests.add(), job)
        return batch.SerializeToString()

    def copied() -> Any:
        ended = worker_service_pb2.Success(result=to_payload(result))
        return worker_service_pb2.Completion(success=ended)

    def anew() -> str:
        each.begin_anew()
        return each.make()

    return [
        _pair("requests in place", appended, in_place, BATCH),
        _pair("result in place", copied, lambda: success(result)),
        _pair("SDK's id counted up", anew, count_up.make, same=False),
        _pair(
            "defaults on the class",
            lambda: _Spelled(assignment, None, 0.0, listener),
            lambda: Held(assignment, None, 0.0, listener),
            same=False,
        ),
        _pair("event when it is waited for", threading.Event, StopSignal, same=False),
    ]


async def _nothing(job: Any, context: Any = None) -> Any:
    return job


async def _through(commit: GroupCommit[int, int], count: int, *, forget: bool) -> int:
    """One caller after the other; `forget` has each gather as if others had come."""
    for _ in range(count):
        if forget:
            commit._lone_calls = 0
        await commit.one(1)
    return count


def _loops() -> list[Pair]:
    async def each_a_task(count: int) -> int:
        loop = asyncio.get_running_loop()
        ended = 0
        for _ in range(0, count, BATCH):
            tasks = [loop.create_task(_nothing(job)) for job in range(BATCH)]
            for task in tasks:
                ended += bool(await task or True)
        return ended

    async def shared_tasks(count: int) -> int:
        done = asyncio.Event()
        ended = 0

        def take(outcomes: Any) -> None:
            nonlocal ended
            ended += len(outcomes)
            done.set()

        pool: TaskPool[int, int] = TaskPool(_nothing, lambda job, task: None, take)
        for at in range(0, count, BATCH):
            pool.submit(range(BATCH))
            while ended < at + BATCH:
                done.clear()
                await done.wait()
        return ended

    async def executor(count: int) -> int:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(10) as threads:
            for _ in range(0, count, BATCH):
                runs = [loop.run_in_executor(threads, int) for _ in range(BATCH)]
                await asyncio.gather(*runs)
        return count

    async def own_threads(count: int) -> int:
        done = asyncio.Event()
        ended = 0

        def take(outcomes: Any) -> None:
            nonlocal ended
            ended += len(outcomes)
            done.set()

        pool: ThreadPool[int, int] = ThreadPool(10, str, lambda job: job, take)
        for at in range(0, count, BATCH):
            pool.submit(range(BATCH))
            while ended < at + BATCH:
                done.clear()
                await done.wait()
        pool.close()
        return ended

    async def write(items: Sequence[int]) -> Sequence[int]:
        return items

    lane: GroupCommit[int, int] = GroupCommit(write, Backlog(100, 1 << 20), linger_s=0.004)
    return [
        Pair(
            "a lone call at once",
            lambda count: _through(lane, count, forget=True),
            lambda count: _through(lane, count, forget=False),
        ),
        Pair("handlers share tasks", each_a_task, shared_tasks),
        Pair("threads wake one another", executor, own_threads),
    ]


def _turns(loop: Any, count: int) -> float:
    async def turn() -> int:
        began = process_time_ns()
        for _ in range(count):
            await asyncio.sleep(0)
        return process_time_ns() - began

    try:
        return float(loop.run_until_complete(turn())) / count
    finally:
        loop.close()


def pairs() -> list[Pair]:
    """Returns every construction that is compared."""
    return [*_submissions(), *_work(), *_calls(), *_sdk(), *_loops()]


async def compare(pair: Pair, repetitions: int, rounds: int) -> Figure:
    """Measures both ways by turns; one of them does it at least `repetitions` times a round."""
    count = max(BATCH, repetitions // pair.per // BATCH * BATCH)
    ours: list[float] = []
    base: list[float] = []
    for _ in range(rounds):
        made = []
        for way, times in ((pair.plain, base), (pair.ours, ours)):
            began = process_time_ns()
            made.append(await way(count))
            times.append((process_time_ns() - began) / count / pair.per)
        check(not pair.same or made[0] == made[1], f"{pair.name}: the two ways differ")
    return compared(pair.name, ours, "ns", against="the plain way", base=base, goal=PAYS)


def compare_loops(turns: int, rounds: int) -> Figure:
    """Measures the event loops themselves; for a thread without one."""
    ways: tuple[Callable[[], Any], ...] = (asyncio.new_event_loop, uvloop.new_event_loop)
    plain, ours = zip(*([_turns(way(), turns) for way in ways] for _ in range(rounds)), strict=True)
    name = "a turn of uvloop"
    return compared(name, ours, "ns", against="the plain way", base=plain, goal=PAYS)


async def run(plan: Plan) -> list[Figure]:
    """Measures all of them."""
    size = plan.size
    figures = [await compare(pair, size.jobs, size.rounds) for pair in pairs()]
    return [*figures, await asyncio.to_thread(compare_loops, size.jobs, size.rounds)]


BENCHMARK = Benchmark(
    name="hot-path",
    summary="unusual constructions of the hot path against the plain way; starts nothing",
    run=run,
    full=Size(jobs=20_000, rounds=9),
    short=Size(jobs=2_000, rounds=3),
    in_short=False,
)
