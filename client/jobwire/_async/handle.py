"""A submitted job in its producer's hands."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Literal, Protocol, TypeAlias, overload

from jobwire._async.calls import AsyncCalls
from jobwire._async.watching import AsyncJobWatch, JobEvent
from jobwire._convert import Seconds, Timeout, seconds_or_none
from jobwire._producing.parcels import News
from jobwire._repeat import Deadline
from jobwire._text import Decoders, Lines
from jobwire.errors import (
    CallError,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobUnsuccessful,
    JobwireError,
    NotFound,
)
from jobwire.models import Job, JobState, OutputChunk, OutputPosition
from jobwire.payloads import from_payload
from jobwire.v1 import job_pb2
from jobwire.v1.job_pb2 import JOB_STATE_SUCCEEDED
from jobwire.v1.job_service_pb2 import (
    WATCH_CONTENT_ALL,
    WATCH_CONTENT_OUTPUT,
    WATCH_CONTENT_STATES,
    JobEnd,
    WatchContent,
)

Start: TypeAlias = str | OutputPosition | None
"""Where the output of a watch begins."""


class Owner(Protocol):
    """What a handle asks of the client that made it."""

    _calls: AsyncCalls

    async def get(self, job_id: str) -> Job:
        """Return the job as it stands."""

    async def cancel(self, job_id: str, reason: str = "") -> Job:
        """Cancel the job."""

    async def retry_job(
        self,
        job_id: str,
        reason: str = "",
        *,
        delay: Seconds | None = None,
        request_id: str | None = None,
    ) -> Job:
        """Put the job back after its end."""

    def _watch_job(
        self,
        job_id: str,
        content: WatchContent.ValueType,
        *,
        full: bool,
        timeout: Timeout,
        **wishes: Any,
    ) -> AsyncJobWatch[Any]: ...


class AsyncJobHandle:
    """A job by its id.

    Attributes:
        id: `<queue>-<26 lower-case ULID characters>`.
        state: As the submission was answered; UNSPECIFIED for a handle made from an id.
        existed: True if the id had been submitted before, with the same content, or if another
            job holds the unique key and is answered.
        forgotten: True if the job that the request id stands for has ended and was forgotten
            since; `state` is then UNSPECIFIED.
    """

    __slots__ = ("_client", "_light", "existed", "forgotten", "id", "state")

    def __init__(
        self,
        client: Owner,
        job_id: str,
        state: JobState = JobState.UNSPECIFIED,
        *,
        existed: bool = False,
        forgotten: bool = False,
        light: bool = True,
    ) -> None:
        self._client = client
        self.id = job_id
        self.state = state
        self.existed = existed
        self.forgotten = forgotten
        self._light = light

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"

    async def get(self) -> Job:
        """Return the job as it stands."""
        return await self._client.get(self.id)

    @overload
    def watch(
        self, *, output: Literal[False] = False, timeout: Timeout = None
    ) -> AsyncJobWatch[Job]: ...
    @overload
    def watch(
        self,
        *,
        output: Literal[True],
        timeout: Timeout = None,
        start: Start = None,
        from_end: bool = False,
        skip_trimmed: bool = False,
    ) -> AsyncJobWatch[JobEvent]: ...
    def watch(
        self,
        *,
        output: bool = False,
        timeout: Timeout = None,
        start: Start = None,
        from_end: bool = False,
        skip_trimmed: bool = False,
    ) -> AsyncJobWatch[Any]:
        """Yield the job as it stands and again after every change, until it has ended.

        It reconnects by itself: no state comes twice, no byte of output is missed or comes twice.

        Args:
            output: True: also what the job writes out, as `OutputChunk`s between the states. All
                of it comes before the last state.
            timeout: For the whole watch, as seconds or timedelta; None: as long as the job takes.
            start: Where the output begins: the `cursor` of an earlier watch, or an
                `OutputPosition`; None: the beginning of what is kept.
            from_end: True: only output that is written from now on.
            skip_trimmed: True: skip output that is no longer kept.

        Raises:
            DeadlineExceeded: The job did not end within `timeout`.
            OutputTrimmed: Output between `start`, or the last break, and now is no longer kept.
        """
        return self._watch(
            WATCH_CONTENT_ALL if output else WATCH_CONTENT_STATES,
            timeout=timeout,
            start=start,
            from_end=from_end,
            skip_trimmed=skip_trimmed,
        )

    def __aiter__(self) -> AsyncJobWatch[JobEvent]:
        """Yield states and output, as `watch(output=True)` does."""
        return self.watch(output=True)

    def chunks(
        self,
        channel: str | None = None,
        *,
        timeout: Timeout = None,
        start: Start = None,
        from_end: bool = False,
        skip_trimmed: bool = False,
    ) -> AsyncGenerator[OutputChunk]:
        """Yield what the job writes out as it comes, with its position, until the job has ended.

        The arguments and errors are those of `output`.
        """
        watch: AsyncJobWatch[JobEvent] = self._watch(
            WATCH_CONTENT_OUTPUT,
            timeout=timeout,
            start=start,
            from_end=from_end,
            skip_trimmed=skip_trimmed,
        )
        return _chunks(watch, channel)

    async def output(
        self,
        channel: str | None = None,
        *,
        timeout: Timeout = None,
        start: Start = None,
        from_end: bool = False,
        skip_trimmed: bool = False,
    ) -> AsyncGenerator[str]:
        """Yield what the job writes out as lines of text, until the job has ended.

        Lines of different channels are kept apart, and come without their line ends. What an
        attempt leaves unfinished is a line too.

        Args:
            channel: Only this one, such as `stdout`; None: all.
            timeout: For the whole, as seconds or timedelta; None: as long as the job takes.
            start: The `cursor` of an earlier watch, or an `OutputPosition`; None: the beginning.
            from_end: True: only what is written from now on.
            skip_trimmed: True: skip output that is no longer kept.

        Raises:
            DeadlineExceeded: The job did not end within `timeout`.
            OutputTrimmed: Output between `start`, or the last break, and now is no longer kept.
        """
        lines = Lines()
        chunks = self.chunks(
            channel, timeout=timeout, start=start, from_end=from_end, skip_trimmed=skip_trimmed
        )
        async with aclosing(chunks):
            async for chunk in chunks:
                for line in lines.add(chunk):
                    yield line
        for line in lines.finish():
            yield line

    async def output_text(
        self,
        channel: str | None = None,
        *,
        timeout: Timeout = None,
        start: Start = None,
        from_end: bool = False,
        skip_trimmed: bool = False,
    ) -> AsyncGenerator[str]:
        """Yield text as it comes, whole characters but not whole lines: tokens, for instance.

        The arguments and errors are those of `output`.
        """
        decoders = Decoders()
        chunks = self.chunks(
            channel, timeout=timeout, start=start, from_end=from_end, skip_trimmed=skip_trimmed
        )
        async with aclosing(chunks):
            async for chunk in chunks:
                text = decoders.decode(chunk)
                if text:
                    yield text

    async def output_bytes(
        self,
        channel: str | None = None,
        *,
        timeout: Timeout = None,
        start: Start = None,
        from_end: bool = False,
        skip_trimmed: bool = False,
    ) -> AsyncGenerator[bytes]:
        """Yield bytes as they come.

        The arguments and errors are those of `output`.
        """
        chunks = self.chunks(
            channel, timeout=timeout, start=start, from_end=from_end, skip_trimmed=skip_trimmed
        )
        async with aclosing(chunks):
            async for chunk in chunks:
                yield chunk.data

    def _watch(
        self, content: WatchContent.ValueType, *, timeout: Timeout, **wishes: Any
    ) -> AsyncJobWatch[Any]:
        return self._client._watch_job(self.id, content, full=True, timeout=timeout, **wishes)

    async def wait(self, *, timeout: Timeout = None) -> Job:
        """Wait until the job has ended, however it ended, and return it.

        Args:
            timeout: Seconds or timedelta; None: as long as it takes.

        Raises:
            DeadlineExceeded: The job did not end within `timeout`; it keeps running.
        """
        deadline = Deadline(seconds_or_none("timeout", timeout))
        while True:
            watch = self._client._watch_job(
                self.id,
                WATCH_CONTENT_STATES,
                full=self._light,
                timeout=deadline.for_call_s(),
            )
            async for job in watch:
                last: Job = job
            if not self._light:
                last = await self.get()
            # It may have been redriven between the end of the watch and the call.
            if last.state.is_terminal:
                return last

    async def result(self, *, timeout: Timeout = None) -> Any:
        """Wait until the job has ended and return its result as a Python value.

        Args:
            timeout: Seconds or timedelta; None: as long as it takes.

        Raises:
            JobFailed, JobCancelled, JobExpired: The job ended without a result.
            DeadlineExceeded: The job did not end within `timeout`; it keeps running.
        """
        deadline = Deadline(seconds_or_none("timeout", timeout))
        return await self._result(await self._end_of(deadline), deadline)

    async def _end_of(self, deadline: Deadline) -> News:
        return await self._client._calls.producer.end_of(self.id, deadline.for_call_s())

    async def _result(self, news: News, deadline: Deadline) -> Any:
        """Return the result of the job, or raise why there is none.

        Args:
            news: What was heard of its end.
            deadline: For what else is to be waited for.
        """
        while isinstance(news, JobEnd):
            if news.state == JOB_STATE_SUCCEEDED:
                return from_payload(news.result)
            job = await self._as_ended(news)
            # It may have been redriven meanwhile.
            if job.state.is_terminal:
                return _result_of(job)
            news = await self._end_of(deadline)
        if isinstance(news, CallError):
            raise news
        return _result_of(await self.wait(timeout=deadline.for_call_s()))

    async def _as_ended(self, end: JobEnd) -> Job:
        try:
            return await self.get()
        except NotFound:
            # It is forgotten already; what its end told is all there is.
            ended = job_pb2.Job(job_id=self.id, state=end.state, failure=end.failure)
            ended.finished_at.SetInParent()
            return Job.from_proto(ended)

    async def cancel(self, reason: str = "") -> Job:
        """Cancel the job and return it: CANCELLED, or CANCELLING while it still runs."""
        return await self._client.cancel(self.id, reason)

    async def retry(
        self,
        reason: str = "",
        *,
        delay: Seconds | None = None,
        request_id: str | None = None,
    ) -> Job:
        """Put the job back after its end and return it; see `AsyncClient.retry_job`."""
        return await self._client.retry_job(self.id, reason, delay=delay, request_id=request_id)


class AsyncBatchError(JobwireError):
    """Some jobs of a batch were refused.

    Attributes:
        outcomes: A handle or a `CallError` for each job, in their order.
        job_ids: The id of each job, in the same order: what was refused can be submitted again
            under the same id without doubling it. Empty for jobs that were given a
            `request_id`, which serves the same end.
    """

    def __init__(
        self, outcomes: Sequence[AsyncJobHandle | CallError], job_ids: Sequence[str]
    ) -> None:
        self.outcomes = tuple(outcomes)
        self.job_ids = tuple(job_ids)
        index, first = next(iter(self.errors.items()))
        super().__init__(
            f"{len(self.errors)} of {len(self.outcomes)} jobs were refused; the first of them,"
            f" number {index}: {first}"
        )

    @property
    def handles(self) -> Sequence[AsyncJobHandle]:
        """The accepted jobs, in their order."""
        return [outcome for outcome in self.outcomes if isinstance(outcome, AsyncJobHandle)]

    @property
    def errors(self) -> dict[int, CallError]:
        """The refusals by position in the batch."""
        return {
            index: outcome
            for index, outcome in enumerate(self.outcomes)
            if isinstance(outcome, CallError)
        }


def _result_of(job: Job) -> Any:
    """Return the result of an ended job, or raise why there is none."""
    if job.state is JobState.FAILED:
        raise JobFailed(job)
    if job.state is JobState.CANCELLED:
        raise JobCancelled(job)
    if job.state is JobState.EXPIRED:
        raise JobExpired(job)
    if job.state is not JobState.SUCCEEDED:
        raise JobUnsuccessful(job, f"job {job.id} ended in {job.state}")
    return job.result


async def _chunks(
    watch: AsyncJobWatch[JobEvent], channel: str | None
) -> AsyncGenerator[OutputChunk]:
    async with aclosing(watch):
        async for event in watch:
            if isinstance(event, OutputChunk) and channel in (None, event.channel):
                yield event
