"""The producers' stream over a real channel."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import pytest

from jobwire.v1 import errors_pb2, job_pb2
from jobwire.v1 import job_service_pb2 as jobs
from jobwire.v1 import worker_service_pb2 as workers
from jobwire_server.broker.producer_session import MAX_FOLLOWS, MAX_UNANSWERED
from jobwire_server.domain.options import Limits

from tests.support.grpc_servers import Refused, Served, refused, served_broker
from tests.support.jobs import next_ulid

CHANGES = jobs.FOLLOW_CONTENT_CHANGES
OPENING = jobs.ProduceRequest(open=jobs.ProducerOpening())
BIG = Limits(max_message_bytes=16 << 20)


async def ended_with(stream: Any) -> Refused:
    """Reads a stream to its end; returns how it was refused."""
    try:
        while await stream.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return refused(error)
    raise AssertionError(await stream.code())


def request(operation: str = "echo", text: str = "1", **fields: Any) -> jobs.SubmitJobRequest:
    fields.setdefault("job_id", f"default-{next_ulid()}")
    payload = job_pb2.Payload(json=text)
    return jobs.SubmitJobRequest(
        spec=job_pb2.JobSpec(operation=operation, payload=payload), **fields
    )


class Producer:
    """One stream, read frame by frame into what has come so far."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.opened: jobs.ProducerOpened | None = None
        self.answers: dict[int, jobs.ProduceAnswer] = {}
        self.ends: dict[str, jobs.JobEnd] = {}
        self.states: dict[str, list[int]] = {}
        self.lost: dict[str, errors_pb2.ItemError] = {}
        self.drained = False
        self._sequence = 0

    async def send(self, **fields: Any) -> int:
        if fields.get("submissions") or fields.get("cancels"):
            self._sequence += 1
            fields["sequence"] = self._sequence
        await self.stream.write(jobs.ProduceRequest(**fields))
        return self._sequence

    async def read(self) -> None:
        frame = await self.stream.read()
        assert frame is not grpc.aio.EOF, await self.stream.code()
        if frame.HasField("opened"):
            assert self.opened is None
            self.opened = frame.opened
        for answer in frame.answers:
            assert answer.sequence not in self.answers
            self.answers[answer.sequence] = answer
        for end in frame.ends:
            assert end.job_id not in self.ends
            self.ends[end.job_id] = end
        for job in frame.jobs:
            self.states.setdefault(job.job_id, []).append(job.state)
        for lost in frame.lost_follows:
            self.lost[lost.job_id] = lost.error
        self.drained |= frame.HasField("drain")

    async def answer(self, sequence: int) -> jobs.ProduceAnswer:
        while sequence not in self.answers:
            await self.read()
        return self.answers[sequence]

    async def submit(
        self, *requests: jobs.SubmitJobRequest, follow: jobs.Follow | None = None
    ) -> list[Any]:
        items = [jobs.Submission(request=one, follow=follow) for one in requests]
        answer = await self.answer(await self.send(submissions=items))
        return [getattr(one, one.WhichOneof("outcome")) for one in answer.results]

    async def end(self, job_id: str) -> jobs.JobEnd:
        while job_id not in self.ends:
            await self.read()
        return self.ends[job_id]

    async def state(self, job_id: str, state: int) -> None:
        while state not in self.states.get(job_id, ()):
            await self.read()

    async def lose(self, job_id: str) -> errors_pb2.ItemError:
        while job_id not in self.lost:
            await self.read()
        return self.lost[job_id]


@asynccontextmanager
async def opened(served: Served, **first: Any) -> AsyncIterator[Producer]:
    stream = served.jobs.Produce()
    producer = Producer(stream)
    await producer.send(open=jobs.ProducerOpening(client="test/1", features=["new"]), **first)
    while producer.opened is None:
        await producer.read()
    try:
        yield producer
    finally:
        stream.cancel()


