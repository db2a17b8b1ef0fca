# ruff: noqa: N802 - methods have the names of the contract
"""A broker whose producers' streams do as a test tells them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from jobwire._convert import to_duration
from jobwire.v1 import errors_pb2, job_pb2
from jobwire.v1 import job_service_pb2 as jobs

from tests.client.broker import TERMINAL, Broker, rich_status
from tests.client.newer import newer


class Stream:
    """One producer's stream."""

    def __init__(self) -> None:
        self.frames: list[jobs.ProduceRequest] = []
        self.outgoing: asyncio.Queue[Any] = asyncio.Queue()
        self.follows: dict[str, jobs.Follow] = {}
        self.told: dict[str, int] = {}
        self.peer = ""
        self.half_closed = self.ended = self.mute = False

    def say(self, **fields: Any) -> None:
        self.outgoing.put_nowait(jobs.ProduceResponse(**fields))

    def end(self, *status: Any) -> None:
        self.outgoing.put_nowait(status)

    @property
    def submitted(self) -> list[str]:
        return [s.request.job_id for frame in self.frames for s in frame.submissions]


class StreamBroker(Broker):
    """Adds `Produce` to the broker of the other tests.

    Attributes:
        streams: All so far.
        mute: True: streams are read and nothing is said.
        opens: False: nor do they open.
        holds: True: submissions are taken and answered when `answer` is called.
        keeps: The same for these operations.
        refusals: Errors for the next submissions of these job ids, one each.
        lost_follows: Errors for the next follows of these job ids.
        end_on: Called with each frame; what it returns ends the stream with that status.
        max_unanswered: As told.
        interval_s: As told.
    """

    def __init__(self) -> None:
        super().__init__()
        self.streams: list[Stream] = []
        self.mute = self.holds = self.newer = False
        self.opens = True
        self.keeps: set[str] = set()
        self.held: list[tuple[Stream, jobs.ProduceRequest]] = []
        self.refusals: dict[str, list[errors_pb2.ItemError]] = {}
        self.lost_follows: dict[str, list[errors_pb2.ItemError]] = {}
        self.end_on: Callable[[Stream, jobs.ProduceRequest], Any] = lambda stream, frame: None
        self.max_unanswered = 1000
        self.max_follows = 100_000
        self.interval_s = 5.0
        self.finishes: dict[str, str] = {}
        """Operations whose jobs succeed at once, with these results."""

    @property
    def live(self) -> list[Stream]:
        return [stream for stream in self.streams if not stream.ended]

    def unanswered(self, stream: Stream) -> int:
        return sum(len(frame.submissions) for of, frame in self.held if of is stream)

    async def Produce(self, requests: Any, context: Any) -> Any:
        stream = Stream()
        stream.peer = context.peer()
        self.streams.append(stream)
        await self.enter("Produce", None, context)
        reader = asyncio.create_task(self._read_all(requests, stream))
        watcher = asyncio.create_task(self._tell(stream))
        try:
            while True:
                said = await stream.outgoing.get()
                if said is None:
                    return
                if isinstance(said, tuple):
                    if said:
                        await context.abort(*said)
                    return
                if not (self.mute or stream.mute):
                    await context.write(said)
        finally:
            stream.ended = True
            for task in (reader, watcher):
                task.cancel()
            await asyncio.gather(reader, watcher, return_exceptions=True)
            await self.touch()

    async def _read_all(self, requests: AsyncIterator[jobs.ProduceRequest], stream: Stream) -> None:
        async for frame in requests:
            stream.frames.append(frame)
            status = self.end_on(stream, frame)
            if status is not None:
                stream.end(*status)
                return
            if frame.HasField("open") and self.opens:
                stream.say(
                    opened=jobs.ProducerOpened(
                        server_id="test",
                        heartbeat_interval=to_duration(self.interval_s),
                        max_unanswered=self.max_unanswered,
                        max_follows=self.max_follows,
                    )
                )
            for job_id in frame.unfollows:
                stream.follows.pop(job_id, None)
            for follow in frame.follows:
                self._follow(stream, follow.job_id, follow)
            operations = {item.request.spec.operation for item in frame.submissions}
            if operations & self.keeps or (operations and self.holds):
                self.held.append((stream, frame))
            elif frame.sequence:
                self._answer(stream, frame)
            await self.touch()
        stream.half_closed = True
        stream.outgoing.put_nowait(None)
        await self.touch()

    def answer(self) -> None:
        """Answer what was held."""
        held, self.held = self.held, []
        for stream, frame in held:
            self._answer(stream, frame)

    def _answer(self, stream: Stream, frame: jobs.ProduceRequest) -> None:
        answer = jobs.ProduceAnswer(sequence=frame.sequence)
        for item in frame.submissions:
            request = item.request
            waiting = self.refusals.get(request.job_id) or self.refusals.get(request.spec.operation)
            if waiting:
                answer.results.add().error.CopyFrom(waiting.pop(0))
                continue
            accepted = self.accept(request)
            answer.results.add().accepted.CopyFrom(accepted)
            job = self.jobs[accepted.job_id]
            if job.state not in TERMINAL and request.spec.operation in self.finishes:
                job.state = job_pb2.JOB_STATE_SUCCEEDED
                job.result.json = self.finishes[request.spec.operation]
                job.revision += 1
            if item.HasField("follow"):
                self._follow(stream, accepted.job_id, item.follow)
        said = newer(jobs.ProduceResponse, newer=b"later") if self.newer else jobs.ProduceResponse()
        said.answers.append(answer)
        stream.outgoing.put_nowait(said)

    def _follow(self, stream: Stream, job_id: str, follow: jobs.Follow) -> None:
        waiting = self.lost_follows.get(job_id)
        if waiting:
            stream.say(lost_follows=[jobs.FollowEnd(job_id=job_id, error=waiting.pop(0))])
        elif job_id not in self.jobs:
            error = errors_pb2.ItemError(
                code=5,
                message=f"no job {job_id}",
                reason=errors_pb2.ERROR_REASON_JOB_NOT_FOUND,
            )
            stream.say(lost_follows=[jobs.FollowEnd(job_id=job_id, error=error)])
        else:
            stream.follows[job_id] = follow
            stream.told.pop(job_id, None)

    async def _tell(self, stream: Stream) -> None:
        while True:
            async with self.changed:
                frame = jobs.ProduceResponse()
                for job_id, follow in [*stream.follows.items()]:
                    job = self.jobs[job_id]
                    ended = job.state in TERMINAL
                    if ended:
                        del stream.follows[job_id]
                    if follow.content == jobs.FOLLOW_CONTENT_CHANGES:
                        if job.revision > stream.told.get(job_id, 0):
                            stream.told[job_id] = job.revision
                            frame.jobs.add().CopyFrom(job)
                    elif ended:
                        end = frame.ends.add(job_id=job_id, state=job.state)
                        if job.HasField("result"):
                            end.result.CopyFrom(job.result)
                        if job.HasField("failure"):
                            end.failure.CopyFrom(job.failure)
                if frame.ends or frame.jobs:
                    stream.outgoing.put_nowait(frame)
                await self.changed.wait()

    async def finish(self, job_id: str, result: str = '"done"') -> None:
        """End a job well."""
        job = self.jobs[job_id]
        job.state = job_pb2.JOB_STATE_SUCCEEDED
        job.result.json = result
        await self.touch(job)


def broke(code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE, message: str = "broke") -> Any:
    """A status to end a stream with."""
    return rich_status(code, message)