@pytest.fixture
async def producer(served: Served) -> AsyncIterator[Producer]:
    async with opened(served) as made:
        yield made


async def work(served: Served, outcome: Any, count: int = 1, queue: str = "default") -> list[str]:
    """Registers a worker, claims jobs and completes each; returns their ids."""
    spec = workers.WorkerSpec(worker_id="w1", operations=["echo"], queues=[queue])
    await served.workers.RegisterWorker(workers.RegisterWorkerRequest(worker=spec))
    claim = workers.ClaimJobRequest(worker_id="w1", max_jobs=count)
    found = await served.workers.ClaimJob(claim)
    for job in found.assignments:
        completion = workers.Completion(job_id=job.job_id, fencing_token=job.fencing_token)
        if isinstance(outcome, job_pb2.Failure):
            completion.failure.CopyFrom(outcome)
        else:
            completion.success.result.json = outcome
        await served.workers.CompleteJob(
            workers.CompleteJobRequest(worker_id="w1", completion=completion)
        )
    return [job.job_id for job in found.assignments]


async def test_the_opening_is_answered_with_how_the_stream_is_to_be_used(
    producer: Producer,
) -> None:
    assert producer.opened is not None
    assert producer.opened.server_id == "s1"
    assert producer.opened.heartbeat_interval.seconds == 5
    assert producer.opened.max_unanswered == MAX_UNANSWERED
    assert producer.opened.max_follows == MAX_FOLLOWS
    assert "produce" in producer.opened.features


async def test_each_item_of_a_frame_is_answered_by_itself_in_their_order(
    producer: Producer, served: Served
) -> None:
    good, other = request(), request(queue="other", job_id=f"other-{next_ulid()}")
    first, bad, last = await producer.submit(good, request(operation="no such name"), other)
    assert (first.job_id, first.state, first.existed) == (good.job_id, 1 + 1, False)
    assert bad.reason == errors_pb2.ERROR_REASON_INVALID_FIELD
    assert [one.field for one in bad.violations] == ["spec.operation"]
    assert last.job_id == other.job_id
    again, changed = await producer.submit(
        good, request(job_id=other.job_id, queue="other", text="2")
    )
    assert (again.job_id, again.existed) == (good.job_id, True)
    assert changed.reason == errors_pb2.ERROR_REASON_ALREADY_EXISTS
    found = await served.jobs.GetJob(jobs.GetJobRequest(job_id=good.job_id))
    assert found.job.spec.operation == "echo"


async def test_frames_may_be_sent_before_the_opening_is_answered(served: Served) -> None:
    one = request()
    items = [jobs.Submission(request=one)]
    async with opened(served, submissions=items) as producer:
        assert (await producer.answer(1)).results[0].accepted.job_id == one.job_id


async def test_jobs_of_one_queue_are_accepted_in_the_order_of_their_frames(
    served: Served, producer: Producer
) -> None:
    wanted = [request(text=str(at)) for at in range(60)]
    for at in range(0, 60, 3):
        items = [jobs.Submission(request=one) for one in wanted[at : at + 3]]
        last = await producer.send(submissions=items)
    for sequence in range(1, last + 1):
        await producer.answer(sequence)
    done = [job_id for _ in range(6) for job_id in await work(served, "0", 10)]
    assert done == [one.job_id for one in wanted]


@pytest.mark.parametrize(
    ("frames", "field"),
    [
        ([{}], "open"),
        ([{"submissions": [jobs.Submission(request=request())], "sequence": 1}], "open"),
        ([{"open": jobs.ProducerOpening(client="x" * 129)}], "open.client"),
        ([{"open": jobs.ProducerOpening(features=["x"] * 65)}], "open.features"),
        ([{"open": jobs.ProducerOpening()}, {"open": jobs.ProducerOpening()}], "open"),
        (
            [{"open": jobs.ProducerOpening()}, {"submissions": [jobs.Submission()]}],
            "sequence",
        ),
        ([{"open": jobs.ProducerOpening()}, {"cancels": [jobs.CancelJobRequest()]}], "sequence"),
        ([{"open": jobs.ProducerOpening()}, {"sequence": -1}], "sequence"),
        (
            [
                {"open": jobs.ProducerOpening()},
                {"sequence": 1, "submissions": [jobs.Submission()] * 11},
            ],
            "submissions",
        ),
        (
            [{"open": jobs.ProducerOpening()}, {"follows": [jobs.Follow()] * 1001}],
            "follows",
        ),
        ([{"open": jobs.ProducerOpening()}, {"unfollows": [""] * 1001}], "unfollows"),
        (
            [
                {"open": jobs.ProducerOpening()},
                {"sequence": 1, "cancels": [jobs.CancelJobRequest()] * 1001},
            ],
            "cancels",
        ),
    ],
)
async def test_a_frame_against_the_rules_ends_the_stream_and_names_the_field(
    served: Served, frames: list[dict[str, Any]], field: str
) -> None:
    stream = served.jobs.Produce()
    for frame in frames:
        with suppress(grpc.aio.AioRpcError):
            await stream.write(jobs.ProduceRequest(**frame))
    said = await ended_with(stream)
    assert said.code is grpc.StatusCode.INVALID_ARGUMENT
    assert said.fields == {field}


async def test_a_frame_without_any_field_changes_nothing_and_a_bare_sequence_is_answered(
    producer: Producer,
) -> None:
    await producer.send()
    await producer.stream.write(jobs.ProduceRequest(sequence=9))
    assert await producer.answer(9) == jobs.ProduceAnswer(sequence=9)


@pytest.mark.parametrize("result", ["1", '"' + "x" * 400 + '"'], ids=["short", "long"])
@pytest.mark.parametrize("early", [True, False], ids=["with the submission", "later"])
async def test_a_follower_hears_of_a_result(
    served: Served, producer: Producer, result: str, early: bool
) -> None:
    one = request()
    await producer.submit(one, follow=jobs.Follow() if early else None)
    if not early:
        await producer.send(follows=[jobs.Follow(job_id=one.job_id)])
    await work(served, result)
    end = await producer.end(one.job_id)
    assert (end.state, end.result.json) == (job_pb2.JOB_STATE_SUCCEEDED, result)


async def test_a_job_that_has_ended_already_is_told_at_once(
    served: Served, producer: Producer
) -> None:
    good, bad = request(), request()
    await producer.submit(good)
    await work(served, '"' + "y" * 300 + '"')
    await producer.submit(bad)
    await work(served, job_pb2.Failure(type="Bad", message="no", non_retryable=True))
    follows = [jobs.Follow(job_id=one.job_id) for one in (good, bad)]
    await producer.send(follows=follows)
    assert len((await producer.end(good.job_id)).result.json) == 302
    end = await producer.end(bad.job_id)
    assert (end.state, end.failure.type) == (job_pb2.JOB_STATE_FAILED, "Bad")
    assert not end.HasField("result")


async def test_a_follower_hears_of_a_failure_and_of_a_cancellation(
    served: Served, producer: Producer
) -> None:
    failing, cancelled = request(), request()
    await producer.submit(failing, follow=jobs.Follow())
    await work(served, job_pb2.Failure(type="Bad", message="no", non_retryable=True))
    end = await producer.end(failing.job_id)
    assert (end.state, end.failure.message) == (job_pb2.JOB_STATE_FAILED, "no")
    await producer.submit(cancelled, follow=jobs.Follow())
    unknown = f"default-{next_ulid()}"
    sequence = await producer.send(
        cancels=[
            jobs.CancelJobRequest(job_id=cancelled.job_id, reason="changed my mind"),
            jobs.CancelJobRequest(job_id=unknown),
            jobs.CancelJobRequest(job_id="nonsense", reason="x" * 513),
            jobs.CancelJobRequest(job_id=failing.job_id),
        ]
    )
    done, lost, bad, over = (await producer.answer(sequence)).cancels
    assert done.state == job_pb2.JOB_STATE_CANCELLED
    assert lost.error.reason == errors_pb2.ERROR_REASON_JOB_NOT_FOUND
    assert [one.field for one in bad.error.violations] == ["job_id", "reason"]
    assert over.error.reason == errors_pb2.ERROR_REASON_WRONG_STATE
    assert (await producer.end(cancelled.job_id)).state == job_pb2.JOB_STATE_CANCELLED


async def test_follows_of_what_does_not_exist_are_lost_and_say_why(producer: Producer) -> None:
    known, nowhere = f"default-{next_ulid()}", f"nowhere-{next_ulid()}"
    await producer.submit(request())
    await producer.send(
        follows=[
            jobs.Follow(job_id=known),
            jobs.Follow(job_id=nowhere),
            jobs.Follow(job_id="x"),
            jobs.Follow(job_id=f"default-{next_ulid()}", content=9),  # type: ignore[arg-type]
        ]
    )
    for job_id in known, nowhere:
        assert (await producer.lose(job_id)).reason == errors_pb2.ERROR_REASON_JOB_NOT_FOUND
    assert [one.field for one in (await producer.lose("x")).violations] == ["job_id"]
    (other,) = producer.lost.keys() - {known, nowhere, "x"}
    assert [one.field for one in producer.lost[other].violations] == ["content"]


async def test_a_follower_of_changes_sees_the_job_as_it_stands_and_each_state(
    served: Served, producer: Producer
) -> None:
    one = request()
    await producer.submit(one, follow=jobs.Follow(content=CHANGES, view=job_pb2.JOB_VIEW_FULL))
    await producer.state(one.job_id, job_pb2.JOB_STATE_PENDING)
    await work(served, "7")
    await producer.state(one.job_id, job_pb2.JOB_STATE_SUCCEEDED)
    assert one.job_id not in producer.ends
    states = producer.states[one.job_id]
    assert states == sorted(states)


async def test_a_submission_that_stands_for_another_job_follows_that_one(
    served: Served, producer: Producer
) -> None:
    (first,) = await producer.submit(request(request_id="again", job_id=""))
    repeat = jobs.Submission(request=request(request_id="again", job_id=""), follow=jobs.Follow())
    answer = await producer.answer(await producer.send(submissions=[repeat]))
    assert answer.results[0].accepted.job_id == first.job_id
    assert answer.results[0].accepted.existed
    await work(served, "3")
    assert (await producer.end(first.job_id)).result.json == "3"
    assert producer.ends.keys() == {first.job_id}


async def test_who_follows_no_longer_hears_nothing(served: Served, producer: Producer) -> None:
    left, kept = request(), request()
    await producer.submit(left, kept, follow=jobs.Follow())
    await producer.send(unfollows=[left.job_id, "nonsense", f"default-{next_ulid()}"])
    await producer.submit(request(operation="other"))
    assert len(await work(served, "1", 2)) == 2
    await producer.end(kept.job_id)
    assert left.job_id not in producer.ends


async def test_two_streams_may_follow_one_job(served: Served, producer: Producer) -> None:
    one = request()
    async with opened(served) as other:
        await producer.submit(one, follow=jobs.Follow())
        await other.send(follows=[jobs.Follow(job_id=one.job_id, content=CHANGES)])
        await other.state(one.job_id, job_pb2.JOB_STATE_PENDING)
        await work(served, "5")
        assert (await producer.end(one.job_id)).result.json == "5"
        await other.state(one.job_id, job_pb2.JOB_STATE_SUCCEEDED)


async def test_a_job_that_ends_by_another_server_is_told_too(
    served: Served, producer: Producer, valkey_url: str
) -> None:
    wanted = [request() for _ in range(3)]
    await producer.submit(*wanted, follow=jobs.Follow())
    async with served_broker(valkey_url) as elsewhere:
        await work(elsewhere, '"' + "z" * 400 + '"', 3)
    for one in wanted:
        assert len((await producer.end(one.job_id)).result.json) == 402


async def test_the_end_of_the_producers_side_is_answered_with_all_answers_and_ok(
    served: Served,
) -> None:
    async with opened(served) as producer:
        for _ in range(20):
            await producer.send(submissions=[jobs.Submission(request=request())])
        await producer.stream.done_writing()
        for sequence in range(1, 21):
            await producer.answer(sequence)
        assert await producer.stream.read() is grpc.aio.EOF
        assert await producer.stream.code() is grpc.StatusCode.OK


async def test_a_server_that_drains_says_so_and_ends_the_stream_when_nothing_is_unanswered(
    served: Served,
) -> None:
    one = request()
    async with opened(served) as producer:
        await producer.submit(one, follow=jobs.Follow())
        await served.broker.router.drain(20)
        while not producer.drained:
            await producer.read()
        assert (await ended_with(producer.stream)).reason == "SERVER_DRAINING"
        other = served.jobs.Produce()
        await other.write(OPENING)
        assert (await ended_with(other)).reason == "SERVER_DRAINING"


async def test_large_results_come_in_frames_that_any_client_takes(valkey_url: str) -> None:
    async with served_broker(valkey_url, BIG) as served, opened(served) as producer:
        wanted = [request() for _ in range(8)]
        await producer.submit(*wanted)
        await work(served, '"' + "r" * 900_000 + '"', 8)
        await producer.send(follows=[jobs.Follow(job_id=one.job_id) for one in wanted])
        for one in wanted:
            assert len((await producer.end(one.job_id)).result.json) == 900_002


async def test_a_fitting_frame_of_refusals_is_answered_in_frames_that_fit(
    valkey_url: str,
) -> None:
    labels = {f"bad label {at}": "x" for at in range(20)}
    spec = job_pb2.JobSpec(operation="no such name", labels=labels)
    bad = jobs.Submission(request=jobs.SubmitJobRequest(spec=spec))
    async with served_broker(valkey_url, BIG) as served, opened(served) as producer:
        sent = [await producer.send(submissions=[bad] * 300) for _ in range(10)]
        for sequence in sent:
            assert len((await producer.answer(sequence)).results) == 300


async def test_jobs_of_a_queue_are_accepted_in_order_whether_or_not_they_are_followed(
    served: Served, producer: Producer
) -> None:
    wanted = [request(queue="fresh", job_id=f"fresh-{next_ulid()}") for _ in range(12)]
    for at, one in enumerate(wanted):
        follow = jobs.Follow() if at % 3 == 0 else None
        last = await producer.send(submissions=[jobs.Submission(request=one, follow=follow)])
    for sequence in range(1, last + 1):
        await producer.answer(sequence)
    assert await work(served, "0", 10, "fresh") == [one.job_id for one in wanted[:10]]
    for one in wanted[:10:3]:
        await producer.end(one.job_id)


async def test_a_submission_with_a_follow_that_makes_no_sense_is_accepted_and_the_follow_lost(
    producer: Producer,
) -> None:
    one = request()
    (accepted,) = await producer.submit(one, follow=jobs.Follow(content=9))  # type: ignore[arg-type]
    assert accepted.job_id == one.job_id
    assert [each.field for each in (await producer.lose(one.job_id)).violations] == ["content"]


async def test_a_refused_submission_of_a_followed_job_does_not_end_its_follow(
    served: Served, producer: Producer
) -> None:
    one = request()
    await producer.submit(one, follow=jobs.Follow())
    other = request(text="2", job_id=one.job_id)
    (refusal,) = await producer.submit(other, follow=jobs.Follow())
    assert refusal.reason == errors_pb2.ERROR_REASON_ALREADY_EXISTS
    await work(served, "3")
    assert (await producer.end(one.job_id)).result.json == "3"
